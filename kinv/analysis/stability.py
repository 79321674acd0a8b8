"""Does the classifier see in reconstructions what it saw: section 5."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from kinv.analysis import plots, results

TITLE = "Iterative stability"
CLASSES = 50
IMAGES_PER_CLASS = 10
PASSES = (1, 2, 4, 8, 16)
# Of the paper, of the robust and of the standard model, by whether the
# classifier got the image right.
PAPER = ({"right": 0.54, "wrong": 0.35}, {"right": 0.493, "wrong": 0.299})


def run(study):
    """Counts reconstructions that get their image's class.

    500 images of 50 classes, as in the paper; then the reconstruction of the
    reconstruction, and so on, with fresh noise each time. Intervals and claims
    are of these classes: where there are many more, others would vary more.

    Returns:
        `results.Result`. Agreement by model and, with labels, by whether the
        classifier is right; `chance`, with another image's reconstruction.
    """
    labelled = study.is_labelled(study.count(CLASSES) * IMAGES_PER_CLASS)
    metrics, passes, hits, is_right = {}, {}, {}, {}
    # Only the two models that stand for the paper's, not their controls.
    papers = dict(zip(study.pair or (), PAPER, strict=False))
    for name, model in study.models.items():
        images, labels = choose(study, name, labelled)
        predicted = model.logits(images).argmax(-1)
        classes = _classes_after(study, name, images)
        same = {number: after == predicted for number, after in classes.items()}
        hits[name], is_right[name] = same[1], predicted == labels
        metrics[name] = {
            "images": len(images),
            "classes": len(np.unique(labels[labels >= 0])),
            "chance": float(np.mean(np.roll(classes[1], 1) == predicted))
            if len(images) > 1
            else None,
        }
        groups = {"all": slice(None)}
        if labelled:
            groups |= {"right": is_right[name], "wrong": ~is_right[name]}
        for group, chosen in groups.items():
            metrics[name][group] = {
                "images": len(same[1][chosen]),
                "paper": papers.get(name, {}).get(group),
                **results.share(same[1][chosen]),
            }
        passes[name] = {n: results.share(same[n]) for n in PASSES}
    drawing = plots.curves(
        range(len(PASSES)),
        {name: of.values() for name, of in passes.items()},
        "reconstructions of reconstructions",
        "share with the class of the image",
        ticks=list(map(str, PASSES)),
    )
    drawing.axes[0].set_ylim(0, 1.02)
    drawing.axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure = results.Figure(
        "passes",
        "Share of images whose class is still that of the original after so "
        "many reconstructions of reconstructions, with 95 % intervals for "
        "these classes.",
        drawing,
    )
    return results.Result(
        metrics,
        {
            "agreement": results.rows(metrics, "model", "group"),
            "passes": results.rows(passes, "model", "passes"),
        },
        [figure],
        _claims(study.pair, hits, labelled and is_right) if study.pair else [],
    )


def _classes_after(study, name, images):
    """Predicted classes `(images,)` by the number of passes."""
    model, classes = study.models[name], {}
    for number in study.progress(range(1, max(PASSES) + 1), max(PASSES), name):
        images = study.reconstruct(model, images, 1, str(number))[:, 0]
        if number in PASSES:
            classes[number] = model.logits(images).argmax(-1)
    return classes


def choose(study, name, labelled):
    """Images of so many classes, equally many of each while they last.

    Of images without labels the first.

    Args:
        name: label of the model that they are for; the same for all models.
        labelled: whether images have labels.

    Returns:
        float32 images and their labels.
    """
    if not labelled:
        count = study.count(CLASSES) * IMAGES_PER_CLASS
        return study.first(count, name)[:2]
    classes = study.random("classes").permutation(study.source.class_numbers)
    classes = classes[: study.count(CLASSES)]
    missing = dict.fromkeys(classes.tolist(), IMAGES_PER_CLASS)
    chosen = []
    for batch in study.batches(None, name=name):
        for image, label in zip(
            batch.images, batch.labels.tolist(), strict=True
        ):
            if missing.get(label):
                missing[label] -= 1
                chosen.append((image, label))
        if not any(missing.values()):
            break
    study.require(chosen, f"images of the {len(classes)} classes that it takes")
    images, labels = zip(*chosen, strict=True)
    return np.stack(images), np.array(labels)


def _claims(pair, hits, is_right):
    robust, standard = pair
    both, which = hits[robust] | True, ""
    if is_right:
        both = is_right[robust] & is_right[standard]
        which = ", images that both classify right"
    claims = [
        results.claim(
            "5",
            "The robust model is more stable than the standard one.",
            f"agreement, robust minus standard{which}",
            # The same images: their differences, not the difference of shares.
            results.mean(
                hits[robust][both].astype(float) - hits[standard][both]
            ),
            note=f"{both.sum()} images",
        )
    ]
    for name in pair if is_right else ():
        right, wrong = is_right[name], ~is_right[name]
        claims.append(
            results.claim(
                "5",
                "Images that are classified right are more stable than others "
                f"({name}).",
                "agreement, right minus wrong",
                results.difference(hits[name][right], hits[name][wrong]),
                note=f"{right.sum()} against {wrong.sum()} images",
            )
        )
    return claims
