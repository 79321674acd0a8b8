import pathlib

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from kinv import errors, images
from kinv.analysis import grids


def gradient(size):
    y, x = np.mgrid[:size, :size] * 255.0 / size
    return np.stack([x, y, 0 * x], axis=-1)


def test_bytes_survive_the_round_trip():
    values = np.arange(256).reshape(16, 16)
    floats = values.astype("float32")
    np.testing.assert_array_equal(images.to_uint8(floats), values)


def test_rounds_and_clips():
    values = images.to_uint8(np.array([-3.0, 0.4, 0.6, 254.6, 300.0]))
    assert values.tolist() == [0, 0, 1, 255, 255]
    assert values.dtype == np.uint8


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
    for path in (truncated, text, empty, missing, tmp_path):
        with pytest.raises(errors.InputError, match=path.name) as caught:
            images.read_image(path)
        assert "\n" not in str(caught.value)


def test_lists_images_of_folders(tmp_path):
    for name in ("b.PNG", "a/c.jpg", "a/notes.txt", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = images.list_images(tmp_path)
    assert found == [tmp_path / "a/c.jpg", tmp_path / "b.PNG"]
    assert images.list_images(tmp_path / "b.PNG") == [tmp_path / "b.PNG"]
    (tmp_path / "none").mkdir()
    with pytest.raises(errors.InputError, match="has none"):
        images.list_images(tmp_path / "none")
    with pytest.raises(errors.InputError, match="does not exist"):
        images.list_images(tmp_path / "missing")


def test_wrong_outputs(tmp_path):
    with pytest.raises(errors.InputError, match="ends in one of"):
        images.write_image(tmp_path / "a.doc", gradient(4))
    with pytest.raises(errors.InputError, match="Create"):
        images.write_image(tmp_path / "missing" / "a.png", gradient(4))


def test_center_crop():
    image = np.arange(4 * 8 * 3).reshape(4, 8, 3)
    np.testing.assert_array_equal(images.center_crop(image), image[:, 2:6])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(images.center_crop(tall), tall[2:6])


def test_enlarged_pixels_are_sharp():
    image = gradient(4)
    large = images.resize_square(image, 12)
    expected = np.kron(np.rint(image), np.ones((3, 3, 1)))
    np.testing.assert_array_equal(large, expected)
    np.testing.assert_array_equal(
        images.resize_square(large, 4), expected[::3, ::3]
    )


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


def recorded():
    path = pathlib.Path(__file__).parent / "recorded" / "addons.npz"
    return np.load(path)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_adjustments_are_pillows(factor):
    pixels = recorded()["images"]
    for enhance, adjust in (
        (PIL.ImageEnhance.Brightness, images.adjust_brightness),
        (PIL.ImageEnhance.Sharpness, images.adjust_sharpness),
    ):
        expected = [
            np.asarray(enhance(PIL.Image.fromarray(image)).enhance(factor))
            for image in pixels
        ]
        np.testing.assert_allclose(adjust(pixels, factor), expected, atol=1)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_sharpness_is_that_of_tensorflow_addons(factor):
    values = recorded()
    np.testing.assert_allclose(
        images.adjust_sharpness(values["images"], factor),
        values[f"sharpness_{factor}"],
        atol=1,
    )


def test_rotation_is_that_of_tensorflow_addons():
    values = recorded()
    square = values["images"][:, :9]
    np.testing.assert_array_equal(
        np.rot90(square, axes=(1, 2)), values["rotation"]
    )


def test_mosaic():
    cells = np.arange(5)[:, None, None, None] * np.ones((5, 2, 3, 3))
    picture = grids.mosaic(cells, columns=2, gap=1)
    assert picture.shape == (8, 7, 3)
    np.testing.assert_array_equal(picture[3:5, 4:], cells[3])
    assert (picture[2] == 255).all() and (picture[6:, 4:] == 255).all()
