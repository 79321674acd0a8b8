"""Does the classifier see in the pictures what it saw: section 5."""

import numpy as np

from kinv import measures
from kinv.analysis import plots, study

TITLE = "Iterative stability"
CLASSES = 50
IMAGES_PER_CLASS = 10
PASSES = (1, 2, 4, 8, 16)
# Of the paper, of the robust and of the standard model, by whether the
# classifier got the image right.
PAPER = ({"right": 0.54, "wrong": 0.35}, {"right": 0.493, "wrong": 0.299})
GROUPS = ("all", "right", "wrong")


def run(data):
    """Counts reconstructions that get their image's class.

    500 images of 50 classes, as in the paper; then the reconstruction of the
    reconstruction, and so on, with fresh noise each time.

    Args:
        data: `study.Study`.

    Returns:
        `study.Result`. Agreement by model and by whether the classifier is
        right about the image, with Wilson intervals; `chance` is the
        agreement with another image's reconstruction.
    """
    images, labels = choose(data)
    labelled = bool(data.source.class_numbers)
    metrics, rows, passes = {}, [], []
    hits, is_right, curves = {}, {}, {}
    # Only the two models that stand for the paper's, not their controls.
    papers = dict(zip(data.pair or (), PAPER, strict=False))
    for name, model in data.models.items():
        logits = model.logits(images)
        before = logits.argmax(-1)
        right = before == labels
        groups = {"all": right | True}
        if labelled:
            groups.update(right=right, wrong=~right)
        pictures = images
        progress = data.progress(
            range(1, max(PASSES) + 1), f"stability, {name}", max(PASSES)
        )
        curve = []
        for number in progress:
            noise = data.noise(model, len(images), 1, str(number))
            pictures = model.reconstruct(pictures, noise)[:, 0]
            if number not in PASSES:
                continue
            same = model.logits(pictures).argmax(-1) == before
            curve.append((same.mean(), *_wilson(same)))
            passes.append(
                {
                    "model": name,
                    "passes": number,
                    **study.summary(curve[-1]),
                }
            )
            if number == 1:
                hits[name], is_right[name] = same, right
                after = model.logits(pictures).argmax(-1)
        chance = float(np.mean(np.roll(after, 1) == before))
        metrics[name] = {
            "images": len(images),
            "classes": len(np.unique(labels)),
            "chance": chance,
        }
        for group, chosen in groups.items():
            same = hits[name][chosen]
            share = same.mean() if len(same) else np.nan
            metrics[name][group] = {
                "images": len(same),
                "paper": papers.get(name, {}).get(group),
                **study.summary((share, *_wilson(same))),
            }
            rows.append({"model": name, "group": group, **metrics[name][group]})
        curves[name] = np.array(curve)
    figure = study.Figure(
        "passes",
        "Share of images whose class is still that of the original after so "
        "many reconstructions of reconstructions, with 95 % intervals.",
        plots.curves(
            PASSES,
            curves,
            "reconstructions of reconstructions",
            "share with the class of the image",
            identity=None,
            percent=True,
            log2=True,
        ),
    )
    return study.Result(
        metrics,
        {"agreement": rows, "passes": passes},
        [figure],
        _claims(data.pair, hits, labelled and is_right) if data.pair else [],
    )


def choose(data):
    """Images of so many classes, equally many of each while they last.

    Of images without labels the first.

    Returns:
        float32 images and their labels.
    """
    classes = np.array(data.source.class_numbers)
    if not classes.size:
        return data.first(data.count(CLASSES) * IMAGES_PER_CLASS)[:2]
    classes = data.random("classes").permutation(classes)
    classes = classes[: data.count(CLASSES)]
    missing = dict.fromkeys(classes.tolist(), IMAGES_PER_CLASS)
    chosen = []
    for images, labels, _ in data.batches(None):
        for image, label in zip(images, labels.tolist(), strict=True):
            if missing.get(label):
                missing[label] -= 1
                chosen.append((image, label))
        if not any(missing.values()):
            break
    images, labels = zip(*chosen, strict=True)
    return np.stack(images), np.array(labels)


def _wilson(same):
    return measures.wilson_interval(same.sum(), len(same))


def _claims(pair, hits, is_right):
    robust, standard = pair
    both, which = hits[robust] | True, ""
    if is_right:
        both = is_right[robust] & is_right[standard]
        which = ", images that both classify right"
    # The same images: their differences, not the difference of shares.
    interval = measures.mean_interval(
        hits[robust][both].astype(float) - hits[standard][both]
    )
    claims = [
        study.Claim(
            "5",
            "The robust model is more stable than the standard one.",
            f"agreement, robust minus standard{which}",
            *map(float, interval),
            study.decide(*interval[1:]),
            f"{both.sum()} images",
        )
    ]
    for name in pair if is_right else ():
        right, wrong = (
            (int(hits[name][rows].sum()), int(rows.sum()))
            for rows in (is_right[name], ~is_right[name])
        )
        interval = measures.newcombe_interval(right, wrong)
        claims.append(
            study.Claim(
                "5",
                f"Images that are classified right are more stable than others "
                f"({name}).",
                "agreement, right minus wrong",
                *interval,
                study.decide(*interval[1:]),
                f"{right[1]} against {wrong[1]} images",
            )
        )
    return claims
