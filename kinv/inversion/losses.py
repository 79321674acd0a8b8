"""The losses, one value `(batch,)` per example; of adversaries, per score.

Pictures are `(batch, size, size, 3)` in [0, 255], as everywhere outside of the
networks; logits `(batch, num_classes)`; scores of the discriminator `(batch,
places)`, of images and of reconstructions with the same logits.
"""

from keras import ops

from kinv.inversion import layers

# Pixels of the smallest band that is split no further.
SMALLEST_BAND = 4
# Weight of whole pictures beside their bands. Low frequencies, the colours of
# large areas, have little weight in the bands and are what logits tell most of.
PICTURE_SHARE = 2.0
# Keeps the gradient of a root finite.
EPSILON = 1e-6


def energy_score(first, second, images):
    """Fair energy score of two reconstructions.

    `(|first - image| + |second - image| - |first - second|) / 2`. Its
    expectation is smallest when both are drawn from the distribution of
    images given the logits, spread included: a proper scoring rule. The last
    term is what asks for spread; two samples estimate it without bias. `| |`
    is `picture_distance`.

    Reference:
        Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and
        Estimation (2007), section 4.3; Lang et al., AIFS-CRPS (2024), who
        train with the fair (unbiased) form.
    """
    return _energy(picture_distance, first, second, images)


def _energy(distance, first, second, target):
    # As one batch: with gradients a tenth less time than three.
    differences = (first - target, second - target, first - second)
    distances = distance(ops.concatenate(differences))
    to_first, to_second, apart = ops.split(distances, 3)
    return (to_first + to_second - apart) / 2


def picture_distance(difference):
    """Root mean squares over patches, of a picture and of its bands.

    A norm: a weighted sum, over the picture and the bands of its Laplacian
    pyramid and over patches of several sizes, of the root mean square in each
    patch, averaged over patches. Patches of one pixel make single values
    right, those of the whole picture how all of it varies together. A band of
    `size` pixels counts `3 (size / 8)^0.7` times: the finer, the less it
    varies. What the bands leave counts 1.5 times.
    """
    difference = difference / 127.5
    size = difference.shape[1]
    patches = [(1, 1), *((side, side // 2) for side in (4, 8, 16))]
    patches = [patch for patch in patches if patch[0] < size]
    picture = _patch_distances(difference, [*patches, (size, size)])
    *bands, low = laplacian_pyramid(difference)
    distances = []
    for band in bands:
        size = band.shape[1]
        weight = 3.0 * (size / 8) ** 0.7
        patches = [(1, 1), (4, 2), (size, size)]
        distances += _patch_distances(weight * band, patches)
    size = low.shape[1]
    distances += _patch_distances(1.5 * low, [(1, 1), (size, size)])
    return PICTURE_SHARE * _mean(picture) + _mean(distances)


def laplacian_pyramid(pictures):
    """Pictures `(batch, size, size, 3)` as bands, the finest first.

    The last one, of `SMALLEST_BAND` pixels, is what the others leave.
    """
    bands = []
    while pictures.shape[1] > SMALLEST_BAND:
        band, pictures = layers.finest_band(pictures)
        bands.append(band)
    return [*bands, pictures]


def _patch_distances(difference, patches):
    """The mean over patches of their root mean square, for each size."""
    squares = ops.mean(ops.square(difference), axis=-1, keepdims=True)
    means = [
        ops.average_pool(squares, side, stride) if side > 1 else squares
        for side, stride in patches
    ]
    return [ops.mean(ops.sqrt(x + EPSILON), axis=(1, 2, 3)) for x in means]


def _mean(tensors):
    return sum(tensors) / len(tensors)


def readback_loss(differences):
    """`log(1 + difference^2)`, mean over logits.

    Grows slowly where a difference is large: what a small network cannot
    reproduce anyway does not drown what it can.
    """
    return ops.mean(ops.log1p(ops.square(differences)), axis=-1)


def readback_score(first, second, logits):
    """Fair energy score of the logits read from two reconstructions.

    For a classifier that sees more pixels than a reconstruction has: that of a
    perfect sample still differs from the image's, and by how much is to be
    learned as well. Where nothing is left open it is the distance.
    """

    def distance(difference):
        squares = ops.mean(ops.square(difference), axis=-1)
        return ops.sqrt(squares + EPSILON)

    return _energy(distance, first, second, logits)


def class_divergence(read, expected):
    """Kullback-Leibler divergence of the class probabilities.

    `sum(p log(p / q))` of those expected, `p`, and read, `q`. Of a thousand
    classes few are likely: a distance of the logits mostly measures the others.
    """
    expected = ops.log_softmax(expected)
    differences = expected - ops.log_softmax(read)
    return ops.sum(ops.exp(expected) * differences, axis=-1)


def pixel_loss(reconstructions, images):
    """Squared error of pixels in [-1, 1], the loss of a decoder.

    Smallest for the mean of all images of the same logits: noise, and all that
    the logits leave open, only adds to it.
    """
    squares = ops.square((reconstructions - images) / 127.5)
    return ops.mean(squares, axis=(1, 2, 3))


def relativistic_discriminator_loss(real_scores, fake_scores):
    """`log(1 + exp(fake - real))`: real ones should score higher.

    Reference:
        Jolicoeur-Martineau, The Relativistic Discriminator, ICLR 2019; paired
        as in Huang et al., The GAN is Dead; Long Live the GAN! (R3GAN),
        NeurIPS 2024.
    """
    return ops.softplus(fake_scores - real_scores)


def relativistic_generator_loss(real_scores, fake_scores):
    """`log(1 + exp(real - fake))`, of `relativistic_discriminator_loss`."""
    return ops.softplus(real_scores - fake_scores)


def hinge_discriminator_loss(real_scores, fake_scores):
    """`max(0, 1 - real) + max(0, 1 + fake)`: the sum, not the average.

    Reference:
        Supplementary, section 7.2 (`loss.fn = @hinge`, `penalty.fn =
        @no_penalty`); equal to the paper's L_D up to a constant.
    """
    return ops.relu(1.0 - real_scores) + ops.relu(1.0 + fake_scores)


def hinge_generator_loss(fake_scores):
    """`-fake`, of `hinge_discriminator_loss`; the paper's L_G."""
    return -fake_scores
