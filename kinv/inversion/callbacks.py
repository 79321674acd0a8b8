"""Callbacks for runs that can be watched, and the choice of the best epoch.

Their order in `fit`, with those of `checkpoints`: `TerminateOnNonFinite` first,
so that no checkpoint is written after a bad step, `TimeRemaining` before the
logs are written, `BestGenerator` before `MetricsTable`, and `Checkpoint` last,
so that an epoch counts as done when all of it is on disk.
Of several workers only the chief (`devices.is_chief`) has those that write.
"""

import math
import pathlib
import time

import keras
import numpy as np
import PIL.Image
import PIL.ImageDraw
import tensorflow as tf

from kinv import errors, measures
from kinv.inversion import checkpoints, noise_scale
from kinv.pixels import resize, to_uint8

# What `best_epoch` allows: so much less than the best agreement, and the range
# of what the noise says of what is left open. It need not be calibrated, since
# an export scales it, but within what a scale can mend.
AGREEMENT_MARGIN = 0.02
SPREAD_RANGE = tuple(1 / scale for scale in reversed(noise_scale.RANGE))
# Of a row: by these the best epoch is chosen and described.
FIGURES = (
    "val_agreement",
    "val_within_class_r2",
    "val_shuffled_logit_error",
    "val_error_ratio",
    "val_spread_skill",
    "val_energy_score",
    "kept",
)
# Of the summary: what a pixel is enlarged to, and the width of captions.
PIXEL = 2
MARGIN = 96
# By what share the last energy score may exceed the best without a warning.
WORSE = 0.2


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
                    "The last checkpoint is from before that. If the "
                    "classifier gives numbers for every image, try a lower "
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


class Scalars(keras.callbacks.TensorBoard):
    """Writes losses and measures to TensorBoard, each under one name.

    Args:
        log_dir: TensorBoard directory.
    """

    def __init__(self, log_dir):
        super().__init__(log_dir, write_graph=False)

    def on_test_end(self, logs=None):
        """Leaves the measures to `on_epoch_end`, which writes them as well."""
        super().on_test_end({})

    def on_epoch_end(self, epoch, logs=None):
        """Writes the rates of an inversion's two optimizers, too."""
        logs = dict(logs or {})
        for name in ("generator", "discriminator"):
            if optimizer := getattr(self.model, f"{name}_optimizer", None):
                # Under a strategy of several replicas, no plain variable.
                rate = keras.ops.convert_to_numpy(optimizer.learning_rate)
                logs[f"{name}_learning_rate"] = float(rate)
        super().on_epoch_end(epoch, logs)


