"""tools/analyze.py on the exported pipelines, and on what it must refuse."""

import csv
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kinv import cli, errors, images, measures, pixels, runs
from kinv.analysis import (
    calibration,
    controls,
    diversity,
    factors,
    grids,
    report,
    sources,
)
from kinv.analysis import results as results_lib
from kinv.data import datasets
from kinv.serving import pipeline
from tools import analyze

ROOT = pathlib.Path(__file__).parent.parent
MODELS = [
    argument
    for name in ("robust", "standard")
    for argument in ("--model", str(ROOT / f"exported/scenes32-{name}"))
]


# The shipped pipelines invert the logits of two classifiers.
EXPERIMENTS = [
    name
    for name in analyze.EXPERIMENTS
    if name not in ("two_inversions", "layers_compared")
]


def open_rendered(patch, rendered, **sizes):
    """Has so many rendered scenes analysed, other than those recorded."""

    def open_dataset(name, split, skip_unreadable=False):
        assert name == "kinv_scenes/32-large"
        return rendered(split, sizes[split])

    patch.setattr(datasets, "open_dataset", open_dataset)
    patch.setattr(sources, "check_data", lambda *args: None)


@pytest.fixture(scope="module")
def results(rendered, tmp_path_factory):
    """All experiments on both pipelines, on few rendered scenes."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        open_rendered(patch, rendered, train=1500, test=150)
        patch.setattr(calibration, "IMAGES", 100)
        patch.setattr(controls, "STEPS", 2)
        patch.setattr(diversity, "CANDIDATES", 64)
        patch.setattr(factors, "SAMPLES", 4)
        analyze.main(
            [*MODELS, "--quick", "--pdf", "--tensorboard", "--out", str(out)]
        )
    return out


def read_csv(path):
    return list(csv.reader(path.read_text().splitlines()))


@pytest.mark.slow
def test_every_experiment_leaves_its_files(results):
    for name in EXPERIMENTS:
        found = json.loads((results / name / "metrics.json").read_text())
        assert found["figures"] or found["tables"]
        for figure in found["figures"]:
            path = results / name / f"{figure['name']}.png"
            with PIL.Image.open(path) as picture:
                wanted = figure["width"] / report.PAGE_DPI * report.DPI
                assert picture.width == pytest.approx(wanted, abs=2)
            assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        for table in found["tables"]:
            header, *rows = read_csv(results / name / f"{table}.csv")
            assert rows
            assert {len(row) for row in rows} == {len(header)}
    assert not list(results.rglob(".writing*"))


@pytest.mark.slow
def test_the_page_holds_everything(results):
    page = (results / "report.html").read_text()
    metrics = json.loads((results / "metrics.json").read_text())
    # The shipped pipelines invert two classifiers.
    assert set(metrics["experiments"]) == set(EXPERIMENTS)
    assert "needs two models of the same classifier" in page
    assert "needs models that invert several layers" in page
    # Each comparison of the supplementary's text, by section.
    sections = [claim["section"] for claim in metrics["claims"]]
    assert sections == sorted(sections)
    assert {"1", "2", "3", "4", "5", "6", "6.1"} == set(sections)
    for claim in metrics["claims"]:
        assert claim["text"].split("'")[0] in page
        verdicts = ("holds", "does not hold", "undecided")
        assert claim["verdict"] in verdicts
    # A warning for each model whose pictures use little of the logits.
    shares = [
        found["within_class_r2"]["value"]
        for found in metrics["experiments"]["reconstructions"].values()
    ]
    low = sum(share < measures.LOW_WITHIN_CLASS_R2 for share in shares)
    assert page.count("of what the logits know beyond the class") == 2
    assert page.count("has not learned to read") == low
    # And whether the noise of each is calibrated, as the experiment found.
    for name, found in metrics["experiments"]["calibration"].items():
        spread_skill = found["spread_skill"]["value"]
        expected = f"{name}: the noise says {spread_skill:.2f} of what the"
        assert expected in " ".join(page.split())
    # Nothing is fetched when it is opened.
    assert 'src="http' not in page and 'href="http' not in page
    count = sum(
        len(
            json.loads((results / name / "metrics.json").read_text())["figures"]
        )
        for name in EXPERIMENTS
    )
    assert page.count("data:image/png;base64,") == count


@pytest.mark.slow
def test_the_page_shows_every_row(results):
    page = (results / "report.html").read_text()
    tables = {
        name: table.count("<tr>")
        for name, table in re.findall(
            "<details.*?<summary>(.*?),(.*?)</details>", page, re.DOTALL
        )
    }
    rows = {
        f"{path.parent.name}/{path.name}": len(path.read_text().splitlines())
        for path in results.glob("*/*.csv")
    }
    assert tables == rows
    # One of every model and factor, with eleven measures of it.
    assert rows["factors/factors.csv"] == 1 + 2 * 7
    found = json.loads((results / "metrics.json").read_text())["experiments"]
    header, *table = read_csv(results / "factors/factors.csv")
    for cells in table:
        row = dict(zip(header, cells, strict=True))
        values = found["factors"][row["model"]][row["factor"]]
        assert len(values) == 11 and len(row) == 2 + 3 * 11
        for name, value in values.items():
            for end in ("value", "low", "high"):
                cell = row[f"{name}_{end}"]
                if value is None or value[end] is None:
                    assert cell == ""
                else:
                    assert float(cell) == pytest.approx(value[end], rel=1e-5)


ABOUT = {
    **dict.fromkeys(("dataset", "split", "training_split"), "data"),
    **{"command": "c", "seed": 0, "git_commits": ["a"], "skipped": []},
    **{"models": {}, "versions": {"kinv": "1"}, "seconds": {}},
}


def head_of(directory, experiments, models):
    """The text of the page before the claims, white space one."""
    about = {
        **ABOUT,
        "models": {
            name: {
                **{"path": "p", "metadata": "m", "inverted": "logits"},
                "exported": metrics,
            }
            for name, metrics in models.items()
        },
    }
    report.write_report(directory, experiments, about)
    page = (directory / "report.html").read_text()
    head = page[page.index("</nav>") : page.index('<h2 id="claims"')]
    return " ".join(re.sub("<(?!p class)[^>]*>", "", head).split())


def summary(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def exported_ratio(value):
    interval = [value - 0.01, value + 0.01]
    return {"error_ratio": value, "error_ratio_interval": interval}


def test_the_page_begins_with_whether_the_noise_is_calibrated(tmp_path):
    # (1 - e) / (e - 1 / 8): 1, 0.1 / 0.775 and 0.7 / 0.175.
    exported = {
        "good": exported_ratio(0.5625),
        "narrow": exported_ratio(0.9),
        "wide": exported_ratio(0.3),
        "none": {"error_ratio": None, "error_ratio_interval": None},
        "old": {},
        "few": {"error_ratio": 0.5625, "error_ratio_interval": None},
    }
    head = head_of(tmp_path, [], exported)
    good, narrow, wide, few = head.split("<p ")[1:]
    assert good.startswith(
        'class="trust">good: the noise says 1.00 of what the generator leaves '
        "open (squared error"
    )
    assert "of one 0.562, 0.552 to 0.573; 0.5625 where" in good
    assert (
        "leaves open), as exported, not measured on these images."
        in " ".join(good.split())
    )
    assert narrow.startswith(
        'class="trust low">narrow: the noise says 0.36 of what the generator '
        "leaves open: its pictures vary too little"
    )
    assert narrow.endswith(
        "What stays the same here as the noise changes is not necessarily "
        "known to the classifier. "
    )
    assert wide.startswith(
        'class="trust low">wide: the noise says 2.00 of what the generator '
        "leaves open: its pictures vary too much"
    )
    assert "of one 0.562; 0.5625 where" in few
    # The experiment, where it was run, comes before the export's figures.
    metrics = {"narrow": {"error_ratio": summary(0.5625)}}
    metrics["good"] = {"error_ratio": dict.fromkeys(("value", "low", "high"))}
    result = results_lib.Result(metrics, {}, [])
    report.write_result(tmp_path / "calibration", "Calibration", result)
    head = head_of(tmp_path, ["calibration"], exported)
    assert "narrow: the noise says 1.00" in head
    assert head.count("as exported") == 2
    assert "wide: the noise says 2.00" in head
    equal = "the pictures equal the images: nothing is left open."
    assert f'class="trust">good: {equal} <p' in head


def test_the_page_begins_with_what_was_found(tmp_path):
    measured = {
        "factors": {
            "robust": {
                "shape": {"knows": summary(1.0)},
                "wall_hue": {"knows": summary(0.92)},
            },
            "standard": {
                "shape": {"knows": summary(0.8)},
                "wall_hue": {"knows": summary(0.54)},
            },
        },
        "reconstructions": {
            "robust": {"within_class_r2": summary(0.81)},
            "standard": {"within_class_r2": summary(0.68)},
            "partial": {"within_class_r2": summary(0.68)},
        },
        # Spread-skill ratios of 1 and, (0.1 / 0.775)^(1/2), of 0.36.
        "calibration": {
            "robust": {"error_ratio": summary(0.5625)},
            "standard": {"error_ratio": summary(0.9)},
            "partial": {"error_ratio": summary(0.5625)},
        },
    }
    for name, metrics in measured.items():
        result = results_lib.Result(metrics, {}, [])
        report.write_result(tmp_path / name, name, result)
    models = dict.fromkeys(("robust", "standard", "partial"), {})
    head_of(tmp_path, list(measured), models)
    page = (tmp_path / "report.html").read_text()
    [(before, found)] = re.findall(
        '(.*)<p class="findings">(.*?)</p>', page, re.DOTALL
    )
    assert "<table" not in before
    assert html.unescape(found) == (
        "Of the scenes' factors, the logits of robust keep shape (1), wall hue "
        "(0.920); the logits of standard keep shape (0.800) (share of the "
        "variance that can be read; 1 is all). What they drop, in part or "
        "wholly: robust nothing; standard wall hue (0.540). The inversion of "
        "robust can be trusted: it shows 0.810 of what is known beyond the "
        "class, and the noise says 1.00 of what the generator leaves open; "
        "that of standard can be trusted only with care: it shows 0.680 of "
        "what is known beyond the class (the logits may hold the rest), and "
        "the noise says 0.36 of what the generator leaves open: its pictures "
        "vary too little; that of partial can be trusted in what it shows, not "
        "in what it lacks: it shows 0.680 of what is known beyond the class "
        "(the logits may hold the rest), and the noise says 1.00 of "
        "what the generator leaves open."
    )
    # Of nothing that was measured, nothing is said.
    (tmp_path / "other").mkdir()
    report.write_report(tmp_path / "other", [], ABOUT)
    page = (tmp_path / "other" / "report.html").read_text()
    assert '<p class="findings">' not in page


@pytest.mark.parametrize(
    ("experiment", "metrics", "said"),
    [
        (
            "noise_resampling",
            {"a": {"relative_spread": summary(0.3)}},
            "With the noise pictures vary in what tells images apart (0 is not "
            "at all, 1 as much): those of a by 0.300. ",
        ),
        # Of a single image.
        (
            "noise_resampling",
            {"a": {"relative_spread": dict.fromkeys(("value", "low", "high"))}},
            "",
        ),
        (
            "side_by_side",
            {
                f"a and {other}": {
                    "a": {"spread": summary(12)},
                    other: {"spread": summary(level)},
                    f"{other} minus a": {"spread": summary(level - 12)},
                }
                for other, level in (("b", 24), ("c", 30))
            },
            "With the noise pictures vary, in grey levels of 255: those of a "
            "by 12, those of b by 24, those of c by 30. ",
        ),
    ],
)
def test_what_was_found_without_factors(tmp_path, experiment, metrics, said):
    """What the exports measured, on other images, is said to be theirs."""
    result = results_lib.Result(metrics, {}, [])
    report.write_result(tmp_path / experiment, "Title", result)
    exported = {"a": {**exported_ratio(0.5625), "within_class_r2": 0.05}}
    head_of(tmp_path, [experiment], exported)
    page = (tmp_path / "report.html").read_text()
    assert (
        f'<p class="findings">{said}The inversion of a was not measured on all '
        "of this: as exported, it shows 0.0500 of what is known beyond the"
    ) in page


def test_tables_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROWS", 2)
    rows = [
        {
            **{"name": f"row {index}", "p_value": 0.5, "very_low": 7},
            **{"a_value": index, "a_low": -1, "a_high": 1},
        }
        for index in range(5)
    ]
    rows[1] |= {"a_value": None, "a_low": None, "a_high": None}
    result = results_lib.Result({}, {"numbers": rows}, [])
    report.write_result(tmp_path / "x", "X", result)
    report.write_report(tmp_path, ["x"], ABOUT)
    page = (tmp_path / "report.html").read_text()
    table = page[page.index("<details") : page.index("</details>")]
    # As a browser: tags gone, white space one.
    text = " ".join(re.sub("<[^>]*>", " ", table).split()).split("rows ", 1)[1]
    assert text == (
        "name p value very low a row 0 0.500 7 0 −1 to 1 row 1 0.500 7 – … "
        "and 3 more rows in x/numbers.csv ."
    )


@pytest.mark.slow
def test_the_real_models_do_what_their_metadata_say(results):
    metrics = json.loads((results / "metrics.json").read_text())
    for name in ("scenes32-robust", "scenes32-standard"):
        found = metrics["experiments"]["reconstructions"][name]
        assert found["agreement"]["value"] > 0.85
        controls = metrics["experiments"]["controls"][name]
        assert set(controls) == {
            "inversion",
            "class only",
            "nearest image",
            "optimisation",
        }
        hue = metrics["experiments"]["factors"][name]["object_hue"]
        assert hue["shows"]["value"] > 0.9


@pytest.mark.slow
def test_summaries_for_tensorboard(results):
    events = list((results / "tensorboard").glob("events*"))
    assert sum(file.stat().st_size for file in events) > 100_000


@pytest.mark.slow
def test_finished_experiments_are_not_repeated(
    results, rendered, monkeypatch, capsys
):
    open_rendered(monkeypatch, rendered, train=150, test=150)
    before = (results / "rotation" / "metrics.json").stat().st_mtime_ns
    # What was computed at another commit is not said to be of this one.
    monkeypatch.setattr(runs, "git_commit", lambda: "later")
    analyze.main([*MODELS, "--quick", "--out", str(results)])
    assert "later" not in (results / "report.html").read_text()
    assert capsys.readouterr().out.count("done before") == len(EXPERIMENTS)
    assert (results / "rotation" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(errors.InputError, match="seed 0. Received: 1"):
        analyze.main([*MODELS, "--quick", "--seed", "1", "--out", str(results)])


def test_what_a_finished_experiment_did_not_write(tmp_path):
    picture = grids.captioned_grid(
        [[np.zeros((8, 8, 3))]], [["a word"]], cell_size=8
    )
    figure = results_lib.Figure("picture", "A picture.", picture)
    with_figure = results_lib.Result({"number": 1.0}, {}, [figure])
    report.write_result(tmp_path / "old", "Old", with_figure)
    report.write_result(tmp_path / "new", "New", with_figure, with_pdf=True)
    report.write_result(tmp_path / "table", "T", results_lib.Result({}, {}, []))
    report.write_summaries(tmp_path / "tensorboard", "new", with_figure)
    # Text that can be edited.
    pdf = (tmp_path / "new" / "picture.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf
    again = f"remove {tmp_path / 'old'} and repeat the command"
    assert analyze.describe_missing(tmp_path, "old", True, True) == [
        f"without PDF: {again}",
        f"without TensorBoard summaries: {again}",
    ]
    assert analyze.describe_missing(tmp_path, "old", False, False) == []
    assert analyze.describe_missing(tmp_path, "new", True, True) == []
    # There is no figure to write.
    assert analyze.describe_missing(tmp_path, "table", True, False) == []


def test_figures_of_one_name_are_two_files(tmp_path):
    # As of the pairs of labels a, b-c and a-b, c.
    figures = [
        results_lib.Figure(
            "a-b-c",
            f"{shade}",
            grids.captioned_grid([[np.full((8, 8, 3), shade)]], cell_size=8),
        )
        for shade in (60, 120, 180)
    ]
    result = results_lib.Result({}, {}, figures)
    report.write_result(tmp_path / "x", "X", result)
    written = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert len(written["figures"]) == len(figures)
    for figure in written["figures"]:
        path = tmp_path / "x" / f"{figure['name']}.png"
        shades = np.array(PIL.Image.open(path).convert("L"))
        # Most of it is the margin, which is white.
        assert np.bincount(shades[shades < 255]).argmax() == int(
            figure["caption"]
        )


def test_results_are_not_written_over(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("stays")
    with pytest.raises(OSError):
        report.write_result(
            tmp_path / "x", "X", results_lib.Result({}, {}, []), with_pdf=False
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "mine"]


def test_an_interrupted_experiment_leaves_nothing(
    rendered, tmp_path, monkeypatch, capsys
):
    open_rendered(monkeypatch, rendered, train=150, test=150)
    out = tmp_path / "results"
    command = [
        *MODELS[:2],
        "--quick",
        "--experiments",
        "rotation",
        "--out",
        str(out),
    ]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report.files, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report.write_result(out, "x", results_lib.Result({}, {}, []))
    assert not out.exists()
    analyze.main(command)
    assert (out / "report.html").exists()
    page = (out / "report.html").read_text()
    # One model: the section's own claim is there, comparisons are not.
    assert "scenes32-standard" not in page
    analyze.main([*command, "--pdf"])
    assert f"without PDF: remove {out}/rotation" in capsys.readouterr().out


def two_logits(dataset):
    """A model of two classes, whose pictures are grey."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(3, 2))

    def predict(inputs):
        logits = inputs["images"].mean(axis=(1, 2)) @ weights / 255
        shape = (*inputs["noise"].shape[:2], 32, 32, 3)
        return {
            "logits": logits.astype("float32"),
            "reconstructions": np.full(shape, 99, "float32"),
        }

    metadata = {
        "class_names": ["green", "red"],
        "num_classes": 2,
        "noise_dim": 4,
        "image_size": 32,
        "classifier_size": 32,
        "dataset": str(dataset),
    }
    return pipeline.Pipeline(predict, metadata)


