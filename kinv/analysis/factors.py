"""Which factors of a scene survive in the pictures: information efficiency."""

import pathlib

import keras
import numpy as np

from kinv import images as images_lib
from kinv import measures
from kinv.analysis import plots, study
from kinv.data import rendering, scenes

TITLE = "Which factors survive"
IMAGES = 1000
SAMPLES = 16
# Not fewer with --quick: probes of few images know less than pictures show.
PROBE_IMAGES = 40_000
# Share of a factor's variance below which efficiency says nothing.
KNOWN = 0.1
NETWORK_IMAGE_SIZE = 32
# Penalty of the linear probes, whose inputs have variance 1.
RIDGE = 1.0


def _circle(values, period):
    angles = 2 * np.pi * np.asarray(values, "float64") / period
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _scaled(values, limits):
    low, high = limits
    values = np.asarray(values, "float64")
    return ((2 * values - low - high) / (high - low))[:, None]


# A factor's code: a vector whose squared distances mean something, also for
# kinds and for hues, which have no order.
ENCODINGS = {
    "shape": lambda values: np.eye(len(rendering.SHAPES))[values],
    "object_hue": lambda values: _circle(values, len(rendering.OBJECT_HUES)),
    "wall_hue": lambda values: _circle(values, 1),
    "floor_hue": lambda values: _circle(values, 1),
    "size": lambda values: _scaled(values, scenes.SIZE_RANGE),
    "azimuth": lambda values: _scaled(values, scenes.AZIMUTH_RANGE),
    "brightness": lambda values: _scaled(values, scenes.BRIGHTNESS_RANGE),
}
WIDTHS = (len(rendering.SHAPES), 2, 2, 2, 1, 1, 1)
STARTS = np.cumsum((0, *WIDTHS))
HUES = ("object_hue", "wall_hue", "floor_hue")
# That the class does not tell, and logits leave open in part.
OPEN = tuple(name for name in ENCODINGS if name not in ("shape", "object_hue"))
# Columns of each factor in a row of codes.
PARTS = {
    name: slice(start, start + width)
    for name, start, width in zip(ENCODINGS, STARTS, WIDTHS, strict=False)
}


def are_known(data):
    """Whether all factors of the study's images are known."""
    return ENCODINGS.keys() <= set(data.source.factor_names)


def encode(factors):
    """Codes the factors of scenes as one row of numbers per image.

    Args:
        factors: dict as of `scenes.scene_factors`, arrays `(images,)`.

    Returns:
        float32 `(images, 19)`; `PARTS` has the columns of each factor. Kinds
        are one-hot, hues points of the unit circle, ranges scaled to [-1, 1].
    """
    columns = [encode(factors[name]) for name, encode in ENCODINGS.items()]
    return np.concatenate(columns, axis=1, dtype="float32")


def r_squared(targets, readings):
    """Share of the targets' variance that readings explain, of vectors."""
    targets = np.asarray(targets, "float64")
    residual = np.sum((targets - readings) ** 2)
    return 1 - residual / np.sum((targets - targets.mean(axis=0)) ** 2)


