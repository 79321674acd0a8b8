"""What experiments found, on disk and as one page."""

import base64
import collections
import csv
import dataclasses
import io
import math
import pathlib
import re

import jinja2
import matplotlib
import tensorflow as tf

from kinv import files, measures
from kinv.analysis import grids

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
# Resolution of PNGs; and of the page, whose pixels a sharp screen divides.
DPI = 200
PAGE_DPI = 100
# Rows of a table on the page; its CSV has all of them.
MOST_ROWS = 1000
# A factor is called kept if so much of its variance can be read, and an
# inversion complete if it shows so much of what is known beyond the class.
KEPT = 0.8
_NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d+)?(e[+-]\d+)?|nan|inf)", re.ASCII)


def write_result(directory, title, result, with_pdf=False):
    """Writes what an experiment found, all of it or nothing.

    Args:
        directory: of this experiment; created. One that holds files already
            stays as it is, and an `OSError` says so.
        title: of the experiment.
        result: `results.Result`.
        with_pdf: whether figures are also written as vector PDF.
    """
    directory = pathlib.Path(directory)
    with files.atomic_path(directory) as temporary:
        temporary.mkdir()
        for name, rows in result.tables.items():
            _write_table(temporary / f"{name}.csv", rows)
        for figure in result.figures:
            figure.drawing.savefig(temporary / f"{figure.name}.png", dpi=DPI)
            if with_pdf:
                # Text stays text, in fonts that can be edited. Without the
                # date, so that equal figures are equal files.
                with matplotlib.rc_context({"pdf.fonttype": 42}):
                    figure.drawing.savefig(
                        temporary / f"{figure.name}.pdf",
                        metadata={"CreationDate": None},
                    )
        files.write_json(
            temporary / "metrics.json",
            {
                "title": title,
                "metrics": result.metrics,
                "claims": [
                    dataclasses.asdict(claim) for claim in result.claims
                ],
                "figures": [
                    {
                        "name": figure.name,
                        "caption": figure.caption,
                        "width": round(
                            figure.drawing.get_figwidth() * PAGE_DPI
                        ),
                    }
                    for figure in result.figures
                ],
                "tables": list(result.tables),
            },
        )


def _write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: f"{value:.6g}" if isinstance(value, float) else value
                    for key, value in row.items()
                }
            )


def write_summaries(directory, experiment, result):
    """Writes figures and scalars of an experiment for TensorBoard.

    To a file of its own, whose name ends in that of the experiment.
    """
    writer = tf.summary.create_file_writer(
        str(directory), filename_suffix=f".{experiment}"
    )
    with writer.as_default(step=0):
        for figure in result.figures:
            tf.summary.image(
                f"{experiment}/{figure.name}",
                grids.render(figure.drawing)[None],
                description=figure.caption,
            )
        for name, value in _scalars(result.metrics):
            tf.summary.scalar(f"{experiment}/{name}", value)
    writer.close()


def _scalars(value, name=""):
    """Numbers of nested dicts, by path; a summary counts as its value."""
    if isinstance(value, dict):
        if "value" in value:
            yield from _scalars(value["value"], name)
            return
        for key, part in value.items():
            yield from _scalars(part, f"{name}/{key}" if name else key)
    elif isinstance(value, int | float):
        yield name, value


