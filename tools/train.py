"""Trains the inversion model of a classifier.

Example:
    tools/train.py --dataset kinv_scenes/32 \
        --classifier runs/classifier/classifier.keras --out runs/inversion
"""

import argparse
import os
import pathlib

from kinv import errors, files

# `paper` is section 7.2 of the supplementary to the letter. The others differ
# where small, short runs gain by it (README, "Departures from the paper").
PRESETS = {
    "small": {
        "image_size": 32,
        "base_channels": 16,
        "batch_size": 64,
        "decoder_steps": 3000,
        "decoder_learning_rate": 1e-3,
        "steps": 1000,
        "steps_per_epoch": 500,
        "generator_learning_rate": 4e-4,
        "discriminator_learning_rate": 4e-4,
        "gain_offset": 1.0,
        "logit_normalization": "within-classes",
        "logit_consistency": 1.0,
        "pixel_consistency": 50.0,
        "embedding_layers": 2,
        "ema_decay": 0.995,
        "ema_start_step": 200,
    },
    "paper": {
        "image_size": 64,
        "base_channels": 96,
        "batch_size": 2048,
        "decoder_steps": 0,
        "decoder_learning_rate": 1e-4,
        "steps": 250000,
        "steps_per_epoch": 2500,
        "generator_learning_rate": 1e-4,
        "discriminator_learning_rate": 5e-4,
        "gain_offset": 0.0,
        "logit_normalization": "none",
        "logit_consistency": 0.0,
        "pixel_consistency": 0.0,
        "embedding_layers": 0,
        "ema_decay": 0.9999,
        "ema_start_step": 40000,
    },
}
# The paper's objective at the size of `small`.
PRESETS["adversarial"] = {
    **PRESETS["small"],
    "decoder_steps": 0,
    "steps": 6000,
    "steps_per_epoch": 200,
    "logit_normalization": "standardize",
    "logit_consistency": 0.0,
    "pixel_consistency": 0.0,
    "embedding_layers": 0,
    "ema_decay": 0.999,
}
# Less of the first part of `small`, in which a standard classifier's inversion
# goes on learning for long.
PRESETS["demo"] = {**PRESETS["small"], "decoder_steps": 2000}

# Of features, instead of a normalisation that needs the class; learned from
# sooner than `standardize` (docs/measurements.md).
LAYER_NORMALIZATION = "whiten"

# What may differ between a run and its resumption.
RESUME_MAY_CHANGE = {
    "resume",
    "out",
    "steps",
    "strategy",
    "data_dir",
    "verbose",
}


