"""The benchmark of the server runs; its speed is not tested."""

import contextlib
import itertools
import json
import pathlib
import threading
import time
import types

import pytest

from kinv import errors
from tools import benchmark_serving

ROOT = pathlib.Path(__file__).parent.parent


def test_what_cannot_be_served_is_one_line():
    # A version, where the directory of all of them is wanted.
    model = f"{ROOT}/exported/scenes32-robust/1"
    with pytest.raises(errors.InputError, match="ended with status 2"):
        benchmark_serving.main([f"--model={model}"])


def test_a_call_that_fails_ends_it_all():
    class Gone(OSError):
        pass

    calls = itertools.count()

    @contextlib.contextmanager
    def make_caller():
        def call():
            if next(calls) > 20:
                raise Gone

        yield call

    start = time.monotonic()
    with pytest.raises(Gone):
        benchmark_serving.call_for(60, make_caller, clients=4)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("clients", [2, 3])
def test_calls_are_counted_over_the_time_they_took(monkeypatch, clients):
    def call_for(seconds, make_caller, clients):
        # A hundred calls a second of each client, and half a second more.
        seconds += 0.5
        return [0.01] * round(100 * seconds * clients), seconds

    monkeypatch.setattr(benchmark_serving, "call_for", call_for)
    monkeypatch.setattr(benchmark_serving, "CLIENTS", clients)
    rows = benchmark_serving.measure_protocol(
        "REST", None, lambda: types.SimpleNamespace(rss=0)
    )
    found = {row["clients"]: row["calls_per_second"] for row in rows}
    assert found == {1: 100.0, clients: 100.0 * clients}


@pytest.mark.slow
def test_a_server_that_dies_is_one_line(monkeypatch):
    start_server = benchmark_serving.start_server
    started = []

    def start(*arguments):
        server, addresses = start_server(*arguments)
        started.append(server)
        threading.Timer(3, server.kill).start()
        return server, addresses

    monkeypatch.setattr(benchmark_serving, "start_server", start)
    monkeypatch.setattr(benchmark_serving, "SECONDS", 300)
    model = f"{ROOT}/exported/scenes32-robust"
    with pytest.raises(errors.InputError, match="answers every call"):
        benchmark_serving.main([f"--model={model}"])
    assert started[0].poll() is not None


@pytest.mark.slow
def test_measures_a_server(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_serving, "CLIENTS", 3)
    monkeypatch.setattr(benchmark_serving, "SECONDS", 1.0)
    path = tmp_path / "figures.json"
    benchmark_serving.main(
        [
            f"--model={ROOT}/exported/scenes32-robust",
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