def write_report(directory, experiments, about):
    """Gathers the experiments' directories in one page and one JSON file.

    Args:
        directory: of the results; `report.html`, with every picture, and
            `metrics.json` are written there.
        experiments: names of sub-directories, in the order of the page.
        about: dict of what the results were computed from and how, by name.
            `models` are dicts by label: `path`, `metadata` (a line), `inverted`
            (`logits` or features of a layer) and what was `exported` as
            `metrics` of `kinv.json`.
    """
    directory = pathlib.Path(directory)
    written = {
        name: files.read_json(directory / name / "metrics.json")
        for name in experiments
    }
    claims = sorted(
        (claim for result in written.values() for claim in result["claims"]),
        key=lambda claim: [int(n) for n in claim["section"].split(".")],
    )
    measured = {name: result["metrics"] for name, result in written.items()}
    shown = {
        name: metrics["within_class_r2"]
        for name, metrics in measured.get("reconstructions", {}).items()
        if metrics["within_class_r2"]["value"] is not None
    }
    calibration = _calibration(about["models"], measured.get("calibration", {}))
    page = _template().render(
        sections=[
            _section(directory, name, result)
            for name, result in written.items()
        ],
        findings=findings(about["models"], measured, calibration),
        claims=claims,
        within_class_r2=shown,
        calibration=calibration,
        low_within_class_r2=measures.LOW_WITHIN_CLASS_R2,
        advice=measures.WITHIN_CLASS_ADVICE,
        counts=collections.Counter(claim["verdict"] for claim in claims),
        about=about,
        most_rows=MOST_ROWS,
    )
    with files.atomic_path(directory / "report.html") as temporary:
        temporary.write_text(page, "utf-8", "replace")
    files.write_json(
        directory / "metrics.json",
        {"about": about, "experiments": measured, "claims": claims},
    )


def _template():
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, is_number=is_number)
    return environment.from_string(TEMPLATE.read_text("utf-8"))


def _section(directory, name, result):
    """Figures and tables of an experiment, for the page."""
    return {
        "name": name,
        "title": result["title"],
        "figures": [
            {
                **figure,
                "data": _embed(directory / name / f"{figure['name']}.png"),
            }
            for figure in result["figures"]
        ],
        "tables": [
            {
                "name": f"{name}/{table}.csv",
                **_read_table(directory / name / f"{table}.csv"),
            }
            for table in result["tables"]
        ],
    }


def findings(models, measured, calibration):
    """What was found, in at most three sentences of plain language.

    Args:
        models: dict by label, as of `write_report`.
        measured: metrics by experiment.
        calibration: as of `_calibration`.

    Returns:
        List of sentences: which factors are kept, which are dropped, or, where
        none are known, how much varies with the noise; whether the inversions
        are to be trusted; without those that nothing was measured for.
    """
    factors = measured.get("factors", {})
    kept, dropped, trust = [], [], []
    for name, by_factor in factors.items():
        lists = {True: [], False: []}
        for factor, found in by_factor.items():
            share = found["knows"]["value"] or 0
            text = f"{factor.replace('_', ' ')} ({number(share)})"
            lists[share >= KEPT].append(text)
        inverted = models[name]["inverted"]
        kept.append(
            f"the {inverted} of {name} keep {', '.join(lists[True]) or 'none'}"
        )
        dropped.append(f"{name} {', '.join(lists[False]) or 'nothing'}")
    for line in calibration:
        name = line["name"]
        if found := measured.get("reconstructions", {}).get(name):
            share = found["within_class_r2"]["value"]
        else:
            share = models[name]["exported"].get("within_class_r2")
        if share is None:
            continue
        partial = share < KEPT
        if line["as_exported"] or not found:
            trusted = "was not measured on all of this: as exported,"
        elif line["understates"] or line["overstates"]:
            trusted = "can be trusted only with care:"
        elif partial:
            trusted = "can be trusted in what it shows, not in what it lacks:"
        else:
            trusted = "can be trusted:"
        rest = " (the logits may hold the rest)" * partial
        trust.append(
            f"{name} {trusted} it shows {number(share)} of what is known "
            f"beyond the class{rest}, and {line['verdict']}"
        )
    sentences = list(_variation(measured))
    if factors:
        sentences = [
            f"Of the scenes' factors, {'; '.join(kept)} (share of the variance "
            "that can be read; 1 is all).",
            f"What they drop, in part or wholly: {'; '.join(dropped)}.",
        ]
    if trust:
        sentences.append(f"The inversion of {'; that of '.join(trust)}.")
    return sentences