def parse_arguments(argv):
    """Reads the flags; those not given take the preset's values."""
    parser = argparse.ArgumentParser(
        description="Train a generator that inverts a classifier's logits.",
        epilog="presets: "
        + "; ".join(
            f"{name}: "
            + ", ".join(f"{key} {value}" for key, value in preset.items())
            for name, preset in PRESETS.items()
        ),
    )
    main = parser.add_argument_group("main")
    add = main.add_argument
    add(
        "--dataset",
        required=True,
        help="TFDS name, or a folder of images with one sub-folder per class",
    )
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
    add("--out", required=True, metavar="DIR", help="run directory to write")
    add(
        "--preset",
        choices=PRESETS,
        default="small",
        help="defaults of the flags without one of their own (default: small)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run in --out from its last checkpoint",
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
        "or Keras's imagenet_class_index.json (default: the data set's)",
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
        default=2,
        metavar="STEPS",
        help="discriminator updates per generator update; 0 for no adversary, "
        "a decoder (default: 2)",
    )
    add(
        "--decoder-steps",
        type=errors.non_negative_int,
        metavar="STEPS",
        help="updates without an adversary before the others, rounded up to "
        "whole epochs: they teach the generator what the logits know",
    )
    add(
        "--decoder-learning-rate",
        type=errors.positive_float,
        metavar="RATE",
        help="Adam's, constant, of the generator without an adversary",
    )
    add(
        "--generator-learning-rate",
        type=errors.positive_float,
        metavar="RATE",
        help="Adam's, constant",
    )
    add(
        "--discriminator-learning-rate",
        type=errors.positive_float,
        metavar="RATE",
        help="Adam's, constant",
    )
    add(
        "--logit-consistency",
        type=errors.non_negative_float,
        metavar="WEIGHT",
        help="weight of the distance between the logits that a reconstruction "
        "was made of and those that the classifier reads from it; 0 as the "
        "paper",
    )
    add(
        "--pixel-consistency",
        type=errors.non_negative_float,
        metavar="WEIGHT",
        help="weight of the squared distance between image and reconstruction, "
        "pixels in [-1, 1]; 0 as the paper",
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
        help="height and width of reconstructions: 32, 64 or 128",
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
            "within-classes",
            "one-hot",
        ),
        help="fixed map of the logits before both networks: none as the paper; "
        "standardize; whiten (principal components); within-classes, also what "
        "they are beyond their class; one-hot, the class alone (a control). "
        "With --layer the preset's within-classes becomes whiten",
    )

    data = parser.add_argument_group("data")
    add = data.add_argument
    add(
        "--train-split",
        default="train",
        help="split to train on (default: train)",
    )
    add(
        "--validation-split",
        default="validation",
        help="split to measure on (default: validation)",
    )
    add(
        "--validation-images",
        type=errors.positive_int,
        default=1000,
        metavar="IMAGES",
        help="images measured after every epoch (default: 1000)",
    )
    add(
        "--crop",
        choices=("center", "random"),
        default="center",
        help="random: a square of 50 to 100 %% of the area, seen alike by "
        "classifier and target (default: center)",
    )
    add(
        "--cache-logits",
        metavar="DIR",
        help="compute the logits of the training images once and keep them, "
        "with the images, in DIR, which runs may share; an interrupted pass "
        "goes on. For --crop center. The classifier still reads "
        "reconstructions for --logit-consistency, and held-out images",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="where TFDS keeps data sets (default: TFDS's own)",
    )
    add(
        "--skip-unreadable",
        action="store_true",
        help="leave out unreadable "
        "images of a folder, and count them, instead of stopping",
    )

    run = parser.add_argument_group("run")
    add = run.add_argument
    add(
        "--steps-per-epoch",
        type=errors.positive_int,
        metavar="STEPS",
        help="generator updates between checkpoints, measurements and image "
        "summaries",
    )
    add(
        "--strategy",
        default="auto",
        choices=("auto", "single", "mirrored", "multiworker", "tpu"),
        help="devices to train on (default: auto, all GPUs of this host)",
    )
    add(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
        help="of convolutions (default: auto, mixed_bfloat16 where the device "
        "computes in it)",
    )
    add(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="0 silent, 1 progress bar, 2 a line per epoch (default: 1)",
    )

    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(**PRESETS[known.preset])
    of_classes = ("within-classes", "one-hot")
    if known.layer and parser.get_default("logit_normalization") in of_classes:
        parser.set_defaults(logit_normalization=LAYER_NORMALIZATION)
    options = parser.parse_args(argv)
    if options.layer and options.logit_normalization in of_classes:
        parser.error(
            "argument --logit-normalization: expected none, standardize or "
            "whiten with --layer, since features do not tell the class; "
            f"received {options.logit_normalization}"
        )
    if options.decoder_steps and not (
        options.logit_consistency or options.pixel_consistency
    ):
        parser.error(
            "argument --decoder-steps: expected --logit-consistency or "
            "--pixel-consistency for the decoder to learn from, received 0"
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


def main(argv=None):
    """Trains, and leaves a run directory that `tools/export.py` reads."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kinv import devices

    # First of all: several workers cannot be set up once TensorFlow has run.
    strategy = devices.make_strategy(options.strategy)
    with devices.explain_lost_workers(strategy):
        train(options, strategy)


def train(options, strategy):
    """Trains on the devices of a `tf.distribute` strategy."""
    import keras
    import tensorflow as tf

    from kinv import (
        callbacks,
        classifiers,
        datasets,
        devices,
        export,
        inversion,
        logit_cache,
        measures,
        networks,
    )

    chief = callbacks.is_chief(strategy)
    run = pathlib.Path(options.out)
    resumed = chief and files.open_run(run, vars(options), RESUME_MAY_CHANGE)
    checkpoint = run / "checkpoint.weights.h5"

    # Data.
    def open_split(split):
        return datasets.open_dataset(
            options.dataset, split, options.data_dir, options.skip_unreadable
        )

    source = open_split(options.train_split)
    validation = open_split(options.validation_split)
    if skipped := source.num_skipped + validation.num_skipped:
        print(f"left out {skipped:,} unreadable images")
    feed_size = options.batch_size * (options.discriminator_steps + 1)
    if feed_size > source.num_examples:
        raise errors.InputError(
            f"Expected at least {feed_size} training images, one step's worth. "
            f"Received: {source.num_examples}. Lower --batch-size."
        )

    # Networks, on the devices, which share a batch evenly; pairs of
    # reconstructions of one image stay together.
    pairs = options.pixel_consistency and options.discriminator_steps
    parts = strategy.num_replicas_in_sync * options.micro_batches
    whole = 2 * parts if pairs else parts
    if parts > 1 and options.batch_size % whole:
        raise errors.InputError(
            f"Expected a batch size that is a multiple of {whole} for "
            f"{options.micro_batches} micro-batches on each of "
            f"{strategy.num_replicas_in_sync} devices. Received: --batch-size "
            f"{options.batch_size}."
        )
    keras.utils.set_random_seed(options.seed)
    # A run keeps its classifier: what it was made of may be gone.
    own_classifier = run / "classifier.keras"
    with strategy.scope():
        if options.resume and own_classifier.exists():
            classifier = classifiers.load_classifier(own_classifier)
        else:
            classifier = classifiers.load_classifier(
                options.classifier,
                options.classifier_weights,
                options.output,
                options.classifier_size,
                options.input_range,
                options.log_probabilities,
            )
        if options.logit_consistency:
            classifiers.check_gradient(classifier, options.classifier)
        classifier_size = classifier.input_shape[1]
        num_classes = classifier.output_shape[-1]
        inverted = classifier
        if options.layer:
            inverted = classifiers.add_features(
                classifier, options.layer, options.layer_maps
            )
        if num_classes != len(source.class_names):
            raise errors.InputError(
                f"Expected a classifier for the {len(source.class_names)} "
                f"classes of {options.dataset}. Received: "
                f"{options.classifier}, which has {num_classes} logits."
            )
        # Those of a resumed run are in its config.json.
        class_names = (
            None if resumed else name_classes(options, source, num_classes)
        )
        # After the classifier, which computes as it always does.
        precision = devices.set_precision(options.precision)
        sizes = {
            "image_size": options.image_size,
            "condition_dim": inverted.outputs[-1].shape[-1],
            "base_channels": options.base_channels,
            "attention": options.attention,
            "logit_normalization": options.logit_normalization,
        }
        generator = networks.Generator(
            **sizes,
            noise_dim=options.noise_dim,
            embedding_dim=options.embedding_dim,
            embedding_layers=options.embedding_layers,
            gain_offset=options.gain_offset,
            norms_per_block=options.norms_per_block,
        )
        if options.generator and not checkpoint.exists():
            start_from(generator, export.load_generator(options.generator))
        discriminator = networks.Discriminator(**sizes)
        model = inversion.InversionGAN(
            inverted,
            generator,
            discriminator,
            discriminator_steps=options.discriminator_steps,
            ema_decay=options.ema_decay,
            ema_start_step=options.ema_start_step,
            seed=options.seed,
            logit_consistency=options.logit_consistency,
            pixel_consistency=options.pixel_consistency,
            micro_batches=options.micro_batches,
        )

        def adam(learning_rate):
            optimizer = keras.optimizers.Adam(
                learning_rate, beta_1=0.0, beta_2=0.999, epsilon=1e-8
            )
            if precision == "mixed_float16":
                return keras.optimizers.LossScaleOptimizer(optimizer)
            return optimizer

        model.compile(
            adam(options.generator_learning_rate),
            adam(options.discriminator_learning_rate),
            # XLA is slower on CPU, and fails on several replicas.
            jit_compile=options.strategy in ("auto", "single")
            and len(tf.config.list_physical_devices("GPU")) == 1,
        )

    # The run directory, its options first.
    if chief and not resumed:
        files.write_json(
            run / "config.json",
            {
                "options": vars(options),
                "precision": precision,
                "dataset": options.dataset,
                "class_names": class_names,
                "generator": generator.get_config(),
                "discriminator": discriminator.get_config(),
                "versions": files.versions(),
                "git_commit": files.git_commit(),
            },
        )
    if chief:
        with files.atomic_path(own_classifier) as temporary:
            classifier.save(temporary)

    # Where a previous process stopped.
    first_epoch = 0
    if checkpoint.exists():
        first_epoch = callbacks.restore(model, checkpoint)
        print(f"continuing after step {first_epoch * options.steps_per_epoch}")
    elif options.logit_normalization != "none" or options.logit_consistency:
        statistics = source.evaluation_batches(classifier_size, 500, 10_000)
        found = inverted.predict(
            statistics.map(lambda images, labels: images), verbose=0
        )
        model.set_logit_statistics(found[-1] if options.layer else found)

    training, training_size = source, classifier_size
    if options.cache_logits:
        layer = options.layer and f"{options.layer}, {options.layer_maps}"
        kept = source, inverted, layer, options.image_size, options.cache_logits
        if chief:
            logit_cache.write(*kept, verbose=options.verbose)
        devices.wait_for_workers(strategy)
        training = logit_cache.read(*kept)
        training_size = options.image_size

    def save_generator(epoch, logs):
        with files.atomic_path(run / "generator.keras") as temporary:
            model.averaged_generator.save(temporary)

    validation_batches = validation.evaluation_batches(
        classifier_size, 250, options.validation_images
    )
    # As many as the batch's moments need.
    probe_images = next(iter(validation_batches))[0][:64]
    probe_noise = tf.random.stateless_normal(
        (4, len(probe_images), options.noise_dim), seed=[options.seed, -2]
    )
    writers = []
    if chief:
        writers = [
            callbacks.MetricsTable(run / "metrics.csv"),
            keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
            callbacks.ReconstructionSummary(
                run / "tensorboard", probe_images, probe_noise
            ),
            keras.callbacks.LambdaCallback(on_epoch_end=save_generator),
            callbacks.Checkpoint(checkpoint),
        ]
    # Without an adversary first, if at all; then as the options say.
    decoder_epochs, epochs = (
        -(-steps // options.steps_per_epoch)
        for steps in (options.decoder_steps, options.steps)
    )
    phases = [
        (0, decoder_epochs, 0, options.decoder_learning_rate),
        (
            decoder_epochs,
            decoder_epochs + epochs,
            options.discriminator_steps,
            options.generator_learning_rate,
        ),
    ]
    examples_before, history = 0, None
    for start_epoch, end_epoch, adversary, learning_rate in phases:
        images_per_step = options.batch_size * (adversary + 1)
        images_per_epoch = images_per_step * options.steps_per_epoch
        epoch = max(first_epoch, start_epoch)
        # A step takes as long as it has batches, about.
        later_epochs = sum(
            (end - start) * (steps + 1) / (adversary + 1)
            for start, end, steps, _ in phases
            if start >= end_epoch
        )
        if epoch < end_epoch:
            if start_epoch and epoch == start_epoch and adversary:
                model.begin_adversary(adversary, probe_images)
            model.discriminator_steps = adversary
            model.generator_optimizer.learning_rate = learning_rate
            history = model.fit(
                training.training_batches(
                    training_size,
                    images_per_step,
                    options.seed,
                    examples_before + (epoch - start_epoch) * images_per_epoch,
                    options.crop,
                ),
                validation_data=validation_batches,
                epochs=end_epoch,
                initial_epoch=epoch,
                steps_per_epoch=options.steps_per_epoch,
                shuffle=False,
                verbose=options.verbose,
                callbacks=[
                    callbacks.TerminateOnNonFinite(),
                    callbacks.TimeRemaining(later_epochs),
                    *writers,
                ],
            )
        examples_before += (end_epoch - start_epoch) * images_per_epoch
    if history:
        fidelity = history.history["val_logit_fidelity"][-1]
        if fidelity < measures.LOW_FIDELITY:
            print(
                f"The pictures show {fidelity:.2f} of what the logits know "
                f"beyond the class (1 is all of it). {measures.FIDELITY_ADVICE}"
            )
    print(f"run directory: {run}")
    print(f"next: tools/export.py --run {run} --out exported/{run.name}")


def name_classes(options, source, num_classes):
    """What to call the logits: as asked, as the data set does, or ImageNet."""
    from kinv import classifiers, datasets

    if options.class_names:
        return classifiers.read_class_names(options.class_names, num_classes)
    names = source.class_names
    if classifiers.is_of_imagenet(options.classifier) and num_classes == 1000:
        imagenet = datasets.imagenet_class_names()
        numbered = all(name.isdecimal() for name in names)
        if numbered or set(names) == set(imagenet):
            if not numbered and names != imagenet:
                print(
                    f"{options.dataset} numbers its classes in another order "
                    f"than {options.classifier}: accuracy, which compares "
                    "labels and logits, will be wrong; all else will not"
                )
            return imagenet
    return names


def start_from(generator, other):
    """Gives a generator the weights of another one of the same networks."""
    for name, value in generator.get_config().items():
        if name not in ("name", "dtype") and other.get_config()[name] != value:
            raise errors.InputError(
                f"Expected a generator whose {name} is {value}, as of this "
                f"run. Received: --generator with {other.get_config()[name]}."
            )
    generator.set_weights(other.get_weights())


if __name__ == "__main__":
    errors.run(main, resumable=True)
