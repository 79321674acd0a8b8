"""Captioned grids of pictures."""

import functools
import itertools
import math

import matplotlib.font_manager
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinv.images import resize_square

CELL_SIZE = 128
DPI = 100
MARGIN = 12
GAP = 6
FONT_SIZES = (10, 9, 8, 7)
CAPTION_COLOR = "#333333"
MARKED_COLOR = "#b3261e"


def mosaic(images, columns, gap):
    """Lays out equal images in rows without captions, white between them.

    Args:
        images: `(images, height, width, 3)` in [0, 255].
        columns: images per row.
        gap: pixels between images.

    Returns:
        float32 `(height, width, 3)`.
    """
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3),
        255,
        "float32",
    )
    for index, image in enumerate(images):
        top, left = index // columns, index % columns
        top, left = top * (height + gap), left * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


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
    larger ones are averaged down. A caption too long for its place is set
    smaller, then in several lines, then cut.

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
    above = [_fit(text, cell_size, 2) for text in column_captions or []]
    beside = [_fit(text, 1.5 * cell_size, 4) for text in row_captions or []]
    below = [
        [_fit(text or "", cell_size, 2) for text in row]
        for row in captions or blank
    ]
    left = MARGIN + max((text.width + 2 * GAP for text in beside), default=0)
    top = MARGIN + max((text.height + GAP for text in above), default=0)
    lefts = [
        left + column * (cell_size + GAP)
        for column in range(max(len(row) for row in images))
    ]
    tops = [top]
    for row in below:
        footer = max((text.height + GAP for text in row), default=0)
        tops.append(tops[-1] + cell_size + footer + GAP)
    bottom = tops.pop() - GAP

    canvas = np.full(
        (bottom + MARGIN, lefts[-1] + cell_size + MARGIN, 3), 255, "uint8"
    )
    for row, top in zip(images, tops, strict=True):
        for image, left in zip(row, lefts, strict=False):
            if image is not None:
                cell = canvas[top : top + cell_size, left : left + cell_size]
                cell[:] = resize_square(image, cell_size)

    middle = cell_size / 2
    drawing = _Drawing(canvas)
    for text, left in zip(above, lefts, strict=False):
        drawing.add(text, left + middle, MARGIN, "center")
    for text, top in zip(beside, tops, strict=False):
        right = lefts[0] - 2 * GAP
        drawing.add(text, right, top + middle - text.height / 2, "right")
    for row, flags, top in zip(below, marked or blank, tops, strict=True):
        flags = itertools.chain(flags, itertools.repeat(False))
        for text, flag, left in zip(row, flags, lefts, strict=False):
            color = MARKED_COLOR if flag else CAPTION_COLOR
            y = top + cell_size + GAP / 2
            drawing.add(text, left + middle, y, "center", color)
    return drawing.figure


def render(figure):
    """Draws a figure: uint8 `(height, width, 3)`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


class _Caption:
    """Text that has been made to fit, and the pixels it takes."""

    def __init__(self, lines, font_size):
        self.lines = [line for line in lines if line]
        self.font_size = font_size
        self.line_height = round(1.35 * font_size * DPI / 72)
        self.height = self.line_height * len(self.lines)
        self.width = max(math.ceil(_width(line, font_size)) for line in lines)


def _fit(text, width, max_lines):
    """Sets text as large as possible, in as few lines as possible."""
    text = " ".join(str(text).split())
    for num_lines in range(1, max_lines + 1):
        for font_size in FONT_SIZES[:2] if num_lines == 1 else FONT_SIZES:
            lines = _wrap(text, width, font_size)
            if len(lines) <= num_lines:
                return _Caption(lines, font_size)
    lines = lines[:max_lines]
    while _width(lines[-1] + "…", font_size) > width:
        lines[-1] = lines[-1][:-1]
    lines[-1] += "…"
    return _Caption(lines, font_size)


def _wrap(text, width, font_size):
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if _width(joined, font_size) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        # A word wider than a line, such as a file name, is broken anywhere.
        for character in word:
            if _width(lines[-1] + character, font_size) > width:
                lines.append("")
            lines[-1] += character
    return lines


@functools.lru_cache(10_000)
def _width(line, font_size):
    """Width in pixels of a line as matplotlib sets it."""
    renderer = _measuring_canvas.get_renderer()
    font = matplotlib.font_manager.FontProperties(size=font_size)
    return renderer.get_text_width_height_descent(line, font, False)[0]


_measuring_canvas = FigureCanvasAgg(Figure(dpi=DPI))


class _Drawing:
    """Text over a picture, placed in pixels from the top left corner."""

    def __init__(self, canvas):
        self.height, self.width = canvas.shape[:2]
        self.figure = Figure((self.width / DPI, self.height / DPI), dpi=DPI)
        # An axes over all of it: sharp pixels at any resolution, and in a PDF.
        axes = self.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(canvas, interpolation="nearest", aspect="auto")

    def add(self, caption, x, y, alignment, color=CAPTION_COLOR):
        for index, line in enumerate(caption.lines):
            # By the baseline: a box's top would depend on its letters.
            baseline = y + (index + 0.75) * caption.line_height
            self.figure.text(
                x / self.width,
                1 - baseline / self.height,
                line,
                color=color,
                fontsize=caption.font_size,
                horizontalalignment=alignment,
                verticalalignment="baseline",
                # A dollar sign in a file name is one.
                parse_math=False,
            )
