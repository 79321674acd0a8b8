"""The losses: the adversarial ones, and that of logits read back.

Reference:
    Supplementary, section 7.2 (`loss.fn = @hinge`, `penalty.fn =
    @no_penalty`); equal to the paper's L_D and L_G up to a constant.
"""

from keras import ops


def hinge_discriminator_loss(real_scores, fake_scores):
    """`max(0, 1 - real) + max(0, 1 + fake)`.

    Args:
        real_scores: float tensor `(batch, 1)`, scores of images with their own
            logits.
        fake_scores: float tensor `(batch, 1)`, scores of reconstructions with
            the logits they were made from.

    Returns:
        Float tensor `(batch, 1)`, at least 0. The sum of both halves, not
        their average, as in compare_gan.
    """
    return ops.relu(1.0 - real_scores) + ops.relu(1.0 + fake_scores)


def hinge_generator_loss(fake_scores):
    """`-fake`.

    Args:
        fake_scores: float tensor `(batch, 1)`, scores of reconstructions.

    Returns:
        Float tensor `(batch, 1)`.
    """
    return -fake_scores


def logit_consistency_loss(differences):
    """`log(1 + difference^2)`, mean over logits.

    Grows slowly where a difference is large: what a small network cannot
    reproduce anyway does not drown what it can.

    Args:
        differences: float tensor `(batch, num_classes)`, of the logits that
            reconstructions were made of and those read from them, scaled.

    Returns:
        Float tensor `(batch,)`, at least 0.
    """
    return ops.mean(ops.log1p(ops.square(differences)), axis=-1)
