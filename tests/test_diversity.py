"""Reconstructions that differ most: against SciPy, and by a known model."""

import numpy as np
import pytest
from scipy.spatial import distance

from kinv.analysis import diversity


def test_distances_of_pictures_are_those_of_their_bands():
    pictures = np.random.default_rng(0).uniform(0, 255, (5, 4, 4, 3))
    half = pictures.reshape(5, 2, 2, 2, 2, 3).mean((2, 4))
    mean = half.mean((1, 2))
    bands = (
        pictures - np.kron(half, np.ones((1, 2, 2, 1))),
        half - mean[:, None, None],
        mean,
    )
    squares = [
        distance.cdist(x.reshape(5, -1), x.reshape(5, -1)) ** 2 / x[0].size
        for x in bands
    ]
    np.testing.assert_allclose(
        diversity.picture_distances(pictures),
        np.sqrt(np.mean(squares, axis=0)),
        atol=1e-5,
    )


def test_the_farthest_of_points_on_a_line():
    points = np.array([0.0, 1.0, 2.0, 5.1, 10.0])
    distances = np.abs(points[:, None] - points)
    assert sorted(diversity.farthest(distances, 2)) == [0, 4]
    assert sorted(diversity.farthest(distances, 3)) == [0, 3, 4]
    assert diversity.mean_distance(distances[:3, :3]) == pytest.approx(4 / 3)


class Model:
    """Makes grey pictures of the noise, and reads their grey as logits."""

    noise_dim = 1

    def reconstruct(self, images, noise):
        grey = 128 + 20 * noise[..., None, None]
        return np.tile(grey, (1, 1, 2, 2, 3)).astype("float32")

    def logits(self, images):
        return images.mean((1, 2, 3))[:, None]


def test_the_chosen_are_the_extremes_that_say_the_same():
    made = []
    found = diversity.find(
        Model(),
        np.full((2, 2, 3), 128.0),
        2,
        candidates=200,
        seed=3,
        progress=made.append,
    )
    assert sum(made) == 200 and len(made) > 1
    noise = np.random.default_rng(3).standard_normal((1, 200, 1), "float32")
    offsets = 20 * noise.ravel()
    usual = np.median(np.abs(offsets))
    near = offsets[np.abs(offsets) <= usual]
    assert found.usual_logit_distance == pytest.approx(usual, rel=1e-4)
    greys = sorted(found.reconstructions.mean((1, 2, 3)))
    assert greys == pytest.approx([128 + near.min(), 128 + near.max()])
    assert found.logit_distances.max() <= found.usual_logit_distance
    # One band of two is all that greys differ in.
    expected = (near.max() - near.min()) / np.sqrt(2)
    assert found.spread == pytest.approx(expected, rel=1e-4)
    assert found.spread > found.usual_spread


def test_equal_pictures_are_chosen_once_each():
    assert len(set(diversity.farthest(np.zeros((4, 4)), 3))) == 3
