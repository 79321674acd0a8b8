import csv
import json
import os
import pathlib
import shutil
import types

import keras
import numpy as np
import PIL.Image
import pytest
from ai_edge_litert import interpreter as litert

from kinv import cli, errors, files, images, pixels
from kinv.analysis import diversity, held_out, report
from kinv.classifiers import small
from kinv.inversion import export, model_card, networks, noise_scale
from kinv.serving import pipeline
from tools import benchmark, benchmark_serving, invert, serve
from tools import export as export_tool

# Of two updates an epoch; the second has the lowest energy score.
METRICS = """\
epoch,val_agreement,val_within_class_r2,val_shuffled_logit_error,val_error_ratio,val_spread_skill,val_energy_score,kept
1,0.9,0.5,2.1,0.56,1.0,0.4,1.0
2,0.9,0.5,2.1,0.56,1.0,0.3,1.0
3,0.9,0.5,2.1,0.56,1.0,0.5,0.0
4,0.9,0.5,2.1,0.56,1.0,0.5,0.0
"""
COLORS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (210, 30, 30)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What `tools/train.py` leaves, without its training."""
    root = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    for split, number in (("train", 12), ("validation", 5)):
        for name, color in COLORS.items():
            folder = root / "colors" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                image = random.normal(color, 20, (40, 48, 3))
                images.write_image(folder / f"{index}.png", image)
    keras.utils.set_random_seed(0)
    small.build_classifier(16, 3, 4).save(root / "classifier.keras")
    generator = networks.Generator(
        32, 3, 4, noise_dim=8, embedding_dim=4, gain_offset=1, attention=False
    )
    generator.save(root / "generator.keras")
    config = {
        "options": {
            "dataset": str(root / "colors"),
            "classifier": str(root / "classifier.keras"),
            "preset": "small",
            "batch_size": 12,
            "seed": 0,
            "train_split": "train",
            "validation_split": "validation",
            "strategy": "mirrored",
            "skip_unreadable": False,
            "crop": "random",
            "steps": 7,
            "steps_per_epoch": 2,
            "score_weight": 20.0,
        },
        "class_names": list(COLORS),
        "generator": generator.get_config(),
        "versions": {"keras": "3"},
        "git_commit": None,
    }
    (root / "config.json").write_text(json.dumps(config))
    (root / "metrics.csv").write_text(METRICS, "utf-8")
    return root


def export_command(run, out):
    return [
        f"--run={run}",
        f"--out={out}",
        "--statistics-examples=40",
        "--validation-examples=10",
    ]


@pytest.fixture(scope="module")
def exported(run):
    out = run / "exported" / "colors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_tool, "FEWEST_SCALE_EXAMPLES", 2)
        export_tool.main(export_command(run, out))
    return out


def test_noise_that_no_scale_mends_is_told(rendered, monkeypatch, capsys):
    monkeypatch.setattr(export_tool, "FEWEST_SCALE_EXAMPLES", 20)
    monkeypatch.setattr(noise_scale, "fit", lambda *args, **options: 0.3)
    generator = types.SimpleNamespace(noise_dim=4, noise_scale=1.0)
    classifier = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    found = export_tool.scale_noise(
        generator, classifier, rendered("test", 40), 1000, 10
    )
    assert found["noise_scale"] == 1
    assert "it said 0.30 of what is left open, which no scale" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("measured, first", [(10, 10), (25, 0), (1000, 0)])
def test_the_noise_is_scaled_by_other_images_if_there_are(
    measured, first, rendered, monkeypatch
):
    monkeypatch.setattr(export_tool, "FEWEST_SCALE_EXAMPLES", 20)
    monkeypatch.setattr(export_tool, "SCALE_EXAMPLES", 25)
    source = rendered("test", 40)
    [(every, _)] = source.evaluation_batches(32, 40)
    classifier = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    generator, seen = types.SimpleNamespace(noise_dim=4, noise_scale=1.0), []

    def fit(generator, pairs, seed, verbose):
        seen.extend(pairs)
        generator.noise_scale = 0.5
        return 2.0

    monkeypatch.setattr(noise_scale, "fit", fit)
    found = export_tool.scale_noise(generator, classifier, source, measured, 10)
    among_measured = first < measured
    assert found["noise_scaled_by"] == {
        "images": 25,
        "among_measured": among_measured,
    }
    images, conditions = zip(*seen, strict=True)
    # Three batches of one size.
    assert [len(batch) for batch in images] == [8, 8, 8]
    np.testing.assert_array_equal(
        np.concatenate(images), every[first : first + 24]
    )
    np.testing.assert_allclose(
        np.concatenate(conditions),
        np.concatenate(images).mean(axis=(1, 2)),
        rtol=1e-5,
    )


def test_few_images_scale_no_noise(rendered, capsys):
    generator = types.SimpleNamespace(noise_dim=4, noise_scale=1.0)
    source = rendered("test", 40)
    found = export_tool.scale_noise(generator, None, source, 10, 250)
    assert found == {"noise_scale": 1.0}
    assert "too few held-out images" in capsys.readouterr().out
    assert generator.noise_scale == 1.0


def test_export_measures_the_exported_model(run, exported):
    text = (exported / "1" / "assets.extra" / "kinv.json").read_text()
    assert str(run) not in text
    metadata = json.loads(text)
    assert "strategy" not in metadata["training"]
    assert metadata["class_names"] == list(COLORS)
    assert metadata["dataset"] == "colors"
    assert metadata["training"]["steps"] == 7
    assert metadata["training"]["updates"] == 4
    assert metadata["classifier_size"] == 16
    # Forty, rounded up to whole batches of the 36 training images.
    assert metadata["export"]["statistics_examples"] == 72
    assert 0.5 <= metadata["export"]["noise_scale"] <= 1.5
    assert metadata["export"]["noise_scaled_by"]["among_measured"] is False
    of_these = {
        **metadata,
        "export": {"noise_scaled_by": {"among_measured": 1}},
    }
    for card, tells in (
        (model_card.text(metadata), False),
        (model_card.text(of_these), True),
    ):
        assert ("that the noise was scaled by, too" in card) == tells
    metrics = metadata["metrics"]
    assert metrics["images"] == 10
    low, high = metrics["agreement_interval"]
    assert 0 <= low <= metrics["agreement"] <= high + 1e-9 <= 1.1
    assert -1 <= metrics["logit_cosine"] <= 1.001
    assert metrics["pixel_mse"] > 0 and metrics["shuffled_pixel_mse"] > 0
    low, high = metrics["error_ratio_interval"]
    assert 1 / 8 < low <= metrics["error_ratio"] <= high <= 1
    assert all(x >= 1 / 8 for x in metrics["error_ratio_thirds"].values())
    assert "thirds of the images" in model_card.text(metadata)
    assert metrics["spread_skill"] >= 0


def test_without_its_lite_model_nothing_is_exported(run, tmp_path, monkeypatch):
    def lite_model(*networks):
        # What is written so far has no number yet.
        assert list(out.iterdir()) and not files.versions(out)
        raise errors.InputError("Expected operators that LiteRT has.")

    monkeypatch.setattr(export, "lite_model", lite_model)
    out = tmp_path / "out"
    with pytest.raises(errors.InputError, match="that LiteRT has"):
        export_tool.main(
            [*export_command(run, out), f"--lite={tmp_path / 'a.tflite'}"]
        )
    assert not out.exists() or not list(out.iterdir())


def test_an_export_needs_a_directory(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="directory to write to"):
        export_tool.main(export_command(run, tmp_path / "file"))


def test_second_export_equals_the_first(run, exported, capsys):
    lite = run / "colors.tflite"
    # Versions count up from the highest.
    (exported / "7").mkdir()
    (exported / "notes").mkdir()
    export_tool.main([*export_command(run, exported), f"--lite={lite}"])
    output = capsys.readouterr().out
    assert f"exported: {lite}" in output
    # What LiteRT makes of it is what the SavedModel does.
    random = np.random.default_rng(0)
    image = random.uniform(0, 255, (1, 16, 16, 3)).astype("float32")
    noise = random.standard_normal((1, 8), "float32")
    converted = litert.Interpreter(str(lite))
    found = converted.get_signature_runner()(images=image, noise=noise)
    model = pipeline.Pipeline.load(exported)
    np.testing.assert_allclose(found["logits"], model.logits(image), atol=1e-4)
    np.testing.assert_allclose(
        found["reconstructions"][None],
        model.reconstruct(image, noise[None]),
        atol=0.1,
    )
    assert f"exported: {exported / '8'} (" in output
    assert "agreement" in output and "95 % interval" in output
    assert "of what the generator leaves open" in output
    first, second = (
        pipeline.Pipeline.load(exported / version) for version in "18"
    )
    assert first.metadata["metrics"] == second.metadata["metrics"]
    noise = np.ones((2, 8))
    np.testing.assert_array_equal(
        first.generate(np.eye(2, 3), noise),
        second.generate(np.eye(2, 3), noise),
    )


class Constant:
    """A model whose figures can be told by hand.

    Two classes, dark and bright; every reconstruction is grey of 100.
    """

    image_size = 16
    noise_dim = 2
    metadata = {}
    target = pipeline.Pipeline.target

    def logits(self, batch):
        bright = np.asarray(batch).mean(axis=(1, 2, 3)) > 99
        return np.stack([~bright, bright], axis=-1).astype("float32")

    def reconstruct(self, batch, noise):
        return np.full((*noise.shape[:2], 16, 16, 3), 100.0, "float32")


def test_measures_on_a_model_told_by_hand():
    levels = np.array([90.0, 110.0, 120.0], "float32")
    batch = np.broadcast_to(levels[:, None, None, None], (3, 16, 16, 3))
    batches = [(batch, np.array([0, 1, 0])), (batch[:1], np.array([0]))]
    bar = keras.utils.Progbar(4, verbose=0)
    metrics = held_out.measure(Constant(), batches, bar, 0)
    assert metrics["images"] == 4
    assert metrics["accuracy"] == 0.75
    assert metrics["agreement"] == 0.5
    assert metrics["logit_cosine"] == 0.5
    assert metrics["pixel_mse"] == (100 + 100 + 400 + 100) / 4
    # The last batch's one image has no other to be compared with.
    assert metrics["shuffled_pixel_mse"] == (100 + 100 + 400) / 3
    # The same picture whatever the logits, and whatever the noise.
    assert metrics["within_class_r2"] == 0
    assert metrics["error_ratio"] == 1
    assert metrics["spread_skill"] == 0
    # Of too few images for thirds.
    assert "error_ratio_thirds" not in metrics


@pytest.mark.parametrize(
    "labels, accuracy", [([0, -1, 0], 0.5), ([-1, -1, -1], None)]
)
def test_labels_that_are_not_known_do_not_count(labels, accuracy):
    batch = np.full((3, 16, 16, 3), [[[[90]]], [[[110]]], [[[120]]]], "float32")
    bar = keras.utils.Progbar(3, verbose=0)
    metrics = held_out.measure(Constant(), [(batch, np.array(labels))], bar, 0)
    assert metrics["images"] == 3
    assert metrics["accuracy"] == accuracy


def test_few_images_are_described_without_an_interval():
    batch = np.full((10, 16, 16, 3), 90.0, "float32")
    metrics, enough = (
        held_out.measure(
            Constant(),
            [(batch[:count], np.zeros(count, int))],
            keras.utils.Progbar(count, verbose=0),
            0,
        )
        for count in (9, 10)
    )
    assert metrics["error_ratio_interval"] is None
    assert enough["error_ratio_interval"] == (1, 1)
    card = dict(model_card.measured({"metrics": metrics}))
    assert card["error ratio E8/E1 (.5625 is calibrated)"].startswith("1.000: ")
    models = {"a": {"exported": metrics}}
    [found] = report._calibration(models, {})
    assert found["error_ratio"] == {"value": 1, "low": None, "high": None}


class Spread(Constant):
    """Reconstructions whose values have so much spread about a mean of 100."""

    noise_dim = 16 * 16 * 3

    def __init__(self, spread):
        self.spread = spread

    def reconstruct(self, batch, noise):
        made = 100 + self.spread * noise
        return made.reshape(*noise.shape[:2], 16, 16, 3)


@pytest.mark.parametrize("spread", [5, 10, 20])
def test_export_measures_whether_the_noise_is_calibrated(spread):
    """Images of values of standard deviation 10, which no logits tell."""
    random = np.random.default_rng(1)
    batch = random.normal(100, 10, (500, 16, 16, 3)).astype("float32")
    batches = [(batch, np.zeros(500, int))]
    bar = keras.utils.Progbar(500, verbose=0)
    metrics = held_out.measure(Spread(spread), batches, bar, 0)
    # A = 100, s^2 = spread^2.
    expected = (100 + spread**2 / 8) / (100 + spread**2)
    assert metrics["error_ratio"] == pytest.approx(expected, rel=0.01)
    low, high = metrics["error_ratio_interval"]
    assert low < metrics["error_ratio"] < high < 1.1 * low
    assert metrics["spread_skill"] == pytest.approx(spread / 10, rel=0.03)
    # All vary alike, whatever third they are put into by chance.
    thirds = metrics["error_ratio_thirds"].values()
    assert list(thirds) == pytest.approx([expected] * 3, rel=0.02)
    of_chance = metrics["flat_rank_distance"]
    assert (metrics["rank_distance"] < 2 * of_chance) == (spread == 10)


def test_outputs_have_a_folder_before_anything_is_computed(run, tmp_path):
    missing = tmp_path / "missing" / "file"
    for main, command in (
        (export_tool.main, [*export_command(run, tmp_path), "--lite"]),
        (serve.main, ["--model=exported/scenes32-robust", "--page"]),
        (benchmark.main, ["--json"]),
        (benchmark_serving.main, ["--model=exported/any", "--json"]),
    ):
        with pytest.raises(errors.InputError, match="existing folder to write"):
            main([*command, str(missing)])
    assert not list(tmp_path.iterdir())


def test_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("No space left on device")

    def ready(*args, **kwargs):
        pass

    monkeypatch.setattr(export, "write_metadata", full_disk)
    monkeypatch.setattr(networks.Generator, "fold_spectral_norms", ready)
    monkeypatch.setattr(networks.Generator, "fill_standing_statistics", ready)
    with pytest.raises(OSError, match="No space"):
        export_tool.main(export_command(run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_export_of_what_is_no_run(run, tmp_path):
    def copy(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in ("config.json", "classifier.keras", "generator.keras"):
            shutil.copy(run / name, folder)
        change(folder)
        return folder

    def expect(folder, message):
        with pytest.raises(errors.InputError, match=message):
            export_tool.main(export_command(folder, tmp_path / "out"))

    expect(tmp_path / "missing", "config.json, which does not exist")
    expect(
        copy(lambda folder: (folder / "config.json").write_text("{}")),
        "Expected a run of tools/train.py",
    )
    expect(
        copy(lambda folder: (folder / "generator.keras").unlink()),
        "finished an epoch",
    )
    expect(
        copy(
            lambda folder: small.build_classifier(16, 4, 4).save(
                folder / "classifier.keras"
            )
        ),
        "classifier of 3 logits",
    )


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(1)
    for name, shape in (("a.png", (20, 30)), ("b.png", (64, 64))):
        image = random.uniform(0, 255, (*shape, 3))
        images.write_image(folder / name, image)
    return folder


def test_invert_writes_grid_images_and_logits(
    exported, pictures, tmp_path, capsys
):
    command = [
        str(pictures),
        str(pictures / "b.png"),
        f"--model={exported}",
        "--samples=3",
        f"--out={tmp_path / 'grid.png'}",
        f"--images-out={tmp_path / 'single'}",
        f"--logits-out={tmp_path / 'logits.csv'}",
    ]
    invert.main(command)
    output = capsys.readouterr().out
    assert f"written: {tmp_path / 'grid.png'}" in output
    assert "of 3 reconstructions of 3 images" in output
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        # Four cells wide, three high.
        assert grid.width > 4 * 128 and grid.height > 3 * 128
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert len(names) == 9 and names[0] == "00000-a-0.png"
    one = images.read_image(tmp_path / "single" / names[-1])
    assert one.shape == (32, 32, 3)

    with open(tmp_path / "logits.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", *COLORS]
    assert [row[0] for row in rows][1:] == [str(pictures / "b.png")] * 2
    image = images.read_image(pictures / "b.png")[None]
    expected = pipeline.Pipeline.load(exported).logits(image)[0]
    np.testing.assert_allclose(
        [float(x) for x in rows[1][1:]], expected, rtol=1e-4
    )


def test_the_most_different_and_their_deviation(
    exported, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(invert, "CANDIDATES", 20)
    grid = tmp_path / "grid.png"
    single = tmp_path / "single"
    flags = ("--diverse=4", "--uncertainty", f"--out={grid}")
    flags += (f"--images-out={single}", f"--model={exported}")
    invert.main([str(pictures / "b.png"), *flags])
    printed = capsys.readouterr().out
    model = pipeline.Pipeline.load(exported)
    image = images.read_image(pictures / "b.png")
    found = diversity.find(model, image, 4, 20)
    for path, picture in zip(
        sorted(single.iterdir()), found.reconstructions, strict=True
    ):
        written = images.read_image(path)
        np.testing.assert_array_equal(written, pixels.to_uint8(picture))
    assert f"b.png: pictures {found.spread:.0f} of 255 apart" in printed
    with PIL.Image.open(grid) as picture:
        # The image, four reconstructions, their deviation.
        assert 6 * 128 < picture.width < 8 * 128 + 60


def test_a_grid_holds_the_first_reconstructions(
    exported, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(invert, "MAX_COLUMNS", 2)
    command = [str(pictures), f"--model={exported}", "--samples=3"]
    command += [f"--out={tmp_path / 'grid.png'}", "--uncertainty"]
    invert.main([*command, f"--images-out={tmp_path / 'single'}"])
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        # The image, two reconstructions, the deviation of all three.
        assert 4 * 128 < grid.width < 5 * 128 + 120
    assert len(list((tmp_path / "single").iterdir())) == 6
    printed = capsys.readouterr().out
    assert "the grid holds the first 2 reconstructions" in printed


def test_invert_repeats_itself(exported, pictures, tmp_path):
    for name in "xy":
        invert.main(
            [
                str(pictures / "a.png"),
                f"--model={exported / '1'}",
                f"--out={tmp_path / name}.png",
                f"--logits-out={tmp_path / name}.npy",
            ]
        )
    assert (tmp_path / "x.png").read_bytes() == (
        tmp_path / "y.png"
    ).read_bytes()
    logits = np.load(tmp_path / "x.npy")
    assert logits.shape == (1, 3) and logits.dtype == np.float32


def test_invert_wrong_input_leaves_nothing(exported, pictures, tmp_path):
    (pictures / "c.png").write_bytes(b"no image")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    folder.with_suffix(".png").mkdir()
    good = {
        "image": pictures / "a.png",
        "--model": exported,
        "--out": tmp_path / "grid.png",
        "--images-out": tmp_path / "single",
    }
    cases = [
        ({"image": pictures / "missing.png"}, "does not exist"),
        ({"image": pictures}, "c.png"),
        ({"--model": tmp_path / "missing"}, "does not exist"),
        ({"--model": pictures}, "no SavedModel"),
        ({"--out": tmp_path / "missing" / "grid.png"}, "Create it first"),
        ({"--out": folder.with_suffix(".png")}, "Name a file in it"),
        ({"--logits-out": folder}, "Name a file in it"),
        ({"--images-out": tmp_path / "missing" / "single"}, "Create it first"),
        ({"--images-out": pictures}, "holds files"),
    ]
    for change, message in cases:
        options = {**good, **change}
        command = [str(options.pop("image"))]
        command += [f"{name}={value}" for name, value in options.items()]
        with pytest.raises(errors.InputError, match=message):
            invert.main(command)
        assert not (tmp_path / "grid.png").exists()
        assert not list(tmp_path.glob("single/*"))
        assert not list(tmp_path.glob(".writing*"))


def test_a_folder_that_may_not_be_written_is_found_before_the_work(
    pictures, tmp_path, monkeypatch
):
    # Root, which tests may run as, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(errors.InputError, match=f"{tmp_path}, which is read-"):
        invert.main(
            [
                *("--model", "none", str(pictures)),
                *("--out", str(tmp_path / "grid.png")),
            ]
        )
    # A folder that is there may be written to, whatever holds it.
    (tmp_path / "mounted").mkdir()
    cli.check_parent(tmp_path / "mounted")


def test_no_image_is_overwritten(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(images.list_images(pictures)[0][0], "mine.png")
    content = pathlib.Path("mine.png").read_bytes()
    with pytest.raises(
        errors.InputError, match="neither images nor each other"
    ):
        invert.main(
            [*("--model", "none", "./mine.png"), *("--out", "mine.png")]
        )
    assert pathlib.Path("mine.png").read_bytes() == content
    with pytest.raises(
        errors.InputError, match=r"https://example.org/a.png, an address"
    ):
        invert.main(
            [
                *("--model", "none", "https://example.org/a.png"),
                *("--out", "b.png"),
            ]
        )


def test_a_version_is_not_taken_for_its_directory(run, tmp_path, exported):
    path = str(next(iter(pipeline.versions(exported).values())))
    command = export_command(run, path)
    with pytest.raises(errors.InputError, match=f"{path}, which is a version"):
        export_tool.main(command)
    with pytest.raises(errors.InputError, match=f"{path}, which is a version"):
        serve.main(["--model", path])


def test_unreadable_images_are_left_out_where_that_is_asked(
    exported, pictures, tmp_path, capsys
):
    (pictures / "a0.png").write_bytes(b"no image")
    (pictures / "notes.txt").touch()
    command = [
        str(pictures),
        f"--model={exported}",
        f"--out={tmp_path / 'grid.png'}",
        f"--logits-out={tmp_path / 'logits.csv'}",
        "--samples=1",
    ]
    with pytest.raises(errors.InputError, match="a0.png.*--skip-unreadable"):
        invert.main(command)
    invert.main([*command, "--skip-unreadable"])
    output = capsys.readouterr().out
    assert f"left out of {pictures}: 1 .txt" in output
    assert "left out 1 unreadable images" in output and "a0.png" in output
    with open(tmp_path / "logits.csv", newline="") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    assert names == [str(pictures / name) for name in ("a.png", "b.png")]


def test_what_was_made_survives_what_stops_the_rest(
    exported, pictures, tmp_path, monkeypatch, capsys
):
    read = images.read_image

    def vanish(path):
        if path.name == "b.png":
            raise errors.InputError("gone")
        return read(path)

    monkeypatch.setattr(images, "read_image", vanish)
    with pytest.raises(errors.InputError, match="gone"):
        invert.main(
            [
                str(pictures),
                f"--model={exported}",
                f"--out={tmp_path / 'grid.png'}",
                f"--images-out={tmp_path / 'single'}",
                f"--logits-out={tmp_path / 'logits.npy'}",
                "--samples=2",
            ]
        )
    assert f"written: {tmp_path / 'grid.png'}" in capsys.readouterr().out
    assert len(np.load(tmp_path / "logits.npy")) == 1
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert names == ["00000-a-0.png", "00000-a-1.png"]


@pytest.mark.parametrize(
    "name",
    [
        b"caf\xe9",
        b"two\nlines",
        b"a" * 231,
        "ä".encode() * 110 + b"\xff",
        b"$x^2 {} % \\",
    ],
)
def test_any_file_name_will_do(exported, pictures, tmp_path, name, capsys):
    folder = os.fsencode(tmp_path) + b"/any"
    os.mkdir(folder)
    path = os.path.join(folder, name + b".png")
    shutil.copy(pictures / "a.png", path)
    invert.main(
        [
            os.fsdecode(path),
            f"--model={exported}",
            f"--out={tmp_path / 'grid.png'}",
            f"--images-out={tmp_path / 'single'}",
            f"--logits-out={tmp_path / 'logits.csv'}",
            "--samples=1",
        ]
    )
    (written,) = (tmp_path / "single").iterdir()
    start = written.name.removeprefix("00000-").removesuffix("-0.png")
    replaced = name.decode("utf-8", "replace").replace("\n", "\ufffd")
    assert replaced.startswith(start) and len(start) >= min(len(replaced), 75)
    text = (tmp_path / "logits.csv").read_text(encoding="utf-8")
    assert replaced in text.replace('""', '"')


@pytest.mark.parametrize(
    "flags",
    [
        ["--samples=0"],
        ["--seed=-1"],
        ["--out=grid.jpg"],
        ["--logits-out=a.txt"],
        ["--diverse=257"],
        ["--diverse=1"],
        ["--uncertainty", "--samples=1"],
    ],
)
def test_invert_wrong_flags(flags, capsys):
    command = ["image.png", "--model=model", "--out=grid.png", *flags]
    with pytest.raises(SystemExit) as caught:
        invert.main(command)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_captions_give_the_softmax_probability():
    logits = np.log(np.array([1.0, 3.0, 0.0001], "float32"))
    assert invert.describe(logits, list(COLORS)) == "75% green"
