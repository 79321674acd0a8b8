"""Images in and out: one meaning for each file."""

import collections
import contextlib
import itertools
import math
import os
import pathlib
import stat
import struct
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

from kinv import errors, files
from kinv.pixels import to_uint8

# By the suffixes of its files. Formats of which Pillow alone knows how to start
# other programs, or what no camera writes, are not among them.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpeg", ".jpg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# Reasons that one line about files left out names.
MOST_REASONS = 8
SUFFIXES = tuple(itertools.chain(*FORMATS.values()))
_ORIENTATION = 0x0112
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _LOWEST, _HIGHEST = 258, 262, 340, 341
# Chunks of a PNG that change how it looks, some by what they begin with.
_PNG_LOOKS = (b"tRNS", b"eXIf", b"acTL")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATIONS = (b"XML:com.adobe.xmp", b"Raw profile type")
# Of damaged metadata, or more than 89 million pixels: which are read all the
# same, or refused below.
warnings.filterwarnings("ignore", module=r"PIL\.")


def list_images(path):
    """Finds the image files below a folder, in the order of their paths.

    Args:
        path: a folder, searched with its sub-folders; or one file, taken as
            it is.

    Returns:
        List of `pathlib.Path`, not empty, and what was left out, as of
        `find_images`.

    Raises:
        errors.InputError: if there is no such path, or no image below it.
    """
    if "://" in str(path):
        raise errors.InputError(
            f"Expected an image file or a folder. Received: {path}, an "
            "address. Download it first."
        )
    path = files.named(path, "an image file or a folder")
    if path.exists() and not path.is_dir():
        return [path], collections.Counter()
    if not path.exists():
        raise errors.InputError(
            f"Expected an image file or a folder. Received: {path}, which does "
            "not exist. Check the path."
        )
    found, left_out = find_images(path)
    if not found:
        raise errors.InputError(
            f"Expected images ({', '.join(SUFFIXES)}) in the folder. Received: "
            f"{path}, which has none{describe_left_out(left_out, ' but ')}."
        )
    return found, left_out


def find_images(folder):
    """Finds the image files below a folder, in the order of their paths.

    Links are followed, each folder once, into hidden folders, too, which are
    not searched themselves.

    Args:
        folder: a directory.

    Returns:
        List of `pathlib.Path`, and `collections.Counter` of the files left out
        by reason.
    """
    found, left_out, seen = [], collections.Counter(), set()

    def unreadable(error):
        left_out["unreadable folders"] += 1

    for path, folders, names in os.walk(folder, True, unreadable, True):
        place = os.path.realpath(path)
        if place in seen:
            left_out["in folders that links reach again"] += len(names)
            folders.clear()
            continue
        seen.add(place)
        hidden = {name for name in folders if name.startswith(".")}
        folders[:] = sorted(set(folders) - hidden)
        for name in hidden:
            inside = os.walk(os.path.join(path, name))
            left_out["hidden"] += sum(len(of_one) for *_, of_one in inside)
        for name in names:
            if name.startswith("."):
                left_out["hidden"] += 1
            elif name.lower().endswith(SUFFIXES):
                found.append(pathlib.Path(path, name))
            else:
                suffix = pathlib.PurePath(files.printable(name)).suffix
                left_out[suffix.lower() or "without suffix"] += 1
    # Without what an empty hidden folder has counted.
    return sorted(found), +left_out


def or_skip(error):
    """The error of an image that cannot be read, with the flag that helps."""
    return errors.InputError(
        f"{error} Or pass --skip-unreadable to leave out files that cannot be "
        "read."
    )


def describe_left_out(left_out, before=""):
    """Says what `find_images` left out; empty where that is nothing.

    Args:
        left_out: the counter.
        before: str to begin with.
    """
    shown = left_out.most_common(MOST_REASONS)
    parts = [f"{count:,} {reason}" for reason, count in shown]
    if others := sum(left_out.values()) - sum(count for _, count in shown):
        parts.append(f"{others:,} of other suffixes")
    return f"{before}{', '.join(parts)}" if parts else ""


def read_image(path):
    """Reads an image file as RGB.

    The orientation that a camera recorded is applied, transparency is laid
    over white, palettes are resolved, and deeper pixels are scaled to 8 bits;
    of an animation the first frame is taken.

    Args:
        path: path of the file, of one of `FORMATS`, whatever it is called.

    Returns:
        float32 `(height, width, 3)` in [0, 255].

    Raises:
        errors.InputError: naming the file, if it is missing, is not an image,
            is cut off, or does not say how its pixels are scaled.
    """
    return decode(path).astype("float32")


