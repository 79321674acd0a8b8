"""Logical devices, so that tests can train on several replicas."""

import dataclasses
import functools
import os
import pathlib
import subprocess

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A worker has a core to itself: more threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for threads in ("TF_NUM_INTRAOP", "OMP_NUM", "OPENBLAS_NUM"):
        os.environ.setdefault(f"{threads}_THREADS", "1")

import keras  # noqa: E402 (TensorFlow reads the level when it is imported)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import requests  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

from kinv import images
from kinv.classifiers import small
from kinv.data import rendering, scenes, source
from tools import benchmark_serving  # noqa: E402

# Before anything else: devices are fixed once TensorFlow has used one. Two, or
# four in the process that tests/test_devices.py starts.
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu,
    [tf.config.LogicalDeviceConfiguration()]
    * int(os.environ.get("KINV_REPLICAS", 2)),
)
# Small networks are traced a thousand times and run a few: a fifth of the
# tests' time went into optimising their graphs.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(autouse=True)
def precision():
    """Float32 again after every test: tools set the policy for the process."""
    yield
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture
def eager():
    """Functions run as Python: a few steps of small networks take a third of
    the time that their graph's tracing does."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """No test finds what another run of the tests, or the user, has kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty folder for TFDS, as `TFDS_DATA_DIR` names it for a process."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of 32 px images, green and red; no split sub-folders."""
    folder = tmp_path_factory.mktemp("data") / "colors"
    random = np.random.default_rng(0)
    for name, color in {"green": (40, 180, 60), "red": (200, 50, 40)}.items():
        (folder / name).mkdir(parents=True)
        for index in range(60):
            pixels = np.clip(random.normal(color, 20, (32, 32, 3)), 0, 255)
            images.write_image(folder / name / f"{index:02d}.png", pixels)
    return folder


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory):
    """A small untrained classifier of two classes, saved."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.keras"
    small.build_classifier(32, 2, 4).save(path)
    return path


@pytest.fixture(scope="session")
def rendered():
    """The first scenes of a split, as `datasets.open_dataset` opens them."""

    @functools.cache
    def open_split(split, count):
        factors = scenes.scene_factors(split, range(count))
        labels = factors["shape"] * len(rendering.OBJECT_HUES)
        examples = {
            "image": rendering.render(factors, 32),
            "label": labels + factors["object_hue"],
            **factors,
        }
        return source.Source(
            tf.data.Dataset.from_tensor_slices(examples),
            lambda image: image,
            scenes.CLASS_NAMES,
            count,
            list(factors),
        )

    return open_split


@dataclasses.dataclass
class ServedModels:
    """A process of `tools/serve.py`, and where it listens."""

    process: subprocess.Popen
    rest: str
    grpc: str
    session: requests.Session


@pytest.fixture(scope="session")
def start_server():
    """Function that starts `tools/serve.py` with both shipped pipelines."""
    started = []

    def start(*arguments):
        process, addresses = benchmark_serving.start_server(
            *("--model", "exported/scenes32-robust"),
            *("--model", "exported/scenes32-standard"),
            *arguments,
            cwd=pathlib.Path(__file__).parent.parent,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        session = requests.Session()
        return ServedModels(
            process, f"http://{addresses['http']}", addresses["grpc"], session
        )

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def served(start_server):
    """Both shipped pipelines, served by one process for all tests."""
    return start_server()
