"""What logits know of a garment beyond its class, and what pictures show of it.

From the root of the repository: .venv/bin/python docs/fashion_mnist.py

Brightness: mean grey level of the garment's pixels; area: their share of the
picture. Both are taken as deviations from the mean of the predicted class.
`known`: R² of a gradient-boosted probe of the logits, trained on 20,000 images
and read, as all else, on 1,000 test images. `shown`: R² of the mean over 8
reconstructions. `spread`: standard deviation over noises, over the probe's
error, 1 where the noise says what the logits leave open.
"""

import numpy as np
from sklearn import ensemble, metrics

from kinv.data import datasets
from kinv.serving import pipeline

TRAINING, HELD_OUT, NOISES = 20_000, 1000, 8
# Grey level above which a pixel is the garment's.
BACKGROUND = 25


def brightness(images):
    """Mean grey level of the garments, `(images,)`."""
    grey = images[..., 0].reshape(len(images), -1)
    garment = grey > BACKGROUND
    return (grey * garment).sum(axis=1) / np.maximum(garment.sum(axis=1), 1)


def area(images):
    """Share of the pictures that the garments take, `(images,)`."""
    return (images[..., 0] > BACKGROUND).mean(axis=(1, 2))


def images_of(split, count):
    """The first images of a split, float32 `(count, 32, 32, 3)`."""
    source = datasets.open_dataset("fashion_mnist", f"{split}[:{count}]")
    batches = source.evaluation_batches(32, 500)
    return np.concatenate([batch[0].numpy() for batch in batches])


training, held_out = images_of("train", TRAINING), images_of("test", HELD_OUT)

print(f"{'classifier':<12}{'':<12}{'known':>8}{'shown':>8}{'spread':>8}")
for classifier in ("robust", "standard"):
    model = pipeline.Pipeline.load(f"exported/fashion-{classifier}")
    logits, held_out_logits = model.logits(training), model.logits(held_out)
    classes, held_out_classes = logits.argmax(1), held_out_logits.argmax(1)
    noise = np.random.default_rng(0).standard_normal(
        (HELD_OUT, NOISES, model.noise_dim), "float32"
    )
    reconstructions = model.reconstruct(held_out, noise)
    for read in (brightness, area):
        values = read(training)
        means = np.array(
            [values[classes == label].mean() for label in range(10)]
        )
        probe = ensemble.HistGradientBoostingRegressor(max_iter=200)
        probe.fit(logits, values - means[classes])
        truth = read(held_out) - means[held_out_classes]
        known = probe.predict(held_out_logits)
        readings = np.stack(
            [read(reconstructions[:, k]) for k in range(NOISES)], axis=1
        )
        shown = readings.mean(axis=1) - means[held_out_classes]
        left_open = metrics.root_mean_squared_error(truth, known)
        spread = np.sqrt(readings.var(axis=1, ddof=1).mean())
        print(
            f"{classifier:<12}{read.__name__:<12}"
            f"{metrics.r2_score(truth, known):8.2f}"
            f"{metrics.r2_score(truth, shown):8.2f}{spread / left_open:8.2f}"
        )
