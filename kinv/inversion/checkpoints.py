"""What a run writes after every epoch, and reads where it was stopped."""

import csv
import logging
import math
import pathlib

import h5py
import keras
import tensorflow as tf

from kinv import errors, files
from kinv.inversion import export

LOGGER = logging.getLogger("kinv")
# The last one, and the one before.
CHECKPOINTS = ("checkpoint.weights.h5", "checkpoint-before.weights.h5")
# Bytes that names and tables of HDF5 take at most.
OVERHEAD = 2**24


class Checkpoint(keras.callbacks.Callback):
    """Saves weights and optimizer state after every epoch, atomically.

    A process that is killed at any moment leaves the last complete checkpoint,
    and the one before it, should the last be damaged later.

    Args:
        run: directory of the run.
    """

    def __init__(self, run):
        super().__init__()
        self.run = pathlib.Path(run)

    def on_train_begin(self, logs=None):
        """Removes a damaged last one, lest it become the one before."""
        newest = self.run / CHECKPOINTS[0]
        try:
            files.verify(newest)
        except errors.InputError:
            newest.unlink(missing_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the checkpoint."""
        newest, previous = (self.run / name for name in CHECKPOINTS)
        # Weights, and at most two moments of each.
        require_space(self.run, 3, self.model)
        with files.atomic_path(newest, digest=True) as temporary:
            self.model.save_weights(temporary)
            with h5py.File(temporary, "r+") as checkpoint:
                checkpoint.attrs["epoch"] = epoch + 1
            if newest.exists():
                files.rename(newest, previous)


def save_model(model, path):
    """Saves a Keras model as a file with a digest, atomically."""
    path = pathlib.Path(path)
    # Keras may write the weights apart first.
    require_space(path.parent, 2, model)
    with files.atomic_path(path, digest=True) as temporary:
        model.save(temporary)


def require_space(directory, copies, model):
    """Checks that a disk has room for some copies of a model's variables.

    HDF5 ends the process when it finds the disk full.
    """
    num_bytes = sum(
        math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        for variable in model.variables
    )
    files.require_space(directory, copies * num_bytes + OVERHEAD)


def existing(run):
    """Paths of the checkpoints of a run, the last one first."""
    paths = [pathlib.Path(run, name) for name in CHECKPOINTS]
    return [path for path in paths if path.is_file()]


def restore(model, run):
    """Loads what `Checkpoint` wrote last into a compiled model.

    Args:
        model: built `keras.Model` whose optimizers are built too.
        run: directory of the run.

    Returns:
        Number of epochs done; 0 of a run that has not finished one.

    Raises:
        errors.InputError: if no checkpoint can be read that is this network's,
            or there is none though `metrics.csv` has finished epochs, or that
            is damaged.
    """
    run = pathlib.Path(run)
    # First: a damaged table would end the run after its next epoch.
    rows = read_table(run / "metrics.csv")
    failure = None
    for path in existing(run):
        try:
            files.verify(path)
            with h5py.File(path, "r") as checkpoint:
                epochs_done = int(checkpoint.attrs["epoch"])
            model.load_weights(path)
            if failure:
                LOGGER.warning("%s Going on from %s.", failure, path)
            return epochs_done
        # h5py lets through whatever a damaged file makes it raise.
        except Exception as error:
            failure = failure or errors.InputError(
                f"Expected {path} to be a checkpoint of this network. "
                f"Received: {errors.reason(error)}. Start a new run in another "
                "directory."
            )
    if failure:
        raise failure
    # The row of an epoch comes before its checkpoint.
    if len(rows) > 1:
        raise errors.InputError(
            f"Expected a checkpoint {run / CHECKPOINTS[0]}, since "
            f"{run / 'metrics.csv'} has {len(rows)} epochs. Received: none. "
            "Put it back from a copy, or start a new run in another directory."
        )
    if rows:
        LOGGER.warning("%s: no checkpoint yet, epoch 1 begins again", run)
    return 0


def start_from(model, path):
    """Gives a model the weights of another run, and what judged it.

    Args:
        model: `gan.InversionGAN`, not trained.
        path: of the run's `generator.keras`. The discriminator is that of the
            checkpoint beside it, if there is one.

    Raises:
        errors.InputError: if the networks differ, or a file is damaged.
    """
    generator, other = model.generator, export.load_generator(path)
    received = other.get_config()
    for name, value in generator.get_config().items():
        if name not in ("name", "dtype") and received[name] != value:
            raise errors.InputError(
                f"Expected a generator whose {name} is {value}, as of this "
                f"run. Received: {path} with {received[name]}."
            )
    for network in (generator, model.averaged_generator):
        network.set_weights(other.get_weights())
    restore_discriminator(model, pathlib.Path(path).parent)


def restore_discriminator(model, run):
    """Loads the discriminator alone of what `Checkpoint` wrote last.

    Args:
        model: `gan.InversionGAN` with networks like the run's.
        run: directory of a run. Without a checkpoint nothing is done.

    Raises:
        errors.InputError: if the checkpoint is damaged, or of other networks.
    """
    for path in existing(run)[:1]:
        files.verify(path)
        # A checkpoint holds weights by their way from the model: of one with
        # nothing but a discriminator no others are asked for.
        holder = keras.Model()
        holder.discriminator, holder.built = model.discriminator, True
        try:
            holder.load_weights(path)
        except Exception as error:
            raise errors.InputError(
                f"Expected {path} to hold a discriminator like this run's. "
                f"Received: {errors.reason(error)}. Copy generator.keras to "
                "another directory to start with a new one."
            ) from error


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
        rows = rows_with(self.path, epoch, logs)
        with files.atomic_path(self.path, digest=True) as temporary:
            with open(temporary, "w", newline="") as table:
                columns = dict.fromkeys(key for row in rows for key in row)
                writer = csv.DictWriter(table, columns)
                writer.writeheader()
                writer.writerows(rows)


def rows_with(path, epoch, logs, columns=()):
    """The rows of earlier epochs in a table, and that of the one that ends.

    Args:
        path: of the table.
        epoch: the one that ends, counted from 0. Rows of it and of later ones
            are of a run that was killed.
        logs: its values.
        columns: as of `read_table`.
    """
    rows = [row for row in read_table(path, columns) if row["epoch"] <= epoch]
    return [*rows, {"epoch": epoch + 1, **logs}]


def read_table(path, columns=()):
    """Rows that `MetricsTable` wrote; none where there is no such file.

    Args:
        path: of the file.
        columns: names of values that every row must have, besides `epoch`.

    Returns:
        List of dicts of numbers.

    Raises:
        errors.InputError: if the file is damaged or of something else.
    """
    if not pathlib.Path(path).is_file():
        return []
    files.verify(path)
    try:
        with open(path, newline="") as table:
            rows = [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(table)
            ]
        for row in rows:
            row["epoch"] = int(row["epoch"])
            for name in columns:
                row[name]
        return rows
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise errors.InputError(
            f"Expected a table of numbers by epoch in {path}. Received: "
            f"{errors.reason(error)}. Put it back from a copy, or remove it."
        ) from None
