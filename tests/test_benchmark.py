"""The benchmark runs; how fast is shown by its ratios, not tested."""

import json

import pytest

from tools import benchmark


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
