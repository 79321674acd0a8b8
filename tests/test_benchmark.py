"""The benchmark runs; how fast is shown by its ratios, not tested."""

import json
import pathlib

import pytest

from kinv import errors
from tools import benchmark

ROOT = pathlib.Path(__file__).parent.parent


def test_measures_each_workload_in_each_precision(tmp_path, capsys):
    path = tmp_path / "figures.json"
    benchmark.main(
        [
            "--base-channels=4",
            "--batch-size=2",
            "--rounds=2",
            "--steps=1",
            f"--json={path}",
        ]
    )
    figures = json.loads(path.read_text())["figures"]
    assert {(row["workload"], row["precision"]) for row in figures} == {
        (workload, precision)
        for workload in ("training", "generation")
        for precision in ("float32", "mixed_bfloat16")
    }
    for row in figures:
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        if row["precision"] == "float32":
            assert row["ratio_to_float32"] == pytest.approx(1)
    assert "generation   mixed_bfloat16" in capsys.readouterr().out


def test_what_cannot_be_served_is_one_line():
    # A version, where the directory of all of them is wanted.
    model = f"{ROOT}/exported/scenes32-robust/1"
    with pytest.raises(errors.InputError, match="ended with status 2"):
        benchmark.main([f"--serve={model}"])


def test_measures_a_server(tmp_path, capsys):
    path = tmp_path / "figures.json"
    benchmark.main(
        [
            f"--serve={ROOT}/exported/scenes32-robust",
            "--clients=3",
            "--seconds=1",
            f"--json={path}",
        ]
    )
    figures = json.loads(path.read_text())["figures"]
    assert [(row["protocol"], row["clients"]) for row in figures] == [
        ("gRPC", 1),
        ("gRPC", 3),
        ("REST", 1),
        ("REST", 3),
    ]
    for row in figures:
        assert row["calls"] > 1
        assert 0 < row["median_ms"] <= row["percentile_99_ms"]
    assert "no call failed" in capsys.readouterr().out
