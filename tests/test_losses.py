"""Losses whose values can be worked out in one's head."""

import numpy as np

from kinv import losses


def test_hinge_discriminator_loss():
    real = np.array([[2.0], [0.5], [-1.0]], "float32")
    fake = np.array([[-2.0], [-0.5], [1.0]], "float32")
    np.testing.assert_allclose(
        losses.hinge_discriminator_loss(real, fake), [[0.0], [1.0], [4.0]]
    )


def test_hinge_generator_loss_is_not_clipped():
    fake = np.array([[3.0], [-2.0]], "float32")
    np.testing.assert_allclose(
        losses.hinge_generator_loss(fake), [[-3.0], [2.0]]
    )


def test_logit_consistency_loss():
    differences = np.array([[0.0, 0.0], [np.sqrt(np.e - 1), 0.0]], "float32")
    np.testing.assert_allclose(
        losses.logit_consistency_loss(differences), [0.0, 0.5], atol=1e-6
    )
