"""Collects freely licensed photographs: two public collections, and Debian's.

On Debian or a system like it, with git, from the root of the repository:

    .venv/bin/python docs/collect_photographs.py photographs

Writes squares of photographs to `photographs/images`, a folder that kinv's
tools take as `--dataset`: `train/`, `validation/` and `test/` share no
photograph, and `LICENSE.md` goes into the model card of what is trained on it.
`photographs/SOURCES.tsv` names each photograph's source and file;
`photographs/licences/` has what each package says of its files' authors and
licences. The packages (250 MB) are downloaded by `apt-get download`, and not
installed; the collections (350 MB) by `git clone`.
"""

import collections
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import PIL.Image

from kinv import errors, images

# Per package of Debian, or repository on GitHub: which files are photographs,
# and under what licences they are. Drawings, patterns and other copies of the
# same photograph are left out.
SOURCES = {
    # Caltech-101 (doi.org/10.22002/D1.20086).
    "MachineLearning2020/Homework2-Caltech101": (
        r"/101_ObjectCategories/(?!BACKGROUND|Faces_easy|garfield|snoopy|"
        r"yin_yang|brontosaurus|stegosaurus)\w+/[^/]+\.jpg$",
        "CC-BY-4.0 (Caltech-101: Li, Andreeto, Ranzato and Perona, 2022)",
    ),
    # flower_photos of TensorFlow's tutorials.
    "Oldpel/flower_photos": (
        r"/dataset/(train|val)/\w+/[^/]+\.jpg$",
        "CC-BY-2.0 (flower_photos: The TensorFlow Team, 2019)",
    ),
    "gcompris-qt-data": (
        r"/(categorization|clickgame|erase|explore_(farm_animals|monuments|"
        r"world_animals))\.rcc$",
        "public domain, CC0, CC-BY, CC-BY-SA, GFDL, GPL-2+, GPL-3+",
    ),
    "gnome-control-center-data": (r"/faces/[^/]+\.jpg$", "GPL-2+"),
    "kphotoalbum": (r"/demo/(?!qt-logo)[^/]+\.jpg$", "GPL-2+"),
    "lomiri-wallpapers-16.04": (
        r"/(?!analogpattern|umang)[^/]+\.jpg$",
        "CC0, CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0",
    ),
    "lomiri-wallpapers-20.04": (r"/Kleiber[^/]+\.jpg$", "CC-BY-SA-3.0"),
    "mate-backgrounds": (r"/nature/[^/]+\.jpg$", "GPL-2+, CC-BY-SA-4.0"),
    "palapeli-data": (r"/collection/[^/]+\.jpg$", "GPL-2+"),
    "plasma-workspace-data": (r"/avatars/photos/[^/]+\.png$", "CC0"),
    "plasma-workspace-wallpapers": (
        r"/(BytheWater|ColdRipple|ColorfulCups|DarkestHour|EveningGlow|"
        r"FallenLeaf|Grey|Kite|OneStandsOut|Path|summer_1am)/contents/images/"
        r"1280x800\.jpg$",
        "GPL-2+",
    ),
    "scratch": (
        r"/Backgrounds/\w+/(?!party-room|room|spotlight|woods-and-bench|"
        r"graffiti|basketball-court1-a)[^/]+\.jpg$",
        "CC-BY-SA-3.0",
    ),
    "tuxpaint-data": (
        r"/(templates/[^/]+\.jpg|starters/(reef|skyline)[^/]*-back\.\w+)$",
        "GPL-2+",
    ),
    "tuxpaint-stamps-default": (
        r"/stamps/(?!symbols|clothes|seasonal|naturalforces)(?!.*(cartoon|"
        r"flags|roadsigns|silhouette|outlined|_mirror|_flip))[^.]+\.png$",
        "GPL-2",
    ),
}
# Of the squares, in pixels.
SIZE = 128
# Squares per split, and the share of the photographs that each holds.
SQUARES = {"train": 80000, "validation": 1000, "test": 1000}
HELD_OUT = 1 / 12
# Photographs of a folder at most: some subjects have many that are much alike.
MOST_OF_FOLDER = 300
# Photographs at most; more is an error.
MOST_PHOTOGRAPHS = 50_000
# Photographs whose thumbnails correlate by more are taken as one.
DUPLICATE = 0.95
# Share of a photograph's largest square that a square covers at least; of a
# large photograph, whose parts are pictures of their own.
SMALLEST_AREA, SMALLEST_AREA_OF_LARGE = 0.5, 0.1
LARGE = 600
SEED = 8


def embedded(path):
    """The JPEG and WebP files inside a file of Qt resources, as bytes."""
    resource = path.read_bytes()
    for match in re.finditer(rb"RIFF(....)WEBP|\xff\xd8\xff", resource, re.S):
        start = match.start()
        if match[1]:
            length = 8 + int.from_bytes(match[1], "little")
        else:
            # Qt writes the length of a file in front of it.
            length = int.from_bytes(resource[start - 4 : start], "big")
        yield f"{path.name}:{start}", resource[start : start + length]


