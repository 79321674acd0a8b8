"""Trains the inversion model of a classifier.

Example:
    tools/train.py --dataset kinv_scenes/32 \
        --classifier runs/classifier/classifier.keras --out runs/inversion
"""

import argparse
import os
import pathlib

from kinv import cli, errors, runs
from kinv.inversion import presets

# Each image of a batch is reconstructed several times at once.
VALIDATION_BATCH_SIZE = 100
# For features, instead of a normalisation that needs the class; learned from
# sooner than `standardize` (docs/measurements.md).
LAYER_NORMALIZATION = "whiten"


def main(argv=None):
    """Trains, and leaves a run directory that `tools/export.py` reads."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kinv import devices
    from kinv.inversion import callbacks

    # First of all: several workers cannot be set up once TensorFlow has run.
    strategy = devices.make_strategy(options.strategy)
    chief = callbacks.is_chief(strategy)
    with runs.lock(options.out, chief), devices.explain_lost_workers(strategy):
        train(options, strategy)


def train(options, strategy):
    """Trains on the devices of a `tf.distribute` strategy."""
    import keras
    import tensorflow as tf

    from kinv import devices
    from kinv.data import datasets
    from kinv.inversion import callbacks, checkpoints

    chief = callbacks.is_chief(strategy)
    run = pathlib.Path(options.out)
    # A rate that has decayed cannot go on.
    constant = options.learning_rate_decay == "none"
    may_change = {"steps"} if constant else ()
    resumed = chief and runs.open_run(run, vars(options), may_change)

    source, validation = (
        datasets.open_dataset(
            options.dataset, split, options.data_dir, options.skip_unreadable
        )
        for split in (options.train_split, options.validation_split)
    )
    cli.print_left_out(source, validation)
    check_batches(options, source, strategy.num_replicas_in_sync)
    data = runs.describe_data(source, validation)
    runs.check_data(resumed or {}, data, options.dataset)
    epochs = -(-options.steps // options.steps_per_epoch)
    keras.utils.set_random_seed(options.seed)
    with strategy.scope():
        classifier = load_classifier(options)
        # Those of a resumed run are in its config.json.
        class_names = None
        if not resumed:
            class_names = name_classes(options, source, classifier)
        # After the classifier, which computes as it always does.
        precision = devices.set_precision(options.precision)
        model = build_model(options, classifier)
        if options.generator and not checkpoints.existing(run):
            start_from(model, options.generator)
        model.compile(
            adam(options, options.generator_learning_rate, epochs),
            adam(options, options.discriminator_learning_rate, epochs),
            # XLA is slower on CPU, and fails on several replicas.
            jit_compile=options.strategy in ("auto", "single")
            and len(tf.config.list_physical_devices("GPU")) == 1,
        )

    # The run directory, its options first.
    if chief and not resumed:
        runs.record(
            run,
            vars(options),
            precision=precision,
            dataset=options.dataset,
            data=data,
            class_names=class_names,
            generator=model.generator.get_config(),
            discriminator=model.discriminator.get_config(),
        )
    if chief:
        checkpoints.save_model(classifier, run / "classifier.keras")

    # Where a previous process stopped.
    first_epoch = checkpoints.restore(model, run)
    if first_epoch:
        print(f"continuing after step {first_epoch * options.steps_per_epoch}")
    else:
        fit_logit_statistics(options, model, source)

    training, size = source, classifier.input_shape[1]
    validation_batches = validation.evaluation_batches(
        size, VALIDATION_BATCH_SIZE, options.validation_images
    )
    if options.cache_logits:
        training, size = cache_logits(options, model, source, strategy)
    images_per_step = options.batch_size * (options.discriminator_steps + 1)
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
            verbose=options.verbose,
            callbacks=[
                callbacks.TerminateOnNonFinite(),
                callbacks.TimeRemaining(),
                *(writers(options, validation_batches) if chief else ()),
            ],
        )
    if chief:
        print(callbacks.describe_best(run))
    print(f"run directory: {run}")
    print(f"next: tools/export.py --run {run} --out exported/{run.name}")


def check_batches(options, source, num_replicas):
    """Raises `InputError` unless the batches fit the images and devices."""
    feed_size = options.batch_size * (options.discriminator_steps + 1)
    if feed_size > source.num_examples:
        raise errors.InputError(
            f"Expected at least {feed_size} training images, one step's worth. "
            f"Received: {source.num_examples}. Lower --batch-size."
        )
    parts = num_replicas * options.micro_batches
    if options.batch_size % parts:
        raise errors.InputError(
            f"Expected a batch size that is a multiple of {parts} for "
            f"{options.micro_batches} micro-batches on each of {num_replicas} "
            f"devices. Received: --batch-size {options.batch_size}."
        )


def load_classifier(options):
    """The classifier of the run, or, of a new one, that of the flags."""
    from kinv.classifiers import loading

    # A run keeps its classifier: what it was made of may be gone.
    own = pathlib.Path(options.out) / "classifier.keras"
    if options.resume and own.exists():
        classifier = loading.load_classifier(own)
    else:
        classifier = loading.load_classifier(
            options.classifier,
            options.classifier_weights,
            options.output,
            options.classifier_size,
            options.input_range,
            options.log_probabilities,
        )
    if options.readback_weight:
        loading.check_gradient(classifier, options.classifier)
    return classifier


def build_model(options, classifier):
    """The two networks, and the model that trains them."""
    from kinv.classifiers import features
    from kinv.inversion import gan, networks

    if options.layer:
        classifier = features.add_features(
            classifier, options.layer, options.layer_maps
        )
    sizes = {
        "image_size": options.image_size,
        "condition_dim": classifier.outputs[-1].shape[-1],
        "base_channels": options.base_channels,
        "attention": options.attention,
        "logit_normalization": options.logit_normalization,
    }
    return gan.InversionGAN(
        classifier,
        networks.Generator(
            **sizes,
            noise_dim=options.noise_dim,
            embedding_dim=options.embedding_dim,
            embedding_layers=options.embedding_layers,
            gain_offset=options.gain_offset,
            norms_per_block=options.norms_per_block,
            upsampling=options.upsampling,
        ),
        networks.Discriminator(**sizes),
        discriminator_steps=options.discriminator_steps,
        ema_decay=options.ema_decay,
        ema_start_step=options.ema_start_step,
        seed=options.seed,
        adversary=options.adversary,
        adversary_weight=options.adversary_weight,
        score_weight=options.score_weight,
        readback_weight=options.readback_weight,
        pixel_weight=options.pixel_weight,
        micro_batches=options.micro_batches,
    )


def adam(options, learning_rate, epochs):
    """An optimizer as of section 7.2, whose rate decays where that is asked."""
    import keras

    if options.learning_rate_decay == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(
            learning_rate,
            epochs * options.steps_per_epoch,
            presets.LAST_LEARNING_RATE,
        )
    optimizer = keras.optimizers.Adam(
        learning_rate, beta_1=0.0, beta_2=0.999, epsilon=1e-8
    )
    if keras.config.dtype_policy().name == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def fit_logit_statistics(options, model, source):
    """Fits what normalises the logits, and the read-back's units."""
    if options.logit_normalization == "none" and not options.readback_weight:
        return
    size = model.classifier.input_shape[1]
    batches = source.evaluation_batches(size, 500, 10_000)
    found = model.classifier.predict(
        batches.map(lambda images, labels: images), verbose=0
    )
    model.set_logit_statistics(found[-1] if options.layer else found)


