"""Do reconstructions look like images, all together? FID, KID and others."""

import numpy as np
import scipy.special

from kinv import measures
from kinv.analysis import results, scene_factors
from kinv.analysis import study as study_lib

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
        `kernel_distance` (KID, without bias), mean over batches of 50 with its
        interval, `inception_score` of the model's own classifier for
        reconstructions and for images.

    Raises:
        results.NotApplicable: without a feature network, or of fewer than four
            images.
    """
    study.require_images(FEWEST)
    known = scene_factors.are_known(study)
    study.require(
        study.features or known,
        "a feature network, --features keras.applications:InceptionV3 or a "
        ".keras file",
    )
    features_of, network = study.features or (
        scene_factors.load_features(),
        "scene factors",
    )
    metrics, rows = {}, []
    for name in study.models:
        per_image = study.per_image(
            _measure, name, study.count(IMAGES), features_of=features_of
        )
        metrics[name] = {
            "images": len(per_image["logits"]),
            "features": network,
            **_distances(per_image["images"], per_image["made"]),
            "inception_score": _score(per_image["reconstruction_logits"]),
            "inception_score_of_images": _score(per_image["logits"]),
        }
        rows.append(
            {
                "model": name,
                **{
                    key: value["value"] if isinstance(value, dict) else value
                    for key, value in metrics[name].items()
                },
            }
        )
    return results.Result(metrics, {"distances": rows}, [])


def _measure(study, model, batch, features_of):
    noise = study.noise(model, len(batch.images), 1, batch.key)
    made = model.reconstruct(batch.images, noise)[:, 0]
    return {
        "images": features_of(study_lib.target(batch.images, model)),
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
            [measures.frechet_distance(*half) for half in halves]
        ).item(),
        "floor": measures.frechet_distance(images[::2], images[1::2]),
        # Reconstructions of other images: those of the same are too alike.
        # Only full batches: the distance of fewer is noisier.
        "kernel_distance": results.mean(
            [
                measures.kernel_distance(
                    images[start : start + step], made[start - step : start]
                )
                for start in range(step, len(images) - step + 1, step)
            ]
        ),
    }


def _score(logits):
    return measures.inception_score(scipy.special.softmax(logits, axis=-1))