def test_photographs_without_labels(
    image_folder, tmp_path, capsys, monkeypatch
):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted(image_folder.rglob("*.png")):
        name = f"{path.parent.name}-{path.name}"
        shutil.copy(path, photographs / name)
    (photographs / "bad.png").write_bytes(b"no image")
    model = two_logits(photographs)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda path: model)
    out = tmp_path / "results"
    command = ["--model", "any", "--quick", "--out", str(out)]
    command += ["--model", "other"]
    command += ["--experiments", "misclassified", "stability", "side_by_side"]
    command += ["--split", "train[:100%]"]
    with pytest.raises(errors.InputError, match="bad.png"):
        analyze.main(command)
    analyze.main([*command, "--skip-unreadable"])
    printed = capsys.readouterr().out
    assert "labels: not used" in printed
    assert "left out 1 unreadable images" in printed
    assert "left out: misclassified: needs labels" in printed
    metrics = json.loads((out / "metrics.json").read_text())["experiments"]
    # A fifth of 50 classes of ten images each.
    assert metrics["stability"]["any"]["images"] == 100
    assert "right" not in metrics["stability"]["any"]
    with open(out / "side_by_side" / "images any and other.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    for row in rows:
        image = images.read_image(photographs / row["file"])
        size = model.metadata["classifier_size"]
        logits = model.logits(pixels.resize_square(image, size)[None])
        assert row["class_any"] == model.class_names[logits[0].argmax()]


def test_a_data_set_without_factors(
    image_folder, tmp_path, capsys, monkeypatch
):
    """A folder of two classes, and a model of as many logits."""
    model = two_logits(image_folder)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda path: model)
    out = tmp_path / "results"
    analyze.main(
        ["--model", "any", "--quick", "--out", str(out)]
        + ["--experiments", "factors", "noise_resampling", "stability"]
    )
    printed = capsys.readouterr().out
    assert "left out: factors: needs known factors" in printed
    assert not (out / "factors").exists()
    assert "needs known factors" in (out / "report.html").read_text()
    assert not list((out / "noise_resampling").glob("*.csv"))


