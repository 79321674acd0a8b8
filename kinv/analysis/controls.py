"""Other ways to make an image of logits, by the same measures: controls."""

import time

import keras
import numpy as np
import tensorflow as tf

from kinv import measures
from kinv.analysis import grids, reconstructions, study
from kinv.serving import signature

TITLE = "Controls"
SHOWN = 8
IMAGES = 40
TRAINING_IMAGES = 20_000
# Gradient descent on pixels.
STEPS = 200
LEARNING_RATE = 4.0
SMOOTHNESS = 1e-3


def run(data):
    """Compares reconstructions with other ways to make an image of logits.

    * `class only`: the generator, given the mean logits, or features, of the
      predicted class. What it gets right, the prior knows.
    * `nearest image`: of the first `TRAINING_IMAGES` training images the one
      whose logits, or features, are nearest.
    * `optimisation`: gradient descent on pixels towards the logits, with a
      penalty on rough images. Only of a model that runs in this process.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. By model and way: the measures of `reconstructions`
        and the seconds per image.
    """
    metrics, rows, figures = {}, [], []
    images, _, _ = data.first(data.count(IMAGES))
    for name, model in data.models.items():
        logits, given = model.classify(images)
        noise = data.noise(model, len(images), 1, "controls")
        nearest, class_means = _search(data, name, model, logits, given)

        def reconstruct(model=model, noise=noise):
            return model.reconstruct(images, noise)[:, 0]

        def class_only(model=model, noise=noise, means=class_means):
            return model.generate(means, noise[:, 0])

        ways = {
            "inversion": reconstruct,
            "class only": class_only,
            "nearest image": nearest,
        }
        if model.signature:
            ways["optimisation"] = lambda model=model, given=given: optimise(
                data, model, given, f"optimisation, {name}"
            )
        grid = [list(images[:SHOWN])]
        metrics[name] = {}
        for way, make in ways.items():
            start = time.perf_counter()
            pictures = make()
            seconds = (time.perf_counter() - start) / len(images)
            found = reconstructions.compare(
                images, pictures, logits, model.logits(pictures)
            )
            hits = found.pop("agreement")
            metrics[name][way] = {
                "seconds_per_image": seconds,
                "agreement": study.summary(
                    (
                        hits.mean(),
                        *measures.wilson_interval(hits.sum(), len(hits)),
                    )
                ),
                **{
                    key: study.summary(measures.mean_interval(values))
                    for key, values in found.items()
                },
            }
            rows.append(
                {
                    "model": name,
                    "way": way,
                    "seconds_per_image": f"{seconds:.4f}",
                    **{
                        key: value["value"]
                        for key, value in metrics[name][way].items()
                        if key != "seconds_per_image"
                    },
                }
            )
            grid.append(list(pictures[:SHOWN]))
        figures.append(
            study.Figure(
                name,
                f"{name}: images, their inversion, and other pictures made for "
                "the same logits: of the mean logits of the class, the nearest "
                "training image, and gradient descent on pixels.",
                grids.captioned_grid(
                    grid, row_captions=["image", *ways], cell_size=96
                ),
            )
        )
    return study.Result(metrics, {"measures": rows}, figures)


def _search(data, name, model, logits, given):
    """The nearest training image for each row of logits, and class means.

    Of a model that inverts another layer, by the layer's features. One pass
    over the training images, which keeps the nearest so far.

    Returns:
        Function without arguments to the nearest images, which repeats the
        comparison, so that its time can be taken; and the mean logits of each
        row's predicted class.
    """
    source = data.training_source()
    limit = min(data.count(TRAINING_IMAGES), source.num_examples)
    sums = np.zeros((model.num_classes, model.condition_dim))
    counts = np.zeros(model.num_classes)
    gallery = []

    def embed(images):
        logits, found = model.classify(images)
        gallery.append(found)
        classes = logits.argmax(-1)
        np.add.at(sums, classes, found)
        np.add.at(counts, classes, 1)
        return found

    batches = data.progress(
        data.batches(limit, source, batch_size=500),
        f"nearest image, {name}",
        -(-limit // 500),
    )
    nearest, _ = study.nearest(batches, given, embed)
    nearest = study.target(nearest, model)
    gallery = np.concatenate(gallery)
    counts = counts[:, None]
    # A class that no training image gets has the mean of all.
    means = np.where(
        counts > 0, sums / np.maximum(counts, 1), gallery.mean(axis=0)
    )

    def look_up():
        study.squared_distances(given, gallery).argmin(axis=1)
        return nearest

    return look_up, means[logits.argmax(-1)].astype("float32")


def optimise(data, model, logits, label):
    """Gradient descent on pixels until the classifier reads the logits.

    Adam from a grey image, on the squared distance of logits over their
    squared length, plus the mean absolute difference of neighbouring pixels,
    summed over the two directions and the colours.

    Args:
        data: `study.Study`, for the progress bar.
        model: `pipeline.Pipeline` with a `signature` in this process.
        logits: `(images, condition_dim)` to reach; features of a layer, of a
            model that inverts one.
        label: of the progress bar.

    Returns:
        float32 `(images, image_size, image_size, 3)` in [0, 255].

    Reference:
        Mahendran and Vedaldi, Understanding Deep Image Representations by
        Inverting Them, CVPR 2015, with a simpler prior.
    """
    size, count = model.image_size, len(logits)
    pixels = keras.Variable(np.full((count, size, size, 3), 127.5, "float32"))
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build([pixels])
    others = {
        # No reconstructions: the generator does not run.
        "noise": tf.zeros((count, 0, model.noise_dim)),
        "logit_scale": tf.ones((count, 1)),
        "logit_shift": tf.zeros((count, 1, 1)),
    }
    output = signature.FEATURES if model.layer else "logits"
    lengths = tf.maximum(tf.reduce_sum(logits**2, axis=-1), 1e-12)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            found = model.signature(images=pixels.value, **others)[output]
            error = tf.reduce_sum((found - logits) ** 2, axis=-1)
            rough = tf.image.total_variation(pixels.value / 255) / size**2
            loss = tf.reduce_sum(error / lengths + SMOOTHNESS * rough)
        optimizer.apply([tape.gradient(loss, pixels.value)], [pixels])
        pixels.assign(tf.clip_by_value(pixels.value, 0.0, 255.0))

    for _ in data.progress(range(STEPS), label, STEPS):
        step()
    return pixels.numpy()
