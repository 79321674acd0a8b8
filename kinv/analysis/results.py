"""What an experiment returns: summaries, rows, figures and claims.

A summary is a dict of `value`, `low` and `high`, the ends of its 95 % interval;
None for what is not finite.
"""

import dataclasses
import itertools
import math

import matplotlib.figure
import numpy as np

from kinv import intervals


class NotApplicable(Exception):
    """These data or models cannot have the experiment; says what it needs."""


@dataclasses.dataclass
class Figure:
    """A picture or a plot, with a caption that stands alone."""

    name: str
    caption: str
    drawing: matplotlib.figure.Figure


@dataclasses.dataclass
class Claim:
    """A claim of the paper, the statistic that tests it, and the verdict.

    Attributes:
        section: of the supplementary.
        text: the claim.
        statistic: what `value` is, with its unit.
        value: our figure.
        low: lower end of its 95 % interval.
        high: upper end.
        verdict: `holds`, `does not hold` or `undecided`.
        note: what to bear in mind when reading it.
    """

    section: str
    text: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    note: str = ""


@dataclasses.dataclass
class Result:
    """What an experiment found.

    Attributes:
        metrics: dict that JSON can express, by model where it is of one.
        tables: rows (dicts with the same keys) by name; each becomes a CSV.
        figures: list of `Figure`. One whose name an earlier one has, which
            labels of models can bring about, gets a number behind it: its name
            is that of a file.
        claims: list of `Claim`.
    """

    metrics: dict
    tables: dict[str, list[dict]]
    figures: list[Figure]
    claims: list[Claim] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        names = set()
        for figure in self.figures:
            name, numbers = figure.name, itertools.count(2)
            while figure.name in names:
                figure.name = f"{name}-{next(numbers)}"
            names.add(figure.name)


def summary(value, low=math.nan, high=math.nan):
    """The summary of a value and the ends of its interval."""
    return {
        key: float(number) if math.isfinite(number) else None
        for key, number in (("value", value), ("low", low), ("high", high))
    }


def share(hits):
    """Summary of a share by Wilson's interval, of booleans `(images,)`."""
    value = hits.mean() if len(hits) else math.nan
    return summary(value, *intervals.wilson_interval(hits.sum(), len(hits)))


def difference(hits, others):
    """Summary of the difference of two shares, of different images."""
    interval = intervals.newcombe_interval(
        *((int(group.sum()), len(group)) for group in (hits, others))
    )
    return summary(*interval)


def mean(values):
    """Summary of a mean by Student's interval, of numbers `(images,)`.

    NaN, of images of which nothing is known, is left out.
    """
    values = np.asarray(values, "float64")
    return summary(*intervals.mean_interval(values[~np.isnan(values)]))


def summaries(per_image):
    """Summaries of a dict of arrays: shares of booleans, means of numbers."""
    return {
        key: share(values) if values.dtype == bool else mean(values)
        for key, values in per_image.items()
    }


def rows(metrics, *columns, **others):
    """One row for each summary in nested dicts; `columns` name their keys."""
    if not columns:
        return [others | metrics] if "value" in metrics else []
    return [
        {columns[0]: key, **row}
        for key, part in metrics.items()
        if isinstance(part, dict)
        for row in rows(part, *columns[1:], **others)
    ]


def image_rows(per_image, column, **columns):
    """One row for each image of a dict of arrays; `column` counts them."""
    return [
        {**columns, column: index, **dict(zip(per_image, row, strict=True))}
        for index, row in enumerate(zip(*per_image.values(), strict=True))
    ]


def curve(summaries):
    """Summaries as rows `(value, low, high)`, NaN for None, as plots take."""
    rows = [list(found.values()) for found in summaries]
    return np.array(rows, "float64")


def ends(measured):
    """Summaries as cells NAME_value, NAME_low and NAME_high, others as one."""
    cells = {}
    for measure, found in measured.items():
        if isinstance(found, dict | None):
            for end in ("value", "low", "high"):
                cells[f"{measure}_{end}"] = found and found[end]
        else:
            cells[measure] = found
    return cells


def claim(section, text, statistic, found, threshold=0.0, note=""):
    """A claim that holds where the summary `found` exceeds a threshold."""
    value, low, high = found.values()
    verdict = "undecided"
    if low is not None and not low <= threshold <= high:
        verdict = "holds" if low > threshold else "does not hold"
    return Claim(section, text, statistic, value, low, high, verdict, note)
