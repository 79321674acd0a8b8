"""Do reconstructions look like images, all together? FID, KID and others."""

import scipy.special

from kinv import measures
from kinv.analysis import factors as factors_lib
from kinv.analysis import study

TITLE = "Distributions"
IMAGES = 2000


def run(data):
    """Compares the features of reconstructions with those of images.

    Feature networks: the one that the tool was given; of scenes, the network
    that reads their factors, before its last layer. Distances of different
    networks cannot be compared, nor those of different numbers of images: the
    bias of the Frechet distance falls with their number. `floor` is the
    distance between two halves of the images themselves.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model: `frechet_distance` (with InceptionV3, the
        FID), `kernel_distance` (KID), mean over batches of 50 with its
        interval, `inception_score` of the model's own classifier for pictures
        and for images.

    Raises:
        study.NotApplicable: without a feature network.
    """
    features_of, name_of = _features(data)
    metrics, rows = {}, []
    for name, model, batches in data.by_model(
        data.count(IMAGES), "distributions"
    ):
        # Of images, of pictures, and of each half of the images.
        statistics = {}
        parts, kernel_distances, previous = [], [], None
        for index, (images, _, _) in enumerate(batches):
            noise = data.noise(model, len(images), 1, str(index))
            pictures = model.reconstruct(images, noise)[:, 0]
            features = {
                "images": features_of(study.target(images, model)),
                "pictures": features_of(pictures),
            }
            half = "odd" if index % 2 else "even"
            for key, values in {**features, half: features["images"]}.items():
                if key not in statistics:
                    width = values.shape[1]
                    statistics[key] = measures.FeatureStatistics(width)
                statistics[key].add(values)
            if previous is not None and len(images) == len(previous):
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
        floor = None
        if "odd" in statistics:
            floor = measures.frechet_distance(
                statistics["even"], statistics["odd"]
            )
        metrics[name] = {
            "images": len(found["logits"]),
            "features": name_of,
            "frechet_distance": measures.frechet_distance(
                statistics["images"], statistics["pictures"]
            ),
            "floor": floor,
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
