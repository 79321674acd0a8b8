#!/usr/bin/env python
"""Trains a classifier to be inverted: standard, or robust by PGD.

The run directory receives config.json (these options), classifier.keras,
metrics.json (accuracy as it is and under attack), metrics.csv, tensorboard/
and checkpoint.weights.h5. The same command with --resume continues a run that
was stopped at any moment.
"""

import argparse
import pathlib
import time

from kinv import cli, errors, runs


def parse_arguments(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
    )
    data = parser.add_argument_group("data")
    cli.add_data_flags(data)
    data.add_argument(
        "--image-size",
        type=errors.positive_int,
        default=32,
        help="side of the classifier's input in pixels (default: %(default)s)",
    )
    add_attack_flags(parser.add_argument_group("adversarial training"))
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=errors.positive_int,
        default=10,
        help="epochs (default: %(default)s)",
    )
    training.add_argument(
        "--steps-per-epoch",
        type=errors.positive_int,
        metavar="STEPS",
        help="updates between checkpoints and measurements (default: one pass "
        "over the images)",
    )
    training.add_argument(
        "--batch-size",
        type=errors.positive_int,
        default=128,
        help="images per step, over all replicas (default: %(default)s)",
    )
    training.add_argument(
        "--width",
        type=errors.positive_int,
        default=32,
        help="channels of the first residual block (default: %(default)s)",
    )
    training.add_argument(
        "--learning-rate",
        type=errors.positive_float,
        default=2e-3,
        help="initial step size of Adam, decays to 0 along a cosine "
        "(default: %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=errors.seed,
        default=0,
        help="random seed (default: %(default)s)",
    )
    cli.add_run_flags(parser.add_argument_group("run"))
    return parser.parse_args(argv)


def add_attack_flags(group):
    """The attack that is trained against, and measured."""
    add = group.add_argument
    add(
        "--adversarial",
        choices=("none", "linf", "l2"),
        default="none",
        help="norm of the attack to train against; none: standard training, "
        "and linf for measuring alone (default: %(default)s)",
    )
    add(
        "--radius",
        type=errors.positive_float,
        help="radius of the attack in pixel values, of training and "
        "measurement (default: 8, for l2 128)",
    )
    add(
        "--attack-steps",
        type=errors.positive_int,
        default=4,
        help="steps of the attack in training (default: %(default)s)",
    )
    add(
        "--evaluation-examples",
        type=errors.positive_int,
        default=1000,
        help="held-out images that PGD-20 attacks at the end "
        "(default: %(default)s)",
    )


def main(argv=None):
    """Trains, measures and saves a classifier."""
    options = parse_arguments(argv)
    with cli.training(options) as (strategy, chief):
        train(options, strategy, chief)


def train(options, strategy, chief):
    """Trains on the devices of a `tf.distribute` strategy, then measures."""
    import keras

    from kinv import devices
    from kinv.data import datasets, labels
    from kinv.inversion import callbacks, checkpoints

    run = pathlib.Path(options.out)
    resumed = runs.open_run(run, vars(options), chief=chief)
    with strategy.scope():
        policy = devices.set_precision(options.precision)
    keras.utils.set_random_seed(options.seed)

    source, held_out, data = datasets.open_splits(vars(options), resumed)
    devices.check_workers_agree(strategy, [vars(options), data])
    check_splits(options, source, held_out, strategy.num_replicas_in_sync)
    num_classes = len(source.class_names)
    steps = options.steps_per_epoch or source.num_examples // options.batch_size
    print(
        f"{options.dataset}: {source.num_examples:,} images of {num_classes} "
        f"classes, {held_out.num_examples:,} held out: "
        f"{labels.some(source.class_names, 10)}"
    )

    channels = 1 if source.grey and held_out.grey else 3
    with strategy.scope():
        classifier, model = build_model(options, num_classes, channels, steps)

    # The run directory, its options first.
    if chief and not resumed:
        runs.record(
            run,
            vars(options),
            class_names=source.class_names,
            data=data,
        )
    epochs_done = checkpoints.restore(model, run)
    if epochs_done:
        print(f"resumed after epoch {epochs_done}")
    print(
        f"classifier: {classifier.count_params():,} parameters, {policy}, "
        f"adversarial training: {options.adversarial}"
    )

    writers = []
    if chief:
        writers = [
            checkpoints.MetricsTable(run / "metrics.csv"),
            callbacks.Scalars(run / "tensorboard"),
            checkpoints.Checkpoint(run),
        ]

    def labelled(batches):
        return labels.require(seen(batches, channels), options.dataset)

    start = time.monotonic()
    model.fit(
        labelled(
            source.training_batches(
                options.image_size,
                options.batch_size,
                options.seed,
                start=epochs_done * steps * options.batch_size,
                crop=options.crop,
            )
        ),
        epochs=options.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps,
        validation_data=labelled(
            devices.evaluation_batches(
                held_out,
                options.image_size,
                options.batch_size,
                2000,
                strategy,
            )
        ),
        shuffle=False,
        callbacks=[
            callbacks.TerminateOnNonFinite(),
            callbacks.TimeRemaining(),
            *writers,
        ],
        verbose=cli.verbosity(),
    )
    minutes = (time.monotonic() - start) / 60
    if chief:
        save(options, classifier, source, held_out, minutes)


