"""The benchmark runs; how fast is shown by its ratios, not tested."""

import json

import pytest

from kinv import errors
from kinv.data import datasets
from tools import benchmark, benchmark_workloads

# The module that the tool itself has loaded.
benchmark_gradients = benchmark.benchmark_gradients


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_measures_each_workload(tmp_path, rendered, monkeypatch, capsys):
    monkeypatch.setattr(
        datasets, "open_dataset", lambda *args: rendered("train", 40)
    )
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    path = tmp_path / "figures.json"
    benchmark.main(
        [
            "--image-size=32",
            "--base-channels=4",
            "--batch-size=2",
            # Tracing a step takes longer than all the rest.
            "--only=training (float32)",
            "--only=generation",
            "--only=16 pictures",
            "--only=pipeline",
            "--only=rendering",
            f"--json={path}",
        ]
    )
    written = json.loads(path.read_text())
    assert written["machine"]["cores"] >= 1
    figures = {(row["workload"], row["how"]): row for row in written["figures"]}
    assert len(figures) == 8
    assert ("exported signature, 64 x 16 pictures", "float32") in figures
    peak = figures["matrix product, GFLOP", "float32"]["per_second"]
    for task, precision in (
        ("training", "float32"),
        ("generation", "float32"),
        ("generation", "mixed_bfloat16"),
    ):
        row = figures[task, precision]
        arithmetic = 2 * row["multiply_adds_per_image"] * row["per_second"]
        assert row["share_of_float32_peak"] == pytest.approx(
            arithmetic / (1e9 * peak)
        )
    for row in figures.values():
        assert 0 < row["slowest"] <= row["per_second"] <= row["fastest"]
        assert row["first_call_seconds"] > 0
    assert "generation (mixed_bfloat16)" in capsys.readouterr().out


def test_a_peer_that_is_left_out_has_no_ratio():
    peak = benchmark_workloads.PEAK
    training = ("training", "mixed_bfloat16")
    names = {peak: (1.0, None), training: (1.0, None)}
    ones = dict.fromkeys(names, 1.0)
    seconds = dict.fromkeys(names, [1.0])
    for workloads, keys in ((names, set()), ({}, {"ratio_to_torch"})):
        workloads = {**names, **workloads}
        if keys:
            workloads["training", "float32, torch"] = (1.0, None)
            seconds["training", "float32, torch"] = [2.0]
            ones["training", "float32, torch"] = 1.0
        rows = benchmark.make_rows(
            workloads, ones, ones, seconds, {"training": 1e9}, ["torch"]
        )
        [row] = [row for row in rows if row["how"] == "mixed_bfloat16"]
        assert keys == {name for name in row if name.startswith("ratio")}


def test_multiply_adds_of_the_paper():
    # Counted from Tables 1 and 2 by another script, with 1000 classes.
    generator, discriminator = benchmark_workloads.multiply_adds(64, 96)
    fewer_classes = 1000 - benchmark_workloads.NUM_CLASSES
    assert generator == 8_794_400_768 - fewer_classes * 128
    assert discriminator == 8_483_993_088 - fewer_classes * 16 * 96


def test_peer_that_is_not_there(tmp_path):
    with pytest.raises(errors.InputError, match="No module named"):
        benchmark.main([f"--peer={tmp_path}"])


def test_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(benchmark_gradients, "prepare", lambda options: None)
    monkeypatch.setattr(
        benchmark_gradients,
        "make_workloads",
        lambda options: {("gradients", "float32"): (1, None)},
    )
    with pytest.raises(errors.InputError, match="gradients. Received: rend"):
        benchmark.main(["--gradients", "--only=rendering"])
    # The peak, which is measured in any case, is none.
    monkeypatch.setattr(
        benchmark.workloads_lib,
        "make_workloads",
        lambda options: {benchmark_workloads.PEAK: (1, None)},
    )
    with pytest.raises(errors.InputError, match="training. Received: rend"):
        benchmark.main(["--only=rendering"])


def test_peer_of_another_size(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--peer=x", "--image-size=32"])
    assert "expected --image-size 64" in capsys.readouterr().err