def run(data):
    """Measures the information efficiency of each factor.

    What the logits know of a factor is the R² of the best of three probes: a
    linear one, one for each predicted class, and a small network. Of a model
    that inverts another layer, what its features know; there without the probes
    by class, whose images are too few for as many numbers. What the
    pictures show is the R² of a factor network's readings, averaged over 16
    noises and calibrated by a linear fit on the other half of the images.
    Their ratio is the efficiency: 1 when the pictures show all that the logits
    know, 0 when the generator leaves the factor to the noise. The control makes
    pictures of the mean logits of the image's predicted class.

    Whether the noise says what the logits leave open is told against the
    network's reading of the image itself, so that its own error is on both
    sides, of the factors that the class does not tell: by spread, ranks and
    coverage. Hues are ranked by their angle from the mean direction of all
    readings, the image's among them: exactly flat for a calibrated sampler,
    wherever on the circle the hues lie, with ends half a turn away.

    Args:
        data: `study.Study`, of a data set whose factors are known.

    Returns:
        `study.Result`. By model and factor: `knows`, `shows`, `efficiency`,
        `control` (its efficiency), with bootstrap intervals over images;
        `noise_share`, the share of the readings' variance that noise explains;
        and `ceiling`, what real images show of the factor by the same
        calibrated readings. Of the factors in `OPEN`: `noise_spread`, the
        readings' standard deviation over noises, over what the logits leave
        open, the lesser of the error of the best probe and that of the
        pictures' mean reading, whose 16 noises add a sixteenth: 1 where
        pictures vary as images of the same logits do; `rank_distance` of the
        ranks of the image's reading among the pictures' from flat
        (`measures.rank_distance`), of which chance leaves
        `measures.flat_rank_distance`; and `coverage_50` and `coverage_90`,
        the share of images whose reading lies in the central interval of the
        pictures' (0.5 and, of 16, whose range ends before, 15/17 = 0.88).
        Efficiencies of factors of which the logits know less than
        `KNOWN` are left out: a ratio of two small numbers says nothing.

    Raises:
        study.NotApplicable: if the factors are not known.
    """
    if not are_known(data):
        raise study.NotApplicable("needs known factors, those of kinv_scenes")
    network = load_network()
    metrics, rows, ranks = {}, [], {}
    for name, model, batches in data.by_model(data.count(IMAGES), "factors"):
        predict, class_means = _train_probes(data, name, model)
        parts = []
        for index, (images, _, values) in enumerate(batches):
            logits, given = model.classify(images)
            codes = encode(values)
            noise = data.noise(model, len(images), SAMPLES, str(index))
            pictures = model.reconstruct(images, noise)
            means = class_means[logits.argmax(-1)]
            control = model.reconstruct(images, noise, 0.0, means[:, None])
            image = study.target(images, model)[:, None]
            parts.append(
                {
                    "codes": codes,
                    "probed": predict(given, logits.argmax(-1)),
                    "image": read(network, image)[:, 0],
                    "readings": read(network, pictures),
                    "control": read(network, control),
                }
            )
        found = study.concatenate(parts)
        metrics[name] = {
            factor: _efficiency(data, found, factor, part)
            | _calibration(found, factor, part)
            for factor, part in PARTS.items()
        }
        ranks[name] = {
            factor: measures.ranks(*_ranked(found, factor)) for factor in OPEN
        }
        rows += [
            {
                "model": name,
                "factor": factor,
                **{
                    f"{measure}_{end}": found and found[end]
                    for measure, found in values.items()
                    for end in ("value", "low", "high")
                },
            }
            for factor, values in metrics[name].items()
        ]
    efficiency = study.Figure(
        "efficiency",
        "What the logits know of each factor (R² of the best probe, outlined) "
        "and what the pictures show of it (R² of a factor network's readings "
        "of 16 reconstructions, filled), with 95 % intervals. Where the bar is "
        "filled, the pictures show all that the logits know.",
        plots.filled_bars(
            {
                name: {
                    factor: (values["knows"], values["shows"])
                    for factor, values in found.items()
                }
                for name, found in metrics.items()
            },
            "R²",
        ),
    )
    return study.Result(
        metrics,
        {"factors": rows, "ranks": _rank_rows(ranks)},
        [efficiency, _rank_figure(ranks)],
    )


def _rank_rows(ranks):
    return [
        {"model": name, "factor": factor, "rank": rank, "images": int(count)}
        for name, by_factor in ranks.items()
        for factor, found in by_factor.items()
        for rank, count in enumerate(np.bincount(found, minlength=SAMPLES + 1))
    ]


def _rank_figure(ranks):
    return study.Figure(
        "ranks",
        "Ranks of what a factor network reads of an image among what it reads "
        f"of its {SAMPLES} reconstructions. Flat (dotted; band: two standard "
        "deviations of chance): the image cannot be told from reconstructions. "
        "High ends: the noise varies the factor too little; a hill: too much; "
        "a slope: the pictures are off on average.",
        plots.rank_histograms(
            [
                {
                    f"{name}\n{factor}".replace("_", " "): np.bincount(
                        found, minlength=SAMPLES + 1
                    )
                    for factor, found in by_factor.items()
                }
                for name, by_factor in ranks.items()
            ]
        ),
    )


def load_network():
    """The factor network: images `(batch, 32, 32, 3)` to codes."""
    path = pathlib.Path(__file__).with_name("scene_factors.keras")
    return keras.models.load_model(path, compile=False)


