"""Callbacks for runs that can be watched, stopped and resumed.

Their order in `fit`: `TerminateOnNonFinite` first, so that no checkpoint is
written after a bad step, `TimeRemaining` before the logs are written,
`BestGenerator` after `MetricsTable`, and `Checkpoint` last, so that an epoch
counts as done when all of it is on disk.
Of several workers only the chief (`is_chief`) has those that write.
"""

import csv
import math
import pathlib
import time

import h5py
import keras
import tensorflow as tf

from kinv import errors, files, measures

# What `best_epoch` allows: so much less than the best agreement, and this range
# of the squared error of the mean of 8 reconstructions over that of one.
AGREEMENT_MARGIN = 0.02
ERROR_RATIO_RANGE = (0.5, 0.65)
# By what share the last energy score may exceed the best without a warning.
WORSE = 0.2


class Checkpoint(keras.callbacks.Callback):
    """Saves weights and optimizer state after every epoch, atomically.

    A process that is killed at any moment leaves the last complete checkpoint.

    Args:
        path: file to write, its name ending in `.weights.h5`.
    """

    def __init__(self, path):
        super().__init__()
        self.path = pathlib.Path(path)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the checkpoint."""
        # Weights, and at most two moments of each. HDF5 ends the process when
        # it finds the disk full, so that is found out before.
        files.require_space(
            self.path.parent,
            3 * sum(_num_bytes(v) for v in self.model.variables),
        )
        with files.atomic_path(self.path) as temporary:
            self.model.save_weights(temporary)
            with h5py.File(temporary, "r+") as checkpoint:
                checkpoint.attrs["epoch"] = epoch + 1


def _num_bytes(variable):
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size


def restore(model, path):
    """Loads what `Checkpoint` wrote into a compiled model.

    Args:
        model: built `keras.Model` whose optimizers are built too.
        path: the file.

    Returns:
        Number of epochs done.

    Raises:
        errors.InputError: if the file is missing, damaged, or of another
            network.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.InputError(
            f"Expected a checkpoint {path}, which does not exist. Start the "
            "run again without --resume."
        )
    try:
        with h5py.File(path, "r") as checkpoint:
            epochs_done = int(checkpoint.attrs["epoch"])
        model.load_weights(path)
    except (KeyError, OSError, ValueError) as error:
        reason = errors.reason(error)
        raise errors.InputError(
            f"Expected {path} to be a checkpoint of this network. Received: "
            f"{reason}. Start a new run in another directory."
        ) from error
    return epochs_done


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Stops training when any logged value is NaN or infinite.

    Raises:
        errors.NonFiniteError: after the step in which it happened, before a
            checkpoint could be written.
    """

    def on_train_batch_end(self, batch, logs=None):
        """Checks the values of a step."""
        self._check(logs, f"step {batch + 1}")

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch for the message."""
        self._epoch = epoch + 1

    def on_epoch_end(self, epoch, logs=None):
        """Checks the values of the validation."""
        self._check(logs, "validation")

    def _check(self, logs, place):
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise errors.NonFiniteError(
                    f"{name} became {value} in epoch {self._epoch}, {place}. "
                    "The last checkpoint is from before that. Try a lower "
                    "learning rate, a larger batch or --precision float32."
                )


class TimeRemaining(keras.callbacks.Callback):
    """Adds `minutes_left`, for the whole run, to the logs of every epoch.

    It is reckoned from the epochs of this process, without the first step of
    all, which compiles the graph.
    """

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._start = time.monotonic()
        self._epochs_measured = 0.0
        self._compiled = False

    def on_train_batch_end(self, batch, logs=None):
        """Starts the clock again after the step that compiled the graph."""
        steps = self.params.get("steps") or 1
        if not self._compiled and steps > 1:
            self._start = time.monotonic()
            self._epochs_measured = -(batch + 1) / steps
        self._compiled = True

    def on_epoch_end(self, epoch, logs=None):
        """Writes the estimate into `logs`."""
        self._epochs_measured += 1
        seconds = time.monotonic() - self._start
        epochs_left = self.params["epochs"] - (epoch + 1)
        # An epoch run as one execution leaves nothing to measure at first.
        epochs_measured = self._epochs_measured or 1.0
        logs["minutes_left"] = epochs_left * seconds / epochs_measured / 60


