import importlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kinv import errors
from kinv.data import datasets
from tools import demo

NAMES = ["classifier", "inversion", "export", "invert"]


class FakeSource:
    """The first images of a test split."""

    class_names = ["red sphere", "blue cube"]

    def evaluation_batches(self, image_size, batch_size, limit):
        pixels = np.arange(limit, dtype="float32")[:, None, None, None]
        images = np.broadcast_to(
            pixels, (limit, image_size, image_size, 3)
        ).copy()
        labels = np.arange(limit) % 2
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(
            batch_size
        )


class FakeTools:
    """Stands in for `subprocess`: leaves the files that the tools leave.

    Args:
        out: directory of the demo.
        fails: name of a stage that ends with `status`.
        status: exit status.
    """

    def __init__(self, out, fails=None, status=2):
        self.out, self.fails, self.status = out, fails, status
        self.ran = []

    def run(self, command):
        tool = pathlib.Path(command[1]).stem
        self.ran.append(tool)
        stages = demo.stages(demo.parse_arguments([f"--out={self.out}"]))
        tools = ["train_classifier", "train", "export", "invert"]
        name = NAMES[tools.index(tool)]
        _, left = stages[name]
        left.parent.mkdir(parents=True, exist_ok=True)
        if tool == "train":
            # As after every epoch, whether or not the run is over.
            left.write_text("weights")
        if name == self.fails:
            return subprocess.CompletedProcess(command, self.status)
        result = {
            "train_classifier": left.with_name("metrics.json"),
            "export": left / "1" / "assets.extra" / "kinv.json",
        }.get(tool, left)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps({"metrics": METRICS}))
        if tool == "train_classifier":
            left.write_text("weights")
        return subprocess.CompletedProcess(command, 0)


METRICS = {
    "images": 1000,
    "accuracy": 0.9925,
    "agreement": 0.625,
    "agreement_interval": [0.5946, 0.6545],
    "logit_cosine": 0.9,
    "error_ratio": 0.57,
    "error_ratio_interval": [0.55, 0.59],
    "pixel_mse": 300.0,
    "shuffled_pixel_mse": 4000.0,
}


@pytest.fixture
def run_demo(tmp_path, monkeypatch):
    """Runs the demo with fake tools; returns the tools that ran."""

    def fake_dataset(name, split):
        assert (name, split) == ("kinv_scenes/32", "test")
        return FakeSource()

    def run(**options):
        tools = FakeTools(tmp_path / "demo", **options)
        monkeypatch.setattr(demo, "subprocess", tools)
        try:
            demo.main([f"--out={tmp_path / 'demo'}"])
        finally:
            run.ran = tools.ran
        return tools.ran

    monkeypatch.setattr(datasets, "open_dataset", fake_dataset)
    return run


def stages(*flags):
    return demo.stages(demo.parse_arguments(flags))


def test_each_stage_reads_what_an_earlier_one_writes():
    commands = {name: command for name, (command, _) in stages().items()}
    assert list(commands) == NAMES

    def flag(name, word):
        return commands[name][commands[name].index(word) + 1]

    assert flag("inversion", "--classifier") == str(
        pathlib.Path(flag("classifier", "--out"), "classifier.keras")
    )
    assert flag("export", "--run") == flag("inversion", "--out")
    assert flag("invert", "--model") == flag("export", "--out")
    # The pipelines that the repository carries stay as they are.
    for name in NAMES:
        assert flag(name, "--out").startswith("runs/demo/")


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_the_tools_take_the_commands(number):
    (interpreter, tool, *flags), _ = list(stages().values())[number]
    assert interpreter == sys.executable
    assert pathlib.Path(tool).is_file()
    module = importlib.import_module(f"tools.{pathlib.Path(tool).stem}")
    options = module.parse_arguments(flags)
    # Trainings go on where they were stopped, or begin.
    assert getattr(options, "resume", True)


def test_ends_with_figures_and_paths(tmp_path, capsys, run_demo):
    assert run_demo() == ["train_classifier", "train", "export", "invert"]
    output = capsys.readouterr().out
    assert "accuracy of the classifier: 99.2%\n" in output
    assert "class: 62.5% (59.5% to 65.5%)\n" in output
    assert "0.570 (0.550 to 0.590): the noise says 0.98 of" in output
    for name in NAMES:
        assert re.search(rf"\n{name} +\d+ s\n", output)
    out = tmp_path / "demo"
    assert output.endswith(f"grid        {out / 'grid.png'}\n")


def test_writes_the_first_held_out_images(tmp_path, run_demo):
    run_demo()
    paths = sorted((tmp_path / "demo" / "images").iterdir())
    assert len(paths) == demo.NUM_IMAGES
    assert [path.name for path in paths[:2]] == [
        "0-red-sphere.png",
        "1-blue-cube.png",
    ]
    for value, path in enumerate(paths):
        with PIL.Image.open(path) as image:
            assert image.size == (32, 32)
            assert image.getpixel((0, 0)) == (value,) * 3


def test_what_is_done_is_skipped(capsys, run_demo):
    run_demo()
    assert run_demo() == []
    assert capsys.readouterr().out.count("done before") == len(NAMES)


def test_an_export_stopped_at_its_end_is_followed_by_another(
    tmp_path, capsys, run_demo
):
    run_demo()
    exported = tmp_path / "demo" / "exported"
    (exported / "10").mkdir()
    shutil.copytree(exported / "1", exported / "10", dirs_exist_ok=True)
    run_demo()
    assert f"exported    {exported / '10'}\n" in capsys.readouterr().out


def test_goes_on_where_it_failed(capsys, run_demo):
    with pytest.raises(SystemExit) as exit_info:
        run_demo(fails="inversion", status=2)
    assert exit_info.value.code == 2
    assert run_demo.ran == ["train_classifier", "train"]
    assert "'inversion' failed" in capsys.readouterr().err
    # Though the generator of its first epochs is there.
    assert run_demo() == ["train", "export", "invert"]


def test_a_killed_tool_is_a_failure(run_demo):
    with pytest.raises(SystemExit) as exit_info:
        run_demo(fails="export", status=-9)
    assert exit_info.value.code == 1


def test_leaves_the_folder_of_something_else_alone(tmp_path, run_demo):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("x")
    with pytest.raises(errors.InputError, match="holds files"):
        run_demo()
    assert run_demo.ran == []
