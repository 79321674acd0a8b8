"""What logits, or a layer's features, know of the factors: probes."""

import keras
import numpy as np

from kinv.analysis import cache, scene_factors
from kinv.analysis import study as study_lib

# Not fewer with --quick: probes of few images know less than reconstructions
# show.
IMAGES = 40_000
# Penalty of the linear probes, whose inputs have variance 1.
RIDGE = 1.0
# Epochs of the network: those after which it is given up if its squared error
# is larger than the other probes' by this factor, as it falls by a quarter
# more, and all.
FIRST_EPOCHS, EPOCHS = 8, 40
FAR_BEHIND = 4 / 3


def training_features(study, name, count):
    """What a classifier finds in training images, kept for the next report.

    Args:
        name: label of the model.
        count: number of training images, the first ones, at most.

    Returns:
        dict of arrays: `condition`, logits or the layer's features `(images,
        condition_dim)`; `classes`, predicted, `(images,)`; and the factors.
    """
    source = study.training_source()
    limit = min(count, source.num_examples)
    kept = cache.kept(
        identity(study, name, source),
        lambda: study.per_image(
            _classify, name, limit, source, study_lib.TRAINING_BATCH_SIZE
        ),
        lambda kept: len(kept["classes"]) >= limit,
    )
    return {column: values[:limit] for column, values in kept.items()}


def _classify(study, model, batch):
    logits, condition = model.classify(batch.images)
    classes = logits.argmax(-1)
    return {"condition": condition, "classes": classes, **batch.factors}


def identity(study, name, source):
    """Tells a source and a classifier from others; None where it cannot.

    A classifier is known by what it says of the first images.
    """
    if (digest := source.identity()) is None:
        return None
    model = study.models[name]
    batch = next(study.batches(study_lib.COMPARED, source, name=name))
    logits, condition = model.classify(batch.images)
    said = logits.argmax(-1), logits.max(-1), np.linalg.norm(condition, axis=-1)
    said = np.round(said, 2).tolist()
    return [digest, study.size(name), model.layer, said]


def class_means(model, features):
    """Mean logits, or features, by predicted class.

    Returns:
        float32 `(num_classes, condition_dim)`; a class that no image gets has
        the mean of all.
    """
    condition, classes = features["condition"], features["classes"]
    means = np.tile(condition.mean(axis=0), (model.num_classes, 1))
    for index in np.unique(classes):
        means[index] = condition[classes == index].mean(axis=0)
    return means


def predict(study, name, features, condition, classes):
    """The factors' codes that the best of three probes tells.

    A linear probe, one for each predicted class, and a small network, given up
    early if it is far behind; for each factor the best on held-out training
    images. Of a layer's features without the probes by class, whose images are
    too few for as many numbers.

    Args:
        name: label of the model.
        features: as of `training_features`, of images with known factors.
        condition: `(images, condition_dim)`.
        classes: `(images,)`, predicted.

    Returns:
        float32 `(images, 19)`.
    """
    codes = scene_factors.encode(features)
    held_out = slice(0, len(codes) // 5)
    fit = slice(held_out.stop, None)
    whiten = _whitener(features["condition"][fit])
    inputs = whiten(features["condition"])
    predicted = features["classes"]
    probes = [_linear_probe(inputs[fit], codes[fit])]
    if not study.models[name].layer:
        probes.append(_class_probe(inputs[fit], codes[fit], predicted[fit]))
    tried = [probe(inputs[held_out], predicted[held_out]) for probe in probes]
    least_error = min(((codes[held_out] - x) ** 2).mean() for x in tried)
    probes.append(
        _network_probe(inputs, codes, fit, held_out, study.seed, least_error)
    )
    tried.append(probes[-1](inputs[held_out], predicted[held_out]))
    guesses = [probe(whiten(condition), classes) for probe in probes]
    best = np.empty_like(guesses[0])
    for part in scene_factors.PARTS.values():
        shares = [
            scene_factors.r_squared(codes[held_out, part], guess[:, part])
            for guess in tried
        ]
        best[:, part] = guesses[np.argmax(shares)][:, part]
    return best


def _whitener(condition):
    """Function to uncorrelated inputs of variance 1, and a constant 1."""
    mean = condition.mean(axis=0, dtype="float64")
    covariance = np.atleast_2d(np.cov(condition.T, dtype="float64"))
    variances, components = np.linalg.eigh(covariance)
    kept = variances > 1e-8 * variances.max()
    scale = components[:, kept] / np.sqrt(variances[kept])

    def whiten(condition):
        inputs = (condition - mean) @ scale
        return np.insert(inputs, 0, 1.0, axis=-1).astype("float32")

    return whiten


def _ridge(inputs, codes):
    penalty = RIDGE * np.eye(inputs.shape[1])
    return np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ codes)


def _linear_probe(inputs, codes):
    weights = _ridge(inputs, codes)
    return lambda inputs, classes: inputs @ weights


def _class_probe(inputs, codes, classes):
    # A class that was not seen has the weights of all.
    weights = {None: _ridge(inputs, codes)}
    for index in np.unique(classes):
        rows = classes == index
        weights[index] = _ridge(inputs[rows], codes[rows])

    def predict(inputs, classes):
        result = inputs @ weights[None]
        for index in np.unique(classes):
            if index in weights:
                rows = classes == index
                result[rows] = inputs[rows] @ weights[index]
        return result

    return predict


def _network_probe(inputs, codes, fit, held_out, seed, least_error):
    """A small network; `least_error` is the least of the other probes'."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input(inputs.shape[1:]),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(codes.shape[1]),
        ]
    )
    # So small a network waits for Python otherwise.
    network.compile(keras.optimizers.Adam(1e-3), "mse", steps_per_execution=25)
    examples = inputs[fit], codes[fit]
    options = {
        "batch_size": 256,
        "verbose": 0,
        "validation_data": (inputs[held_out], codes[held_out]),
    }
    begun = network.fit(*examples, epochs=FIRST_EPOCHS, **options)
    if begun.history["val_loss"][-1] < FAR_BEHIND * least_error:
        stop = keras.callbacks.EarlyStopping(
            patience=4, restore_best_weights=True
        )
        network.fit(
            *examples,
            initial_epoch=FIRST_EPOCHS,
            epochs=EPOCHS,
            callbacks=[stop],
            **options,
        )
    return lambda inputs, classes: np.array(network(inputs, training=False))
