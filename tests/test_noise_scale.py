"""The scale of an exported generator's noise."""

import numpy as np
import pytest

from kinv.inversion import noise_scale


class Generator:
    """Shows what it knows of images, and noise of a given spread."""

    image_size = 8
    channels = 3
    noise_dim = 8 * 8 * 3
    noise_scale = 1.0

    def __init__(self, spread, bounded=False):
        self.spread = spread
        self.bounded = bounded

    def fill_standing_statistics(self, batches):
        self.filled = (self.noise_scale, len(list(batches)))

    def __call__(self, inputs):
        # Of noise of the scale that is measured.
        assert self.filled == (self.noise_scale, 3)
        shape = (-1, self.image_size, self.image_size, 3)
        noise = self.noise_scale * inputs["noise"]
        if self.bounded:
            noise = 2 * np.tanh(noise / 2)
        noise = self.spread * noise
        return inputs["condition"] + noise.reshape(shape)


def make_pairs(left_open, batches=3):
    """Images as what is known of them, and what is left open."""
    random = np.random.default_rng(0)
    shape = (40, 8, 8, 3)
    for _ in range(batches):
        known = random.uniform(50, 200, shape).astype("float32")
        unknown = left_open * random.standard_normal(shape, "float32")
        yield known + unknown, known


@pytest.mark.parametrize("spread", [7.0, 10.0, 13.0])
def test_the_noise_says_what_is_left_open(spread):
    generator = Generator(spread)
    before = noise_scale.fit(generator, make_pairs(10.0), seed=3)
    assert before == pytest.approx(spread / 10, rel=0.03)
    assert generator.noise_scale == pytest.approx(10 / spread, rel=0.03)
    # Fitted anew, it is the same: the scale of before is not built upon.
    fitted = generator.noise_scale
    noise_scale.fit(generator, make_pairs(10.0), seed=3)
    assert generator.noise_scale == fitted


def test_noise_that_grows_less_than_its_scale_gets_the_largest():
    generator = Generator(8.0, bounded=True)
    before = noise_scale.fit(generator, make_pairs(10.0), seed=3)
    # The first pass asks for a little less than the largest scale, the second
    # for more.
    assert 1 / noise_scale.RANGE[1] < before < 0.7
    assert generator.noise_scale == noise_scale.RANGE[1]


@pytest.mark.parametrize("spread", [0.0, 0.5, 60.0])
def test_dead_or_wild_noise_stays_as_it_is(spread):
    generator = Generator(spread)
    noise_scale.fit(generator, make_pairs(10.0), seed=3)
    assert generator.noise_scale == 1.0


def test_the_noise_is_that_of_the_seed():
    drawn = []

    class Recording(Generator):
        def __call__(self, inputs):
            drawn.append(inputs["noise"])
            return super().__call__(inputs)

    noise_scale.fit(Recording(10.0), make_pairs(10.0), seed=3)
    shape = (8, 40, 192)
    expected = np.random.default_rng(3).standard_normal(shape, "float32")
    np.testing.assert_array_equal(drawn[0], expected[0])


def test_images_are_compared_at_the_size_of_the_pictures():
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(3):
        # Of one colour, and of 16 pixels.
        known = random.uniform(50, 200, (40, 1, 1, 3)).astype("float32")
        images = known + 10 * random.standard_normal((40, 1, 1, 3), "float32")
        images, condition = (
            np.tile(x, (1, size, size, 1))
            for x, size in ((images, 16), (known, 8))
        )
        pairs.append((images, condition))
    spread = noise_scale.fit(Generator(8.0), pairs, seed=3)
    assert spread == pytest.approx(0.8, rel=0.1)