def test_a_model_that_does_not_tell_its_classifier_s_size(
    image_folder, tmp_path, monkeypatch
):
    """It sees images of the size that is asked for, not of the generator's."""
    sizes = set()

    def predict(inputs):
        sizes.add(inputs["images"].shape[1:3])
        shape = (*inputs["noise"].shape[:2], 16, 16, 3)
        return {
            "logits": inputs["images"].mean(axis=(1, 2))[:, :2],
            "reconstructions": np.full(shape, 99, "float32"),
        }

    metadata = {
        "class_names": ["class 0", "class 1"],
        "num_classes": 2,
        "noise_dim": 4,
        "image_size": 16,
        "served_version": 3,
    }
    model = pipeline.Pipeline(predict, metadata)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda path: model)
    command = [
        *("--model", "grpc://host:1/any", "--dataset", str(image_folder)),
        *("--quick", "--experiments", "noise_resampling"),
        *("--out", str(tmp_path / "results")),
    ]
    with pytest.raises(errors.InputError, match="Expected --classifier-size"):
        analyze.main(command)
    analyze.main([*command, "--classifier-size", "24"])
    assert sizes == {(24, 24)}
    page = (tmp_path / "results" / "report.html").read_text()
    assert "version 3 of a server" in page


@pytest.mark.slow
def test_served_models_give_what_local_ones_give(
    served, rendered, tmp_path, monkeypatch
):
    open_rendered(monkeypatch, rendered, train=300, test=60)
    monkeypatch.setattr(controls, "STEPS", 2)
    experiments = ["reconstructions", "stability", "controls"]
    found = []
    for place, models in (
        ("here", MODELS),
        (
            "there",
            [
                *("--model", f"{served.rest}/v1/models/scenes32-robust"),
                *("--model", f"grpc://{served.grpc}/scenes32-standard"),
            ],
        ),
    ):
        out = tmp_path / place
        analyze.main(
            [*models, "--quick", "--out", str(out)]
            + ["--experiments", *experiments]
        )
        found.append(json.loads((out / "metrics.json").read_text()))
    here, there = (metrics["experiments"] for metrics in found)
    for name in ("scenes32-robust", "scenes32-standard"):
        local, served_ones = (
            tf.nest.flatten(metrics["reconstructions"][name])
            for metrics in (here, there)
        )
        assert served_ones == pytest.approx(local, rel=1e-3, abs=1e-3)
        # Gradients do not travel.
        assert set(here["controls"][name]) - set(there["controls"][name]) == {
            "optimisation"
        }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nowhere"], "nowhere, which does not exist"),
        (
            [*MODELS[:2], "--dataset", "no_such_data"],
            "Received: no_such_data",
        ),
        (
            [*MODELS[:2], *MODELS[:2]],
            "of the name 'scenes32-robust' again",
        ),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: analyze.main([*arguments, "--out", str(out)]))
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not (out / "report.html").exists()