def decode(path):
    """Reads an image file as `read_image` does, to uint8."""
    with _opened(path) as image:
        if image.format != "PNG":
            return _upright(image)
        # Otherwise Pillow makes other pixels of damaged ones. It cannot read
        # from what it has verified.
        image.verify()
    with _opened(path) as image:
        return _upright(image)


def is_plain(path):
    """Whether any decoder gives the pixels of a file as `read_image` does.

    Looks at its header alone: JPEG or PNG of 8 bits, red, green and blue or
    grey, without orientation or transparency.

    Raises:
        errors.InputError: naming the file, if it is missing or is not an image.
    """
    with _opened(path) as image:
        if image.mode not in ("RGB", "L"):
            return False
        if image.format == "PNG":
            return _is_plain_png(image.fp)
        if image.format != "JPEG":
            return False
        # One that cannot be read turns nothing.
        with contextlib.suppress(Exception):
            return image.getexif().get(_ORIENTATION, 1) not in range(2, 9)
        return True


@contextlib.contextmanager
def _opened(path):
    """Opens a file with Pillow; whatever that raises becomes an InputError."""
    try:
        with contextlib.ExitStack() as stack:
            # A stream: a TIFF that Pillow opens by its path it may map into
            # memory, and then takes rows for as long as they are once turned.
            file = path
            if not hasattr(path, "read"):
                # To open a pipe waits for somebody who writes to it.
                if stat.S_ISFIFO(os.stat(path).st_mode):
                    raise _PipeError
                file = stack.enter_context(open(path, "rb"))
            image = PIL.Image.open(file, formats=tuple(FORMATS))
            yield stack.enter_context(image)
            return
    except FileNotFoundError:
        reason = "which does not exist. Check the path."
    except IsADirectoryError:
        reason = "a folder. Name a file in it."
    except PermissionError:
        reason = "which may not be read. Check its permissions."
    except _PipeError:
        reason = "a pipe. Write it to a file first."
    except PIL.UnidentifiedImageError:
        reason = "which kinv cannot read. Convert it to PNG or JPEG."
    except PIL.Image.DecompressionBombError:
        reason = "which has too many pixels. Make it smaller."
    except _UnknownRangeError as error:
        reason = f"{error}. Convert it to 8 or 16 bits."
    # Whatever a damaged file makes Pillow's decoders raise.
    except Exception as error:
        reason = f"which is damaged ({errors.reason(error)}). Replace it."
    raise errors.InputError(
        f"Expected an image file. Received: {path}, {reason}"
    ) from None


class _PipeError(ValueError):
    """A named pipe, or the one of a shell."""


class _UnknownRangeError(ValueError):
    """Pixels of more than 16 bits that do not say what is black and white."""


def _upright(image):
    """Its pixels as a camera was held, RGB, uint8."""
    image.load()
    # A damaged record is no reason to pass over the picture.
    with contextlib.suppress(Exception):
        PIL.ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(_to_rgb(image))


def _to_rgb(image):
    if image.mode[0] in "IF":
        image = _from_deep(image)
    transparency = image.info.get("transparency")
    if isinstance(transparency, tuple) and max(transparency) > 255:
        # Of 16 bits, of which Pillow has kept the upper ones.
        image.info["transparency"] = tuple(x >> 8 for x in transparency)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_deep(image):
    """Grey of more than 8 bits, which Pillow would clip at 255, as 8."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.mode.startswith("I;"):
        low, high = 0, 2 ** tags.get(_BITS, (16,))[0] - 1
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        low, high = 0, 65535
    else:
        low, high = (
            np.ravel(tags.get(tag, math.nan))[0] for tag in (_LOWEST, _HIGHEST)
        )
        if not low < high:
            raise _UnknownRangeError(
                f"whose {'float' if image.mode == 'F' else 'integer'} pixels "
                "of 32 bits have no declared range"
            )
    if tags.get(_PHOTOMETRIC) == 0:
        # White is zero.
        low, high = high, low
    levels = (np.nan_to_num(values, nan=low) - float(low)) * (
        255 / (float(high) - float(low))
    )
    levels = to_uint8(levels)
    if "transparency" in image.info:
        levels[values == image.info["transparency"]] = 255
    return PIL.Image.fromarray(levels)


def _is_plain_png(file):
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = file.tell() + length + 4
        if kind == b"IHDR" and file.read(length)[8:9] != b"\x08":
            return False
        if kind in _PNG_LOOKS:
            return False
        if kind in _PNG_TEXTS and file.read(20).startswith(_PNG_ORIENTATIONS):
            return False
        file.seek(end)
    return True


def write_image(path, image):
    """Writes an image, atomically; the suffix chooses the format.

    Args:
        path: path of the file, its parent exists.
        image: `(height, width, 3)` in [0, 255].
    """
    with files.atomic_path(path) as temporary:
        PIL.Image.fromarray(to_uint8(image)).save(temporary)