class ReconstructionSummary(keras.callbacks.Callback):
    """Writes the same reconstructions to TensorBoard after every epoch.

    One picture: a row of images, a row of reconstructions, further rows of
    resamples (the same logits, other noise), from `model.reconstruct`. It
    shows the first images; the others take part in the batch's moments.

    Args:
        log_dir: TensorBoard directory; the pictures go to `reconstructions`
            below it.
        images: float32 `(num_images, height, width, 3)` in [0, 255].
        noise: float32 `(num_rows, num_images, noise_dim)`, N(0, 1).
    """

    COLUMNS = 12

    def __init__(self, log_dir, images, noise):
        super().__init__()
        self.directory = str(pathlib.Path(log_dir) / "reconstructions")
        self.images = tf.convert_to_tensor(images, tf.float32)
        self.noise = tf.convert_to_tensor(noise, tf.float32)
        self._writer = None

    def on_epoch_end(self, epoch, logs=None):
        """Reconstructs the probe images and writes the picture."""
        rows = [
            self.model.reconstruct(self.images, noise) for noise in self.noise
        ]
        originals = tf.image.resize(
            self.images, rows[0].shape[1:3], antialias=True
        )
        # Each row: images side by side; then the rows one above the other.
        rows = [
            tf.concat(tf.unstack(row[: self.COLUMNS]), 1)
            for row in (originals, *rows)
        ]
        picture = tf.concat(rows, 0)
        picture = tf.cast(tf.clip_by_value(picture + 0.5, 0, 255), tf.uint8)
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.directory)
        with self._writer.as_default(step=epoch + 1):
            tf.summary.image("reconstructions", picture[None])
        self._writer.flush()

    def on_train_end(self, logs=None):
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MetricsTable(keras.callbacks.Callback):
    """Keeps a CSV file with one row per epoch, counted from 1.

    The file is written anew and whole after every epoch, so that a run killed
    between the row of an epoch and its checkpoint has that row once.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        super().__init__()
        self.path = pathlib.Path(path)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the table."""
        rows = read_table(self.path)[:epoch] if epoch else []
        rows.append({"epoch": epoch + 1, **logs})
        with files.atomic_path(self.path) as temporary:
            with open(temporary, "w", newline="") as table:
                columns = dict.fromkeys(key for row in rows for key in row)
                writer = csv.DictWriter(table, columns)
                writer.writeheader()
                writer.writerows(rows)


def read_table(path):
    """Rows that `MetricsTable` wrote, dicts of strings; [] without a file."""
    if not pathlib.Path(path).is_file():
        return []
    with open(path, newline="") as table:
        return list(csv.DictReader(table))


class BestGenerator(keras.callbacks.Callback):
    """Saves the averaged generator after every epoch, and keeps the best.

    `generator-last.keras` is that of the last epoch; `generator.keras` that of
    `best_epoch`, or the last while there is none. It comes after
    `MetricsTable`, whose file it reads, so that a resumed run chooses as one
    that was never stopped.

    Args:
        run: directory of the run.
    """

    def __init__(self, run):
        super().__init__()
        self.run = pathlib.Path(run)

    def on_epoch_end(self, epoch, logs=None):
        """Saves the generator, once or twice."""
        names = ["generator-last.keras"]
        best = best_epoch(read_table(self.run / "metrics.csv"))
        if best in (None, epoch + 1):
            names.append("generator.keras")
        for name in names:
            with files.atomic_path(self.run / name) as temporary:
                self.model.averaged_generator.save(temporary)


def best_epoch(rows):
    """The epoch of the lowest held-out energy score, among those in order.

    In order is an epoch whose agreement is within `AGREEMENT_MARGIN` of the
    best until then, and whose noise is roughly calibrated
    (`ERROR_RATIO_RANGE`).

    Args:
        rows: of `read_table`.

    Returns:
        Its number, counted from 1, or None where none is in order.
    """
    best, best_score, best_agreement = None, math.inf, 0.0
    low, high = ERROR_RATIO_RANGE
    for number, row in enumerate(rows, 1):
        agreement = float(row["val_agreement"])
        best_agreement = max(best_agreement, agreement)
        in_order = (
            agreement >= best_agreement - AGREEMENT_MARGIN
            and low <= float(row["val_error_ratio"]) <= high
        )
        score = float(row["val_energy_score"])
        if in_order and score < best_score:
            best, best_score = number, score
    return best


def describe_best(run):
    """Which epoch `generator.keras` is of, and its figures, in a sentence.

    Args:
        run: directory of a run of `tools/train.py`.
    """
    rows = read_table(pathlib.Path(run) / "metrics.csv")
    best = best_epoch(rows)
    row, last = rows[(best or len(rows)) - 1], rows[-1]
    agreement, shown, ratio, spread_skill, score = (
        float(row[f"val_{name}"])
        for name in (
            "agreement",
            "within_class_r2",
            "error_ratio",
            "spread_skill",
            "energy_score",
        )
    )
    epoch = f"the last epoch, {len(rows)}"
    if best:
        epoch = f"epoch {best} of {len(rows)}"
    text = (
        f"generator.keras is of {epoch}: energy score {score:.4f}, "
        f"agreement {agreement:.1%}, error ratio {ratio:.3f} (.5625 is "
        f"calibrated); {measures.calibration_verdict(spread_skill)}."
    )
    if best is None:
        low, high = ERROR_RATIO_RANGE
        text += (
            f" No epoch had an error ratio from {low} to {high} and an "
            "agreement near the best, so the last one is kept."
        )
    if shown < measures.LOW_WITHIN_CLASS_R2:
        text += (
            f" The pictures show {shown:.2f} of what the logits know beyond "
            f"the class (1 is all of it). {measures.WITHIN_CLASS_ADVICE}"
        )
    if float(last["val_energy_score"]) > score + WORSE * abs(score):
        text += (
            " The run got much worse after that, to an energy score of "
            f"{float(last['val_energy_score']):.4f}. Try a lower learning rate."
        )
    return text


def is_chief(strategy):
    """Whether this process is the one worker that writes files.

    Args:
        strategy: the `tf.distribute` strategy of the run.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, "chief"):
        return True
    cluster = resolver.cluster_spec().as_dict()
    first_worker = resolver.task_type == "worker" and resolver.task_id == 0
    return first_worker and "chief" not in cluster
