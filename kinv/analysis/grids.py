"""Captioned grids of pictures."""

import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinv.pixels import resize_square, to_uint8

CELL_SIZE = 128
DPI = 100
MARGIN = 12
GAP = 6
FONT_SIZE = 9
# Height of a line and width of a character, in pixels; few are wider.
LINE = round(1.35 * FONT_SIZE * DPI / 72)
CHARACTER = 0.62 * FONT_SIZE * DPI / 72
# Grey levels of 255 that `deviation_map` shows white.
WHITE_DEVIATION = 64
CAPTION_COLOR = "#333333"
MARKED_COLOR = "#b3261e"


def mosaic(images, columns):
    """Lays out equal images in rows without captions, a white pixel between.

    Args:
        images: `(images, height, width, 3)` in [0, 255].
        columns: images per row.

    Returns:
        `(height, width, 3)`.
    """
    beyond = (0, -len(images) % columns), (0, 1), (0, 1), (0, 0)
    cells = np.pad(images, beyond, constant_values=255)
    _, height, width, _ = cells.shape
    rows = cells.reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, 3)[:-1, :-1]


def deviation_map(deviations):
    """Standard deviations of pixels as pictures, so bright that they are seen.

    Args:
        deviations: `(..., height, width, channels)`, in grey levels.

    Returns:
        uint8 `(..., height, width, 3)`, grey: 0 black, `WHITE_DEVIATION` or
        more white.
    """
    brightness = deviations.mean(axis=-1, keepdims=True) * 255 / WHITE_DEVIATION
    return to_uint8(brightness.repeat(3, axis=-1))


def captioned_grid(
    images,
    captions=None,
    marked=None,
    row_captions=None,
    column_captions=None,
    cell_size=CELL_SIZE,
):
    """Lays out images in rows and columns, with captions.

    Images smaller than a cell are enlarged with their pixels left sharp,
    larger ones are averaged down. A caption too long for its place is set in
    several lines, then cut.

    Args:
        images: rows of square images `(size, size, 3)` in [0, 255], of any
            sizes; None leaves a cell empty. Rows may differ in length.
        captions: rows of strings, set below the images; None for none.
        marked: rows of booleans, which captions are set in red.
        row_captions: strings, set to the left of the rows.
        column_captions: strings, set above the columns.
        cell_size: height and width of a cell in pixels.

    Returns:
        `matplotlib.figure.Figure`, at `DPI`; `render` makes an image of it.
    """
    blank = [[]] * len(images)
    # Captions first: their lines decide the space between the rows.
    above = [_wrap(text, cell_size, 2) for text in column_captions or []]
    beside = [_wrap(text, 1.5 * cell_size, 4) for text in row_captions or []]
    below = [
        [_wrap(text, cell_size, 4) for text in row] for row in captions or blank
    ]
    longest = max((len(line) for lines in beside for line in lines), default=0)
    left = MARGIN + (round(longest * CHARACTER) + 2 * GAP if beside else 0)
    lefts = left + (cell_size + GAP) * np.arange(max(map(len, images)))
    tops = [MARGIN + _height(above)]
    for row in below:
        tops.append(tops[-1] + cell_size + _height(row) + GAP)
    size = tops.pop() - GAP + MARGIN, lefts[-1] + cell_size + MARGIN
    canvas = np.full((*size, 3), 255, "uint8")
    for row, top in zip(images, tops, strict=True):
        for image, left in zip(row, lefts, strict=False):
            if image is not None:
                cell = canvas[top : top + cell_size, left : left + cell_size]
                cell[:] = resize_square(image, cell_size)

    figure = Figure((size[1] / DPI, size[0] / DPI), dpi=DPI)
    # An axes over all of it: sharp pixels at any resolution, and in a PDF; its
    # coordinates are pixels.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    middle = cell_size / 2
    for lines, left in zip(above, lefts, strict=False):
        _write(axes, lines, left + middle, MARGIN, "center")
    for lines, top in zip(beside, tops, strict=False):
        y = top + middle - _height([lines]) / 2
        _write(axes, lines, lefts[0] - 2 * GAP, y, "right")
    for row, flags, top in zip(below, marked or blank, tops, strict=True):
        colors = [MARKED_COLOR if flag else CAPTION_COLOR for flag in flags]
        colors += [CAPTION_COLOR] * (len(row) - len(colors))
        for lines, color, left in zip(row, colors, lefts, strict=False):
            y = top + cell_size + GAP / 2
            _write(axes, lines, left + middle, y, "center", color)
    return figure


def render(figure):
    """Draws a figure: uint8 `(height, width, 3)`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _wrap(text, width, max_lines):
    """Lines of a caption that fit into so many pixels."""
    columns = max(1, int(width / CHARACTER))
    return textwrap.wrap(
        str(text or ""), columns, max_lines=max_lines, placeholder="…"
    )


def _height(captions):
    """Pixels that the tallest of captions takes, with the gap; 0 of none."""
    most = max(map(len, captions), default=0)
    return most * LINE + GAP if most else 0


def _write(axes, lines, x, y, alignment, color=CAPTION_COLOR):
    for index, line in enumerate(lines):
        axes.text(
            x,
            # By the baseline: a box's top would depend on its letters.
            y + (index + 0.75) * LINE,
            line,
            color=color,
            fontsize=FONT_SIZE,
            horizontalalignment=alignment,
            # A dollar sign in a file name is one.
            parse_math=False,
        )