def cache_logits(options, model, source, strategy):
    """The data set of `--cache-logits`, and the size of its images."""
    from kinv import devices
    from kinv.classifiers import logit_cache
    from kinv.inversion import callbacks

    layer = options.layer and f"{options.layer}, {options.layer_maps}"
    kept = (
        source,
        model.classifier,
        layer,
        options.image_size,
        options.cache_logits,
    )
    if callbacks.is_chief(strategy):
        logit_cache.write(*kept, verbose=options.verbose)
    devices.wait_for_workers(strategy)
    return logit_cache.read(*kept), options.image_size


def writers(options, validation_batches):
    """The callbacks that write into the run directory, in their order."""
    import keras
    import tensorflow as tf

    from kinv.inversion import callbacks, checkpoints

    run = pathlib.Path(options.out)
    # As many as the batch's moments need.
    images = next(iter(validation_batches))[0][:64]
    noise = tf.random.stateless_normal(
        (4, len(images), options.noise_dim), seed=[options.seed, -2]
    )
    return [
        checkpoints.MetricsTable(run / "metrics.csv"),
        keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
        callbacks.ReconstructionSummary(run / "tensorboard", images, noise),
        callbacks.BestGenerator(run),
        checkpoints.Checkpoint(run),
    ]


def name_classes(options, source, classifier):
    """What to call the logits: as asked, as ImageNet, or as the data set does.

    Says which of the classes the labels of the data set are.
    """
    from kinv.classifiers import loading
    from kinv.data import labels

    num_classes = classifier.output_shape[-1]
    known = loading.is_of_imagenet(options.classifier) and num_classes == 1000
    if options.class_names:
        names = loading.read_class_names(options.class_names, num_classes)
    elif known and options.classifier_weights == "imagenet":
        names = labels.imagenet_class_names()
    else:
        known, names = False, labels.placeholders(num_classes)
    labelled, line = labels.match(source, names)
    print(line)
    if labelled.class_names and not (known or options.class_names):
        return source.class_names
    return names


