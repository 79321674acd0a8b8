"""What one report leaves for the next, in the user's cache."""

import pathlib

import numpy as np
import pytest

from kinv.analysis import cache

KEY = ["digest", 32, None, [1.25]]
ARRAYS = {"condition": np.arange(12.0).reshape(4, 3), "classes": np.arange(4)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_arrays_are_kept_under_their_key():
    assert cache.load(KEY) is None
    cache.store(KEY, ARRAYS)
    kept = cache.load(KEY)
    assert kept.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(kept[name], array)
    assert cache.load([*KEY[:3], [1.26]]) is None


def test_a_damaged_entry_is_none(home):
    cache.store(KEY, ARRAYS)
    [path] = home.rglob("*.npz")
    intact = path.read_bytes()
    # In the middle of an array, and cut off.
    flipped = bytearray(intact)
    flipped[intact.index(ARRAYS["condition"].tobytes()) + 40] ^= 1
    for damaged in (bytes(flipped), intact[:100], b""):
        path.write_bytes(damaged)
        assert cache.load(KEY) is None
    # Every bit, of what the archive says of itself, too.
    for place in range(8 * len(intact)):
        flipped = bytearray(intact)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = cache.load(KEY)
        assert found is None or (
            found.keys() == ARRAYS.keys()
            and all((found[x] == ARRAYS[x]).all() for x in ARRAYS)
        )
    cache.store(KEY, ARRAYS)
    assert cache.load(KEY) is not None


def test_the_oldest_make_room(monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 3000)
    for number in range(3):
        cache.store([number], {"array": np.zeros(100)})
    assert [cache.load([number]) is None for number in range(3)] == [
        *(True, False, False)
    ]
    # One that leaves no room for others is not kept.
    monkeypatch.setattr(cache, "MOST_BYTES_OF_ONE", 100)
    cache.store(["large"], {"array": np.zeros(100)})
    assert cache.load(["large"]) is None


def test_without_a_home_nothing_is_kept(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", home)
    cache.store(KEY, ARRAYS)
    assert cache.load(KEY) is None


def test_a_cache_that_cannot_be_written_is_no_obstacle(home):
    (home / "kinv").write_text("a file")
    cache.store(KEY, ARRAYS)
    assert cache.load(KEY) is None