def load_features():
    """Function of images in [0, 255] to what the network sees in them.

    The 96 numbers that the factors are read from, for distances of
    distributions.
    """
    network = load_network()
    network = keras.Model(network.inputs[0], network.layers[-1].input)

    def features_of(images):
        images = images_lib.resize(images, NETWORK_IMAGE_SIZE)
        return np.array(network(images, training=False))

    return features_of


def read(network, pictures):
    """Reads the factors' codes from pictures.

    Args:
        network: images `(batch, 32, 32, 3)` to codes.
        pictures: `(images, samples, height, width, 3)` in [0, 255].

    Returns:
        float32 `(images, samples, 19)`; hues are points of the unit circle.
    """
    images, samples = pictures.shape[:2]
    flat = pictures.reshape(images * samples, *pictures.shape[2:])
    flat = images_lib.resize(flat, NETWORK_IMAGE_SIZE)
    codes = np.array(network(flat, training=False))
    for name in HUES:
        codes[:, PARTS[name]] /= np.maximum(
            np.linalg.norm(codes[:, PARTS[name]], axis=-1, keepdims=True), 1e-6
        )
    return codes.reshape(images, samples, -1)


def _train_probes(data, name, model):
    """The best of three probes for each factor, and the classes' mean logits.

    A linear probe, one for each predicted class, and a small network; the best
    on held-out training images. Of logits, or of the layer's features.

    Returns:
        Function of logits or features, and predicted classes, to codes; and
        float32 `(num_classes, condition_dim)`.
    """
    source = data.training_source()
    limit = min(PROBE_IMAGES, source.num_examples)
    batches = data.progress(
        data.batches(limit, source, batch_size=500),
        f"probes, {name}",
        -(-limit // 500),
    )
    parts = []
    for images, _, values in batches:
        logits, given = model.classify(images)
        classes = logits.argmax(-1)
        parts.append(
            {"given": given, "classes": classes, "codes": encode(values)}
        )
    found = study.concatenate(parts)
    given, classes, codes = found["given"], found["classes"], found["codes"]
    held_out = slice(0, len(given) // 5)
    fit = slice(held_out.stop, None)
    whiten = _whitener(given[fit])
    inputs = whiten(given)
    probes = [
        _linear_probe(inputs[fit], codes[fit]),
        _network_probe(inputs, codes, fit, held_out, data.seed),
    ]
    if not model.layer:
        probes.insert(1, _class_probe(inputs[fit], codes[fit], classes[fit]))

    def predict_each(inputs, classes):
        return [probe(inputs, classes) for probe in probes]

    guesses = predict_each(inputs[held_out], classes[held_out])
    best = [
        np.argmax(
            [
                r_squared(codes[held_out, part], guess[:, part])
                for guess in guesses
            ]
        )
        for part in PARTS.values()
    ]

    def predict(given, classes):
        guesses = predict_each(whiten(given), classes)
        return np.concatenate(
            [
                guesses[index][:, part]
                for index, part in zip(best, PARTS.values(), strict=True)
            ],
            axis=-1,
        )

    means = np.tile(given.mean(axis=0), (model.num_classes, 1))
    for index in np.unique(classes):
        means[index] = given[classes == index].mean(axis=0)
    return predict, means


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


def _network_probe(inputs, codes, fit, held_out, seed):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input(inputs.shape[1:]),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(codes.shape[1]),
        ]
    )
    network.compile(keras.optimizers.Adam(1e-3), "mse")
    network.fit(
        inputs[fit],
        codes[fit],
        256,
        epochs=40,
        verbose=0,
        validation_data=(inputs[held_out], codes[held_out]),
        callbacks=[
            keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True)
        ],
    )
    return lambda inputs, classes: np.array(network(inputs, training=False))


def _whitener(logits):
    """Function to uncorrelated inputs of variance 1, and a constant 1."""
    mean = logits.mean(axis=0, dtype="float64")
    variances, components = np.linalg.eigh(np.cov(logits.T, dtype="float64"))
    kept = variances > 1e-8 * variances.max()
    scale = components[:, kept] / np.sqrt(variances[kept])

    def whiten(logits):
        inputs = (logits - mean) @ scale
        return np.insert(inputs, 0, 1.0, axis=-1).astype("float32")

    return whiten


