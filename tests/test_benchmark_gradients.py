"""Networks and their gradients on Keras's JAX backend."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kinv.inversion import networks

TOOL = pathlib.Path(__file__).parent.parent / "tools" / "benchmark.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={
            **os.environ,
            **{"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
            # Nearly all of the time goes into compiling.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        cwd=TOOL.parent.parent,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_it_measures_both_precisions(tmp_path):
    path = tmp_path / "figures.json"
    result = run(
        *(TOOL, "--gradients", "--image-size=8", "--base-channels=4"),
        *("--batch-size=2", f"--json={path}"),
    )
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    assert content["options"]["device"] == "cpu"
    assert content["versions"]["jax"]
    assert [row["how"] for row in content["figures"]] == [
        "float32",
        "mixed_bfloat16",
    ]
    for row in content["figures"]:
        assert row["workload"] == "gradients"
        assert 0 < row["slowest"] <= row["per_second"] <= row["fastest"]


def test_it_asks_for_a_batch_size_where_it_cannot_know():
    result = run(TOOL, "--gradients", "--image-size=8", "--base-channels=4")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "Expected a GPU" in line and "--batch-size" in line


@pytest.mark.slow
def test_networks_compute_on_jax_what_they_do_on_tensorflow(tmp_path):
    random = np.random.default_rng(0)
    inputs = {
        "condition": random.standard_normal((3, 5)).astype("float32"),
        "noise": random.standard_normal((3, 4)).astype("float32"),
    }
    keras.utils.set_random_seed(0)
    generator = networks.Generator(8, 5, 4, noise_dim=4, embedding_dim=2)
    discriminator = networks.Discriminator(8, 5, 4)
    generator.save(tmp_path / "generator.keras")
    discriminator.save(tmp_path / "discriminator.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    images = generator(inputs, training=True)
    scores = discriminator(
        {"images": images, "condition": inputs["condition"]}, training=True
    )
    code = """
import sys, keras, numpy as np
from kinv.inversion import networks
work = sys.argv[1]
inputs = dict(np.load(f"{work}/inputs.npz"))
generator, discriminator = (
    keras.models.load_model(f"{work}/{name}.keras", compile=False)
    for name in ("generator", "discriminator")
)
images = generator(inputs, training=True)
scores = discriminator(
    {"images": images, "condition": inputs["condition"]}, training=True
)
np.savez(f"{work}/outputs.npz", images=images, scores=scores)
print(keras.backend.backend(), "tensorflow" in sys.modules)
"""
    result = run("-c", code, tmp_path)
    assert result.stdout == "jax False\n", result.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["images"], images, atol=1e-3)
    np.testing.assert_allclose(outputs["scores"], scores, rtol=1e-4)
