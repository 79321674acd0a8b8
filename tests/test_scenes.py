"""The renderer against geometry, and its determinism."""

import io
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kinv import errors
from kinv.data import rendering, scenes


def factors(**changes):
    values = {
        "shape": rendering.SHAPES.index("sphere"),
        "object_hue": 0,
        "wall_hue": 0.33,
        "floor_hue": 0.66,
        "size": 0.9,
        "azimuth": 0.0,
        "brightness": 1.0,
    }
    return {k: np.array([v]) for k, v in {**values, **changes}.items()}


def object_pixels(**changes):
    """Where a red object is: red well above green and blue."""
    image = rendering.render(factors(**changes), 64)[0].astype(float)
    return image[..., 0] > 1.6 * np.maximum(image[..., 1], image[..., 2])


def test_class_is_shape_and_hue():
    assert len(scenes.CLASS_NAMES) == len(set(scenes.CLASS_NAMES)) == 80
    assert scenes.CLASS_NAMES[0] == "red sphere"
    assert scenes.CLASS_NAMES[8] == "red cube"


def test_factors_depend_on_split_and_index_alone():
    together = scenes.scene_factors("train", range(6))
    alone = scenes.scene_factors("train", [4])
    other = scenes.scene_factors("test", [4])
    for name, values in together.items():
        np.testing.assert_array_equal(values[4:5], alone[name])
    assert alone["wall_hue"] != other["wall_hue"]


def test_factors_are_uniform_over_their_ranges():
    drawn = scenes.scene_factors("validation", range(2000))
    ranges = {
        "shape": (0, 10),
        "object_hue": (0, 8),
        **scenes.RANGES,
    }
    assert set(drawn) == set(ranges)
    for name, (low, high) in ranges.items():
        values = drawn[name]
        assert values.min() >= low and values.max() < high, name
        middle = np.mean(values < (low + high) / 2)
        assert middle == pytest.approx(0.5, abs=0.05), name


def test_area_of_a_sphere_grows_with_the_square_of_its_size():
    areas = [object_pixels(size=size).sum() for size in (0.6, 0.9)]
    # Seen nearly from afar: (0.9 / 0.6) ** 2, less a little perspective.
    assert areas[1] / areas[0] == pytest.approx(2.25, rel=0.15)


def test_silhouette_of_a_sphere_is_a_disc():
    rows, columns = np.nonzero(object_pixels())
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == pytest.approx(width, abs=2)
    area = np.pi / 4 * height * width
    assert object_pixels().sum() == pytest.approx(area, rel=0.1)


def test_brightness_multiplies_pixels():
    bright = rendering.render(factors(), 32).astype(float)
    dark = rendering.render(factors(brightness=0.6), 32).astype(float)
    np.testing.assert_allclose(dark, 0.6 * bright, atol=1)


def test_wall_and_floor_take_their_hues():
    image = rendering.render(factors(wall_hue=1 / 3, floor_hue=2 / 3), 32)[0]
    assert image[1, 1].argmax() == 1  # green wall above
    assert image[-1, 1].argmax() == 2  # blue floor below


def test_azimuth_turns_a_cube_and_the_lamp_but_no_outline_of_a_sphere():
    cube = rendering.SHAPES.index("cube")

    def outlines(shape):
        return [
            object_pixels(shape=shape, azimuth=angle) for angle in (-30.0, 20.0)
        ]

    first, second = outlines(shape=0)
    assert np.mean(first != second) < 0.005
    first, second = outlines(shape=cube)
    assert np.mean(first != second) > 0.01
    # The lamp turns too, so that a sphere's azimuth shows in its shadow.
    floors = [
        rendering.render(factors(azimuth=angle), 64)[0, 40:].astype(float)
        for angle in (-30.0, 20.0)
    ]
    assert np.abs(floors[0] - floors[1]).max() > 20


@pytest.mark.parametrize("shape", range(len(rendering.SHAPES)))
def test_every_shape_is_in_the_picture_and_casts_a_shadow(shape):
    pixels = object_pixels(shape=shape, size=1.0)
    assert pixels.mean() > 0.01
    border = np.concatenate(
        [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    )
    assert not border.any()
    floor = rendering.render(factors(shape=shape), 64)[0, 40:, :, 2].astype(
        float
    )
    assert floor.min() < 0.6 * floor.max()


def test_encoded_images_are_the_rendered_ones():
    drawn, files = scenes.render_encoded("train", 3, 6, 32)
    expected = rendering.render(drawn, 32)
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(Image.open(io.BytesIO(file)), image)


def test_unknown_split():
    with pytest.raises(errors.InputError, match="Received: 'dev'"):
        scenes.scene_factors("dev", [0])


WORK = """
import concurrent.futures, multiprocessing, os, time
from kinv.data import rendering

pool = concurrent.futures.ProcessPoolExecutor(
    1,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=rendering.end_with_parent,
)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""


def test_a_worker_ends_with_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.communicate()
    for _ in range(100):
        # A dead one is a zombie until whoever adopted it looks.
        status = pathlib.Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent")


def test_systems_without_affinity_have_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert scenes._num_cores() == os.cpu_count()