def test_a_wrong_word_ends_with_status_2():
    result = subprocess.run(
        [sys.executable, "tools/analyze.py", *MODELS[:2]]
        + ["--experiments", "rotations"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "invalid choice: 'rotations'" in result.stderr
    assert "Traceback" not in result.stderr


def test_labels():
    assert cli.named_models(["exported/a", "exported/b/2", "c=x/1"]) == {
        "a": "exported/a",
        "b": "exported/b/2",
        "c": "x/1",
    }
    assert list(
        cli.named_models(
            [
                "grpc://host:1/d",
                "grpc://host:1/e/versions/2",
                "http://host:1/v1/models/f/",
                "g=http://host:1/v1/models/f",
            ]
        )
    ) == ["d", "e", "f", "g"]
    # The first "=" ends the label, unless it is a part of the path.
    assert cli.named_models(
        ["x=runs/lr=3/e", "runs/lr=4/f/", "g=http://h:1/v1/models/lr=5/"]
    ) == {
        "x": "runs/lr=3/e",
        "f": "runs/lr=4/f",
        "g": "http://h:1/v1/models/lr=5",
    }
    with pytest.raises(errors.InputError, match="different names"):
        cli.named_models(["a", "x/a"])
    for argument, lacking in ((".", "a name"), ("a=", "a model")):
        with pytest.raises(errors.InputError, match=f"without {lacking}"):
            cli.named_models([argument])


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "–"),
        ("", "–"),
        (0.0, "0"),
        (1, "1"),
        ("0.99999", "1.00"),
        (-0.0546, "−0.0546"),
        (123.4, "123"),
        (4395.2, "4,395"),
        (999.7, "1,000"),
        ("240000", "240,000"),
        (2e12, "2.00e+12"),
        (0.00001234, "1.23e−05"),
        ("red", "red"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("1e3", "1e3"),
        ("\u0661\u0662", "\u0661\u0662"),
    ],
)
def test_numbers_of_the_page(value, text):
    assert report.number(value) == text