def _variation(measured):
    """A sentence about how far pictures vary with the noise, or none."""
    if found := measured.get("noise_resampling"):
        spreads = {name: of["relative_spread"] for name, of in found.items()}
        unit = " in what tells images apart (0 is not at all, 1 as much)"
    elif pairs := measured.get("side_by_side"):
        # The last entry of each is a difference.
        each = [of for pair in pairs.values() for of in list(pair.items())[:2]]
        spreads = {name: of["spread"] for name, of in each}
        unit = ", in grey levels of 255"
    else:
        return
    texts = [
        f"those of {name} by {number(of['value'])}"
        for name, of in spreads.items()
        if of["value"] is not None
    ]
    if texts:
        yield f"With the noise pictures vary{unit}: {', '.join(texts)}."


def _calibration(models, measured):
    """The verdict on each model, from the experiment or else its export.

    Args:
        models: dict by label, as of `write_report`.
        measured: metrics of the experiment `calibration`, or empty.

    Returns:
        List of dicts: `name`, `verdict` in words, `error_ratio` (value, low
        and high), `as_exported`, `understates`, `overstates`. Nothing of
        models exported before this was measured.
    """
    lines = []
    for name, model in models.items():
        found = measured.get(name, {}).get("error_ratio")
        ratio = found or _exported_ratio(model["exported"])
        if not ratio:
            continue
        value = math.nan if ratio["value"] is None else ratio["value"]
        skill = measures.spread_skill(value)
        warns = not measures.is_calibrated(skill)
        lines.append(
            {
                "name": name,
                "verdict": measures.calibration_verdict(skill),
                "error_ratio": ratio,
                "as_exported": not found,
                "understates": warns and skill < 1,
                "overstates": warns and skill > 1,
            }
        )
    return lines


def _exported_ratio(metrics):
    """The error ratio as exported, with its interval; None of older exports."""
    if metrics.get("error_ratio") is None:
        return None
    # None of a few images.
    low, high = metrics["error_ratio_interval"] or (None, None)
    return {"value": metrics["error_ratio"], "low": low, "high": high}


def number(value):
    """Writes a number for a table: three digits, a dash for none."""
    if value in (None, ""):
        return "–"
    if not is_number(value):
        return value
    value = float(value)
    if abs(value) < 1e9 and (value == int(value) or abs(value) >= 999.5):
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".removesuffix(".")
    return text.replace("-", "−")


def is_number(value):
    """Whether a table's cell holds a number, or the place of one.

    As Python writes one: 007, 1_000 or 1e3 is the name of a class.
    """
    return bool(_NUMBER.fullmatch(str(value or 0)))


def _embed(path):
    return base64.b64encode(path.read_bytes()).decode()


def _read_table(path):
    """Reads a CSV for the page.

    Returns:
        dict of `columns`, their names, and `rows` of cells `(value, low,
        high)`. The columns NAME_value, NAME_low and NAME_high are one, NAME;
        cells of others have None for low and high.
    """
    table = csv.DictReader(io.StringIO(path.read_text("utf-8")))
    names = table.fieldnames
    columns = {}
    for name in names:
        column, _, end = name.rpartition("_")
        joined = {f"{column}_value", f"{column}_low", f"{column}_high"}
        if not (name in joined and joined <= set(names)):
            columns[name] = name
        elif end == "value":
            columns[column] = name
    rows = [
        [
            (row[name], row.get(f"{column}_low"), row.get(f"{column}_high"))
            for column, name in columns.items()
        ]
        for row in table
    ]
    return {"columns": list(columns), "rows": rows}


def describe(metadata):
    """A line about an export."""
    parts = [f"{metadata['num_classes']} classes"]
    if layer := metadata.get("layer"):
        parts.append(
            f"{metadata['condition_dim']} features of {layer} instead of logits"
        )
    parts.append(f"{metadata['image_size']} px")
    if version := metadata.get("served_version"):
        parts.append(f"version {version} of a server")
    if agreement := metadata.get("metrics", {}).get("agreement"):
        parts.append(f"agreement as exported {agreement:.1%}")
    if commit := metadata.get("git_commit", {}).get("training"):
        parts.append(f"trained at commit {commit[:10]}")
    return ", ".join(parts)
