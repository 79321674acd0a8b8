#!/usr/bin/env python
"""Runs the paper's experiments on exported models and writes a report.

Example:
    tools/analyze.py --model exported/scenes32-robust \
        --model exported/scenes32-standard --out results
"""

import argparse
import functools
import hashlib
import importlib
import json
import os
import pathlib
import sys
import time

from kinv import cli, errors, files, runs

# In the order of the report. One more experiment: a module in kinv/analysis
# with a TITLE and `run(study)`, and its name here.
EXPERIMENTS = (
    "reconstructions",
    "noise_resampling",
    "calibration",
    "diversity",
    "logit_interpolation",
    "noise_interpolation",
    "misclassified",
    "stability",
    "manipulation",
    "best_fit",
    "rotation",
    "factors",
    "controls",
    "distributions",
    "memorisation",
    "side_by_side",
    "two_inversions",
    "layers_compared",
)
# Flags that the results depend on, besides models and data.
RECORDED = ("training_split", "classifier_size", "features", "perceptual")
RECORDED += ("quick", "seed")


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Run the experiments of the paper on exported models side "
        "by side: figures, CSV tables, metrics.json and report.html. "
        "Experiments that --out already holds are not repeated.",
        epilog=f"experiments: {', '.join(EXPERIMENTS)}",
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[LABEL=]MODEL",
        help="exported/NAME (its highest version), exported/NAME/VERSION, or a "
        "served model, grpc://HOST:PORT/NAME or "
        "http://HOST:PORT/v1/models/NAME; may be repeated. The label defaults "
        "to NAME; the paper's claims compare the label robust with standard or "
        "non-robust, without these the first labels with the word in them",
    )
    add("--out", required=True, metavar="DIR", help="directory of the results")
    add(
        "--experiments",
        nargs="+",
        choices=EXPERIMENTS,
        metavar="NAME",
        default=EXPERIMENTS,
        help="which ones to run (default: all)",
    )
    add_data_flags(add)
    add(
        "--features",
        metavar="NETWORK",
        help="network that describes images, for FID and KID: "
        "keras.applications:InceptionV3, or a .keras file (default: of "
        "kinv_scenes the one that reads their factors)",
    )
    add(
        "--perceptual",
        metavar="NETWORK",
        help="network by whose maps reconstructions also compares pictures "
        "with images, as LPIPS does but without its learned weights: "
        "keras.applications:VGG16, or a .keras file",
    )
    add_report_flags(add)
    add(
        "--seed",
        type=errors.seed,
        default=0,
        help="of noise, pairs and resampling (default: %(default)s)",
    )
    return parser.parse_args(argv)


def add_report_flags(add):
    """How much is computed, and what is written of it."""
    add(
        "--quick",
        action="store_true",
        help="a fifth of the images: wider intervals, larger distances of "
        "distributions, fewer training images for the control to search. "
        "Probes learn from all",
    )
    add(
        "--pdf",
        action="store_true",
        help="write every figure as vector PDF, too",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="also write figures and scalars for TensorBoard, to "
        "OUT/tensorboard",
    )


def add_data_flags(add):
    """Which images the models are compared on."""
    add(
        "--dataset",
        help="TFDS name, folder of images, or .npz or IDX file of them "
        "(default: what the first model was trained on). Experiments that need "
        "labels are left out where it has none of the models' classes. "
        "memorisation and calibration open what each model was trained on, if "
        "they can",
    )
    cli.add_skip_unreadable(add)
    add(
        "--split",
        help="split to analyse (default: test where there is one, else "
        "validation)",
    )
    add(
        "--training-split",
        default="train",
        help="split that probes and controls learn from (default: %(default)s)",
    )
    add(
        "--classifier-size",
        type=errors.positive_int,
        metavar="PIXELS",
        help="height of the images that classifiers take; needed for models on "
        "a server that does not tell it, such as TensorFlow Serving",
    )


def main(argv=None):
    """Runs the experiments that are missing, and writes the report."""
    options = parse_arguments(argv)
    cli.announce_tensorflow()
    # NumPy's threads, each of which waits for the others, would wait for
    # TensorFlow's, which have the cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with files.lock(options.out):
        analyze(options, argv or sys.argv[1:])


def analyze(options, words):
    """As `main`; `words` are those of the command."""
    from kinv import devices
    from kinv.analysis import report

    devices.configure_keras()
    paths = cli.named_models(options.model)
    study, settings = open_study(options, paths)
    out = open_results(options.out, settings)
    records, skipped = run_experiments(study, options, out)
    done = [name for name in EXPERIMENTS if (out / name).exists()]
    commits = {records.get(name, {}).get("git_commit") for name in done}
    about = {
        **settings,
        "models": {
            label: {
                "path": paths[label],
                "metadata": report.describe(model.metadata),
                "inverted": model.inverted,
                "exported": model.metadata.get("metrics") or {},
            }
            for label, model in study.models.items()
        },
        "command": cli.command("analyze", *words),
        "versions": runs.versions(),
        # A resumed report may have been begun at another.
        "git_commits": sorted(commit or "unknown" for commit in commits),
        "seconds": {
            name: records[name]["seconds"] for name in done if name in records
        },
        "skipped": skipped,
    }
    report.write_report(out, done, about)
    print(f"written: {out / 'report.html'}")