def start_from(model, path):
    """Gives a model's generators the weights of `generator.keras`."""
    from kinv.inversion import export

    generator, other = model.generator, export.load_generator(path)
    for name, value in generator.get_config().items():
        if name not in ("name", "dtype") and other.get_config()[name] != value:
            raise errors.InputError(
                f"Expected a generator whose {name} is {value}, as of this "
                f"run. Received: --generator with {other.get_config()[name]}."
            )
    for network in (generator, model.averaged_generator):
        network.set_weights(other.get_weights())


def parse_arguments(argv):
    """Reads the flags; those not given take the preset's values."""
    parser = argparse.ArgumentParser(
        description="Train a generator that inverts a classifier's logits.",
        epilog="presets: "
        + "; ".join(
            f"{name}: "
            + ", ".join(f"{key} {value}" for key, value in preset.items())
            for name, preset in presets.PRESETS.items()
        ),
    )
    main = parser.add_argument_group("main")
    add = main.add_argument
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
        help="of keras.applications: imagenet, none for random ones, or a file "
        "(default: imagenet)",
    )
    add(
        "--layer",
        metavar="NAME",
        help="invert the output of this layer of a Keras classifier instead of "
        "its logits; a name that it does not have prints those that it has",
    )
    add(
        "--layer-maps",
        choices=("pool", "flatten"),
        default="pool",
        help="what becomes of a layer's maps: the mean of each channel, or all "
        "numbers, at most 4096 (default: pool)",
    )
    add(
        "--preset",
        choices=presets.PRESETS,
        default="small",
        help="defaults of the flags without one of their own (default: small)",
    )

    classifier = parser.add_argument_group("classifier")
    add = classifier.add_argument
    add(
        "--output",
        metavar="NAME",
        help="the classifier's output that holds the logits, of several",
    )
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
        "255 as, such as 0 1 for TF Hub's (default: 0 255)",
    )
    add(
        "--log-probabilities",
        action="store_true",
        help="the classifier gives probabilities of which no softmax can be "
        "taken off: take their logarithms, which equal the logits but for a "
        "constant per image",
    )
    add(
        "--class-names",
        metavar="FILE",
        help="names of the classes, one per line in the order of the logits, "
        "or Keras's imagenet_class_index.json (default: ImageNet's of its "
        "classifiers, else the data set's)",
    )

    training = parser.add_argument_group("training")
    add = training.add_argument
    add(
        "--steps",
        type=errors.positive_int,
        metavar="STEPS",
        help="generator updates, rounded up to whole epochs",
    )
    add(
        "--batch-size",
        type=errors.positive_int,
        metavar="IMAGES",
        help="images "
        "per update, over all devices; a step takes this times (discriminator "
        "steps + 1)",
    )
    add(
        "--micro-batches",
        type=errors.positive_int,
        default=1,
        metavar="PARTS",
        help="parts of every batch that are computed one after the other and "
        "make one update, to save memory. Exact but for the generator's batch "
        "norm, which takes the moments of each part: keep them large "
        "(default: 1)",
    )
    add(
        "--discriminator-steps",
        type=errors.non_negative_int,
        metavar="STEPS",
        help="discriminator updates per generator update; 0 for no adversary",
    )
    add(
        "--generator-learning-rate",
        type=errors.positive_float,
        metavar="RATE",
        help="Adam's, at first",
    )
    add(
        "--discriminator-learning-rate",
        type=errors.positive_float,
        metavar="RATE",
        help="Adam's, at first",
    )
    add(
        "--learning-rate-decay",
        choices=("none", "cosine"),
        help=f"of both rates over --steps: none as the paper, or a cosine to "
        f"{presets.LAST_LEARNING_RATE:.0%}".replace("%", " %%"),
    )
    add(
        "--adversary",
        choices=("hinge", "relativistic"),
        help="the adversary's loss: hinge as the paper, or relativistic, of "
        "image and reconstruction of the same logits",
    )
    add(
        "--adversary-weight",
        type=errors.non_negative_float,
        metavar="WEIGHT",
        help="weight of the adversary in the generator's loss; 1 as the paper",
    )
    add(
        "--score-weight",
        type=errors.non_negative_float,
        metavar="WEIGHT",
        help="weight of the energy score of two reconstructions per image, "
        "which asks for what the logits know and that noise varies what they "
        "leave open; 0 as the paper",
    )
    add(
        "--readback-weight",
        type=errors.non_negative_float,
        metavar="WEIGHT",
        help="weight of the distance between the logits that a reconstruction "
        "was made of and those that the classifier reads from it; 0 as the "
        "paper",
    )
    add(
        "--pixel-weight",
        type=errors.non_negative_float,
        default=0.0,
        metavar="WEIGHT",
        help="weight of the squared distance between image and reconstruction, "
        "pixels in [-1, 1]: a decoder, which passes over the noise "
        "(default: 0)",
    )
    add(
        "--ema-decay",
        type=errors.non_negative_float,
        metavar="DECAY",
        help="decay of the averaged generator, in [0, 1)",
    )
    add(
        "--ema-start-step",
        type=errors.non_negative_int,
        metavar="STEP",
        help="generator update at which averaging starts",
    )
    add(
        "--generator",
        metavar="FILE",
        help="generator.keras of another run with the same networks, to start "
        "from; such as a decoder's, trained with --discriminator-steps 0",
    )
    add(
        "--seed",
        type=errors.non_negative_int,
        default=8,
        help="of weights, "
        "noise and the order of images (default: 8, the paper's)",
    )

    network = parser.add_argument_group("networks")
    add = network.add_argument
    add(
        "--image-size",
        type=errors.positive_int,
        metavar="PIXELS",
        help="height and width of reconstructions: 8, 32, 64 or 128",
    )
    add(
        "--base-channels",
        type=errors.positive_int,
        metavar="CHANNELS",
        help="width of both networks",
    )
    add(
        "--noise-dim",
        type=errors.positive_int,
        default=120,
        metavar="NUMBERS",
        help="length of the noise vector (default: 120)",
    )
    add(
        "--embedding-dim",
        type=errors.positive_int,
        default=128,
        metavar="NUMBERS",
        help="length of the embedded logits (default: 128)",
    )
    add(
        "--embedding-layers",
        type=errors.non_negative_int,
        metavar="LAYERS",
        help="hidden layers before the embedding of the logits: 0 as the paper",
    )
    add(
        "--gain-offset",
        type=errors.non_negative_float,
        metavar="GAIN",
        help="added to the conditional norms' gains: 0 as the paper's code, 1 "
        "as BigGAN",
    )
    add(
        "--norms-per-block",
        type=int,
        choices=(2, 3),
        default=2,
        help="conditional norms per generator block (default: 2)",
    )
    add(
        "--upsampling",
        choices=("zeros", "nearest"),
        help="of the generator's blocks: zeros between the values as the "
        "paper, or every value four times, without a chequered pattern",
    )
    add(
        "--no-attention",
        dest="attention",
        action="store_false",
        help="leave out the self-attention blocks",
    )
    add(
        "--logit-normalization",
        choices=(
            "none",
            "standardize",
            "whiten",
            "class-centered",
            "one-hot",
        ),
        help="fixed map of the logits before both networks: none as the paper; "
        "standardize; whiten (principal components); class-centered, also what "
        "they are beyond their class; one-hot, the class alone (a control). "
        "With --layer the preset's class-centered becomes whiten",
    )

    data = parser.add_argument_group("data")
    cli.add_data_flags(data)
    add = data.add_argument
    add(
        "--validation-images",
        type=errors.positive_int,
        default=1000,
        metavar="IMAGES",
        help="images measured after every epoch (default: 1000)",
    )
    add(
        "--cache-logits",
        metavar="DIR",
        help="compute the logits of the training images once and keep them, "
        "with the images, in DIR, which runs may share; an interrupted pass "
        "goes on. For --crop center. The classifier still reads "
        "reconstructions for --readback-weight, and held-out images",
    )

    cli.add_run_flags(parser.add_argument_group("run"))

    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(**presets.PRESETS[known.preset])
    of_classes = ("class-centered", "one-hot")
    if known.layer and parser.get_default("logit_normalization") in of_classes:
        parser.set_defaults(logit_normalization=LAYER_NORMALIZATION)
    options = parser.parse_args(argv)
    if options.layer and options.logit_normalization in of_classes:
        parser.error(
            "argument --logit-normalization: expected none, standardize or "
            "whiten with --layer, since features do not tell the class; "
            f"received {options.logit_normalization}"
        )
    if options.cache_logits and options.crop != "center":
        parser.error(
            "argument --cache-logits: expected --crop center, of which logits "
            f"can be kept, received --crop {options.crop}"
        )
    if options.ema_decay >= 1:
        parser.error(
            f"argument --ema-decay: expected a number in [0, 1), received "
            f"{options.ema_decay}"
        )
    return options


if __name__ == "__main__":
    errors.run(main, resumable=True)
