"""Plots with intervals, in one style."""

import contextlib
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kinv import measures
from kinv.analysis import results

# Colours of Okabe and Ito, told apart by colour-blind readers.
COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    "#000000",
)
MARKERS = "osD^vPX"
# Ticks on the right of error ratios.
SPREAD_SKILLS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 4)
# Within the axes; a longer legend would hide curves and goes beside them.
MOST_LEGEND_LINES = 4
# Beside each other below an axis; names that take more are turned.
MOST_TICK_CHARACTERS = 50
LINE = {"color": "#777777", "linestyle": ":", "linewidth": 1}
BAND = {"color": "#e8efe4", "zorder": 0}
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLORS, marker=list(MARKERS)),
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    # A dollar sign in a name is one.
    "text.parse_math": False,
}


def curves(
    x,
    series,
    x_label,
    y_label,
    identity=None,
    ticks=None,
):
    """Plots curves with their intervals as bands.

    Args:
        x: numbers `(points,)`.
        series: dict of summaries, one for each point, by label.
        x_label: what `x` is, with its unit.
        y_label: what the values are, with their unit.
        identity: `(x, y)` to mark by dotted lines; None for no line.
        ticks: names to set at `x` instead of the numbers.

    Returns:
        `matplotlib.figure.Figure`.
    """
    with _styled((4.8, 3.2)) as figure:
        axes = figure.subplots()
        _draw(axes, x, series, identity)
        axes.set(xlabel=x_label, ylabel=y_label)
        if ticks:
            axes.set_xticks(x, ticks)
            if sum(map(len, ticks)) > MOST_TICK_CHARACTERS:
                axes.tick_params("x", rotation=20)
        if len(series) > MOST_LEGEND_LINES:
            figure.set_figwidth(6.2)
            figure.legend(loc="outside right center")
        else:
            axes.legend()
    return figure


def panels(plots, y_label):
    """Plots several groups of curves beside each other, on one scale.

    Args:
        plots: dict by x label of `(x, series, x of the identity)`, as for
            `curves`.
        y_label: what the values are, with their unit.
    """
    with _styled((2.3 * len(plots) + 0.6, 2.7)) as figure:
        row = figure.subplots(1, len(plots), sharey=True)
        for axes, (x_label, (x, series, identity)) in zip(
            row, plots.items(), strict=True
        ):
            _draw(axes, x, series, (identity, 0))
            axes.set_xlabel(x_label)
        row[0].set_ylabel(y_label)
        row[0].legend()
    return figure


def filled_bars(groups, y_label):
    """Plots how much of an outlined bar is filled, a panel for each group.

    Args:
        groups: dict by panel of dicts by bar of two summaries, the outline's
            and the filling's: dicts of `value`, `low` and `high`.
        y_label: what the values are.
    """
    with _styled((3.4 * len(groups) + 0.5, 3.1)) as figure:
        row = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, color, (title, bars) in zip(
            row, itertools.cycle(COLORS), groups.items(), strict=False
        ):
            places = np.arange(len(bars))
            outline, filling = zip(*bars.values(), strict=True)
            values = results.curve([*outline, *filling])[:, 0]
            known, shown = np.split(values, 2)
            axes.bar(
                places,
                known,
                facecolor="none",
                edgecolor="#333333",
                linewidth=1.2,
                label="classifier knows",
                zorder=3,
            )
            axes.bar(
                places,
                np.maximum(shown, 0),
                color=color,
                label="pictures show",
                zorder=2,
            )
            style = {"fmt": "none", "ecolor": "#333333", "elinewidth": 0.9}
            for found, shift in (outline, -0.12), (filling, 0.12):
                _errorbar(axes, places + shift, found, zorder=4, **style)
            axes.set_xticks(
                places,
                [name.replace("_", " ") for name in bars],
                rotation=40,
                ha="right",
                rotation_mode="anchor",
            )
            axes.set_ylim(min(0, axes.get_ylim()[0]), 1.18)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_title(title, fontsize=10)
            axes.grid(False, axis="x")
            axes.legend(ncols=2, loc="upper center", fontsize=8)
        row[0].set_ylabel(y_label)
    return figure


