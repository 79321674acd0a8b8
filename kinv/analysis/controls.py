"""Other ways to make an image of logits, by the same measures: controls."""

import time

import keras
import numpy as np
import tensorflow as tf

from kinv import measures
from kinv.analysis import cache, grids, probes, reconstructions, results
from kinv.analysis import study as study_lib
from kinv.serving import signature

TITLE = "Controls"
SHOWN = 8
IMAGES = 40
TRAINING_IMAGES = 20_000
# What each one is, in captions.
WAYS = {
    "class only": "the generator's picture of their mean over the class",
    "nearest image": "the nearest training image",
    "optimisation": "gradient descent on pixels",
}
# Gradient descent on pixels.
STEPS = 200
LEARNING_RATE = 4.0
SMOOTHNESS = 1e-3


def run(study):
    """Compares reconstructions with other ways to make an image of logits.

    * `class only`: the generator, given the mean logits, or features, of the
      predicted class. What it gets right, the prior knows.
    * `nearest image`: of the first `TRAINING_IMAGES` training images the one
      whose logits, or features, are nearest.
    * `optimisation`: gradient descent on pixels towards the logits, with a
      penalty on rough images. Only of a model that runs in this process.

    Returns:
        `results.Result`. By model and way: the measures of `reconstructions`
        and the seconds per image.
    """
    metrics, rows, figures = {}, [], []
    for name, model in study.models.items():
        images = study.first(study.count(IMAGES), name).images
        logits = model.logits(images)
        targets = model.target(images)
        metrics[name], grid = {}, [images[:SHOWN]]
        for way, made, seconds in _ways(study, name, images):
            compared = reconstructions.compare(
                targets, made, logits, model.logits(made)
            )
            metrics[name][way] = measured = {
                "seconds_per_image": seconds / len(images),
                **results.summaries(compared),
            }
            rows.append({"model": name, "way": way, **results.ends(measured)})
            grid.append(made[:SHOWN])
        figures.append(
            results.Figure(
                name,
                f"{name}: images, their inversion, and other pictures made for "
                f"the same {study.models[name].inverted}: "
                + ", ".join(WAYS[way] for way in list(metrics[name])[1:])
                + ".",
                grids.captioned_grid(
                    grid, row_captions=["image", *metrics[name]], cell_size=96
                ),
            )
        )
    return results.Result(metrics, {"measures": rows}, figures)


def _ways(study, name, images):
    """By the way, its name, the pictures and the seconds that they took."""
    model = study.models[name]
    logits, condition = model.classify(images)
    noise = study.noise(model, len(images), 1, "controls")
    features = probes.training_features(
        study, name, study.count(TRAINING_IMAGES)
    )
    means = probes.class_means(model, features)[logits.argmax(-1)]
    yield "inversion", *_timed(lambda: model.reconstruct(images, noise)[:, 0])
    yield "class only", *_timed(lambda: model.generate(means, noise[:, 0]))
    # Only the comparison takes time.
    distances, seconds = _timed(
        lambda: measures.squared_distances(condition, features["condition"])
    )
    found = _training_images(study, name, distances.argmin(axis=1))
    yield "nearest image", found, seconds
    if model.signature:
        yield "optimisation", *_optimised(study, name, condition)


def _timed(make):
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def _optimised(study, name, condition):
    """As `_timed`, and kept: the next report may have another generator."""
    model = study.models[name]
    known = probes.identity(study, name, study.source)
    key = ["optimisation", known, len(condition), model.image_size, STEPS]

    def descend():
        pictures, seconds = _timed(lambda: optimise(study, model, condition))
        return {"pictures": pictures, "seconds": np.array(seconds)}

    kept = cache.kept(known and key, descend)
    return kept["pictures"], float(kept["seconds"])


def _training_images(study, name, places):
    """The training images at places in their order, as a model's pictures."""
    source = study.training_source()
    found, start = {}, 0
    for batch in study.batches(
        max(places) + 1, source, study_lib.TRAINING_BATCH_SIZE, name
    ):
        stop = start + len(batch.images)
        for place in set(places).intersection(range(start, stop)):
            found[place] = batch.images[place - start]
        start = stop
    images = np.stack([found[place] for place in places])
    return study.models[name].target(images)


def optimise(study, model, condition):
    """Gradient descent on pixels until the classifier reads the logits.

    Adam from a grey image, on the squared distance of logits over their
    squared length, plus the mean absolute difference of neighbouring pixels,
    summed over the two directions and the colours.

    Args:
        study: `study.Study`, for the progress bar.
        model: `pipeline.Pipeline` with a `signature` in this process.
        condition: `(images, condition_dim)` to reach: logits, or features of a
            layer of a model that inverts one.

    Returns:
        float32 `(images, image_size, image_size, 3)` in [0, 255].

    Reference:
        Mahendran and Vedaldi, Understanding Deep Image Representations by
        Inverting Them, CVPR 2015, with a simpler prior.
    """
    size, count = model.image_size, len(condition)
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
    lengths = tf.maximum(tf.reduce_sum(condition**2, axis=-1), 1e-12)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            read = model.signature(images=pixels.value, **others)[output]
            error = tf.reduce_sum((read - condition) ** 2, axis=-1)
            rough = tf.image.total_variation(pixels.value / 255) / size**2
            loss = tf.reduce_sum(error / lengths + SMOOTHNESS * rough)
        optimizer.apply([tape.gradient(loss, pixels.value)], [pixels])
        pixels.assign(tf.clip_by_value(pixels.value, 0.0, 255.0))

    for _ in study.progress(range(STEPS), STEPS):
        step()
    return pixels.numpy()
