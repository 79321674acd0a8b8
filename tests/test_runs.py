"""The directory of a run, and flags that tools share."""

import pytest

from kinv import errors, files, runs


def test_a_run_is_resumed_with_its_own_options(tmp_path):
    run = tmp_path / "run"
    recorded = {"resume": False, "batch_size": 64, "steps": 100}
    assert not runs.open_run(run, recorded, {"resume"})
    # Killed before its options were written: begun again.
    assert not runs.open_run(run, {**recorded, "resume": True}, {"resume"})
    files.write_json(run / "config.json", {"options": recorded})

    more = {"resume": True, "batch_size": 64, "steps": 200}
    assert runs.open_run(run, more, {"resume", "steps"})
    with pytest.raises(errors.InputError) as error:
        runs.open_run(run, {**more, "batch_size": 32}, {"resume", "steps"})
    assert "--batch-size 64" in str(error.value)
    assert "Received: --batch-size 32" in str(error.value)
    with pytest.raises(errors.InputError, match="holds files"):
        runs.open_run(run, recorded, {"resume"})
