import builtins
import io
import json
import os
import platform
import socket
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import devices, errors
from kinv.classifiers import saved_models


@pytest.fixture(autouse=True)
def restore_policy():
    policy = keras.mixed_precision.dtype_policy()
    yield
    keras.mixed_precision.set_dtype_policy(policy)


def without_accelerators(kind):
    return [] if kind in ("GPU", "TPU") else ["cpu"]


@pytest.mark.parametrize(
    "name, replicas", [("auto", 1), ("single", 1), ("mirrored", 2)]
)
def test_replicas(name, replicas):
    # tests/conftest.py makes two logical devices of the processor.
    assert devices.make_strategy(name).num_replicas_in_sync == replicas


def test_there_is_one_mirrored_strategy():
    # Two would mix up each other's collective operations.
    strategy = devices.make_strategy("mirrored")
    assert devices.make_strategy("mirrored") is strategy


@pytest.mark.slow
def test_four_replicas_step_as_one_does():
    # In a process of its own, since there is one mirrored strategy in each.
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("tests/test_gan.py", "tests/test_attacks.py"),
            # One case of each: the others differ from it as with two.
            *("-k", "several_replicas and (paper or linf)"),
        ],
        env={**os.environ, "KINV_REPLICAS": "4"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout
    assert "2 passed" in finished.stdout


def test_a_value_is_summed_over_replicas():
    strategy = devices.make_strategy("mirrored")

    @tf.function
    def total():
        per_replica = strategy.run(lambda: tf.constant(3.0))
        return strategy.reduce("sum", per_replica, axis=None)

    assert total().numpy() == 6.0


WORKER = """
import sys
import numpy as np
from kinv import devices
index = float(sys.argv[1])
strategy = devices.make_strategy("multiworker")
arrays = [np.full((2, 2), 5 + index, "float32"), np.float32(index)]
found = devices.broadcast_from_first_worker(strategy, arrays)
print([x.tolist() for x in found])
"""


@pytest.mark.slow
def test_the_first_of_two_workers_tells_both():
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (one, two)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index)],
            env={
                **os.environ,
                "TF_CONFIG": json.dumps(
                    {
                        "cluster": cluster,
                        "task": {"type": "worker", "index": index},
                    }
                ),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for worker in workers:
        assert (
            worker.communicate()[0].strip() == "[[[5.0, 5.0], [5.0, 5.0]], 0.0]"
        )
        assert worker.returncode == 0


def test_one_worker_tells_itself():
    arrays = [np.ones(3, "float32")]
    for name in ("single", "mirrored"):
        strategy = devices.make_strategy(name)
        assert devices.broadcast_from_first_worker(strategy, arrays) is arrays


def test_several_workers_need_a_description(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(errors.InputError, match="TF_CONFIG"):
        devices.make_strategy("multiworker")


def test_a_description_of_workers_that_is_no_json(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{cluster")
    with pytest.raises(errors.InputError, match="as JSON. Received: {cluster"):
        devices.make_strategy("multiworker")


def test_a_missing_tpu_is_one_clear_message(monkeypatch):
    def connect():
        raise ValueError("Please provide a TPU Name to connect to.")

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", connect)
    with pytest.raises(errors.InputError, match="Expected a TPU"):
        devices.make_strategy("tpu")


@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_precision_by_name(name):
    assert devices.set_precision(name) == name
    assert keras.mixed_precision.dtype_policy().name == name
    assert keras.layers.Dense(1).variable_dtype == "float32"


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("fpu sse2 avx512f avx512_bf16", "mixed_bfloat16"),
        ("fpu sse2 amx_bf16", "mixed_bfloat16"),
        ("fpu sse2 avx512f", "float32"),
    ],
)
def test_precision_of_a_processor(monkeypatch, flags, expected):
    monkeypatch.setattr(
        tf.config, "list_physical_devices", without_accelerators
    )
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    real_open = builtins.open

    def fake_open(path, *args, **kwargs):
        if path == "/proc/cpuinfo":
            return io.StringIO(f"processor : 0\nflags : {flags}\n")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fake_open)
    assert devices.set_precision("auto") == expected


def test_precision_of_other_systems(monkeypatch):
    monkeypatch.setattr(
        tf.config, "list_physical_devices", without_accelerators
    )
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert devices.set_precision("auto") == "float32"


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 5), "float32"), ((8, 0), "mixed_bfloat16"), (None, "float32")],
)
def test_precision_of_a_gpu(monkeypatch, capability, expected):
    details = {"compute_capability": capability} if capability else {}
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind: ["gpu"] if kind == "GPU" else [],
    )
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda device: details
    )
    assert devices.set_precision("auto") == expected