def photographs(source, folder):
    """Name and pixels of a source's photographs.

    Args:
        source: its name in `SOURCES`.
        folder: where its files lie.

    Yields:
        (name, uint8 `(height, width, 3)`), those of at least SIZE / 2.
    """
    taken = collections.Counter()
    for path in sorted(folder.rglob("*")):
        if not re.search(SOURCES[source][0], str(path)) or not path.is_file():
            continue
        files = (
            embedded(path)
            if path.suffix == ".rcc"
            else [(str(path.relative_to(folder)), path.read_bytes())]
        )
        for name, content in files:
            if taken[path.parent] == MOST_OF_FOLDER:
                break
            try:
                pixels = images.decode(io.BytesIO(content))
            except errors.InputError:
                # Three bytes that only look like the start of a JPEG.
                continue
            if min(pixels.shape[:2]) >= SIZE // 2:
                taken[path.parent] += 1
                yield name, shrunk(pixels)


def shrunk(pixels):
    """A photograph whose shorter side has at most `LARGE` pixels."""
    image = PIL.Image.fromarray(pixels)
    factor = LARGE / min(image.size)
    if factor >= 1:
        return pixels
    size = [round(length * factor) for length in image.size]
    return np.asarray(image.resize(size, PIL.Image.Resampling.LANCZOS))


def download(source, folder):
    """Brings a source's files into a folder; nothing is installed.

    Args:
        source: name of a package of Debian, or "owner/name" on GitHub.
        folder: for all sources.

    Returns:
        The source's own folder.
    """
    target = folder / source.replace("/", "-")
    if "/" in source:
        address = f"https://github.com/{source}"
        command = ["git", "clone", "--quiet", "--depth", "1", address, target]
        subprocess.run(command, check=True)
    else:
        subprocess.run(
            ["apt-get", "download", "-q", source], cwd=folder, check=True
        )
        [archive] = folder.glob(f"{source}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return target


def encoded(pixels):
    """A photograph as a JPEG file: a tenth of the memory of its pixels."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def thumbnail(pixels):
    """What tells photographs apart: `(256,)`, mean 0 and length 1."""
    small = PIL.Image.fromarray(pixels).convert("L").resize((16, 16))
    small = np.asarray(small, "float64").ravel()
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1e-9)


def square(encoded, random):
    """A random square of a photograph, mirrored or not, of SIZE pixels."""
    pixels = images.decode(io.BytesIO(encoded))
    height, width = pixels.shape[:2]
    shortest = min(height, width)
    area = random.uniform(
        SMALLEST_AREA_OF_LARGE if shortest >= LARGE else SMALLEST_AREA, 1
    )
    side = round(shortest * area**0.5)
    top = random.integers(height - side + 1)
    left = random.integers(width - side + 1)
    result = PIL.Image.fromarray(
        pixels[top : top + side, left : left + side]
    ).resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    if random.random() < 0.5:
        result = result.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return result


def licence_text(found):
    """What the model card says of the photographs."""
    counts = collections.Counter(source for source, _, _ in found)
    rows = "\n".join(
        f"| {source} | {counts[source]} | {licences} |"
        for source, (_, licences) in SOURCES.items()
    )
    return f"""\
{len(found)} photographs. Those with a slash in their name are repositories on
GitHub: copies of Caltech-101 and of TensorFlow's flower_photos. The others are
packages of Debian 12, each of whose `copyright` names the author and the
licence of every file; all are free as Debian defines it.

| Source | photographs | licences |
|---|---|---|
{rows}
"""


def collect(licences):
    """All photographs, each once: (source, name, JPEG file as bytes)."""
    found = []
    thumbnails = np.zeros((MOST_PHOTOGRAPHS, 256))
    with tempfile.TemporaryDirectory() as temporary:
        for source in SOURCES:
            folder = download(source, pathlib.Path(temporary))
            before = len(found)
            for name, pixels in photographs(source, folder):
                small = thumbnail(pixels)
                others = thumbnails[: len(found)]
                if (others @ small).max(initial=0) > DUPLICATE:
                    continue
                thumbnails[len(found)] = small
                found.append((source, name, encoded(pixels)))
            notice = folder / "usr/share/doc" / source / "copyright"
            if notice.exists():
                shutil.copy(notice, licences / source)
            print(f"{source}: {len(found) - before} photographs", flush=True)
    return found


def main(directory):
    """Writes the folder; it must not exist."""
    directory = pathlib.Path(directory)
    directory.mkdir()
    licences = directory / "licences"
    licences.mkdir()
    found = collect(licences)
    folder = directory / "images"
    folder.mkdir()
    (folder / "LICENSE.md").write_text(licence_text(found))
    random = np.random.default_rng(SEED)
    random.shuffle(found)
    held_out = round(len(found) * HELD_OUT)
    splits = {
        "test": found[:held_out],
        "validation": found[held_out : 2 * held_out],
        "train": found[2 * held_out :],
    }
    lines = ["photograph\tsource\tfile"]
    for split, members in splits.items():
        (folder / split).mkdir()
        for index in range(SQUARES[split]):
            part, member = divmod(index, len(members))
            square(members[member][2], random).save(
                folder / split / f"{member:05}-{part:03}.jpg", quality=92
            )
        for index, (source, name, _) in enumerate(members):
            lines.append(f"{split}/{index:05}\t{source}\t{name}")
        print(
            f"{split}: {SQUARES[split]} squares of {len(members)} photographs"
        )
    (directory / "SOURCES.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
