"""Damaged image files: each is read or refused in one line, in every reader.

`python tests/test_damaged_images.py 267` damages 267 files of each of the 45
kinds instead of the test's few, and prints what became of them.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import PIL.Image
import pytest

FORMATS = ("avif", "bmp", "gif", "jp2", "jpg", "png", "ppm", "tif", "webp")
WAYS = ("cut", "zeros", "bits", "header", "shifted")


def whole_files(suffix, random, folder):
    """Contents of whole files of a format, of several modes."""
    size = (int(random.integers(8, 40)), int(random.integers(8, 40)))
    pixels = random.integers(0, 255, (5, 5, 3), "uint8")
    picture = PIL.Image.fromarray(pixels).resize(size, 3)
    exif = PIL.Image.Exif()
    exif[0x0112] = int(random.integers(1, 9))
    exif[0x010F] = "a camera"
    modes = {
        "jpg": ("RGB", "L", "CMYK"),
        "png": ("RGB", "L", "P", "RGBA", "1", "I;16"),
        "tif": ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "F", "LAB"),
        "gif": ("P", "L"),
        "bmp": ("RGB", "P", "1", "L"),
        "ppm": ("RGB", "L", "1"),
        "webp": ("RGB", "RGBA"),
        "avif": ("RGB", "RGBA"),
        "jp2": ("RGB", "L", "RGBA"),
    }
    options = {
        "jpg": {"exif": exif, "progressive": True},
        "png": {"exif": exif},
        "tif": {"compression": "tiff_lzw"},
        "webp": {"exif": exif, "lossless": True},
        "gif": {"save_all": True, "append_images": [picture.convert("P")]},
    }
    contents = []
    for mode in modes[suffix]:
        if mode == "I;16":
            levels = np.asarray(picture.convert("L"), "uint16") * 257
            image = PIL.Image.fromarray(levels)
        else:
            image = picture.convert(mode)
        for more in ({}, options.get(suffix, {})):
            if suffix == "tif" and mode in ("F", "LAB"):
                more = {}
            path = folder / f"whole.{suffix}"
            image.save(path, **more)
            contents.append(path.read_bytes())
    return contents


def damage(content, way, random):
    """The bytes of a file after an accident."""
    content = bytearray(content)
    size = len(content)
    place = int(random.integers(0, size))
    if way == "cut":
        return bytes(content[:place])
    if way == "zeros":
        count = min(size - place, int(random.integers(1, 200)))
        content[place : place + count] = bytes(count)
    elif way == "bits":
        for place in random.integers(0, size, int(random.integers(1, 20))):
            content[place] ^= 1 << int(random.integers(0, 8))
    elif way == "header":
        for place in random.integers(0, min(size, 80), 3):
            content[place] = int(random.integers(0, 256))
    else:
        inserted = random.bytes(int(random.integers(1, 60)))
        content[place:place] = inserted
    return bytes(content)


def write_damaged(folder, count):
    """Writes so many damaged files of each kind."""
    random = np.random.default_rng(0)
    for suffix in FORMATS:
        contents = whole_files(suffix, random, folder)
        (folder / f"whole.{suffix}").unlink()
        for way in WAYS:
            for index in range(count):
                whole = contents[int(random.integers(0, len(contents)))]
                path = folder / f"{way}-{index}.{suffix}"
                path.write_bytes(damage(whole, way, random))


def read_all(folder):
    """Reads every file as training and as tools/invert.py do.

    Anything but a refusal in one line, by the one or the other, is raised.

    Returns:
        `collections.Counter` by what became of the files.
    """
    from kinv import errors, images
    from kinv.data import datasets

    counts = collections.Counter()
    source = datasets.open_dataset(str(folder), "train[:100%]", True)
    trained = {}
    squares = source.evaluation_batches(16, 1).as_numpy_iterator()
    examples = source.examples.as_numpy_iterator()
    for example, (image, _) in zip(examples, squares, strict=True):
        trained[os.path.basename(example["image"]["path"]).decode()] = image
    for path in sorted(folder.iterdir()):
        try:
            image = images.read_image(path)
        except errors.InputError as error:
            if len(str(error).splitlines()) != 1 or path.name not in str(error):
                raise
            counts["refused" if path.name not in trained else "training"] += 1
            continue
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise AssertionError(path)
        counts["read" if path.name in trained else "invert"] += 1
    return counts


def run(folder, count):
    """Damages files and reads them in a process of their own."""
    write_damaged(folder, count)
    return subprocess.run(
        [sys.executable, __file__, "--read", str(folder)],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["."])},
    )


@pytest.mark.slow
def test_no_image_ends_the_process(tmp_path):
    found = run(tmp_path, 20)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Traceback" not in found.stderr
    assert found.stdout.startswith("900 files")


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        counts = read_all(pathlib.Path(sys.argv[2]))
        print(
            f"{sum(counts.values())} files: {counts['read']} read by both, "
            f"{counts['refused']} refused by both, {counts['training']} read "
            f"by training alone, {counts['invert']} by invert alone"
        )
    else:
        with tempfile.TemporaryDirectory() as directory:
            result = run(pathlib.Path(directory), int(sys.argv[1]))
        print(result.stdout, result.stderr[-5000:], sep="")
        sys.exit(result.returncode)
