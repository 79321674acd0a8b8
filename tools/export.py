#!/usr/bin/env python
"""Exports a trained run as one SavedModel, measured on held-out images.

Example:
    tools/export.py --run runs/inversion --out exported/scenes32
"""

import argparse
import os
import pathlib

from kinv import cli, errors, files, runs
from kinv.inversion import presets

# Images per batch whose moments are averaged, and that are measured at once.
BATCH_SIZE = 250
# Held-out images that the scale of the noise is fitted to, if there are.
SCALE_EXAMPLES = 2000
FEWEST_SCALE_EXAMPLES = 100
# Of the noise, and of the order of images.
SEED = 0
# Options of a run that tell about the machine, not about the model.
PRIVATE_OPTIONS = {"resume", "strategy"}


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Export classifier and averaged generator of a run of "
        "tools/train.py as one SavedModel, the next version below --out.",
        formatter_class=cli.HelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="run of tools/train.py")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="where the versions 1, 2, ... lie, such as exported/NAME",
    )
    add(
        "--statistics-examples",
        type=errors.positive_int,
        default=presets.STATISTICS_EXAMPLES,
        metavar="IMAGES",
        help="training images whose logits fill the statistics that the "
        "generator normalises with",
    )
    add(
        "--validation-examples",
        type=errors.positive_int,
        default=1000,
        metavar="IMAGES",
        help="held-out images that the exported model is measured on",
    )
    add(
        "--lite",
        metavar="FILE",
        help="write the model for LiteRT, too: a .tflite of one image of the "
        "classifier's size and one noise at a time",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Exports the run and prints the figures and the path."""
    options = parse_arguments(argv)
    cli.announce_tensorflow()
    # The place first: what cannot be written should not be computed.
    cli.check_output(options.lite)
    from kinv.inversion import model_card
    from kinv.serving import pipeline

    pipeline.check_is_no_version(options.out)
    with files.lock(options.out):
        metadata, path = write_version(options)
    print("held-out images, with 95 % intervals:")
    for name, value in model_card.measured(metadata):
        print(f"  {name}: {value}")
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    print(f"exported: {path} ({size / 1e6:.1f} MB)")
    if options.lite:
        print(f"exported: {options.lite}")
    arguments = "--model", options.out, "IMAGE", "--out", "grid.png"
    print("next:", cli.command("invert", *arguments))


def write_version(options):
    """Exports the run as the next version; returns its metadata and path."""
    import keras

    from kinv import devices
    from kinv.analysis import held_out
    from kinv.data import datasets, labels
    from kinv.inversion import callbacks, export, model_card
    from kinv.serving import pipeline

    devices.configure_keras()
    config = read_config(pathlib.Path(options.run))
    trained = config["options"]
    classifier, generator = load_networks(options.run, trained)
    classifier_size = classifier.input_shape[1]
    source, validation, data = datasets.open_splits(trained, config)
    labelled, line = labels.match(validation, config["class_names"])
    print(line)

    # Large pictures, and attention to them, would fill the memory.
    most = pipeline.RECONSTRUCTED_PIXELS // generator.image_size**2
    at_once = min(BATCH_SIZE, most)
    batch_size = min(at_once, options.statistics_examples, source.num_examples)
    num_batches = -(-options.statistics_examples // batch_size)
    image_batches = source.training_batches(
        classifier_size,
        batch_size,
        SEED,
        crop=trained.get("crop", "center"),
    ).take(num_batches)
    inputs = export.generator_inputs(
        classifier, image_batches, generator.noise_dim, SEED
    )
    metadata = {
        **describe(config, classifier, generator),
        "data": data,
        "export": {
            "statistics_examples": num_batches * batch_size,
            "seed": SEED,
        },
    }
    updates = callbacks.kept_updates(options.run, trained["steps_per_epoch"])
    if updates:
        metadata["training"]["updates"] = updates
    # Nobody else takes the number: `main` holds the directory.
    number = max([0, *files.versions(options.out)]) + 1
    path = pathlib.Path(options.out, str(number))
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        generator.fold_spectral_norms()
        # A run that was not asked for calibration keeps its noise as it is.
        if trained.get("score_weight"):
            metadata["export"] |= scale_noise(
                generator,
                classifier,
                validation,
                options.validation_examples,
                at_once,
            )
        print(f"filling its statistics with {num_batches} batches of images")
        generator.fill_standing_statistics(
            with_progress(inputs, keras.utils.Progbar(num_batches))
        )
        export.save(temporary, classifier, generator, metadata)
        if options.lite:
            # Before the figures: LiteRT may lack an operator.
            print("converting for LiteRT")
            lite = export.lite_model(classifier, generator)
        print("measuring on held-out images")
        metadata["metrics"] = held_out.measure(
            pipeline.Pipeline.load(temporary),
            labelled.evaluation_batches(
                classifier_size, BATCH_SIZE, options.validation_examples
            ),
            keras.utils.Progbar(
                min(options.validation_examples, validation.num_examples)
            ),
            SEED,
        )
        card = temporary / "assets.extra" / "README.md"
        card.write_text(model_card.text(metadata), "utf-8", "replace")
        export.write_metadata(temporary, metadata)
    if options.lite:
        with files.atomic_path(options.lite) as temporary:
            temporary.write_bytes(lite)
    return metadata, path


def scale_noise(generator, classifier, source, measured, batch_size):
    """Fits the scale of the noise to held-out images.

    To others than the first ones, which are `measured`, if there are.

    Returns:
        dict of `noise_scale`, and `noise_scaled_by`: the number of the images,
        and whether they are among those `measured`.
    """
    from kinv.inversion import export, noise_scale

    enough = source.num_examples - measured >= FEWEST_SCALE_EXAMPLES
    start = measured if enough else 0
    count = min(SCALE_EXAMPLES, source.num_examples - start)
    if count < FEWEST_SCALE_EXAMPLES:
        print("too few held-out images to scale its noise by")
        return {"noise_scale": generator.noise_scale}
    print(
        f"scaling its noise by {count} held-out images, "
        + ("others than" if enough else "which are among")
        + " the measured ones"
    )
    # Batches of one size: the moments of each count as much.
    num_batches = -(-count // batch_size)
    batches = source.evaluation_batches(
        classifier.input_shape[1], count // num_batches, start=start
    ).take(num_batches)
    pairs = (
        (images, export.condition_of(classifier, images))
        for images, _ in batches
    )
    spread = noise_scale.fit(generator, pairs, SEED, verbose=1)
    found = f"; its scale is {generator.noise_scale:.2f} now"
    if generator.noise_scale == 1:
        low, high = noise_scale.RANGE
        found = f", which no scale from {low} to {high} mends: it stays"
    print(f"  it said {spread:.2f} of what is left open{found}")
    return {
        "noise_scale": generator.noise_scale,
        "noise_scaled_by": {"images": count, "among_measured": not enough},
    }


def load_networks(run, trained):
    """Classifier, with the features that are inverted, and generator of a run.

    Args:
        run: directory of the run.
        trained: dict of the options it was trained with.
    """
    from kinv.classifiers import features, loading
    from kinv.inversion import export

    run = pathlib.Path(run)
    classifier = loading.load_kept(run / "classifier.keras")
    layer = trained.get("layer")
    if layer:
        classifier = features.add_features(
            classifier, layer, trained["layer_maps"]
        )
    generator = export.load_generator(run / "generator.keras")
    width = classifier.outputs[-1].shape[-1]
    if width != generator.condition_dim:
        kind = "features" if layer else "logits"
        raise errors.InputError(
            f"Expected a classifier of {generator.condition_dim} {kind} in "
            f"{run}, as its generator takes. Received: one of {width}."
        )
    return classifier, generator


def describe(config, classifier, generator):
    """What `kinv.json` says of the networks and how they came about.

    Args:
        config: dict, `config.json` of the run.
        classifier: keras model.
        generator: `networks.Generator`.
    """
    from kinv.data import folders
    from kinv.inversion import export

    trained = config["options"]
    metadata = {
        **export.describe(classifier, generator, config["class_names"]),
        "dataset": portable(trained["dataset"]),
        "training": {
            name: portable(value)
            for name, value in trained.items()
            if name not in PRIVATE_OPTIONS
        },
        "metrics": {},
        "versions": {
            "training": config.get("versions"),
            "export": runs.versions(),
        },
        "git_commit": {
            "training": config.get("git_commit"),
            "export": runs.git_commit(),
        },
    }
    if licence := folders.read_licence(trained["dataset"]):
        metadata["dataset_licence"] = licence
    if licence := folders.read_licence(trained["classifier"]):
        metadata["classifier_licence"] = licence
    if layer := trained.get("layer"):
        # What the outputs `features` are, and scale and shift act on.
        metadata["layer"] = layer
        metadata["layer_maps"] = trained["layer_maps"]
        metadata["condition_dim"] = generator.condition_dim
    return metadata


def read_config(run):
    """Reads a run's config.json; InputError unless it is of tools/train.py."""
    config = files.read_json(run / "config.json")
    options = config.get("options") or {}
    needed = {"dataset", "train_split", "validation_split"}
    if not {"generator", "class_names"} <= set(config) or not needed <= set(
        options
    ):
        raise errors.InputError(
            f"Expected a run of tools/train.py. Received: {run}, whose "
            "config.json is of something else."
        )
    return config


def with_progress(batches, bar):
    for batch in batches:
        yield batch
        bar.add(1)


def portable(value):
    """Leaves the last part of an absolute path; others as they are."""
    if isinstance(value, str) and os.path.isabs(value):
        return pathlib.Path(value).name
    return value


if __name__ == "__main__":
    errors.run(main)
