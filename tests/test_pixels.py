import pathlib

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from kinv import pixels


def test_bytes_survive_the_round_trip():
    values = np.arange(256).reshape(16, 16)
    floats = values.astype("float32")
    np.testing.assert_array_equal(pixels.to_uint8(floats), values)


def test_rounds_and_clips():
    values = pixels.to_uint8(np.array([-3.0, 0.4, 0.6, 254.6, 300.0]))
    assert values.tolist() == [0, 0, 1, 255, 255]
    assert values.dtype == np.uint8


def test_center_crop():
    image = np.arange(4 * 8 * 3).reshape(4, 8, 3)
    np.testing.assert_array_equal(pixels.center_crop(image), image[:, 2:6])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(pixels.center_crop(tall), tall[2:6])


def test_enlarged_pixels_are_sharp():
    image = np.random.default_rng(0).uniform(0, 255, (4, 4, 3))
    large = pixels.resize_square(image, 12)
    expected = np.kron(np.rint(image), np.ones((3, 3, 1)))
    np.testing.assert_array_equal(large, expected)
    np.testing.assert_array_equal(
        pixels.resize_square(large, 4), expected[::3, ::3]
    )


def recorded():
    path = pathlib.Path(__file__).parent / "recorded" / "addons.npz"
    return np.load(path)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_adjustments_are_pillows(factor):
    pictures = recorded()["images"]
    for enhance, adjust in (
        (PIL.ImageEnhance.Brightness, pixels.adjust_brightness),
        (PIL.ImageEnhance.Sharpness, pixels.adjust_sharpness),
    ):
        expected = [
            np.asarray(enhance(PIL.Image.fromarray(image)).enhance(factor))
            for image in pictures
        ]
        np.testing.assert_allclose(adjust(pictures, factor), expected, atol=1)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_sharpness_is_that_of_tensorflow_addons(factor):
    values = recorded()
    np.testing.assert_allclose(
        pixels.adjust_sharpness(values["images"], factor),
        values[f"sharpness_{factor}"],
        atol=1,
    )


def test_rotation_is_that_of_tensorflow_addons():
    values = recorded()
    square = values["images"][:, :9]
    np.testing.assert_array_equal(
        np.rot90(square, axes=(1, 2)), values["rotation"]
    )


@pytest.mark.parametrize("old, new", [(224, 64), (96, 32), (33, 32), (8, 20)])
def test_resize_weights_are_those_of_tensorflow(old, new):
    images = np.random.default_rng(0).uniform(0, 255, (2, old, old, 3))
    weights = pixels.resize_weights(old, new)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    found = np.einsum("iy,jx,byxc->bijc", weights, weights, images)
    expected = pixels.resize(images.astype("float32"), new)
    np.testing.assert_allclose(found, expected, atol=5e-3)
