"""Kills every tool at random moments, repeats its command, compares the end.

    python tests/kills.py --kills 200

Each tool runs once undisturbed. Then it is killed (SIGKILL) after a random part
of that time, as often as `--kills` says over all tools, and the same command is
repeated, with --resume where there is that flag. What is there in the end must
be equal to the bit. Prints a line per tool; exit status 1 if any differs.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Imported once: the processes that are killed are forks of this one, in which
# TensorFlow has not run yet.
import h5py  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from kinv import errors, files, images  # noqa: E402
from kinv.classifiers import logit_cache, small  # noqa: E402
from kinv.data import datasets  # noqa: E402
from kinv.inversion import networks  # noqa: E402, F401 (to be loaded)
from tools import (  # noqa: E402
    analyze,
    export,
    invert,
    train,
    train_classifier,
)

SIZE = 8
TRAINING = (
    *("--preset=paper-small", f"--image-size={SIZE}", "--batch-size=8"),
    *("--steps=3", "--steps-per-epoch=1", "--set", "base_channels=4"),
    *("attention=False", "discriminator_steps=0", "pixel_weight=1"),
    "validation_images=10",
)
QUIET = ("--precision=float32",)


def prepare(work):
    """Images of two classes, and a classifier of them."""
    generator = np.random.default_rng(0)
    for name, color in {"green": (40, 180, 60), "red": (200, 50, 40)}.items():
        (work / "data" / name).mkdir(parents=True)
        for index in range(30):
            pixels = generator.normal(color, 20, (SIZE, SIZE, 3))
            path = work / "data" / name / f"{index:02d}.png"
            images.write_image(path, np.clip(pixels, 0, 255))
    keras.utils.set_random_seed(0)
    small.build_classifier(SIZE, 2, 4).save(work / "classifier.keras")


def run_logit_cache(work, out):
    """Computes a cache of logits, a few images at a time."""
    logit_cache.BATCH_SIZE = 2
    source = datasets.open_dataset(str(work / "data"), "train")
    classifier = keras.models.load_model(work / "classifier.keras")
    logit_cache.LogitCache(source, classifier, None, SIZE, out).write()


def tools(work):
    """By name: function of a directory to write, and of what it holds then."""
    data = f"--dataset={work / 'data'}"
    classifier = f"--classifier={work / 'classifier.keras'}"
    run, exported = work / "train", work / "export"
    return {
        "train_classifier": (
            lambda out: train_classifier.main(
                [
                    *(data, f"--out={out}", "--epochs=3", "--batch-size=16"),
                    *("--width=4", f"--image-size={SIZE}", "--resume", *QUIET),
                    "--evaluation-examples=4",
                ]
            ),
            content_of_run,
        ),
        "train": (
            lambda out: train.main(
                [data, classifier, f"--out={out}", *TRAINING, *QUIET]
                + ["--resume"]
            ),
            content_of_run,
        ),
        "logit_cache": (
            lambda out: run_logit_cache(work, out),
            lambda out: digests(out, "*/*.tfrecord"),
        ),
        "export": (
            lambda out: export.main(
                [f"--run={run}", f"--out={out}", "--statistics-examples=20"]
                + ["--validation-examples=10"]
            ),
            content_of_export,
        ),
        "analyze": (
            lambda out: analyze.main(
                [f"--model={exported}", data, f"--out={out}", "--quick"]
                + ["--experiments", "reconstructions", "calibration"]
            ),
            lambda out: digests(out, "*/*.csv"),
        ),
        "invert": (
            lambda out: invert.main(
                [f"--model={exported}", str(work / "data" / "red")]
                + [f"--out={out}.png"]
            ),
            lambda out: files.sha256(pathlib.Path(f"{out}.png")),
        ),
    }


def digests(out, pattern):
    """Digests of the files of a pattern, by name."""
    found = {
        str(path.relative_to(out)): files.sha256(path)
        for path in sorted(out.glob(pattern))
    }
    assert found, f"{out} has no {pattern}"
    return found


def content_of_run(run):
    """Numbers of the checkpoint, of saved networks and of the table."""
    content = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            content[name] = item[()].tobytes()

    with h5py.File(run / "checkpoint.weights.h5") as file:
        file.visititems(keep)
        content["epoch"] = int(file.attrs["epoch"])
    for path in run.glob("*.keras"):
        weights = keras.models.load_model(path, compile=False).get_weights()
        content[path.name] = [value.tobytes() for value in weights]
    with open(run / "metrics.csv", newline="") as table:
        content["rows"] = [
            {key: value for key, value in row.items() if key != "minutes_left"}
            for row in csv.DictReader(table)
        ]
    assert len(content["rows"]) == 3
    config = json.loads((run / "config.json").read_text())
    content["options"] = {**config["options"], "out": None}
    files.verify(run)
    return content


def content_of_export(out):
    """Variables of the newest version, and the figures that were measured."""
    versions = [path for path in out.iterdir() if path.name.isdecimal()]
    # A kill may come after the version is complete: then there are two.
    for path in versions:
        assert files.verify(path)
    newest = max(versions, key=lambda path: int(path.name))
    metadata = files.read_json(newest / "assets.extra" / "kinv.json")
    reader = tf.train.load_checkpoint(str(newest / "variables" / "variables"))
    # Each process numbers them in another order.
    variables = sorted(
        reader.get_tensor(name).tobytes()
        for name, shape in reader.get_variable_to_shape_map().items()
        if shape
    )
    return variables, metadata["metrics"]


def forked(function, *arguments):
    """Starts a process that calls a function; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        errors.run(lambda: function(*arguments))
        status = 0
    except SystemExit as stop:
        status = stop.code
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 1)


def finish(function, *arguments):
    """Calls a function in a process of its own; returns its exit status."""
    return os.waitstatus_to_exitcode(
        os.waitpid(forked(function, *arguments), 0)[1]
    )


def compare(content, expected, out):
    """Raises unless a directory holds what another one does."""
    if content(out) != content(expected):
        raise SystemExit(3)
    left = [path for path in out.rglob(".*")] if out.is_dir() else []
    if left:
        print(f"left over: {left}", file=sys.stderr)
        raise SystemExit(4)


def main():
    """Runs, kills, resumes and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tools", nargs="+")
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        assert finish(prepare, work) == 0
        every = tools(work)
        seconds = {}
        for name, (function, _) in every.items():
            start = time.monotonic()
            assert finish(function, work / name) == 0, name
            seconds[name] = time.monotonic() - start
        names = options.tools or list(every)
        counts = {name: [0, 0, 0] for name in names}
        for index in range(options.kills):
            name = names[index % len(names)]
            function, content = every[name]
            out = work / f"killed-{index}"
            process = forked(function, out)
            time.sleep(choose.uniform(0, seconds[name]))
            os.kill(process, signal.SIGKILL)
            killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) < 0
            status = finish(function, out)
            equal = status == 0 and not finish(
                compare, content, work / name, out
            )
            for place, value in enumerate((1, killed, equal)):
                counts[name][place] += value
            if not equal:
                print(f"kill {index} of {name}: status {status}", flush=True)
        for name, (count, killed, equal) in counts.items():
            print(
                f"{name:17} {seconds[name]:6.1f} s, started {count:3}, killed "
                f"before the end {killed:3}, equal afterwards {equal:3}"
            )
        sys.exit(any(count != equal for count, _, equal in counts.values()))


if __name__ == "__main__":
    main()
