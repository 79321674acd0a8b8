import collections
import errno
import os
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from kinv import errors, images, pixels
from kinv.analysis import grids
from kinv.data import datasets
from kinv.serving import pipeline


def gradient(size):
    y, x = np.mgrid[:size, :size] * 255.0 / size
    return np.stack([x, y, 0 * x], axis=-1)


def test_written_image_is_read_back(tmp_path):
    image = gradient(9)
    images.write_image(tmp_path / "a.png", image)
    read = images.read_image(tmp_path / "a.png")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.rint(image))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_grey_and_transparent_images_become_rgb(tmp_path):
    path = tmp_path / "a.png"
    PIL.Image.new("L", (4, 4), 7).save(path)
    np.testing.assert_array_equal(
        images.read_image(path), np.full((4, 4, 3), 7)
    )
    PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(path)
    np.testing.assert_array_equal(
        images.read_image(path), np.full((4, 4, 3), 255)
    )
    PIL.Image.fromarray(np.full((4, 4), 25700, "uint16")).save(path)
    np.testing.assert_array_equal(
        images.read_image(path), np.full((4, 4, 3), 100)
    )


def test_orientation_of_the_camera_is_applied(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise.
    PIL.Image.new("RGB", (6, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (6, 2, 3)


def test_bad_files_are_named(tmp_path):
    random = np.random.default_rng(0).uniform(0, 255, (40, 40, 3))
    whole = tmp_path / "whole.png"
    images.write_image(whole, random)
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(whole.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    missing = tmp_path / "missing.png"
    # To open it would wait for ever.
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (truncated, text, empty, missing, pipe, tmp_path):
        with pytest.raises(errors.InputError, match=path.name) as caught:
            images.read_image(path)
        assert "\n" not in str(caught.value)


def test_lists_images_of_folders_and_counts_the_others(tmp_path):
    for name in ("b.PNG", "a/c.jpg", "a/notes.txt", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, left_out = images.list_images(tmp_path)
    assert found == [tmp_path / "a/c.jpg", tmp_path / "b.PNG"]
    assert left_out == {"hidden": 2, ".txt": 1}
    assert images.describe_left_out(left_out, "not: ") == (
        "not: 2 hidden, 1 .txt"
    )
    found, left_out = images.list_images(tmp_path / "b.PNG")
    assert found == [tmp_path / "b.PNG"] and not left_out
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "raw.cr2").touch()
    with pytest.raises(errors.InputError, match="has none but 1 .cr2"):
        images.list_images(tmp_path / "none")
    with pytest.raises(errors.InputError, match="does not exist"):
        images.list_images(tmp_path / "missing")


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    for path in ("a.png", "closed/b.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    scan = os.scandir

    def refuse(path):
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    # Whoever runs the tests may be allowed to read everything.
    monkeypatch.setattr(os, "scandir", refuse)
    found, left_out = images.find_images(tmp_path)
    assert found == [tmp_path / "a.png"]
    assert left_out == {"unreadable folders": 1}


def test_images_behind_a_link_into_a_hidden_folder_are_found(tmp_path):
    store = tmp_path / ".store" / "pictures"
    store.mkdir(parents=True)
    (store / "a.png").touch()
    (store / "again").symlink_to(tmp_path)
    (tmp_path / ".empty").mkdir()
    (tmp_path / "linked").symlink_to(store)
    found, left_out = images.find_images(tmp_path)
    assert found == [tmp_path / "linked" / "a.png"]
    assert left_out == {"hidden": 1}


def test_grid_shows_every_pixel_and_blank_cells():
    black = np.zeros((8, 8, 3))
    grid = grids.render(
        grids.captioned_grid([[black, None, black], [black]], cell_size=32)
    )
    assert grid.dtype == np.uint8
    assert (grid == 0).all(axis=-1).sum() == 3 * 32 * 32
    # The rest is white, and so is the margin on every side.
    assert set(np.unique(grid)) == {0, 255}
    for side in (grid[:8], grid[-8:], grid[:, :8], grid[:, -8:]):
        assert (side == 255).all()


@pytest.mark.parametrize(
    "text",
    ["red sphere", "a long name of many words " * 4, "unbreakable" * 20, "$x_"],
)
def test_captions_stay_inside_their_places(text):
    white = np.full((8, 8, 3), 255.0)
    grid = grids.captioned_grid(
        [[white, white], [white, white]],
        captions=[[text, text], [text, None]],
        marked=[[True], []],
        row_captions=[text, text],
        column_captions=[text, text],
        cell_size=64,
    )
    grid = grids.render(grid)
    for side in (grid[:8], grid[-4:], grid[:, :8], grid[:, -8:]):
        assert (side == 255).all()
    red = (grid[..., 0] > 150) & (grid[..., 1] < 100)
    assert red.any()
    # The cells themselves and the gap between the columns hold no ink.
    right = grid.shape[1] - grids.MARGIN
    gap = right - 64 - grids.GAP // 2
    assert (grid[:, gap - 1 : gap + 1] == 255).all()


def test_captions_take_room_only_where_they_are():
    image = gradient(8)
    bare = grids.captioned_grid([[image]] * 3, cell_size=32)
    bare = grids.render(bare)
    one = grids.captioned_grid(
        [[image]] * 3, captions=[[None], ["x"], [None]], cell_size=32
    )
    one = grids.render(one)
    assert bare.shape[1] == one.shape[1]
    assert 10 < one.shape[0] - bare.shape[0] < 40


def test_mosaic():
    cells = np.arange(5)[:, None, None, None] * np.ones((5, 2, 3, 3))
    picture = grids.mosaic(cells, columns=2)
    assert picture.shape == (8, 7, 3)
    np.testing.assert_array_equal(picture[3:5, 4:], cells[3])
    assert (picture[2] == 255).all() and (picture[6:, 4:] == 255).all()


def test_links_are_followed_once(tmp_path):
    (tmp_path / "there").mkdir()
    for index in range(3):
        (tmp_path / "there" / f"{index}.png").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own.png").touch()
    (tmp_path / "here" / "file.png").symlink_to("../there/0.png")
    (tmp_path / "here" / "one").symlink_to("../there")
    (tmp_path / "here" / "two").symlink_to("../there")
    (tmp_path / "there" / "back").symlink_to("../here")
    found, left_out = images.find_images(tmp_path / "here")
    assert len(found) == 5 and sum(left_out.values()) == 3 + 2


# Left half red, right half blue, a green bar on top and a grey ground below,
# wider than high, so that turns, channels and crops can be told.
def scene():
    pixels = np.zeros((32, 48, 3), "uint8")
    pixels[:, :24] = (220, 30, 30)
    pixels[:, 24:] = (30, 30, 220)
    pixels[:8] = (30, 200, 30)
    pixels[28:] = 77
    return pixels


def png(pixels, depth, color, *chunks):
    """A PNG of raw rows, which Pillow does not write."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width = pixels.shape[:2]
    width *= max(1, 8 // depth)  # Several pixels in a byte.
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*x) for x in chunks)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def turned(name, orientation, mode="RGB", **options):
    """Kinds of the scene whose camera was held otherwise."""
    # How the pixels must lie for a viewer to see them upright.
    ways = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    lying = ways[orientation](scene())
    picture = PIL.Image.fromarray(np.ascontiguousarray(lying)).convert(mode)
    pixels = np.asarray(
        PIL.Image.fromarray(scene()).convert(mode).convert("RGB")
    )
    return name, pixels, lambda path: picture.save(path, exif=exif, **options)


def kinds():
    """Every kind of file: its name, its pixels, and how to write it."""
    pixels = scene()
    rgb = PIL.Image.fromarray(pixels)
    grey = rgb.convert("L")
    levels = np.asarray(grey)
    of_grey = np.repeat(levels[..., None], 3, 2)
    opacity = np.full((32, 48), 255, "uint8")
    opacity[8:24, 16:32] = 0
    over_white = np.where(opacity[..., None] == 0, 255, pixels).astype("uint8")
    rgba = PIL.Image.fromarray(np.dstack([pixels, opacity]))
    palette = rgb.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=8)
    # The index of the green bar is transparent.
    index = palette.getpixel((0, 0))
    bar_white = pixels.copy()
    bar_white[:8] = 255
    back = rgb.transpose(PIL.Image.Transpose.ROTATE_180)
    frames = {"save_all": True, "append_images": [back]}
    deep = levels.astype("uint16") * 257
    quarter = levels // 16

    def save(image, **options):
        return lambda path: image.save(path, **options)

    def write(content):
        return lambda path: path.write_bytes(content)

    yield "plain.png", pixels, save(rgb)
    yield "plain.bmp", pixels, save(rgb)
    yield "plain.dib", pixels, save(rgb)
    yield "plain.ppm", pixels, save(rgb)
    yield "plain.tif", pixels, save(rgb)
    yield "lzw.tiff", pixels, save(rgb, compression="tiff_lzw")
    yield "lossless.webp", pixels, save(rgb, lossless=True)
    yield "lossless.jp2", pixels, save(rgb)
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    yield "gamma.png", pixels, write(png(pixels, 8, 2, gamma))
    yield "grey.png", of_grey, save(grey)
    yield "grey.bmp", of_grey, save(grey)
    yield "grey.pgm", of_grey, save(grey)
    yield "palette.png", pixels, save(palette)
    yield "palette.gif", pixels, save(palette)
    yield "palette.bmp", pixels, save(palette)
    yield "hole.png", over_white, save(rgba)
    yield "hole.webp", over_white, save(rgba, lossless=True, exact=True)
    yield "hole.tif", over_white, save(rgba)
    yield "bar.png", bar_white, save(palette, transparency=index)
    yield "bar.gif", bar_white, save(palette, transparency=index)
    yield (
        "color_key.png",
        bar_white,
        write(png(pixels, 8, 2, (b"tRNS", bytes((0, 30, 0, 200, 0, 30))))),
    )
    yield "animated.png", pixels, save(rgb, **frames)
    yield "animated.gif", pixels, save(palette, **frames)
    yield "animated.webp", pixels, save(rgb, lossless=True, **frames)
    yield "grey16.png", of_grey, save(PIL.Image.fromarray(deep))
    yield "grey16.tif", of_grey, save(PIL.Image.fromarray(deep))
    big = pixels.astype(">u2") * 257
    yield "rgb16.png", pixels, write(png(big, 16, 2))
    key = struct.pack(">HHH", *(x * 257 for x in (30, 200, 30)))
    yield "key16.png", bar_white, write(png(big, 16, 2, (b"tRNS", key)))
    at_bar = struct.pack(">H", deep[0, 0])
    grey_bar = of_grey.copy()
    grey_bar[:8] = 255
    yield (
        "grey_key16.png",
        grey_bar,
        write(png(deep.astype(">u2"), 16, 0, (b"tRNS", at_bar))),
    )
    packed = quarter[:, ::2] * 16 + quarter[:, 1::2]
    yield (
        "grey4.png",
        np.repeat(quarter[..., None] * 17, 3, 2),
        write(png(packed, 4, 0)),
    )
    yield turned("turned6.png", 6)
    yield turned("turned6.webp", 6, lossless=True)
    # Pillow maps some of these into memory that it opens by their path.
    for mode in ("RGB", "L", "RGBA", "CMYK"):
        yield turned(f"turned6-{mode}.tif", 6, mode)
    # Lossy ones.
    lossy = {"quality": 95, "subsampling": 0}
    yield "plain.jpg", pixels, save(rgb, **lossy)
    yield "progressive.jpg", pixels, save(rgb, progressive=True, **lossy)
    yield "grey.jpg", of_grey, save(grey, quality=95)
    yield "rgb.jpg", pixels, save(rgb, keep_rgb=True, **lossy)
    yield "thin.jpg", pixels, save(rgb, quality=95, subsampling=2)
    yield "two.mpo", pixels, save(rgb, format="MPO", **frames, **lossy)
    for orientation in range(2, 9):
        yield turned(f"turned{orientation}.jpg", orientation, **lossy)
    yield "plain.avif", pixels, save(rgb, quality=100, subsampling="4:4:4")
    # By another name.
    yield "tiff.jpg", pixels, save(rgb, format="TIFF")
    yield "webp.png", pixels, save(rgb, format="WEBP", lossless=True)


LOSSY = (".jpg", ".mpo", ".avif")


def squares(path):
    """What training, tools/invert.py and a pipeline get of the files."""
    source = datasets.open_dataset(path, "train[:100%]")
    batches = source.evaluation_batches(32, 1).as_numpy_iterator()
    found = collections.defaultdict(dict)
    for example, (image, _) in zip(
        source.examples.as_numpy_iterator(), batches, strict=True
    ):
        name = os.path.basename(example["image"]["path"]).decode()
        read = images.read_image(path / name)
        sent = []
        model = pipeline.Pipeline(
            lambda inputs, sent=sent: (
                sent.append(inputs["images"])
                or {"logits": np.zeros((1, 2), "float32")}
            ),
            {
                "class_names": ["a", "b"],
                "num_classes": 2,
                "noise_dim": 2,
                "image_size": 8,
            },
        )
        model.logits(read[None])
        found[name] = {
            "training": image[0],
            "invert": pixels.center_crop(read),
            "pipeline": sent[0][0],
        }
    return found


def test_every_reader_gives_the_same_pixels_of_every_kind(tmp_path):
    expected = {}
    for name, image, write in kinds():
        write(tmp_path / name)
        expected[name] = image[:, 8:40].astype("float32")
    found = squares(tmp_path)
    assert set(found) == set(expected)
    for name, readings in found.items():
        for reader, image in readings.items():
            message = f"{name} by {reader}"
            # Quality 95 keeps plain areas within a few levels; edges ring.
            distance = np.abs(image - expected[name])
            limit = 6 if name.endswith(LOSSY) and name != "tiff.jpg" else 0
            assert np.median(distance) <= limit, message
            if not limit:
                assert distance.max() == 0, message
            apart = np.abs(image - readings["invert"]).max()
            assert apart <= (2 if limit else 0), message


def test_what_has_no_range_is_refused_and_what_declares_one_is_scaled(tmp_path):
    levels = np.linspace(0, 1, 64, dtype="float32").reshape(8, 8)
    path = tmp_path / "float.tif"
    PIL.Image.fromarray(levels).save(path)
    with pytest.raises(errors.InputError, match="float.tif.*declared range"):
        images.read_image(path)
    with pytest.raises(errors.InputError, match="float.tif.*declared range"):
        datasets.open_dataset(tmp_path, "train[:100%]")
    PIL.Image.fromarray(levels).save(path, tiffinfo={340: 0.0, 341: 1.0})
    np.testing.assert_array_equal(
        images.read_image(path)[..., 0], np.rint(levels * 255)
    )
    path = tmp_path / "int.tif"
    PIL.Image.fromarray((levels * 1e6).astype("int32")).save(path)
    with pytest.raises(errors.InputError, match="int.tif.*declared range"):
        images.read_image(path)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0",
        # An orientation of text, and one beyond all.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0" + b"\xff" * 60,
    ],
)
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
def test_damaged_metadata_stop_no_reading(tmp_path, exif):
    path = tmp_path / "a.jpg"
    PIL.Image.new("RGB", (6, 2), "red").save(path, exif=exif)
    assert images.read_image(path).shape == (2, 6, 3)
    source = datasets.open_dataset(tmp_path, "train[:100%]")
    ((image, _),) = source.evaluation_batches(2, 1)
    np.testing.assert_allclose(image[0, 0, 0], (254, 0, 0), atol=2)


def test_plain_files_are_told_from_their_headers(tmp_path):
    plain = {
        "plain.png",
        "gamma.png",
        "rgb.jpg",
        "thin.jpg",
        "grey.png",
        "plain.jpg",
        "progressive.jpg",
        "grey.jpg",
    }
    for name, _, write in kinds():
        write(tmp_path / name)
        assert images.is_plain(tmp_path / name) == (name in plain), name
    # Where a program adds the orientation behind the pixels.
    content = png(scene(), 8, 2)
    path = tmp_path / "late.png"
    path.write_bytes(content)
    assert images.is_plain(path)
    exif = b"\0\0\0\x04eXIfabcd\0\0\0\0"
    path.write_bytes(content[:-12] + exif + content[-12:])
    assert not images.is_plain(path)


def test_a_picture_whose_pixels_are_damaged_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8")
    path = tmp_path / "a.png"
    PIL.Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match="damaged"):
        images.decode(path)
