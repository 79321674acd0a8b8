"""Do reconstructions look like images, all together? FID, KID and others."""

import numpy as np
import scipy.special

from kinv import measures
from kinv.analysis import factors as factors_lib
from kinv.analysis import study

TITLE = "Distributions"
IMAGES = 2000
# A covariance of either half needs two images.
FEWEST = 4


def run(data):
    """Compares the features of reconstructions with those of images.

    Feature networks: the one that the tool was given; of scenes, the network
    that reads their factors, before its last layer. Distances of different
    networks cannot be compared, nor those of different numbers of images: the
    bias of the Frechet distance falls with their number. It is taken between
    one half of the images and the pictures of the other half, both ways, and
    `floor` between the two halves of the images: as many, and as little in
    pairs. So pictures that cannot be told from images have the floor.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model: `frechet_distance` (with InceptionV3, the
        FID, of half the images), `floor`, the same of images alone,
        `kernel_distance` (KID, without bias), mean over batches of 50 with its
        interval, `inception_score` of the model's own classifier for pictures
        and for images.

    Raises:
        study.NotApplicable: without a feature network, or of fewer than four
            images.
    """
    features_of, name_of = _features(data)
    if data.source.num_examples < FEWEST:
        raise study.NotApplicable(f"needs at least {FEWEST} images")
    metrics, rows = {}, []
    for name, model, batches in data.by_model(
        data.count(IMAGES), "distributions"
    ):
        # Of images and of pictures, of every other image and of the rest.
        statistics = {}
        parts, kernel_distances, previous = [], [], None
        for index, (images, _, _) in enumerate(batches):
            noise = data.noise(model, len(images), 1, str(index))
            pictures = model.reconstruct(images, noise)[:, 0]
            features = {
                "images": features_of(study.target(images, model)),
                "pictures": features_of(pictures),
            }
            for kind, values in features.items():
                for half in range(2):
                    if (kind, half) not in statistics:
                        width = values.shape[1]
                        statistics[kind, half] = measures.FeatureStatistics(
                            width
                        )
                    statistics[kind, half].add(values[half::2])
            # The last batch may be smaller, and its distance then noisier.
            if previous is not None and len(images) >= len(previous):
                # Pictures of other images: those of the same are too alike.
                kernel_distances.append(
                    measures.kernel_distance(features["images"], previous)
                )
            previous = features["pictures"]
            parts.append(
                {
                    "logits": model.logits(images),
                    "again": model.logits(pictures),
                }
            )
        found = study.concatenate(parts)
        metrics[name] = {
            "images": len(found["logits"]),
            "features": name_of,
            "frechet_distance": float(
                np.mean(
                    [
                        measures.frechet_distance(
                            statistics["images", half],
                            statistics["pictures", 1 - half],
                        )
                        for half in range(2)
                    ]
                )
            ),
            "floor": measures.frechet_distance(
                statistics["images", 0], statistics["images", 1]
            ),
            "kernel_distance": study.summary(
                measures.mean_interval(kernel_distances)
            ),
            "inception_score": measures.inception_score(
                scipy.special.softmax(found["again"], axis=-1)
            ),
            "inception_score_of_images": measures.inception_score(
                scipy.special.softmax(found["logits"], axis=-1)
            ),
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
    return study.Result(metrics, {"distances": rows}, [])


def _features(data):
    if data.features:
        return data.features
    if factors_lib.are_known(data):
        return factors_lib.load_features(), "scene factors"
    raise study.NotApplicable(
        "needs a feature network, --features keras.applications:InceptionV3 or "
        "a .keras file"
    )