def test_grids_keep_their_pixels_at_the_report_s_resolution():
    picture = np.random.default_rng(0).uniform(0, 255, (8, 8, 3))
    figure = grids.captioned_grid([[picture]], cell_size=64)
    figure.set_dpi(report.DPI)
    drawn = grids.render(figure)
    margin = grids.MARGIN * report.DPI // grids.DPI
    cell = drawn[margin:-margin, margin:-margin]
    assert cell.shape == (128, 128, 3)
    np.testing.assert_array_equal(cell[8::16, 8::16], pixels.to_uint8(picture))


@pytest.mark.parametrize(
    "dataset, changed, message",
    [
        ("/data/pets", {}, None),
        ("pets", {"class_names": ["eel"]}, "'cat' is gone"),
        ("pets", {"digest": "b"}, "other names or sizes"),
        ("/other/zoo", {"num_examples": 5}, None),
    ],
)
def test_data_that_the_model_was_not_made_of(dataset, changed, message, capsys):
    described = {"class_names": ["cat"], "num_examples": 9, "digest": "a"}
    metadata = {
        "dataset": "pets",
        "training": {"validation_split": "validation", "train_split": "test"},
        "data": {"train": described, "validation": described},
    }
    source = types.SimpleNamespace(
        describe=lambda: {**described, **changed}, place=None
    )

    # Whichever split is analysed.
    def check(dataset, **changes):
        def open_split(split):
            return {"validation": source, "test": source}[split]

        sources.check_data(
            "m", {**metadata, **changes}, open_split, dataset, "test"
        )

    if message is None:
        check(dataset)
        return
    with pytest.raises(errors.InputError, match=message):
        check(dataset)
    # Nothing is known of older exports.
    check(dataset, data=None)
    # Of a folder only the last name: it may well be another.
    capsys.readouterr()
    check(f"/data/{dataset}")
    assert "another data set" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trained, dataset, digest, warns",
    [
        ((0, 50), "pets", "a", True),
        ((0, 50), "/data/pets", "a", True),
        # Another data set, of which nothing is known.
        ((0, 50), "/data/pets", "b", False),
        ((50, 100), "pets", "a", False),
        ((0, 50), "zoo", "a", False),
    ],
)
def test_images_that_a_model_was_trained_on(
    trained, dataset, digest, warns, capsys
):
    described = {"class_names": ["cat"], "num_examples": 9, "digest": "a"}
    metadata = {
        "dataset": "pets",
        "training": {
            "train_split": "train[:50%]",
            "validation_split": "validation",
        },
        "data": {"validation": described},
    }
    opened = {
        split: types.SimpleNamespace(
            place=("pets", percents),
            describe=lambda: {**described, "digest": digest},
        )
        for split, percents in (
            ("train[:50%]", trained),
            ("test", (40, 50)),
            ("validation", (90, 100)),
        )
    }
    sources.check_data("m", metadata, opened.__getitem__, dataset, "test")
    warning = "m was trained on train[:50%], which may share images with test"
    assert (warning in capsys.readouterr().out) == warns