def error_ratios(names, series):
    """Plots error ratios of groups of images, and what they say on the right.

    Args:
        names: of the groups.
        series: dict of lists of summaries, one for each group, by label.
    """
    high, low = map(measures.error_ratio_of, measures.CALIBRATED)
    with _styled((5.6, 3.2)) as figure:
        axes = figure.subplots()
        axes.axhspan(low, high, **BAND)
        axes.axhline(measures.error_ratio_of(1), **LINE)
        # Between the first two names, where no mark is, below the band.
        text = {"color": "#4d6b3c", "ha": "center", "va": "top"}
        axes.text(0.5, low - 0.01, "calibrated", **text)
        places = np.arange(len(names))
        shifts = np.linspace(-0.15, 0.15, len(series) + 2)[1:-1]
        for shift, (label, found) in zip(shifts, series.items(), strict=True):
            style = {"linestyle": "none", "markersize": 5, "elinewidth": 1.2}
            _errorbar(axes, places + shift, found, label=label, **style)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.03))
        axes.set_ylabel("squared error, mean of 8 / one")
        axes.set_xticks(places, names)
        axes.grid(False, axis="x")
        right = axes.twinx()
        right.set_ylim(axes.get_ylim())
        right.set_yticks(
            list(map(measures.error_ratio_of, SPREAD_SKILLS)),
            [f"{skill:g}" for skill in SPREAD_SKILLS],
        )
        right.set_ylabel("spread of noise / what is left open")
        right.grid(False)
        right.spines["right"].set_visible(True)
        figure.legend(
            loc="outside upper center", ncols=min(len(series), 3), fontsize=8
        )
    return figure


def rank_histograms(rows):
    """Plots histograms of ranks over that of a flat one, panel by panel.

    Args:
        rows: list of dicts by panel of int arrays `(samples + 1,)`, how often
            each rank was found.
    """
    columns = max(map(len, rows))
    size = (1.75 * columns + 0.5, 1.6 * len(rows) + 0.5)
    with _styled(size) as figure:
        grid = figure.subplots(
            len(rows), columns, sharex=True, sharey=True, squeeze=False
        )
        for axes, (title, counts) in zip(
            grid.flat, [panel for row in rows for panel in row.items()]
        ):
            count, bins = counts.sum(), len(counts)
            # Two standard deviations of a count, if every rank is as likely.
            margin = 2 * np.sqrt((bins - 1) / max(count, 1))
            axes.axhspan(1 - margin, 1 + margin, **BAND)
            axes.axhline(1, **LINE)
            axes.bar(
                np.arange(bins),
                counts * bins / max(count, 1),
                width=1,
                color=COLORS[0],
                edgecolor="white",
                linewidth=0.4,
            )
            axes.set_title(title, fontsize=8)
            axes.set_xticks([0, (bins - 1) // 2, bins - 1])
            axes.grid(False)
        for axes in grid[-1]:
            axes.set_xlabel("rank")
        for axes in grid[:, 0]:
            axes.set_ylabel("frequency, flat: 1")
    return figure


@contextlib.contextmanager
def _styled(size):
    with matplotlib.rc_context(STYLE):
        yield Figure(size, layout="constrained")


def _errorbar(axes, x, found, **style):
    value, low, high = results.curve(found).T
    axes.errorbar(x, value, [value - low, high - value], **style)


def _draw(axes, x, series, identity):
    if identity is not None:
        if identity[0] is not None:
            axes.axvline(identity[0], **LINE)
        axes.axhline(identity[1], **LINE)
    for label, found in series.items():
        value, low, high = results.curve(found).T
        [line] = axes.plot(x, value, markersize=3.5, label=label)
        color = line.get_color()
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
