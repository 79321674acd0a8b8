"""Makes photographs.png and prints the figures of docs/photographs.md.

From the root of the repository, after the commands of that page:

    .venv/bin/python docs/photographs.py exported/my-photographs \
        photographs/images

The picture is of kinv/serving/examples/photographs, which no training saw. The
figures are of the folder's `test/`, with intervals over photographs.
"""

import pathlib
import sys

import numpy as np
from scipy import stats
from scipy.spatial import distance

from kinv import images, measures, pixels
from kinv.analysis import grids
from kinv.serving import pipeline

EXAMPLES = "kinv/serving/examples/photographs"
SHOWN_SAMPLES, SAMPLES = 4, 8
# Training squares that the controls choose from.
CANDIDATES = 10_000


def picture(model):
    """Photographs, the same at the generator's size, and reconstructions."""
    paths, _ = images.list_images(EXAMPLES)
    photographs = np.stack([images.read_image(path) for path in paths])
    noise = np.random.default_rng(0).standard_normal(
        (len(paths), SHOWN_SAMPLES, model.noise_dim), "float32"
    )
    reconstructions = model.reconstruct(photographs, noise)
    small = pixels.resize(photographs, model.image_size)
    samples = reconstructions.swapaxes(0, 1)
    rows = [list(row) for row in (photographs, small, *samples)]
    names = ["photograph", f"at {model.image_size} pixels"]
    names += [f"noise {k + 1}" for k in range(SHOWN_SAMPLES)]
    classes = model.logits(photographs).argmax(axis=-1)
    captions = [[model.class_names[label] for label in classes]]
    captions += [[]] * (len(rows) - 1)
    grid = grids.captioned_grid(
        rows, captions, row_captions=names, cell_size=84
    )
    images.write_image("docs/photographs.png", grids.render(grid))


def squares(folder, count=None):
    """Squares of a folder: their photographs' names, and pixels in [0, 255]."""
    paths = sorted(pathlib.Path(folder).glob("*.jpg"))
    if count is not None:
        paths = paths[:: len(paths) // count][:count]
    names = np.array([path.name.partition("-")[0] for path in paths])
    pixels = np.stack([images.decode(path) for path in paths])
    return names, pixels.astype("float32")


def with_interval(values, photographs):
    """Mean over squares and its 95 % interval, as text.

    Whole photographs are drawn anew, since squares of one are alike.
    """
    values = np.asarray(values, "float64")
    names = np.unique(photographs)
    sums = np.array([values[photographs == name].sum() for name in names])
    counts = np.array([np.sum(photographs == name) for name in names])
    interval = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return f"{values.mean():.3f} ({interval.low:.3f} to {interval.high:.3f})"


def main(path, folder):
    """Prints what a model shows of held-out photographs, beside controls."""
    model = pipeline.Pipeline.load(path)
    picture(model)
    photographs, held_out = squares(f"{folder}/test")
    _, candidates = squares(f"{folder}/train", CANDIDATES)
    logits, candidate_logits = model.logits(held_out), model.logits(candidates)
    held_out_small = pixels.resize(held_out, model.image_size)
    candidates = pixels.resize(candidates, model.image_size)
    noise = np.random.default_rng(0).standard_normal(
        (len(held_out), SAMPLES, model.noise_dim), "float32"
    )
    reconstructions = model.reconstruct(held_out, noise)

    # What else might be shown: a training image of the same class (of the
    # likeliest class that has any), or the one of the nearest logits.
    classes = candidate_logits.argmax(axis=1)
    trained = np.unique(classes)
    likeliest = trained[logits[:, trained].argmax(axis=1)]
    random = np.random.default_rng(0)
    same = [random.choice(np.flatnonzero(classes == c)) for c in likeliest]
    means = {c: candidates[classes == c].mean(axis=0) for c in trained}
    scale = candidate_logits.std(axis=0)
    nearest = distance.cdist(logits / scale, candidate_logits / scale).argmin(1)

    count = len(np.unique(photographs))
    print(f"{len(held_out)} squares of {count} photographs")
    print("class found again first, among the first five; error of logits")
    total = np.sum((logits - candidate_logits.mean(axis=0)) ** 2)
    for name, shown in {
        "the square itself at this size": held_out_small,
        "reconstruction": reconstructions[:, 0],
        "training image of the class": candidates[same],
        "training image of the nearest logits": candidates[nearest],
    }.items():
        read = model.logits(shown)
        best = np.argsort(-read, axis=1)[:, :5]
        hits = best == logits.argmax(axis=1)[:, None]
        print(
            f"  {name}: {with_interval(hits[:, 0], photographs)}, "
            f"{with_interval(hits.any(axis=1), photographs)}, "
            f"{np.sum((read - logits) ** 2) / total:.3f}"
        )
    print("pixel variance explained")
    total = measures.pixel_mse(held_out_small, candidates.mean(axis=0)).mean()
    for name, shown in {
        f"mean of {SAMPLES} reconstructions": reconstructions.mean(axis=1),
        "mean training image of the class": np.stack(
            [means[label] for label in likeliest]
        ),
        "training image of the nearest logits": candidates[nearest],
    }.items():
        explained = 1 - measures.pixel_mse(held_out_small, shown) / total
        print(f"  {name}: {with_interval(explained, photographs)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