def test_a_damaged_test_split_is_not_passed_over():
    def damaged(split):
        raise errors.InputError(f"a damaged image in {split}")

    def lacking(split):
        if split == "test":
            raise errors.NoSplitError("no test")
        return split

    with pytest.raises(errors.InputError, match="damaged image in test"):
        sources.open_held_out(damaged, None, {}, "pets")
    found = sources.open_held_out(lacking, None, {}, "pets")
    assert found == ("validation", "validation")
    # The model may have been trained on what is called so.
    own = "train[:10%]"
    metadata = {"dataset": "pets", "training": {"validation_split": own}}
    for split, dataset, expected in (
        (None, "pets", own),
        (None, "zoo", "validation"),
        ("other", "pets", "other"),
    ):
        found = sources.open_held_out(lacking, split, metadata, dataset)
        assert found == (expected, expected)


def test_images_that_are_analysed_are_no_training_images(
    image_folder, tmp_path, capsys
):
    np.savez(tmp_path / "images.npz", x_test=np.zeros((8, 32, 32, 3), "uint8"))
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 32, 32, 3), "uint8"))
    for data, lacking in (
        ((image_folder, "train[:50%]"), "train[:50%] and train may share some"),
        ((tmp_path / "images.npz", "test"), "Expected a split of"),
        ((tmp_path / "one.npz", "validation"), "images in split train of"),
    ):
        out = tmp_path / data[1]
        dataset, split = data
        analyze.main(
            [
                *(*MODELS[:2], "--quick", f"--dataset={dataset}"),
                *(f"--split={split}", f"--out={out}", "--experiments"),
                "controls",
            ]
        )
        text = capsys.readouterr().out
        assert "left out: controls: needs training images" in text
        assert lacking in text
        assert (out / "report.html").exists()


def test_results_of_other_images_are_refused(tmp_path):
    settings = {"dataset": "photographs", "digest of the images": "a"}
    results = tmp_path / "results"
    analyze.open_results(results, settings)
    analyze.open_results(results, settings)
    with pytest.raises(errors.InputError, match="digest of the images a"):
        analyze.open_results(results, {**settings, "digest of the images": "b"})
    # Of what was not recorded nobody knows that it is the same.
    with pytest.raises(errors.InputError, match="seed None. Received: 1"):
        analyze.open_results(results, {**settings, "seed": 1})


def test_a_folder_is_known_by_its_last_name(tmp_path):
    (tmp_path / "photos").mkdir()
    assert sources.is_same("cifar10", "cifar10")
    for trained in ("photos", "data/photos"):
        assert sources.is_same(trained, str(tmp_path / "photos"))
    assert not sources.is_same("photos", str(tmp_path / "other"))
    # Of names in TFDS the last part is a configuration.
    assert not sources.is_same("scenes/32", "digits/32")
    assert not sources.is_same(None, str(tmp_path / "photos"))
