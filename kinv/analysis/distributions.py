"""Do reconstructions look like images, all together? FID, KID and others."""

import numpy as np
import scipy.special

from kinv.analysis import results, scene_factors
from kinv.analysis import study as study_lib
from kinv.classifiers import features

TITLE = "Distributions"
IMAGES = 2000
# A covariance of either half needs two images.
FEWEST = 4


def run(study):
    """Compares the features of reconstructions with those of images.

    Feature networks: the one that the tool was given; of scenes, the network
    that reads their factors, before its last layer. Distances of different
    networks cannot be compared, nor those of different numbers of images: the
    bias of the Frechet distance falls with their number. It is taken between
    one half of the images and the reconstructions of the other half, both ways,
    and `floor` between the two halves of the images: as many, and as little in
    pairs. So reconstructions that cannot be told from images have the floor.

    Returns:
        `results.Result`. By model: `frechet_distance` (with InceptionV3, the
        FID, of half the images), `floor`, the same of images alone,
        `kernel_distance` (KID, without bias), mean over full batches of 50 with
        its interval, None of fewer than 100 images, `inception_score` of the
        model's own classifier for reconstructions and for images.
    """
    study.require_images(FEWEST)
    known = scene_factors.are_known(study)
    study.require(
        study.features or known,
        "a feature network, --features keras.applications:InceptionV3 or a "
        ".keras file",
    )
    features_of, network = study.features or (
        features.load_features(scene_factors.NETWORK),
        "scene factors",
    )
    metrics, rows = {}, []
    measured = study.measured(_measure, IMAGES, features_of=features_of)
    for name, per_image in measured:
        metrics[name] = {
            "images": len(per_image["logits"]),
            "features": network,
            **_distances(per_image["images"], per_image["made"]),
            "inception_score": _score(per_image["reconstruction_logits"]),
            "inception_score_of_images": _score(per_image["logits"]),
        }
        rows.append({"model": name, **results.ends(metrics[name])})
    return results.Result(metrics, {"distances": rows}, [])


def _measure(study, model, batch, features_of):
    made = study.reconstruct(model, batch.images, 1, batch.key)[:, 0]
    return {
        "images": features_of(model.target(batch.images)),
        "made": features_of(made),
        "logits": model.logits(batch.images),
        "reconstruction_logits": model.logits(made),
    }


def _distances(images, made):
    """Of features `(images, width)`, of images and of reconstructions."""
    step = study_lib.BATCH_SIZE
    halves = [(images[half::2], made[1 - half :: 2]) for half in range(2)]
    return {
        "frechet_distance": np.mean(
            [frechet_distance(*half) for half in halves]
        ).item(),
        "floor": frechet_distance(images[::2], images[1::2]),
        # Reconstructions of other images: those of the same are too alike.
        # Only full batches: the distance of fewer is noisier.
        "kernel_distance": results.mean(
            [
                kernel_distance(
                    images[start : start + step], made[start - step : start]
                )
                for start in range(step, len(images) - step + 1, step)
            ]
        ),
    }


def _score(logits):
    return inception_score(scipy.special.softmax(logits, axis=-1))


def frechet_distance(first, second):
    """Squared distance of two normal distributions of features.

    Args:
        first: `(examples, width)`, at least two.
        second: `(examples, width)`, at least two.

    Returns:
        `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`. With the features of
        InceptionV3's last pooling, the Frechet Inception distance.

    Reference:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to
        a Local Nash Equilibrium, NeurIPS 2017, equation 6.
    """
    first, second = (np.asarray(x, "float64") for x in (first, second))
    difference = first.mean(axis=0) - second.mean(axis=0)
    one, two = (np.atleast_2d(np.cov(x.T)) for x in (first, second))
    # The eigenvalues of S1 S2 are those of S1^(1/2) S2 S1^(1/2), which is
    # symmetric: no square root of a matrix that is nearly singular.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ two @ root)
    return float(
        difference @ difference
        + np.trace(one + two)
        - 2 * np.sqrt(np.maximum(mixed, 0)).sum()
    )


def kernel_distance(first, second):
    """Unbiased squared maximum mean discrepancy of features.

    Returns:
        Of the cubic kernel `(x y / width + 1)^3`: the kernel Inception
        distance with InceptionV3's features. May be negative, by chance.

    Reference:
        Binkowski et al., Demystifying MMD GANs, ICLR 2018.
    """
    first, second = (np.asarray(x, "float64") for x in (first, second))

    def kernel(one, two):
        return (one @ two.T / one.shape[1] + 1) ** 3

    def without_diagonal(features):
        values = kernel(features, features)
        count = len(features)
        return (values.sum() - np.trace(values)) / (count * (count - 1))

    return float(
        without_diagonal(first)
        + without_diagonal(second)
        - 2 * kernel(first, second).mean()
    )


def inception_score(probabilities):
    """Exponential of the mean divergence of predictions from their mean.

    Args:
        probabilities: `(examples, classes)`, of rows that sum to 1.

    Returns:
        From 1, all predictions alike, to the number of classes.

    Reference:
        Salimans et al., Improved Techniques for Training GANs, NeurIPS 2016.
    """
    probabilities = np.asarray(probabilities, "float64")
    mean = probabilities.mean(axis=0)
    return float(
        np.exp(scipy.special.rel_entr(probabilities, mean).sum(axis=1).mean())
    )