def test_precision_of_a_tpu(monkeypatch):
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind: ["tpu"] if kind == "TPU" else [],
    )
    assert devices.set_precision("auto") == "mixed_bfloat16"


def test_loss_scaling_on_several_replicas_is_refused():
    with devices.make_strategy("mirrored").scope():
        with pytest.raises(errors.InputError, match="mixed_float16 on 2"):
            devices.set_precision("mixed_float16")


@pytest.mark.parametrize(
    "count, replicas, read",
    [(21, 1, 21), (21, 2, 20), (22, 2, 22), (25, 4, 24), (29, 8, 24)]
    + [(60, 3, 60), (60, 11, 55), (60, 16, 48), (60, 21, 42)],
)
def test_replicas_share_out_held_out_images(rendered, count, replicas, read):
    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    found = devices.evaluation_batches(
        rendered("validation", count), 8, 20, 1000, strategy
    )
    sizes = [len(images) for images, _ in found]
    assert sum(sizes) == read
    assert all(size % replicas == 0 for size in sizes)
    assert max(sizes) <= max(20, replicas)


def test_fewer_held_out_images_than_replicas_are_refused(rendered):
    strategy = types.SimpleNamespace(num_replicas_in_sync=4)
    with pytest.raises(errors.InputError, match="at least 4 held-out"):
        devices.evaluation_batches(
            rendered("validation", 3), 8, 20, 1000, strategy
        )


class TwoWorkers:
    """This one, and another that gives what `other` holds, or the same."""

    other = None

    def run(self, function):
        return function()

    def reduce(self, reduce_op, value):
        assert reduce_op == "MEAN"
        self.given = value
        return (value + (value if self.other is None else self.other)) / 2


def test_workers_are_started_alike(monkeypatch):
    monkeypatch.setattr(devices, "_MultiWorkerStrategy", TwoWorkers)
    settings = [{"seed": 8, "out": "runs/x"}, {"train": "abc"}]
    workers = TwoWorkers()
    devices.check_workers_agree(workers, settings)
    workers.other = workers.given
    devices.check_workers_agree(workers, settings)
    settings[0]["seed"] = 9
    with pytest.raises(errors.InputError, match="with the same command"):
        devices.check_workers_agree(workers, settings)


def test_what_xla_compiles(monkeypatch):
    def stretched():
        return keras.layers.Resizing(8, 8)

    def saved():
        return saved_models.SavedModelLayer(3)

    def compiles(*layers):
        classifier = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        return devices.can_use_xla(tf.distribute.get_strategy(), classifier)

    assert not compiles(keras.layers.Flatten())
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: ["gpu"] if kind == "GPU" else listed(kind),
    )
    assert compiles(keras.layers.Flatten())
    assert not compiles(stretched())
    monkeypatch.setattr(
        saved_models.SavedModelLayer, "call", lambda self, images: images
    )
    assert not compiles(saved())


def test_no_replica_gets_an_empty_share(rendered):
    strategy = devices.make_strategy("mirrored")
    found = devices.evaluation_batches(
        rendered("validation", 21), 8, 20, 1000, strategy
    )
    for images, _ in strategy.experimental_distribute_dataset(found):
        shares = strategy.experimental_local_results(images)
        assert [len(share) for share in shares] == [10, 10]
