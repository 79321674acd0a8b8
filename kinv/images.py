"""Images in and out: files, 8 bits, captioned grids."""

import itertools
import math
import os
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from kinv import errors, files

SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)


def to_uint8(images):
    """Rounds images in [0, 255] to 8 bits; what lies outside is clipped."""
    return np.clip(np.rint(images), 0, 255).astype("uint8")


def list_images(path):
    """Finds the image files below a folder, in the order of their paths.

    Args:
        path: a folder, searched with its sub-folders; or one file, taken as
            it is.

    Returns:
        List of `pathlib.Path`, not empty.

    Raises:
        errors.InputError: if there is no such path, or no image below it.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise errors.InputError(
            f"Expected an image file or a folder. Received: {path}, which does "
            "not exist. Check the path."
        )
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            pathlib.Path(folder, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise errors.InputError(
            f"Expected images ({', '.join(SUFFIXES)}) in the folder. "
            f"Received: {path}, which has none."
        )
    return sorted(found)


def read_image(path):
    """Reads an image file as RGB.

    The orientation that a camera recorded is applied, transparency is laid
    over white, and 16 bits of grey become 8.

    Args:
        path: path of the file, of any format that Pillow reads.

    Returns:
        float32 `(height, width, 3)` in [0, 255].

    Raises:
        errors.InputError: naming the file, if it is missing, is not an image
            or is cut off.
    """
    try:
        with PIL.Image.open(path) as image:
            image = PIL.ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(image), "float32")
    except FileNotFoundError:
        reason = "which does not exist. Check the path."
    except IsADirectoryError:
        reason = "a folder. Name a file in it."
    except PermissionError:
        reason = "which may not be read. Check its permissions."
    except PIL.UnidentifiedImageError:
        reason = "which is none. Convert it to PNG or JPEG."
    except PIL.Image.DecompressionBombError:
        reason = "which has too many pixels. Make it smaller."
    # Whatever a damaged file makes Pillow's decoders raise.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = f"which is damaged ({error}). Replace or remove it."
    raise errors.InputError(
        f"Expected an image file. Received: {path}, {reason}"
    ) from None


def _to_rgb(image):
    if image.mode.startswith("I"):
        # Pillow would clip at 255.
        image = PIL.Image.fromarray(to_uint8(np.asarray(image) / 257.0))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


def write_image(path, image):
    """Writes an image, atomically; the suffix chooses the format.

    Args:
        path: path of the file, its parent exists.
        image: `(height, width, 3)` in [0, 255].

    Raises:
        errors.InputError: if the suffix is not an image format's, or the
            folder does not exist.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise errors.InputError(
            "Expected a file name that ends in one of "
            f"{', '.join(SUFFIXES)}. Received: {path}."
        )
    if not path.parent.is_dir():
        raise errors.InputError(
            f"Expected a file in an existing folder. Received: {path}. Create "
            f"{path.parent} first."
        )
    with files.atomic_path(path) as temporary:
        PIL.Image.fromarray(to_uint8(image)).save(temporary)


def center_crop(image):
    """Largest centred square of an image `(height, width, channels)`."""
    size = min(image.shape[:2])
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def resize_square(image, size):
    """Resizes a square image for the eye.

    Args:
        image: square image `(size, size, 3)` in [0, 255].
        size: new height and width. Pixels stay sharp when they are enlarged
            and are averaged when there are too many.

    Returns:
        uint8 `(size, size, 3)`.
    """
    repeats = math.ceil(size / image.shape[0])
    image = to_uint8(image).repeat(repeats, axis=0).repeat(repeats, axis=1)
    if image.shape[:2] == (size, size):
        return image
    resampling = PIL.Image.Resampling.BOX
    return np.asarray(
        PIL.Image.fromarray(image).resize((size, size), resampling)
    )


def resize(images, size):
    """Antialiased resize of a batch of square images.

    Args:
        images: `(batch, height, width, 3)` in [0, 255].
        size: new height and width.

    Returns:
        float32 `(batch, size, size, 3)`; the same values where it fits.
    """
    if images.shape[1:3] == (size, size):
        return np.asarray(images, "float32")
    # Here, since reading files and drawing need no TensorFlow.
    import tensorflow as tf

    return tf.image.resize(images, (size, size), antialias=True).numpy()


def adjust_brightness(images, factor):
    """Multiplies pixel values, as `PIL.ImageEnhance.Brightness`.

    Args:
        images: `(..., height, width, 3)` in [0, 255].
        factor: 0 gives black, 1 the image. What exceeds 255 is clipped.

    Returns:
        float32 of the same shape.
    """
    return np.clip(np.asarray(images, "float32") * factor, 0, 255)


def adjust_sharpness(images, factor):
    """Moves images away from their smoothed form, or towards it.

    As `PIL.ImageEnhance.Sharpness`, whose smoothing is a weighted mean of 3x3
    pixels that leaves the border as it is.

    Args:
        images: `(..., height, width, 3)` in [0, 255].
        factor: 0 gives the smoothed image, 1 the image, 2 a sharpened one.

    Returns:
        float32 of the same shape, in [0, 255].
    """
    images = np.asarray(images, "float32")
    height, width = images.shape[-3:-1]
    total = 4 * images[..., 1:-1, 1:-1, :]
    for top, left in itertools.product(range(3), range(3)):
        total = (
            total
            + images[..., top : height - 2 + top, left : width - 2 + left, :]
        )
    smooth = images.copy()
    smooth[..., 1:-1, 1:-1, :] = total / 13
    return np.clip(smooth + factor * (images - smooth), 0, 255)