def seen(batches, channels):
    """Batches of images and labels as the classifier takes them.

    Args:
        batches: `tf.data.Dataset`, whose images have three channels.
        channels: 3, or 1 of grey images, whose three are equal.
    """
    return batches.map(
        lambda images, numbers: (images[..., :channels], numbers)
    )


def build_model(options, num_classes, channels, steps):
    """The classifier, and the compiled model that trains it.

    Args:
        options: of `parse_arguments`.
        num_classes: number of classes.
        channels: of the images, 3 or 1.
        steps: number of steps per epoch.
    """
    import keras
    import tensorflow as tf

    from kinv import devices
    from kinv.classifiers import attacks, small

    classifier = small.build_classifier(
        options.image_size, num_classes, options.width, channels
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, options.epochs * steps
    )
    optimizer = keras.optimizers.Adam(schedule)
    compiles = devices.can_use_xla(tf.distribute.get_strategy())
    model, accuracy = classifier, "accuracy"
    if options.adversarial != "none":
        attack = make_attack(options, options.attack_steps)
        model = attacks.AdversarialTraining(classifier, attack, options.seed)
        accuracy = "adversarial_accuracy"
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(accuracy)],
        jit_compile=compiles,
    )
    # Several replicas need it built; mixed float16 puts another around it.
    model.optimizer.build(classifier.trainable_variables)
    return classifier, model


def save(options, classifier, source, held_out, minutes):
    """Saves a trained classifier in float32, and what is measured of it.

    Built anew, so that it gives the same logits on every machine.

    Args:
        options: of `parse_arguments`.
        classifier: the trained one.
        source: `data.source.Source` that it was trained on.
        held_out: the same to measure it on.
        minutes: how long training took.
    """
    import keras

    from kinv import files
    from kinv.classifiers import small
    from kinv.inversion import checkpoints

    run = pathlib.Path(options.out)
    keras.mixed_precision.set_dtype_policy("float32")
    weights, channels = classifier.get_weights(), classifier.input_shape[-1]
    classifier = small.build_classifier(
        options.image_size, len(source.class_names), options.width, channels
    )
    classifier.set_weights(weights)
    metrics = measure(options, classifier, held_out)
    metrics["training_minutes_of_last_session"] = minutes
    checkpoints.save_model(classifier, run / "classifier.keras")
    files.write_json(run / "metrics.json", metrics)
    print(f"wrote {run / 'classifier.keras'} and {run / 'metrics.json'}")
    arguments = "--dataset", options.dataset, "--out", "RUN"
    trained = "--classifier", run / "classifier.keras"
    print("next:", cli.command("train", *trained, *arguments))


def check_splits(options, train, held_out, num_replicas):
    """Raises `InputError` unless the two splits and the batch size fit."""
    for source in (train, held_out):
        if not source.class_names:
            raise errors.InputError(
                f"Expected labelled images. Received: {options.dataset}, "
                f"without labels, since {source.unlabelled}."
            )
    if train.class_names != held_out.class_names:
        raise errors.InputError(
            "Expected the same classes in both splits. Received: "
            f"{len(train.class_names)} in {options.train_split}, "
            f"{len(held_out.class_names)} in {options.validation_split}."
        )
    if options.batch_size > train.num_examples:
        raise errors.InputError(
            "Expected a batch no larger than the training data, "
            f"{train.num_examples} images. Received: --batch-size "
            f"{options.batch_size}."
        )
    if options.batch_size % num_replicas:
        raise errors.InputError(
            f"Expected a batch that {num_replicas} replicas can share evenly. "
            f"Received: --batch-size {options.batch_size}. Take a multiple of "
            f"{num_replicas}."
        )


def make_attack(options, steps):
    """The attack that `options` describe, with this many steps."""
    from kinv.classifiers import attacks

    norm = "linf" if options.adversarial == "none" else options.adversarial
    radius = options.radius or {"linf": 8.0, "l2": 128.0}[norm]
    return attacks.ProjectedGradientDescent(norm, radius, steps)


def measure(options, classifier, held_out):
    """Accuracy as it is and under PGD-20, with 95 % Wilson intervals."""
    from kinv import intervals
    from kinv.classifiers import attacks

    attack = make_attack(options, steps=20)
    size, batch_size = options.image_size, options.batch_size
    limit = min(options.evaluation_examples, held_out.num_examples)
    metrics = {
        "attack": {
            "norm": attack.norm,
            "radius": attack.radius,
            "steps": attack.steps,
            "step_size": attack.step_size,
        }
    }
    for name, batches, by in (
        ("clean", held_out.evaluation_batches(size, batch_size), None),
        (
            "pgd20",
            held_out.evaluation_batches(size, batch_size, limit=limit),
            attack,
        ),
    ):
        batches = seen(batches, classifier.input_shape[-1])
        correct, total = attacks.accuracy(
            classifier, batches, attack=by, seed=options.seed
        )
        low, high = intervals.wilson_interval(correct, total)
        metrics[f"{name}_accuracy"] = correct / total
        metrics[f"{name}_interval"] = [low, high]
        metrics[f"{name}_examples"] = total
        print(
            f"{name} accuracy {correct / total:.2%} of {total:,} held-out "
            f"images (95 % interval {low:.2%} to {high:.2%})"
        )
    return metrics


if __name__ == "__main__":
    errors.run(main, resumable=True)
