#!/usr/bin/env python
"""Runs the whole chain on scenes that it renders, in 15 minutes to an hour.

Trains a classifier and its inversion model, exports them as one SavedModel
and inverts held-out images. Everything is written below --out. Stopped at any
moment, the same command goes on where it was.
"""

import argparse
import pathlib
import shlex
import subprocess  # noqa: S404 (only ever runs kinv's own tools)
import sys
import time

from kinv import cli, errors, files

TOOLS = pathlib.Path(__file__).parent
DATASET = "kinv_scenes/32"
NUM_IMAGES = 10
# Updates of the inversion, fewer than the preset's; its rates decay over them.
STEPS = 2000
RECORD = "stages.json"


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=cli.HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out",
        default="runs/demo",
        metavar="DIR",
        help="where everything is written; remove it to start afresh",
    )
    return parser.parse_args(argv)


def stages(options):
    """The commands in their order.

    Each goes on where it was stopped when it is repeated.

    Args:
        options: of `parse_arguments`.

    Returns:
        dict by name: the command, list of words, and the path that it leaves.
    """
    out = pathlib.Path(options.out)
    training = ["--dataset", DATASET, "--resume"]
    classifier, inversion = out / "classifier", out / "inversion"
    exported, grid = out / "exported", out / "grid.png"
    return {
        "classifier": (
            _command(
                *("train_classifier", *training, "--out", classifier),
                *("--width", 16, "--epochs", 3),
                *("--evaluation-examples", 200),
            ),
            classifier / "classifier.keras",
        ),
        "inversion": (
            _command(
                *("train", *training, "--out", inversion),
                *("--classifier", classifier / "classifier.keras"),
                *("--preset", "small", "--steps", STEPS),
            ),
            inversion / "generator.keras",
        ),
        "export": (
            _command("export", "--run", inversion, "--out", exported),
            exported,
        ),
        "invert": (
            _command(
                "invert", "--model", exported, out / "images", "--out", grid
            ),
            grid,
        ),
    }


def _command(tool, *words):
    words = [str(word) for word in words]
    return [sys.executable, str(TOOLS / f"{tool}.py"), *words]


def main(argv=None):
    """Runs the stages that are not done yet, then shows what they gave."""
    options = parse_arguments(argv)
    out = pathlib.Path(options.out)
    with files.lock(out):
        prepare(out)
        record = {"done": [], "seconds": {}, **files.read_json(out / RECORD)}
        all_stages = stages(options)
        for number, (name, stage) in enumerate(all_stages.items(), 1):
            command, result = stage
            title = f"[{number}/{len(all_stages)}] {name}"
            if name in record["done"] and result.exists():
                print(f"{title}: done before, {result}")
                continue
            if name == "invert":
                write_images(out / "images")
            print(f"{title}\n$ {shlex.join(command[1:])}", flush=True)
            start = time.monotonic()
            try:
                run_stage(name, command)
                record["done"].append(name)
            finally:
                taken = time.monotonic() - start
                taken += record["seconds"].get(name, 0)
                record["seconds"][name] = taken
                files.write_json(out / RECORD, record)
        print(summary(out, record["seconds"]))


def prepare(out):
    """Makes the folder and the record of what was done in it.

    Raises:
        errors.InputError: if the folder holds something else.
    """
    if not (out / RECORD).exists():
        files.new_directory(out)
        files.write_json(out / RECORD, {})


def run_stage(name, command):
    """Runs a command; ends the demo with its exit status if it fails."""
    status = subprocess.run(command).returncode  # noqa: S603
    if status:
        print(
            f"demo.py: the stage {name!r} failed; once that is mended, "
            "the same command goes on from here",
            file=sys.stderr,
        )
        # A negative status is the signal that ended the tool.
        sys.exit(status if status > 0 else 1)


def write_images(folder):
    """Writes the first images of the test split as PNG files.

    Args:
        folder: written whole or not at all; left alone when it exists.
    """
    if folder.exists():
        return
    cli.announce_tensorflow()
    from kinv import images
    from kinv.data import datasets

    source = datasets.open_dataset(DATASET, "test")
    batches = source.evaluation_batches(32, NUM_IMAGES, limit=NUM_IMAGES)
    pictures, labels = next(batches.as_numpy_iterator())
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        for index, (picture, label) in enumerate(
            zip(pictures, labels, strict=True)
        ):
            name = source.class_names[label].replace(" ", "-")
            images.write_image(temporary / f"{index}-{name}.png", picture)


def summary(out, seconds):
    """What the export measured, how long the stages took, and what lies where.

    Args:
        out: directory of the demo.
        seconds: dict, duration of each stage.
    """
    from kinv.inversion import model_card

    # An export that was stopped at its very end is followed by another.
    *_, exported = files.versions(out / "exported").values()
    metadata = files.read_json(exported / "assets.extra" / "kinv.json")
    measured = model_card.measured(metadata)
    seconds = {**seconds, "all stages": sum(seconds.values())}
    return "\n".join(
        [
            "",
            "held-out images, with 95 % intervals:",
            *(f"  {name}: {value}" for name, value in measured),
            "",
            *(f"{name:<10} {taken:>6.0f} s" for name, taken in seconds.items()),
            "",
            f"classifier  {out / 'classifier' / 'classifier.keras'}",
            f"training    {out / 'inversion'}",
            f"exported    {exported}",
            f"images      {out / 'images'}",
            f"grid        {out / 'grid.png'}",
        ]
    )


if __name__ == "__main__":
    errors.run(main)