class ReconstructionSummary(keras.callbacks.Callback):
    """Writes the same reconstructions to TensorBoard after every epoch.

    One picture: a row of images, a row of reconstructions, further rows of
    resamples (the same logits, other noise), from `model.reconstruct`, with a
    caption before each. Pixels are enlarged so that a row is as high as its
    caption. It shows the first images; the others take part in the batch's
    moments.

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
        originals = resize(self.images, rows[0].shape[1])
        captions = ["image", "reconstruction"]
        captions += [f"noise {2 + i}" for i in range(len(rows) - 1)]
        # Each row: caption, images side by side; then the rows on each other.
        picture = np.concatenate(
            [
                _captioned_row(caption, to_uint8(row[: self.COLUMNS]))
                for caption, row in zip(
                    captions, (originals, *rows), strict=True
                )
            ]
        )
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


def _captioned_row(caption, pictures):
    """Pictures `(number, size, size, 3)` side by side behind a caption."""
    pictures = pictures.repeat(PIXEL, axis=1).repeat(PIXEL, axis=2)
    margin = PIL.Image.new("RGB", (MARGIN, pictures.shape[1]), "white")
    middle = (4, margin.height / 2)
    PIL.ImageDraw.Draw(margin).text(middle, caption, "black", anchor="lm")
    return np.concatenate([np.asarray(margin), *pictures], axis=1)


class BestGenerator(keras.callbacks.Callback):
    """Saves the averaged generator after every epoch, and keeps the best.

    Adds `kept` to the logs: 1 of an epoch whose generator became the best.

    `generator-last.keras` is that of the last epoch; `generator.keras` that of
    `best_epoch`, or the last while there is none. It reads of earlier epochs
    from `MetricsTable`'s file, so that a resumed run chooses as one that was
    never stopped, and comes before that callback: where a generator could not
    be written, no row says that it was.

    Args:
        run: directory of the run.
    """

    def __init__(self, run):
        super().__init__()
        self.run = pathlib.Path(run)

    def on_epoch_end(self, epoch, logs=None):
        """Saves the generator, once or twice."""
        names = ["generator-last.keras"]
        table = self.run / "metrics.csv"
        best = best_epoch(checkpoints.rows_with(table, epoch, logs, FIGURES))
        kept = best in (None, epoch + 1)
        if kept:
            names.append("generator.keras")
        for name in names:
            checkpoints.save_model(
                self.model.averaged_generator, self.run / name
            )
        logs["kept"] = float(kept)


def best_epoch(rows):
    """The epoch of the lowest held-out energy score, among those in order.

    In order is an epoch whose agreement is within `AGREEMENT_MARGIN` of the
    best so far, and whose noise an export can calibrate (`SPREAD_RANGE`). Once
    a later agreement leaves that of the chosen epoch behind, the choice begins
    again: no other generator was kept.

    Args:
        rows: of `checkpoints.read_table`.

    Returns:
        Its number, counted from 1, or None where none is in order.
    """
    low, high = SPREAD_RANGE
    best, best_agreement = None, 0.0
    for row in rows:
        best_agreement = max(best_agreement, row["val_agreement"])
        least = best_agreement - AGREEMENT_MARGIN
        if best and best["val_agreement"] < least:
            best = None
        in_order = (
            row["val_agreement"] >= least
            and low <= row["val_spread_skill"] <= high
        )
        if in_order and (
            best is None or row["val_energy_score"] < best["val_energy_score"]
        ):
            best = row
    return best and best["epoch"]


def kept_epoch(rows):
    """The epoch that `generator.keras` is of: the last one that was kept.

    Args:
        rows: as of `best_epoch`; None where there are none.
    """
    kept = [row["epoch"] for row in rows if row["kept"]]
    return kept[-1] if kept else None


def kept_updates(run, steps_per_epoch):
    """Updates that a run's `generator.keras` has had; None if not known.

    Others than `steps` says where the run was resumed with more of them, or an
    earlier epoch was the best.
    """
    rows = checkpoints.read_table(pathlib.Path(run) / "metrics.csv", FIGURES)
    epoch = kept_epoch(rows)
    return epoch and epoch * steps_per_epoch


def describe_best(run):
    """Which epoch `generator.keras` is of, and its figures, in a sentence.

    Args:
        run: directory of a run of `tools/train.py`.
    """
    path = pathlib.Path(run) / "metrics.csv"
    rows = checkpoints.read_table(path, FIGURES)
    if not rows:
        return f"Which epoch generator.keras is of is not known without {path}."
    best, kept, last = best_epoch(rows), kept_epoch(rows), rows[-1]
    row = next(row for row in rows if row["epoch"] == kept)
    score = row["val_energy_score"]
    epoch = f"epoch {kept} of {last['epoch']}"
    if best is None and kept == last["epoch"]:
        epoch = f"the last epoch, {kept}"
    verdict = measures.calibration_verdict(row["val_spread_skill"])
    text = (
        f"generator.keras is of {epoch}: energy score {score:.4f}, "
        f"agreement {row['val_agreement']:.1%}, error ratio "
        f"{row['val_error_ratio']:.3f} (.5625 is calibrated); {verdict}."
    )
    if best is None:
        low, high = SPREAD_RANGE
        text += (
            " In no epoch was the spread of the noise between "
            f"{low:.2f} and {high:.2f} times what is left open at an agreement "
            "near the best, so the last one is kept."
        )
    # 0 where no two held-out images share a class: nothing is known then.
    paired, shown = row["val_shuffled_logit_error"], row["val_within_class_r2"]
    if paired and shown < measures.LOW_WITHIN_CLASS_R2:
        text += (
            f" The pictures show {shown:.2f} of what the logits know beyond "
            f"the class (1 is all of it). {measures.WITHIN_CLASS_ADVICE}"
        )
    if last["val_energy_score"] > score + WORSE * abs(score):
        text += (
            " The run got much worse after that, to an energy score of "
            f"{last['val_energy_score']:.4f}. Try a lower learning rate."
        )
    return text


def writers(run, validation_batches, noise_dim, seed):
    """The callbacks that write into a run directory, in their order.

    Args:
        run: the directory.
        validation_batches: `tf.data.Dataset` of held-out images and labels, of
            whose first batch reconstructions are shown.
        noise_dim: length of the noise.
        seed: of it.
    """
    run = pathlib.Path(run)
    # As many as the batch's moments need.
    images = next(iter(validation_batches))[0][:64]
    noise = tf.random.stateless_normal(
        (4, len(images), noise_dim), seed=[seed, -2]
    )
    return [
        Scalars(run / "tensorboard"),
        ReconstructionSummary(run / "tensorboard", images, noise),
        BestGenerator(run),
        checkpoints.MetricsTable(run / "metrics.csv"),
        checkpoints.Checkpoint(run),
    ]
