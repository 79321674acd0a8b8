import csv
import errno
import math
import os
import pathlib
import shutil
import types

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from kinv import devices, errors, files
from kinv.inversion import callbacks, checkpoints

TABLE = "metrics.csv"


def compiled_model(units=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def batches(target=1.0):
    inputs = np.arange(16, dtype="float32").reshape(8, 2) / 16
    targets = np.full((8, 1), target, "float32")
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(2)


def fit(model, epochs, callback_list, target=1.0, initial_epoch=0):
    return model.fit(
        batches(target),
        epochs=epochs,
        initial_epoch=initial_epoch,
        callbacks=callback_list,
        shuffle=False,
        verbose=0,
    )


def test_restored_run_ends_where_the_uninterrupted_one_does(tmp_path):
    whole = compiled_model()
    fit(whole, 4, [])
    fit(compiled_model(), 2, [checkpoints.Checkpoint(tmp_path)])
    resumed = compiled_model()
    epochs_done = checkpoints.restore(resumed, tmp_path)
    assert epochs_done == 2
    fit(
        resumed,
        4,
        [checkpoints.Checkpoint(tmp_path)],
        initial_epoch=epochs_done,
    )
    for old, new in zip(
        whole.get_weights(), resumed.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert checkpoints.restore(compiled_model(), tmp_path) == 4


def test_failed_write_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.weights.h5"
    model = compiled_model()
    fit(model, 1, [checkpoints.Checkpoint(tmp_path)])
    before = path.read_bytes()

    def disk_full(temporary):
        pathlib.Path(temporary).write_bytes(b"half a check")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_weights", disk_full)
    with pytest.raises(OSError, match="No space left"):
        fit(model, 2, [checkpoints.Checkpoint(tmp_path)], initial_epoch=1)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "digests.json"]


def test_full_disk_is_found_before_hdf5_finds_it(tmp_path, monkeypatch):
    # A dense layer of 2 weights and 1 bias, and two moments of each.
    usage = types.SimpleNamespace(free=2**24 + 3 * 3 * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="16.8 MB needed"):
        fit(compiled_model(), 1, [checkpoints.Checkpoint(tmp_path)])
    usage.free += 1
    fit(compiled_model(), 1, [checkpoints.Checkpoint(tmp_path)])
    assert (tmp_path / "checkpoint.weights.h5").exists()


def test_a_model_is_not_saved_on_a_full_disk(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=2**24 + 2 * 3 * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    model, path = compiled_model(), tmp_path / "model.keras"
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_model(model, path)
    assert not path.exists()
    usage.free += 1
    checkpoints.save_model(model, path)
    assert files.verify(path)


def test_nothing_is_restored_of_a_run_that_has_finished_no_epoch(
    tmp_path, caplog
):
    assert checkpoints.restore(compiled_model(), tmp_path) == 0
    assert not caplog.messages
    # Killed between the row of the first epoch and its checkpoint.
    fit(compiled_model(), 1, [checkpoints.MetricsTable(tmp_path / TABLE)])
    assert checkpoints.restore(compiled_model(), tmp_path) == 0
    assert "epoch 1 begins again" in caplog.text


def test_a_missing_checkpoint_of_finished_epochs_is_an_error(tmp_path):
    fit(compiled_model(), 2, [checkpoints.MetricsTable(tmp_path / TABLE)])
    with pytest.raises(errors.InputError, match="checkpoint.weights.h5, since"):
        checkpoints.restore(compiled_model(), tmp_path)


def checkpointed(run, epochs):
    """Trains for some epochs; the weights after each."""
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: weights.append(model.get_weights())
    )
    model = compiled_model()
    fit(model, epochs, [checkpoints.Checkpoint(run), keep])
    return weights


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    weights = checkpointed(tmp_path, 3)
    path = tmp_path / "checkpoint.weights.h5"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    model = compiled_model()
    assert checkpoints.restore(model, tmp_path) == 2
    (message,) = caplog.messages
    assert "Going on from" in message and "checkpoint-before" in message
    for old, new in zip(weights[1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # The damaged one does not become the one before.
    fit(model, 3, [checkpoints.Checkpoint(tmp_path)], initial_epoch=2)
    path.unlink()
    assert checkpoints.restore(compiled_model(), tmp_path) == 2
    for old, new in zip(weights[2], model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("replaced", range(1, 7))
def test_killed_at_any_rename_leaves_a_checkpoint(
    tmp_path, monkeypatch, replaced
):
    """Of an epoch's renames: digests before and after, of both checkpoints."""
    weights = checkpointed(tmp_path, 2)
    calls = []
    replace = os.replace

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == replaced:
            raise KeyboardInterrupt
        replace(*arguments)

    model = compiled_model()
    assert checkpoints.restore(model, tmp_path) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        try:
            fit(model, 3, [checkpoints.Checkpoint(tmp_path)], initial_epoch=2)
        except KeyboardInterrupt:
            pass
    found = compiled_model()
    epoch = checkpoints.restore(found, tmp_path)
    assert epoch in (2, 3)
    expected = weights[1] if epoch == 2 else model.get_weights()
    for old, new in zip(expected, found.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_restore_rejects_damage_and_other_networks(tmp_path):
    path = tmp_path / "checkpoint.weights.h5"
    fit(compiled_model(), 1, [checkpoints.Checkpoint(tmp_path)])
    with pytest.raises(errors.InputError, match="of this network"):
        checkpoints.restore(compiled_model(units=3), tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(errors.InputError, match="digests.json"):
        checkpoints.restore(compiled_model(), tmp_path)
    (tmp_path / "digests.json").unlink()
    with pytest.raises(errors.InputError, match="of this network"):
        checkpoints.restore(compiled_model(), tmp_path)
    path.unlink()
    compiled_model().save_weights(path)
    with h5py.File(path) as checkpoint:
        assert "epoch" not in checkpoint.attrs
    with pytest.raises(errors.InputError, match="epoch"):
        checkpoints.restore(compiled_model(), tmp_path)


@pytest.mark.parametrize("target", [np.nan, np.inf])
def test_non_finite_loss_names_the_step_and_keeps_the_checkpoint(
    tmp_path, target
):
    path = tmp_path / "checkpoint.weights.h5"
    callback_list = [
        callbacks.TerminateOnNonFinite(),
        checkpoints.Checkpoint(tmp_path),
    ]
    model = compiled_model()
    fit(model, 1, callback_list)
    before = path.read_bytes()
    with pytest.raises(errors.NonFiniteError, match="epoch 2, step 1"):
        fit(model, 2, callback_list, target=target, initial_epoch=1)
    assert path.read_bytes() == before


def test_non_finite_checks_every_log_and_the_validation():
    callback = callbacks.TerminateOnNonFinite()
    callback.on_epoch_begin(6)
    callback.on_train_batch_end(0, {"generator_loss": 1.0})
    with pytest.raises(errors.NonFiniteError, match="discriminator_loss beca"):
        callback.on_train_batch_end(
            9, {"generator_loss": 1.0, "discriminator_loss": float("nan")}
        )
    with pytest.raises(errors.NonFiniteError, match="epoch 7, validation"):
        callback.on_epoch_end(6, {"val_mse": float("inf")})


def test_time_remaining_leaves_out_compilation(monkeypatch):
    clock = iter([0.0, 100.0, 100.0 + 9 * 6, 100.0 + 19 * 6])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    callback = callbacks.TimeRemaining()
    callback.set_params({"epochs": 5, "steps": 10})
    callback.on_train_begin()
    # The first step takes 100 seconds, every other one 6: a minute per epoch.
    for step in range(10):
        callback.on_train_batch_end(step)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["minutes_left"] == pytest.approx(4)
    for step in range(10):
        callback.on_train_batch_end(step)
    callback.on_epoch_end(1, logs)
    assert logs["minutes_left"] == pytest.approx(3)


@pytest.mark.parametrize("steps", [None, 1])
def test_time_remaining_of_epochs_of_one_step(monkeypatch, steps):
    clock = iter([0.0, 60.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    callback = callbacks.TimeRemaining()
    callback.set_params({"epochs": 3, "steps": steps})
    callback.on_train_begin()
    callback.on_train_batch_end(0)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["minutes_left"] == pytest.approx(2.0)


def test_time_remaining_reaches_the_log_of_a_resumed_run():
    history = fit(
        compiled_model(), 3, [callbacks.TimeRemaining()], initial_epoch=1
    ).history
    assert len(history["minutes_left"]) == 2
    assert history["minutes_left"][0] > 0
    assert history["minutes_left"][1] == 0


class FakeInversion(keras.Model):
    """Reconstructs every image as one grey, read from the noise."""

    def reconstruct(self, images, noise):
        return tf.ones((len(images), 2, 2, 3)) * noise[:, :1, None, None]


def test_reconstruction_summary_shows_originals_over_reconstructions(tmp_path):
    images = np.zeros((3, 4, 4, 3), "float32")
    images += np.array([10, 20, 30])[:, None, None, None]
    noise = np.array([[[40], [50], [60]], [[70], [80], [300]]], "float32")
    callback = callbacks.ReconstructionSummary(tmp_path, images, noise)
    callback.set_model(FakeInversion())
    callback.on_epoch_end(0)
    callback.on_epoch_end(1)
    callback.on_train_end()
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "reconstructions"), {"tensors": 0}
    )
    events.Reload()
    written = events.Tensors("reconstructions")
    assert [event.step for event in written] == [1, 2]
    picture = tf.io.decode_png(written[0].tensor_proto.string_val[2]).numpy()
    grid = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 255]])
    # Two pixels a side, each enlarged twice, behind the captions.
    expected = np.repeat(np.repeat(grid, 4, axis=0), 4, axis=1)
    margin, pictures = np.split(picture, [callbacks.MARGIN], axis=1)
    np.testing.assert_array_equal(pictures, np.stack([expected] * 3, axis=-1))
    assert margin.min() < 128 and margin.max() == 255


def test_the_rates_of_two_optimizers_on_two_replicas(tmp_path):
    with devices.make_strategy("mirrored").scope():
        model = compiled_model()
        model.generator_optimizer = keras.optimizers.Adam(0.25)
        model.discriminator_optimizer = keras.optimizers.Adam(0.5)
        for optimizer in (
            model.generator_optimizer,
            model.discriminator_optimizer,
        ):
            optimizer.build(model.trainable_variables)
    fit(model, 1, [callbacks.Scalars(tmp_path)])
    rates = {}
    for path in (tmp_path / "train").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if "ator_learning_rate" in value.tag:
                    rates[value.tag] = tf.make_ndarray(value.tensor).item()
    assert rates == {
        "epoch_generator_learning_rate": 0.25,
        "epoch_discriminator_learning_rate": 0.5,
    }


def test_table_of_a_resumed_run_has_one_row_per_epoch(tmp_path):
    path = tmp_path / "metrics.csv"
    fit(compiled_model(), 3, [checkpoints.MetricsTable(path)])
    # Killed after the row of epoch 3 was written and before its checkpoint.
    fit(compiled_model(), 4, [checkpoints.MetricsTable(path)], initial_epoch=2)
    with open(path, newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    # The second model was new in its third epoch.
    assert float(rows[2]["loss"]) == pytest.approx(float(rows[0]["loss"]))
    # A new run begins a new table.
    fit(compiled_model(), 1, [checkpoints.MetricsTable(path)])
    assert len(path.read_text().splitlines()) == 2


def test_the_kept_epoch_is_the_last_that_was_kept():
    rows = [
        {"epoch": number, "kept": kept}
        for number, kept in enumerate((1.0, 1.0, 0.0), start=1)
    ]
    assert callbacks.kept_epoch(rows) == 2
    assert callbacks.kept_epoch([]) is None


def row(agreement, error_ratio, energy_score):
    return {
        "val_agreement": agreement,
        "val_error_ratio": error_ratio,
        "val_energy_score": energy_score,
        "val_spread_skill": math.sqrt(
            (1 - error_ratio) / (error_ratio - 1 / 8)
        ),
        "val_within_class_r2": 0.8,
        "val_shuffled_logit_error": 2.1,
    }


@pytest.mark.parametrize(
    "rows, best",
    [
        ([row(0.5, 0.56, 0.4), row(0.9, 0.57, 0.3), row(0.9, 0.57, 0.5)], 2),
        # The third has the lowest score, but lost three points of agreement.
        ([row(0.5, 0.56, 0.4), row(0.9, 0.57, 0.3), row(0.87, 0.57, 0.2)], 2),
        ([row(0.5, 0.56, 0.4), row(0.9, 0.57, 0.3), row(0.89, 0.57, 0.2)], 3),
        # A good score of an epoch that later ones leave far behind.
        ([row(0.5, 0.56, 0.1), row(0.9, 0.57, 0.3), row(0.9, 0.57, 0.5)], 2),
        ([row(0.5, 0.56, 0.1), row(0.9, 0.9, 0.3)], None),
        # Noise that says so little, or so much, that 1.5 times the noise, or
        # half, would not mend it; and what they just mend.
        ([row(0.9, 0.56, 0.4), row(0.9, 0.74, 0.3), row(0.9, 0.29, 0.2)], 1),
        ([row(0.9, 0.56, 0.4), row(0.9, 0.72, 0.3), row(0.9, 0.31, 0.2)], 3),
        ([row(0.9, 0.9, 0.4), row(0.9, 0.9, 0.3)], None),
        # Energy scores of few images can be negative.
        ([row(0.9, 0.56, -0.1), row(0.9, 0.56, -0.2)], 2),
    ],
)
def test_best_epoch(rows, best):
    rows = [{"epoch": number, **row} for number, row in enumerate(rows, 1)]
    assert callbacks.best_epoch(rows) == best


class AveragedModel(keras.Model):
    """A model whose averaged generator tells which epoch it was saved after."""

    def __init__(self):
        super().__init__()
        self.averaged_generator = types.SimpleNamespace(
            save=self.write, variables=[]
        )

    def write(self, path):
        pathlib.Path(path).write_text(str(self.epoch))


def train_epochs(run, rows, first=0):
    table = checkpoints.MetricsTable(run / "metrics.csv")
    best = callbacks.BestGenerator(run)
    model = AveragedModel()
    best.set_model(model)
    for epoch in range(first, len(rows)):
        model.epoch = epoch + 1
        logs = dict(rows[epoch])
        best.on_epoch_end(epoch, logs)
        table.on_epoch_end(epoch, logs)
    return [
        (run / name).read_text()
        for name in ("generator.keras", "generator-last.keras")
    ]


def test_the_best_generator_is_kept_and_the_last(tmp_path):
    rows = [row(0.9, 0.57, 0.4), row(0.9, 0.57, 0.3), row(0.1, 0.57, 9.0)]
    assert train_epochs(tmp_path, rows) == ["2", "3"]
    text = callbacks.describe_best(tmp_path)
    assert "of epoch 2 of 3" in text and "got much worse" in text
    assert "the noise says 0.98 of what the generator leaves open" in text
    # Killed within the second epoch: the same choice again.
    assert train_epochs(tmp_path, rows, first=1) == ["2", "3"]


def test_a_generator_that_could_not_be_written_is_not_described(
    tmp_path, monkeypatch
):
    rows = [row(0.9, 0.57, 0.4), row(0.9, 0.57, 0.3)]
    train_epochs(tmp_path, rows[:1])

    def fill_the_disk(model, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "save_model", fill_the_disk)
    batches = [(np.zeros((2, 8, 8, 3), "float32"), None)]
    kinds = callbacks.BestGenerator, checkpoints.MetricsTable
    with pytest.raises(OSError):
        for callback in callbacks.writers(tmp_path, batches, 4, 0):
            if isinstance(callback, kinds):
                callback.set_model(AveragedModel())
                callback.on_epoch_end(1, dict(rows[1]))
    assert "of epoch 1 of 1" in callbacks.describe_best(tmp_path)


def test_the_last_generator_is_kept_where_none_is_in_order(tmp_path):
    rows = [row(0.9, 0.9, 0.3), row(0.9, 0.9, 0.4)]
    assert train_epochs(tmp_path, rows) == ["2", "2"]
    assert "of the last epoch, 2" in callbacks.describe_best(tmp_path)
    rows += [row(0.9, 0.6, 0.5), row(0.9, 0.9, 0.2)]
    assert train_epochs(tmp_path, rows, first=2) == ["3", "4"]


def test_nothing_is_said_of_what_no_two_images_could_tell(tmp_path):
    figures = {**row(0.9, 0.57, 0.4), "val_within_class_r2": 0.0}
    for shuffled, warned in ((2.1, True), (0.0, False)):
        figures["val_shuffled_logit_error"] = shuffled
        train_epochs(tmp_path, [figures])
        found = callbacks.describe_best(tmp_path)
        assert ("The pictures show 0.00" in found) is warned


def test_a_run_without_its_table_goes_on(tmp_path):
    rows = [row(0.9, 0.57, 0.4), row(0.9, 0.57, 0.3), row(0.9, 0.57, 0.35)]
    assert train_epochs(tmp_path, rows[:2]) == ["2", "2"]
    (tmp_path / "metrics.csv").unlink()
    assert "not known without" in callbacks.describe_best(tmp_path)
    # Of the epochs that are on record the third is the best.
    assert train_epochs(tmp_path, rows, first=2) == ["3", "3"]
    assert "of epoch 3 of 3" in callbacks.describe_best(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"epoch\nmany\n", b"epoch\n1,2\n", b"\xff\xfe"],
)
def test_a_foreign_table_is_one_line(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    if not content:
        assert checkpoints.read_table(path) == []
        return
    with pytest.raises(errors.InputError, match="metrics.csv") as raised:
        callbacks.describe_best(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_flipped_bit_in_the_table_is_found(tmp_path):
    train_epochs(tmp_path, [row(0.9, 0.57, 0.4)])
    path = tmp_path / "metrics.csv"
    content = path.read_bytes()
    assert b"0.57" in content
    path.write_bytes(content.replace(b"0.57", b"0.56"))
    with pytest.raises(errors.InputError, match="digests.json"):
        checkpoints.read_table(path)
    # Before another epoch is trained, whose row could not be added.
    with pytest.raises(errors.InputError, match="digests.json"):
        checkpoints.restore(compiled_model(), tmp_path)


class FakeResolver:
    def __init__(self, task_type, task_id, cluster):
        self.task_type, self.task_id = task_type, task_id
        self.cluster_spec = lambda: tf.train.ClusterSpec(cluster)


class FakeStrategy:
    def __init__(self, resolver):
        self.cluster_resolver = resolver


@pytest.mark.parametrize(
    "task, cluster, expected",
    [
        (("chief", 0), {"chief": ["a:1"], "worker": ["b:1"]}, True),
        (("worker", 0), {"chief": ["a:1"], "worker": ["b:1"]}, False),
        (("worker", 0), {"worker": ["a:1", "b:1"]}, True),
        (("worker", 1), {"worker": ["a:1", "b:1"]}, False),
    ],
)
def test_one_worker_is_chief(task, cluster, expected):
    strategy = FakeStrategy(FakeResolver(*task, cluster))
    assert devices.is_chief(strategy) is expected


def test_a_single_process_is_chief():
    assert devices.is_chief(tf.distribute.get_strategy())
    assert devices.is_chief(devices.make_strategy("mirrored"))