def open_study(options, paths):
    """Opens models and data: a `Study`, and the settings it depends on."""
    from kinv.analysis import results, sources
    from kinv.analysis import study as study_lib
    from kinv.classifiers import features as features_lib
    from kinv.data import datasets, folders, labels
    from kinv.serving import pipeline

    models = {
        label: pipeline.Pipeline.load(path) for label, path in paths.items()
    }
    first = next(iter(models.values()))
    dataset = options.dataset or first.metadata.get("dataset")
    if not dataset:
        raise errors.InputError(
            "Expected --dataset. Received: a model that does not tell what it "
            "was trained on, as one on TensorFlow Serving or of "
            "InversionGAN.export."
        )

    # Several experiments open the same, and a large folder takes its time.
    @functools.cache
    def open_source(name, split):
        if sources.is_same(name, dataset):
            name = dataset
        opened = datasets.open_dataset(name, split, options.skip_unreadable)
        if names is None:
            unlabelled = "the models have other classes, or names of them"
            numbers = [-1] * len(opened.class_names)
            without = opened.relabelled([], numbers, unlabelled)
            return without, f"labels: not used, since {unlabelled}"
        return labels.match(opened, names)

    image_size = sources.classifier_size(models, paths, options.classifier_size)
    names = sources.common_names(models.values())
    try:
        (source, line), split = sources.open_held_out(
            lambda split: open_source(dataset, split),
            options.split,
            first.metadata,
            dataset,
        )
    except errors.InputError as error:
        if options.dataset or isinstance(error, errors.NoSplitError):
            raise
        raise errors.InputError(
            f"{error} The first model names it as what it was trained on: say "
            "where it is with --dataset."
        ) from None
    cli.print_left_out(source)
    print(f"{dataset}, {split}: {source.num_examples:,} images")
    print(line)

    def images_of(split):
        return open_source(dataset, split)[0]

    for label, model in models.items():
        sources.check_data(label, model.metadata, images_of, dataset, split)
    features = options.features and (
        features_lib.load_features(options.features),
        options.features,
    )
    perceptual = options.perceptual and features_lib.load_perceptual(
        options.perceptual
    )

    def open_training(name=dataset, training_split=options.training_split):
        try:
            opened = open_source(name, training_split)[0]
        except (errors.NoSplitError, errors.EmptySplitError) as error:
            raise results.NotApplicable(f"needs training images. {error}")
        if folders.may_overlap(source.place, opened.place):
            raise results.NotApplicable(
                f"needs training images that are not analysed, {split} and "
                f"{training_split} may share some: name another "
                "--training-split"
            )
        return opened

    study = study_lib.Study(
        models,
        source,
        open_training,
        image_size,
        options.seed,
        options.quick,
        features,
        perceptual,
    )
    return study, {
        "models": {
            label: {"path": path, "digest": digest(models[label].metadata)}
            for label, path in paths.items()
        },
        "dataset": dataset,
        "split": split,
        "digest of the images": source.identity(),
        **{name: getattr(options, name) for name in RECORDED},
    }


def run_experiments(study, options, out):
    """Runs those that are missing, each written as soon as it is done.

    Returns time and commit by experiment, and lines about those left out.
    """
    from kinv.analysis import report, results

    skipped, commit = [], runs.git_commit()
    sizes = {study.models[name].image_size for name in study.roles or ()}
    if len(sizes) > 1:
        pixels = " and ".join(map(str, sorted(sizes)))
        skipped.append(
            f"claims: not tested of pictures of {pixels} pixels, of which "
            "errors and spreads differ by their size alone"
        )
        print(skipped[0])
    path = out / "experiments.json"
    records = files.read_json(path) if path.exists() else {}
    for name in options.experiments:
        module = importlib.import_module(f"kinv.analysis.{name}")
        if (out / name).exists():
            print(f"{module.TITLE}: done before")
            for line in describe_missing(
                out, name, options.pdf, options.tensorboard
            ):
                print(f"  {line}")
            continue
        start = time.perf_counter()
        study.title = module.TITLE
        try:
            result = module.run(study)
        except results.NotApplicable as need:
            skipped.append(f"{name}: {need}")
            print(f"left out: {skipped[-1]}")
            continue
        report.write_result(out / name, module.TITLE, result, options.pdf)
        if options.tensorboard:
            report.write_summaries(out / "tensorboard", name, result)
        seconds = time.perf_counter() - start
        records[name] = {"seconds": seconds, "git_commit": commit}
        files.write_json(path, records)
        print(f"{module.TITLE}: {seconds:.0f} s")
    return records, skipped


def describe_missing(out, name, pdf, tensorboard):
    """Lines about what a finished experiment, whose PNGs remain, lacks."""
    kinds = []
    directory = out / name
    has_figures = any(directory.glob("*.png"))
    if pdf and has_figures and not any(directory.glob("*.pdf")):
        kinds.append("PDF")
    if tensorboard and not any((out / "tensorboard").glob(f"*.{name}")):
        kinds.append("TensorBoard summaries")
    return [
        f"without {kind}: remove {directory} and repeat the command"
        for kind in kinds
    ]


def digest(metadata):
    """Tells one export from another.

    Behind TensorFlow Serving only by its version and its sizes: another export
    served under the same number looks the same.
    """
    text = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_results(path, settings):
    """Opens a directory of results of the same settings, or a new one."""
    path = pathlib.Path(path)
    recorded_path = path / "settings.json"
    if not recorded_path.exists():
        path = files.new_directory(path)
        files.write_json(recorded_path, settings)
        return path
    recorded = files.read_json(recorded_path)
    for name, value in settings.items():
        if recorded.get(name) != value:
            raise errors.InputError(
                f"Expected the settings of the results that {path} holds, "
                f"{name} {recorded.get(name)}. Received: {value}. Repeat them, "
                "or choose another --out."
            )
    return path


if __name__ == "__main__":
    errors.run(main)