def _efficiency(data, found, factor, part):
    codes = np.asarray(found["codes"][:, part], "float64")
    total = np.sum((codes - codes.mean(axis=0)) ** 2, axis=-1)
    unknown = np.sum((codes - found["probed"][:, part]) ** 2, axis=-1)
    readings = found["readings"][:, :, part]
    unshown, uncontrolled = (
        np.sum((codes - calibrate(samples.mean(axis=1), codes)) ** 2, axis=-1)
        for samples in (readings, found["control"][:, :, part])
    )

    def explained(total, residual):
        return 1 - residual.sum() / total.sum()

    def efficiency(total, unknown, residual):
        return explained(total, residual) / explained(total, unknown)

    def interval(statistic, *arrays):
        random = data.random("efficiency", factor)
        return study.summary(
            measures.bootstrap_interval(statistic, arrays, random)
        )

    shown_by_images = calibrate(
        np.asarray(found["image"][:, part], "float64"), codes
    )
    # Within an image only noise varies; the total over all readings.
    within = readings.var(axis=1, ddof=1).sum(axis=-1)
    across = readings.reshape(-1, readings.shape[-1]).var(axis=0).sum()
    knows = interval(explained, total, unknown)
    result = {
        "knows": knows,
        "shows": interval(explained, total, unshown),
        "efficiency": None,
        "control": None,
        "noise_share": study.summary(measures.mean_interval(within / across)),
        "ceiling": interval(
            explained,
            total,
            np.sum((codes - shown_by_images) ** 2, axis=-1),
        ),
    }
    if knows["value"] >= KNOWN:
        result["efficiency"] = interval(efficiency, total, unknown, unshown)
        result["control"] = interval(efficiency, total, unknown, uncontrolled)
    return result


def _calibration(found, factor, part):
    """How the readings vary, against the reading of the image itself."""
    names = "noise_spread", "rank_distance", "coverage_50", "coverage_90"
    if factor not in OPEN:
        return dict.fromkeys(names)
    image = np.asarray(found["image"][:, part], "float64")
    readings = found["readings"][:, :, part]
    left_open = min(
        np.sum((image - guess) ** 2, axis=-1).mean()
        for guess in (
            found["probed"][:, part],
            calibrate(readings.mean(axis=1), image),
        )
    )
    within = readings.var(axis=1, ddof=1).sum(axis=-1)
    ratio = measures.mean_interval(within / max(left_open, 1e-12))
    values, samples = _ranked(found, factor)
    histogram = measures.rank_histogram(
        measures.ranks(values, samples), samples.shape[1]
    )
    distance = measures.rank_distance(histogram)
    return {
        "noise_spread": study.summary(np.sqrt(np.maximum(ratio, 0))),
        "rank_distance": study.summary((distance, np.nan, np.nan)),
        "coverage_50": _coverage(values, samples, 0.5),
        "coverage_90": _coverage(values, samples, 0.9),
    }


def _ranked(found, factor):
    """Numbers that can be ranked: the image's reading, and the pictures'.

    Returns:
        `(images,)` and `(images, samples)`; of hues, angles from the mean
        direction of all of them, in [-pi, pi].
    """
    part = PARTS[factor]
    values = np.concatenate(
        [found["image"][:, None, part], found["readings"][:, :, part]], axis=1
    )
    if factor in HUES:
        points = values[..., 0] + 1j * values[..., 1]
        center = points.mean(axis=1, keepdims=True)
        values = np.angle(points * center.conj())[..., None]
    return values[:, 0, 0], values[:, 1:, 0]


def _coverage(values, samples, level):
    """Share of values in the central interval of samples, with its interval.

    The interval's ends are quantiles by Weibull's positions, `k / (n + 1)`:
    between calibrated samples, a value lies below the k-th that often.
    """
    low, high = np.quantile(
        samples, [(1 - level) / 2, (1 + level) / 2], axis=1, method="weibull"
    )
    inside = (low <= values) & (values <= high)
    return study.summary(
        (
            inside.mean(),
            *measures.wilson_interval(inside.sum(), len(inside)),
        )
    )


def calibrate(readings, codes):
    """Maps readings to codes by a linear fit on the other half of the images.

    Args:
        readings: `(images, width)`.
        codes: `(images, width)`.

    Returns:
        float64 `(images, width)`.
    """
    inputs = np.insert(np.asarray(readings, "float64"), 0, 1.0, axis=-1)
    result = np.empty_like(codes)
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        fit, *_ = np.linalg.lstsq(inputs[other], codes[other], rcond=None)
        result[half] = inputs[half] @ fit
    return result
