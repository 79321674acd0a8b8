#!/usr/bin/env python
"""Trains the inversion model of a classifier.

Example:
    tools/train.py --dataset kinv_scenes/32 \
        --classifier runs/classifier/classifier.keras --out runs/inversion
"""

import argparse
import pathlib

from kinv import cli, errors, runs
from kinv.inversion import presets

# Each image is reconstructed several times at once.
VALIDATION_BATCH_SIZE = 100


def main(argv=None):
    """Trains, and leaves a run directory that `tools/export.py` reads."""
    options = parse_arguments(argv)
    with cli.training(options) as (strategy, chief):
        train(options, strategy, chief)


def train(options, strategy, chief):
    """Trains on the devices of a `tf.distribute` strategy."""
    import keras

    from kinv import devices
    from kinv.classifiers import loading, logit_cache
    from kinv.data import datasets
    from kinv.inversion import adaptation, callbacks, checkpoints

    run = pathlib.Path(options.out)
    # A rate that has decayed cannot go on.
    constant = options.learning_rate_decay == "none"
    resumed = runs.open_run(
        run,
        vars(options),
        may_change={"steps"} if constant else (),
        chief=chief,
    )

    source, validation, data = datasets.open_splits(vars(options), resumed)
    if options.cache_logits:
        logit_cache.check_place(options.cache_logits, options.dataset)
    devices.check_workers_agree(strategy, [vars(options), data])
    replicas = strategy.num_replicas_in_sync
    images_per_step = check_batches(options, source, replicas)
    epochs = -(-options.steps // options.steps_per_epoch)
    keras.utils.set_random_seed(options.seed)
    with strategy.scope():
        classifier = load_classifier(options)
        # Those of a resumed run are in its config.json.
        class_names = None
        if not resumed:
            class_names, line = loading.name_classes(
                source,
                options.classifier,
                options.classifier_weights,
                options.class_names,
                classifier.output_shape[-1],
            )
            print(line)
            print(
                loading.describe_accuracy(classifier, validation, class_names)
            )
        # After the classifier, which computes as it always does.
        precision = devices.set_precision(options.precision)
        # To load a classifier draws numbers, to load it again does not.
        keras.utils.set_random_seed(options.seed)
        model = build_model(options, classifier)
        steps = 0 if constant else epochs * options.steps_per_epoch
        model.compile(
            options.generator_learning_rate,
            options.discriminator_learning_rate,
            steps,
        )
    if not checkpoints.existing(run):
        if options.generator:
            checkpoints.start_from(model, options.generator)
        # A short run is not to wait for more images than it trains on.
        most = options.steps * images_per_step
        limit = max(adaptation.STATISTICS_IMAGES, most)
        model.adapt(
            source.evaluation_batches(classifier.input_shape[1], 500, limit),
            cli.verbosity(),
        )

    if chief and not resumed:
        runs.record(
            run,
            vars(options),
            precision=precision,
            data=data,
            class_names=class_names,
            generator=model.generator.get_config(),
            discriminator=model.discriminator.get_config(),
        )
    if chief:
        checkpoints.save_model(classifier, run / "classifier.keras")

    first_epoch = checkpoints.restore(model, run)
    if first_epoch:
        print(f"continuing after step {first_epoch * options.steps_per_epoch}")

    training, size = source, classifier.input_shape[1]
    limit = options.validation_images
    validation_batches = devices.evaluation_batches(
        validation, size, VALIDATION_BATCH_SIZE, limit, strategy
    )
    if options.cache_logits and first_epoch < epochs:
        training, size = cache_logits(options, model, source, strategy)
    if first_epoch < epochs:
        model.fit(
            training.training_batches(
                size,
                images_per_step,
                options.seed,
                first_epoch * options.steps_per_epoch * images_per_step,
                options.crop,
            ),
            validation_data=validation_batches,
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=options.steps_per_epoch,
            shuffle=False,
            verbose=cli.verbosity(),
            callbacks=[
                callbacks.TerminateOnNonFinite(),
                callbacks.TimeRemaining(),
                *(
                    callbacks.writers(
                        run, validation_batches, options.noise_dim, options.seed
                    )
                    if chief
                    else ()
                ),
            ],
        )
    if chief:
        print(callbacks.describe_best(run))
    print(f"run directory: {run}")
    out = f"exported/{run.name}"
    print("next:", cli.command("export", "--run", run, "--out", out))


def check_batches(options, source, num_replicas):
    """Images of a step; `InputError` unless they fit data and devices."""
    images = options.batch_size * (options.discriminator_steps + 1)
    if images > source.num_examples:
        raise errors.InputError(
            f"Expected at least {images} training images, one step's worth. "
            f"Received: {source.num_examples}. Lower --batch-size."
        )
    parts = num_replicas * options.micro_batches
    if options.batch_size % parts:
        raise errors.InputError(
            f"Expected a batch size that is a multiple of {parts} for "
            f"{options.micro_batches} micro-batches on each of {num_replicas} "
            f"devices. Received: --batch-size {options.batch_size}."
        )
    return images


def load_classifier(options):
    """The classifier of the run, or, of a new one, that of the flags."""
    from kinv.classifiers import loading

    # A run keeps its classifier: what it was made of may be gone.
    own = pathlib.Path(options.out) / "classifier.keras"
    if options.resume and own.exists():
        classifier = loading.load_kept(own)
    else:
        classifier = loading.load_classifier(
            options.classifier,
            options.classifier_weights,
            options.output,
            options.classifier_size,
            options.input_range,
            options.input_mean,
            options.input_std,
            options.log_probabilities,
        )
    if options.readback_weight or options.class_readback_weight:
        loading.check_gradient(classifier, options.classifier)
    return classifier


def build_model(options, classifier):
    """The two networks, and the model that trains them."""
    from kinv.classifiers import features
    from kinv.inversion import gan

    if options.layer:
        classifier = features.add_features(
            classifier, options.layer, options.layer_maps
        )
    names = *presets.NETWORK_SETTINGS, *gan.InversionGAN.SETTINGS
    settings = {name: getattr(options, name) for name in names}
    return gan.InversionGAN(classifier, **settings)


def cache_logits(options, model, source, strategy):
    """The data set of `--cache-logits`, and the size of its images."""
    from kinv import devices
    from kinv.classifiers import logit_cache

    layer = options.layer and f"{options.layer}, {options.layer_maps}"
    size = options.image_size
    cache = logit_cache.LogitCache(
        source, model.classifier, layer, size, options.cache_logits
    )
    if devices.is_chief(strategy):
        cache.write()
    devices.wait_for_workers(strategy)
    return cache.read(), size


def parse_arguments(argv):
    """Reads the flags; settings that are not given take the preset's values."""
    parser = argparse.ArgumentParser(
        description="Train a generator that inverts a classifier's logits.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=presets.describe(),
    )
    add_classifier_flags(parser.add_argument_group("classifier"))
    add_training_flags(parser.add_argument_group("training"))
    data = parser.add_argument_group("data")
    cli.add_data_flags(data)
    data.add_argument(
        "--cache-logits",
        metavar="DIR",
        help="compute the logits of the training images once and keep them, "
        "with the images, in DIR, which runs may share; an interrupted pass "
        "goes on. For --crop center. The classifier still reads "
        "reconstructions and held-out images",
    )
    cli.add_run_flags(parser.add_argument_group("run"))

    options = parser.parse_args(argv)
    settings = vars(options)
    preset = presets.PRESETS[options.preset]
    assigned = dict(settings.pop("set"))
    if options.layer and preset["logit_normalization"] in presets.OF_LOGITS:
        assigned = {"logit_normalization": presets.OF_FEATURES, **assigned}
    for name, value in {**preset, **assigned}.items():
        if settings.get(name) is None:
            settings[name] = value
    if options.layer and options.logit_normalization in presets.OF_LOGITS:
        parser.error(
            "argument --set: expected logit_normalization to be none, "
            "standardize or whiten with --layer, since features do not tell "
            f"the class; received {options.logit_normalization}"
        )
    if options.cache_logits and options.crop != "center":
        parser.error(
            "argument --cache-logits: expected --crop center, of which logits "
            f"can be kept, received --crop {options.crop}"
        )
    return options


def add_training_flags(group):
    """The preset, what differs from it, and what a run begins with."""
    add = group.add_argument
    add(
        "--preset",
        choices=presets.PRESETS,
        default="small",
        help="values of the settings below (default: %(default)s)",
    )
    for name in presets.FLAGS:
        values, _, meaning = presets.SETTINGS[name]
        listed = isinstance(values, tuple)
        add(
            "--" + name.replace("_", "-"),
            type=int if listed else values,
            choices=values if listed else None,
            metavar="NUMBER",
            help=meaning,
        )
    add(
        "--set",
        type=presets.assignment,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="other values of settings, such as --set pixel_weight=10",
    )
    add(
        "--generator",
        metavar="FILE",
        help="generator.keras of another run with the same networks, to start "
        "from, with the discriminator of the checkpoint beside it",
    )
    add(
        "--seed",
        type=errors.seed,
        default=presets.SEED,
        help="of weights, noise, order of images (default: %(default)s)",
    )


def add_classifier_flags(group):
    """What is inverted, and how its file is to be taken."""
    add = group.add_argument
    add(
        "--classifier",
        required=True,
        metavar="FILE",
        help="the classifier to invert, images in [0, 255] to logits or "
        "probabilities: a .keras file, a SavedModel's directory, "
        "keras.applications:NAME, or R152.npz or R152-Denoise.npz of "
        "facebookresearch/ImageNet-Adversarial-Training",
    )
    add(
        "--classifier-weights",
        default="imagenet",
        metavar="WEIGHTS",
        help="of keras.applications: imagenet (the default), none or a file",
    )
    add(
        "--layer",
        metavar="NAME",
        help="invert this layer of a Keras classifier instead of its logits; a "
        "name that it does not have prints those that it has",
    )
    add(
        "--layer-maps",
        choices=("pool", "flatten"),
        default="pool",
        help="what becomes of a layer's maps: the mean of each channel, or all "
        "numbers, at most 4096 (default: %(default)s)",
    )
    add(
        "--output",
        metavar="NAME",
        help="which of the classifier's several outputs holds the logits",
    )
    add_input_flags(add)
    add(
        "--log-probabilities",
        action="store_true",
        help="the classifier ends in probabilities, and its softmax or sigmoid "
        "cannot be removed: use the logarithms of its probabilities, or the "
        "log-odds if it is a sigmoid",
    )
    add(
        "--class-names",
        metavar="FILE",
        help="names of the classes, one per line in the order of the logits, "
        "or Keras's imagenet_class_index.json (default: ImageNet's of "
        "keras.applications with its weights and of .npz files, else the data "
        "set's, if it has as many)",
    )


def add_input_flags(add):
    """What the classifier takes pixels as."""
    add(
        "--classifier-size",
        type=errors.positive_int,
        metavar="PIXELS",
        help="size of the images that the classifier gets, where it takes any "
        "(default: its own, or that which it was trained at)",
    )
    add(
        "--input-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what a .keras file or SavedModel takes the pixel values 0 and "
        "255 as, such as 0 1 (default: 0 255)",
    )
    add(
        "--input-mean",
        type=float,
        nargs="+",
        metavar="MEAN",
        help="subtracted from the pixel values, which are scaled to 0 1 first "
        "unless --input-range is given; one number, or one for each channel "
        "(default: 0)",
    )
    add(
        "--input-std",
        type=float,
        nargs="+",
        metavar="STD",
        help="what they are divided by after that (default: 1)",
    )


if __name__ == "__main__":
    errors.run(main, resumable=True)
