"""Every experiment on models whose answer is known."""

import dataclasses
import importlib
import types

import keras
import matplotlib.text
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tensorflow as tf

from kinv import errors, intervals, measures, pixels
from kinv.analysis import (
    best_fit,
    calibration,
    controls,
    distributions,
    diversity,
    factors,
    grids,
    layers_compared,
    logit_interpolation,
    manipulation,
    memorisation,
    misclassified,
    noise_interpolation,
    noise_resampling,
    probes,
    reconstructions,
    report,
    results,
    rotation,
    scene_factors,
    side_by_side,
    stability,
    two_inversions,
)
from kinv.analysis import study as study_lib
from kinv.data import scenes
from kinv.data import source as source_lib
from kinv.serving import pipeline
from tools import analyze

IMAGES = 120
SMALL = (
    (reconstructions, "IMAGES"),
    (noise_resampling, "IMAGES"),
    (diversity, "IMAGES"),
    (noise_interpolation, "IMAGES"),
    (misclassified, "IMAGES"),
    (manipulation, "IMAGES"),
    (best_fit, "IMAGES"),
    (rotation, "IMAGES"),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module, name in SMALL:
        monkeypatch.setattr(module, name, IMAGES)
    monkeypatch.setattr(logit_interpolation, "PAIRS", 10)
    monkeypatch.setattr(stability, "CLASSES", 20)
    monkeypatch.setattr(stability, "IMAGES_PER_CLASS", 2)


@pytest.fixture
def source(rendered):
    return rendered("test", 400)


def images_of(source, count):
    """The first images, as experiments read them."""
    return study_lib.Study({}, source, None, 32).first(count).images


def fake(logits_of, image_of, num_classes, image_size=32):
    """A pipeline of two functions.

    Args:
        logits_of: images to logits.
        image_of: logits `(n, num_classes)` and noise `(n, 8)` to images.
    """

    def predict(inputs):
        images = inputs["images"]
        # `generate` sends one black pixel, and its logits count for nothing.
        logits = np.zeros((1, num_classes))
        if images.shape[1] > 1:
            logits = logits_of(images)
        noise = inputs["noise"]
        scale = inputs["logit_scale"][..., None]
        conditions = logits[:, None] * scale + inputs["logit_shift"]
        conditions = np.broadcast_to(
            conditions, (*noise.shape[:2], num_classes)
        )
        pictures = image_of(
            conditions.reshape(-1, num_classes), noise.reshape(-1, 8)
        )
        shape = (*noise.shape[:2], image_size, image_size, 3)
        return {
            "logits": logits.astype("float32"),
            "reconstructions": pictures.reshape(shape).astype("float32"),
        }

    metadata = {
        "class_names": [f"class {index}" for index in range(num_classes)],
        "num_classes": num_classes,
        "noise_dim": 8,
        "image_size": image_size,
    }
    return pipeline.Pipeline(predict, metadata)


def perfect():
    """Logits are the pixels, and pictures the logits."""
    return fake(
        lambda images: images.reshape(len(images), -1) / 64,
        lambda logits, noise: np.clip(64 * logits, 0, 255),
        32 * 32 * 3,
    )


def noise_only():
    """Logits are the pixels, and pictures any noise."""

    return fake(
        lambda images: images.reshape(len(images), -1) / 64,
        lambda logits, noise: 255 * grain(noise),
        32 * 32 * 3,
    )


def grain(noise):
    """Pictures of independent values in [0, 1], which the noise decides."""
    seeds = np.abs(noise[:, 0] * 1e6).astype(int)
    pictures = [np.random.default_rng(seed).random(3072) for seed in seeds]
    return np.reshape(pictures, (-1, 32, 32, 3))


# The others take several models, or images whose factors are known.
@pytest.mark.parametrize(
    "name",
    sorted(
        set(analyze.EXPERIMENTS).difference(
            ("distributions", "factors", "layers_compared"),
            ("side_by_side", "two_inversions"),
        )
    ),
)
def test_images_are_read_at_the_size_of_each_model(name, source, monkeypatch):
    monkeypatch.setattr(calibration, "IMAGES", 20)
    monkeypatch.setattr(controls, "STEPS", 2)
    # It can take no others; beside it stands one of a larger classifier.
    model = perfect()
    model.metadata["classifier_size"] = 32
    study = study_lib.Study({"model": model}, source, lambda: source, 64)
    module = importlib.import_module(f"kinv.analysis.{name}")
    assert module.run(study).metrics["model"]


def run(module, source, **models):
    return module.run(study_lib.Study(models, source, lambda: source, 32))


def test_grey_pictures_are_compared_with_grey_images(source):
    def logits_of(images):
        grey = images @ np.array([0.299, 0.587, 0.114])
        return grey.reshape(len(images), -1) / 64

    def image_of(logits, noise):
        grey = np.clip(64 * logits, 0, 255).reshape(-1, 32, 32, 1)
        return grey.repeat(3, axis=-1)

    model = fake(logits_of, image_of, 32 * 32)
    errors = []
    for channels in (3, 1):
        model.metadata["channels"] = channels
        found = run(reconstructions, source, model=model).metrics["model"]
        errors.append(found["pixel_mse"]["value"])
    # Colours count unless pictures can have none.
    assert errors[0] > 100 and errors[1] == pytest.approx(0, abs=1e-6)


def test_reconstructions(source):
    result = run(reconstructions, source, perfect=perfect(), noise=noise_only())
    found = result.metrics
    power = {name: of.pop("power") for name, of in found.items()}
    assert all(of["value"] == 1 for of in power["perfect"].values())
    # Grain.
    assert power["noise"]["0.50 to 0.75"]["low"] > 10
    assert len(result.tables["power"]) == 10
    assert [figure.name for figure in result.figures] == ["grid", "power"]
    values = {
        key: value["value"]
        for key, value in found["perfect"].items()
        if key != "images"
    }
    assert found["perfect"]["images"] == IMAGES
    assert values["agreement"] == values["ssim"] == 1
    # No two images have their brightest pixel in common: no pair to compare.
    assert values["within_class_r2"] in (None, 1)
    assert values["pixel_mse"] == values["logit_distance"] == 0
    assert values["shuffled_pixel_mse"] > 1000
    assert found["noise"]["agreement"]["value"] < 0.1
    assert abs(found["noise"]["ssim"]["value"]) < 0.1


def test_the_widest_reconstructions(source, monkeypatch):
    monkeypatch.setattr(diversity, "CANDIDATES", 12)
    result = run(diversity, source, perfect=perfect(), noise=noise_only())
    spread = result.metrics["perfect"]["spread"]["value"]
    assert spread == pytest.approx(0, abs=1e-3)
    found = result.metrics["noise"]
    # White noise of 255 levels: bands of 16, 8, ... pixels have a quarter of
    # the variance each, but for the first, which has three quarters of it.
    variance = 255**2 / 12
    bands = [0.75 * variance / 4**band for band in range(5)]
    bands.append(variance / 4**5)
    expected = np.sqrt(2 * np.mean(bands))
    assert found["spread"]["value"] == pytest.approx(expected, rel=0.05)
    # Nothing differs more than anything else.
    assert found["widening"]["value"] == pytest.approx(1, rel=0.05)
    # The class is the brightest value; a few images have the same.
    images = images_of(source, 400)
    classes = images.reshape(400, -1).argmax(axis=-1)
    shares = []
    for number in classes[:IMAGES]:
        alike = images[classes == number]
        if len(alike) > 1:
            apart = diversity.picture_distances(alike)
            shares.append(
                expected / apart[~np.eye(len(alike), dtype=bool)].mean()
            )
    of_class = found["of_class"]["value"]
    assert of_class == pytest.approx(np.mean(shares), rel=0.05)
    [figure] = result.figures
    assert figure.name == "widest"


def test_noise_resampling(source):
    result = run(
        noise_resampling,
        source,
        robust=perfect(),
        standard=noise_only(),
    )
    assert result.metrics["robust"]["spread"]["value"] == 0
    # A uniform value of 256 levels.
    spread = result.metrics["standard"]["spread"]["value"]
    assert spread == pytest.approx(255 / 12**0.5, rel=0.02)
    [claim] = result.claims
    assert claim.verdict == "holds" and claim.value == pytest.approx(spread)
    rows = [
        row
        for row in result.tables["spread_by_factor"]
        if row["model"] == "standard" and row["factor"] == "size"
    ]
    assert [row["images"] for row in rows] == [40, 40, 40]


# Orthogonal patterns of +1 and -1: the first for what logits tell, eight more
# for what they leave open.
PATTERNS = np.repeat(
    scipy.linalg.hadamard(1024, "float32")[1:10].reshape(9, 32, 32, 1),
    3,
    axis=-1,
)


def gaussian_images(count=300, seed=0, spread=3):
    """Images of which the logit y tells the first pattern's share."""
    random = np.random.default_rng(seed)
    shares = random.normal(size=(count, 9)) * ([8] + [spread] * 8)
    images = 128 + np.tensordot(shares, PATTERNS, 1)
    return source_lib.in_memory(images, np.zeros(count, "int64"), ["any"])


def gaussian_model(scale_of):
    """Samples of the images with a logit, `scale_of` it times as spread."""

    def image_of(logits, noise):
        scales = 3 * scale_of(logits) * np.ones((1, 8))
        shares = np.concatenate([8 * logits, scales * noise], axis=-1)
        return 128 + np.tensordot(shares, PATTERNS, 1)

    def logit_of(images):
        return np.tensordot(images, PATTERNS[:1], ((1, 2, 3),) * 2) / 3072 / 8

    return fake(logit_of, image_of, 1)


def drawn_ranks(scale):
    """Shares of the ranks of N(0, 1) among 16 of N(0, scale^2), drawn."""
    random = np.random.default_rng(0)
    values = random.normal(size=(200_000, 1))
    samples = scale * random.normal(size=(200_000, 16))
    return np.bincount((samples < values).sum(axis=1), minlength=17) / 200_000


@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_calibration_of_the_gaussian_toy(scale):
    source = gaussian_images()
    model = gaussian_model(lambda logits: scale)
    result = run(calibration, source, model=model)
    found = result.metrics["model"]
    # A = 1 and s^2 = scale^2, in units of the images' spread.
    expected = (1 + scale**2 / 8) / (1 + scale**2)
    for group in ("all", *calibration.THIRDS):
        ratio = found["groups"][group]["error_ratio"]
        assert ratio["value"] == pytest.approx(expected, rel=0.1), group
        assert ratio["low"] < ratio["value"] < ratio["high"]
    skill = found["spread_skill"]
    assert skill["value"] == pytest.approx(scale, rel=0.05)
    assert skill["low"] < skill["value"] < skill["high"]
    # Eight patterns of variance 9, of the image and of the noise.
    assert found["squared_error"] == pytest.approx(72 * (1 + scale**2), rel=0.1)
    # Ranks along the eight directions that are left open, and no others.
    shares = [row["share_of_error"] for row in result.tables["rank_distances"]]
    assert sum(shares) == pytest.approx(1, rel=1e-4)
    drawn = drawn_ranks(scale)
    histogram = [row["share"] for row in result.tables["rank_histograms"]]
    np.testing.assert_allclose(histogram, drawn, atol=0.02)
    distance = np.abs(drawn - 1 / 17).sum() / 2
    assert found["rank_distance"] == pytest.approx(distance, abs=0.04)


def test_too_much_spread_does_not_make_up_for_too_little():
    source = gaussian_images()
    low, high = 0.2, 1.4
    model = gaussian_model(lambda logits: np.where(logits > 0, high, low))
    groups = run(calibration, source, model=model).metrics["model"]["groups"]
    ratios = [values["error_ratio"]["value"] for values in groups.values()]
    expected = [
        (1 + square / 8) / (1 + square)
        for square in ((low**2 + high**2) / 2, low**2, high**2)
    ]
    # Of the middle third, about one half and the other.
    everything, least, _, most, _ = ratios
    assert everything == pytest.approx(0.5625, rel=0.1)
    assert [everything, least, most] == pytest.approx(expected, rel=0.1)


def test_calibration_beside_training_images():
    def training(*place):
        if place:
            raise errors.InputError("gone")
        return gaussian_images(300, 1, spread=1.5)

    model = gaussian_model(lambda logits: 1)
    study = study_lib.Study({"model": model}, gaussian_images(), training, 32)
    result = calibration.run(study)
    found = result.metrics["model"]["groups"]["training images"]
    assert found["images"] == 300
    # Half as far from their mean, A = 1/4.
    expected = (1 / 4 + 1 / 8) / (1 / 4 + 1)
    assert found["error_ratio"]["value"] == pytest.approx(expected, rel=0.05)
    assert len(result.tables["error_ratios"]) == 5

    def closed(*place):
        raise errors.InputError("gone")

    study.training_source = closed
    result = calibration.run(study)
    assert "training images" not in result.metrics["model"]["groups"]
    assert len(result.tables["error_ratios"]) == 4


def test_calibration_of_pictures_that_equal_their_images(source, monkeypatch):
    monkeypatch.setattr(calibration, "IMAGES", 20)
    found = run(calibration, source, model=perfect()).metrics["model"]
    assert found["error_ratio"]["value"] is None
    with pytest.raises(results.NotApplicable, match="at least 6 images"):
        run(calibration, gaussian_images(5), model=perfect())


def test_directions_are_not_chosen_for_the_images_that_are_ranked():
    """Of more pixels than images, their own directions find outliers."""
    random = np.random.default_rng(0)
    images = random.normal(size=(60, 400))
    samples = random.normal(size=(60, 16, 400))
    ranks, shares = calibration.component_ranks(images, samples)
    assert ranks.shape == (60, 8) and shares.shape == (8,)
    extreme = np.isin(ranks, (0, 16)).mean()
    assert extreme == pytest.approx(2 / 17, abs=0.05)
    # Fewer images than components.
    ranks, _ = calibration.component_ranks(images[:6], samples[:6])
    assert ranks.shape == (6, 3)


@pytest.mark.parametrize(
    "labels, pair",
    [
        (["scenes32-standard", "scenes32-robust"], [1, 0]),
        (["robust", "non-robust"], [0, 1]),
        (["non-robust", "robust"], [1, 0]),
        (["mine-non-robust", "mine-robust"], [1, 0]),
        (["a_not_robust", "nonrobust", "a_robust"], [2, 0]),
        (["robust-one-hot", "robust", "standard-2", "standard"], [1, 3]),
        (["robust", "not-standard"], None),
        (["non-robust", "standard"], None),
        (["robust"], None),
    ],
)
def test_which_models_stand_for_the_paper_s(labels, pair):
    def study(*sizes):
        models = [types.SimpleNamespace(image_size=size) for size in sizes]
        models = dict(zip(labels, models, strict=True))
        return study_lib.Study(models, None, None, 32)

    found = study(*[32] * len(labels)).pair
    assert found == (pair and [labels[index] for index in pair])
    # Errors and spreads of pictures of two sizes are not compared.
    assert study(*range(32, 32 + len(labels))).pair is None


def test_pictures_of_two_sizes_side_by_side(source):
    """The same model, and its pictures at half the size."""

    def image_of(logits, noise):
        made = 64 * logits[:, None, None] + 100 * grain(noise) - 50
        return np.clip(made, 0, 255)

    large = colors(image_of)
    predict = large._predict

    def halved(inputs):
        outputs = predict(inputs)
        made = outputs["reconstructions"]
        small = pixels.resize(made.reshape(-1, *made.shape[2:]), 16)
        small = small.reshape(*made.shape[:2], 16, 16, 3)
        return {**outputs, "reconstructions": small}

    small = pipeline.Pipeline(halved, {**large.metadata, "image_size": 16})
    result = run(side_by_side, source, large=large, small=small)
    minus = result.metrics["large and small"]["small minus large"]
    assert minus["spread"]["low"] < 0 < minus["spread"]["high"]
    assert minus["error_of_mean"]["low"] < 0 < minus["error_of_mean"]["high"]


def test_no_last_image_is_alone(source):
    def sizes(limit, **kwargs):
        study = study_lib.Study({}, source, None, 32)
        batches = list(study.batches(limit, **kwargs))
        for images, labels, known, _ in batches:
            assert len(images) == len(labels) == len(known["size"])
        images = np.concatenate([images for images, *_ in batches])
        [(expected, *_)] = study.batches(limit, batch_size=limit)
        np.testing.assert_array_equal(images, expected)
        return [len(images) for images, *_ in batches]

    assert sizes(50) == [50]
    assert sizes(51) == [51]
    assert sizes(52) == [50, 2]
    assert sizes(101) == [51, 50]
    assert sizes(1) == [1]
    assert sizes(3, batch_size=1) == [1, 1, 1]


def test_held_out_images_are_read_once(source, monkeypatch):
    opened = []
    stream = source_lib.Source.evaluation_batches

    def count(self, *args, **kwargs):
        opened.append(args)
        return stream(self, *args, **kwargs)

    monkeypatch.setattr(source_lib.Source, "evaluation_batches", count)

    def read():
        study = study_lib.Study({}, source, None, 32)
        lists = [list(study.batches(limit)) for limit in (120, 7, None, 52)]
        return lists, [study.first(3).images]

    kept = read()
    assert [limit for _, _, limit in opened] == [120, 400]
    opened.clear()
    monkeypatch.setattr(study_lib, "KEPT_PIXELS", 0)
    streamed = read()
    assert len(opened) == 5
    tf.nest.map_structure(np.testing.assert_array_equal, kept, streamed)
    # What an experiment did to them the next one would find.
    with pytest.raises(ValueError, match="read-only"):
        kept[0][0][0].images[:] = 0


def test_a_lone_last_image_leaves_no_measure_without_a_number(
    source, monkeypatch
):
    for module in (noise_resampling, reconstructions, rotation):
        monkeypatch.setattr(module, "IMAGES", 51)
    model = noise_only()
    found = run(noise_resampling, source, model=model).metrics["model"]
    # The noise is uniform; of images, whose noise is their variety, read once.
    images = images_of(source, 51)
    between = images.std(axis=0, ddof=1).mean()
    assert found["relative_spread"]["value"] == pytest.approx(
        255 / 12**0.5 / between, rel=0.02
    )
    found = run(reconstructions, source, model=perfect()).metrics["model"]
    # With another image, each of them: its error with itself would be 0.
    others = measures.pixel_mse(images, np.roll(images, 1, axis=0))
    assert found["shuffled_pixel_mse"]["value"] == pytest.approx(
        others.mean(), rel=1e-4
    )
    found = run(rotation, source, model=perfect()).metrics["model"]
    assert found["shape"]["upright"]["low"] == pytest.approx(1)


def test_spread_by_group():
    spread = np.array([1.0, 1, 2, 2, 6, 6])
    kinds = noise_resampling.by_group(spread, np.array([0, 1, 0, 1, 3, 3]))
    assert [row["group"] for row in kinds] == ["0", "1", "3"]
    assert [row["value"] for row in kinds] == [1.5, 1.5, 6]
    ranges = noise_resampling.by_group(spread, np.linspace(0, 1, 6))
    assert [row["value"] for row in ranges] == [1, 2, 6]
    # Groups whose borders look alike remain apart.
    alike = noise_resampling.by_group(spread, np.full(6, 2001.5))
    assert [row["images"] for row in alike] == [0, 0, 6]


def test_logit_interpolation_of_a_linear_model_is_straight(source):
    result = run(logit_interpolation, source, model=perfect())
    metrics = result.metrics["model"]
    assert metrics["pixel_length"]["value"] == pytest.approx(1, abs=1e-4)
    assert metrics["pixel_largest_step"]["value"] == pytest.approx(1 / 8, 1e-3)
    noisy = run(logit_interpolation, source, model=noise_only()).metrics
    # Of one noise the picture is the same all along: there is no path.
    assert noisy["model"]["pixel_length"]["value"] is None


def test_interpolation_starts_and_ends_at_the_images(source):
    images = images_of(source, 2)
    noise = np.zeros((1, 1, 8), "float32")
    path = logit_interpolation.interpolate(perfect(), *images, noise)
    np.testing.assert_allclose(path[[0, -1]], images, atol=1e-3)
    np.testing.assert_allclose(path[4], images.mean(axis=0), atol=1e-3)


def test_noise_interpolation(source):
    found = run(
        noise_interpolation, source, robust=perfect(), standard=noise_only()
    )
    assert found.metrics["robust"]["end_distance"]["value"] == 0
    assert found.metrics["robust"]["class_changes"]["value"] == 0
    assert found.metrics["standard"]["end_distance"]["value"] > 0.5
    assert found.metrics["standard"]["class_changes"]["value"] > 0.9
    assert found.claims[0].verdict == "holds"


def test_noise_between():
    ends = np.array([[[0.0, 4.0], [2.0, 0.0]]])
    np.testing.assert_allclose(
        noise_interpolation.between(ends, 3)[0], [[0, 4], [1, 2], [2, 0]]
    )


def by_heart(source, mistakes=0):
    """A classifier that knows the images by heart, unless they are noisy.

    It takes the first few for another class; all reconstructions are grey.
    """
    known = {}
    for batch in study_lib.Study({}, source, None, 32).batches(None):
        for image, label in zip(batch.images, batch.labels, strict=True):
            known[image.tobytes()] = (label + (len(known) < mistakes)) % 80

    def logits_of(images):
        flat = images.reshape(len(images), -1)[:, :80] / 255
        labels = [known.get(image.tobytes(), 0) for image in images]
        return flat + 9 * np.eye(80)[labels]

    return fake(
        logits_of,
        lambda logits, noise: np.full((len(noise), 32, 32, 3), 90),
        80,
    )


@pytest.mark.parametrize("mistakes, strength", [(20, 0), (19, 10)])
def test_twenty_misclassified_images_are_enough(source, mistakes, strength):
    found = run(misclassified, source, model=by_heart(source, mistakes))
    assert found.metrics["model"]["noise_strength"] == strength


def test_misclassified_degrades_until_enough_are_wrong(source, monkeypatch):
    # The perfect inverter's classes are pixels: nearly all labels are wrong.
    result = run(misclassified, source, model=perfect())
    metrics = result.metrics["model"]
    assert metrics["noise_strength"] == 0
    assert metrics["wrong_images"] > 100
    model = by_heart(source)
    assert not run(misclassified, source, model=model).claims
    result = run(misclassified, source, robust=model, standard=model)
    metrics = result.metrics["robust"]
    assert metrics["noise_strength"] == 10
    assert metrics["wrong_images"] + metrics["right_images"] == IMAGES
    # The right class and nothing beyond it: as good as any other's.
    assert metrics["quality"]["right"]["value"] == 0
    assert "noise of 10 grey levels" in result.claims[0].note
    assert "quality 0.00 and 0.00" in result.claims[0].note
    assert "10 grey levels" in result.figures[0].caption


def test_misclassified_pictures_are_compared_with_the_image_itself(
    source, monkeypatch
):
    """Of pictures that lack the noise, its error must not count."""
    monkeypatch.setattr(misclassified, "STRENGTHS", (60,))
    clean = {}
    study = study_lib.Study({}, source, None, 32)
    for batch in study.batches(IMAGES):
        noisy = misclassified.degrade(study, batch, 60)
        clean.update(
            zip(map(np.ndarray.tobytes, noisy), batch.images, strict=True)
        )
    inverter = perfect()

    def denoise(inputs):
        outputs = inverter._predict(inputs)
        for row, image in enumerate(inputs["images"]):
            if image.tobytes() in clean:
                outputs["reconstructions"][row] = clean[image.tobytes()]
        return outputs

    model = pipeline.Pipeline(denoise, inverter.metadata)
    found = run(misclassified, source, model=model).metrics["model"]
    assert found["wrong_images"] > 100
    assert found["pixel_mse"]["wrong"]["value"] == 0
    assert found["quality"]["wrong"]["value"] == 1


@pytest.mark.parametrize(
    "wrong, verdict",
    [(0.2, "holds"), (0.19, "holds"), (0.1, "does not hold")],
)
def test_wrong_images_lose_little_of_what_right_ones_have(wrong, verdict):
    """Qualities of 0.2 and less: of them a tenth may be lost, not 0.1."""
    right = np.arange(500) < 300
    shuffled = np.random.default_rng(0).uniform(900, 1100, 500)
    own = shuffled * np.where(right, 0.8, 1 - wrong)
    # One image equals its neighbour's picture, nearly: no more than others.
    own[0], shuffled[0] = 800, 1e-6
    study = study_lib.Study({}, None, None, 32)
    [claim] = misclassified._claims(
        study, "model", 0, right, (own, shuffled), right
    )
    # 299 errors of 0.8 of theirs and one of 800 over 299 of 1000.
    assert f"quality 0.20 and {wrong:.2f}" in claim.note
    assert claim.value == pytest.approx(wrong - 0.9 * 0.2, abs=0.005)
    assert claim.verdict == verdict


def test_right_against_wrong():
    right = np.arange(40) < 20
    values = np.where(right, 1.0, 3.0) + np.linspace(0, 0.1, 40)
    found = misclassified.compare(values, right)
    assert found["right"]["value"] == pytest.approx(1.024, abs=1e-3)
    assert found["wrong"]["value"] == pytest.approx(3.076, abs=1e-3)
    # Twice the chance of the most extreme order of 20 and 20.
    assert found["p_value"] < 1e-6
    assert misclassified.compare(values, right | True)["p_value"] is None
    # A share has Wilson's interval: of as many hits as trials, this one.
    found = misclassified.compare(right | True, right)["wrong"]
    assert found["value"] == 1
    assert found["low"] == pytest.approx(20 / (20 + 1.959964**2))


def test_stability(source):
    result = run(
        stability,
        source,
        **{"robust-one-hot": perfect()},
        robust=perfect(),
        standard=noise_only(),
    )
    # The paper's figures are those of the models that its claims compare.
    papers = {
        name: [found["right"]["paper"], found["wrong"]["paper"]]
        for name, found in result.metrics.items()
    }
    assert papers == {
        "robust-one-hot": [None, None],
        "robust": [0.54, 0.35],
        "standard": [0.493, 0.299],
    }
    found = result.metrics["robust"]
    assert found["images"] == 40 and found["classes"] == 20
    assert found["all"]["value"] == 1
    assert (found["all"]["low"], found["all"]["high"]) == pytest.approx(
        intervals.wilson_interval(40, 40)
    )
    assert found["right"]["images"] + found["wrong"]["images"] == 40
    assert found["chance"] < 0.5
    passes = [row["value"] for row in result.tables["passes"][:5]]
    assert passes == [1] * 5
    assert result.metrics["standard"]["all"]["value"] < 0.1


def test_stability_takes_as_many_of_each_class(source):
    study = study_lib.Study({}, source, None, 32)
    images, labels = stability.choose(study, None, True)
    assert len(images) == 40
    assert (np.unique(labels, return_counts=True)[1] == 2).all()


@pytest.mark.parametrize("classes_known", [False, True])
def test_images_without_labels(source, classes_known):
    without = source.relabelled([], [-1] * len(source.class_names))
    if classes_known:
        # As the test images of ImageNet have it at TFDS.
        without.class_numbers = source.class_numbers
    with pytest.raises(results.NotApplicable, match="needs labels"):
        run(misclassified, without, model=perfect())
    result = run(stability, without, robust=perfect(), standard=noise_only())
    found = result.metrics["robust"]
    assert found["images"] == 40 and found["all"]["value"] == 1
    assert "right" not in found and "wrong" not in found
    (claim,) = result.claims
    assert claim.verdict == "holds" and claim.value > 0.9


def test_stability_claims():
    """Of 200 images, the first 100 classified right by both models."""
    right = np.arange(200) < 100

    def claims(first, second):
        hits = {"a": first, "b": second}
        return stability._claims(("a", "b"), hits, {"a": right, "b": right})

    # So many of the right and of the wrong ones agree.
    stable = np.arange(200) % 100 < np.where(right, 90, 40)
    unstable = np.arange(200) % 100 < np.where(right, 50, 49)
    found = claims(stable, unstable)
    assert [claim.verdict for claim in found] == ["holds", "holds", "undecided"]
    assert found[0].note == "100 images"
    assert found[1].note == "100 against 100 images"
    found = claims(unstable, stable)
    assert [claim.verdict for claim in found] == [
        "does not hold",
        "undecided",
        "holds",
    ]
    # Six images tell the models apart, all to the same side: Student's t of
    # 100 differences, of which six are 1. Shares of other images, 0.90 and
    # 0.84, would leave it open.
    found = claims(stable, stable & (np.arange(200) % 100 >= 6))[0]
    assert found.verdict == "holds"
    error = (0.06 * 0.94 / 99) ** 0.5
    assert found.value == pytest.approx(0.06)
    assert found.low == pytest.approx(0.06 - 1.984217 * error)
    assert found.high == pytest.approx(0.06 + 1.984217 * error)


def test_manipulation_of_a_linear_model(source):
    result = run(manipulation, source, model=perfect())
    found = result.metrics["model"]
    for row in found["shift"]:
        if abs(row["value"]) == 2:
            # The whole shift comes back, but for pixels beyond [0, 255].
            assert 0.5 < row["read_back"]["value"] <= 1.001
            assert row["brightness"]["value"] * row["value"] > 0
    [same] = [row for row in found["scale"] if row["value"] == 1]
    assert same["pixel_change"]["value"] == 0
    # Wilson's interval of as many hits as trials.
    assert same["agreement"] == {
        "value": 1,
        "low": pytest.approx(IMAGES / (IMAGES + 1.959964**2)),
        "high": pytest.approx(1),
    }
    assert {row["effect"] for row in result.tables["effects"]} == {
        "brightness",
        "contrast",
        "sharpness",
        "pixel_change",
        "agreement",
        "read_back",
    }
    strengths = {
        row["strength"]
        for row in result.tables["effects"]
        if row["kind"] == "shift"
    }
    assert strengths == set(manipulation.VALUES["shift"])
    [half] = [row for row in found["scale"] if row["value"] == 0.5]
    assert half["read_back"]["value"] == pytest.approx(1, abs=1e-3)
    brightness = measures.brightness(images_of(source, 100)).mean()
    assert half["brightness"]["value"] == pytest.approx(
        -brightness / 2, rel=0.05
    )


def test_control_is_as_long_as_the_shift():
    logits = np.zeros((5, 7), "float32")
    units = {"shift": 0.5, "control": 0.5, "perturb": 2.0}
    random = np.random.default_rng(0)
    _, shift = manipulation.manipulation(logits, "shift", 2.0, units, random)
    _, control = manipulation.manipulation(
        logits, "control", 2.0, units, random
    )
    np.testing.assert_allclose(
        np.linalg.norm(control, axis=-1), shift * np.sqrt(7), rtol=1e-5
    )


def test_best_fits_are_those_applied(source):
    random = np.random.default_rng(0)
    adjusted = random.normal(size=(6, 9))
    shifts, scales = random.normal(size=(2, 6))
    np.testing.assert_allclose(
        best_fit.best_fit_shift(adjusted + shifts[:, None], adjusted), shifts
    )
    np.testing.assert_allclose(
        best_fit.best_fit_scale(adjusted * scales[:, None], adjusted), scales
    )


def test_best_fit_of_pixels_as_logits(source):
    result = run(best_fit, source, robust=perfect(), standard=perfect())
    rows = [
        row
        for row in result.tables["curves"]
        if row["model"] == "robust" and row["change"] == "brightness"
    ]
    for row in rows:
        if row["fit"] == "scale" and row["factor"] <= 1:
            # The darker image's pixels, times the inverse, are the image's.
            assert row["value"] == pytest.approx(1 / row["factor"], rel=1e-5)
        if row["factor"] == 1:
            identity = {"shift": 0, "scale": 1}[row["fit"]]
            assert row["value"] == pytest.approx(identity, abs=1e-6)
    metrics = result.metrics["robust"]["scale_brightness"]
    # 1 / 0.9 and 1 / 1.1, but for pixels that are clipped.
    slope = (1 / 1.1 - 1 / 0.9) / 0.2
    assert metrics["slope"]["value"] == pytest.approx(slope, rel=0.05)
    assert metrics["peak"]["value"] == best_fit.BRIGHTNESS_FACTORS[0]
    assert metrics["peak"]["low"] == metrics["peak"]["high"]
    verdicts = {claim.text: claim.verdict for claim in result.claims}
    assert len(verdicts) == 11
    text = "The best-fit shift rises with brightness (robust)."
    assert verdicts[text] == "does not hold"
    text = "The robust model's best-fit scales over sharpness are much larger."
    # They are as large.
    assert verdicts[text] == "does not hold"


def test_logits_of_one_mean_have_no_shift(source):
    def logits_of(images):
        half = images.mean(axis=(1, 2, 3)) / 64 - 1
        return np.stack([-half, half], axis=-1)

    def image_of(logits, noise):
        return np.broadcast_to(
            logits[:, :1, None, None], (len(logits), 32, 32, 3)
        )

    # As of a classifier of one output.
    model = fake(logits_of, image_of, 2)
    with pytest.raises(results.NotApplicable, match="whose mean"):
        run(manipulation, source, model=model)
    claims = run(best_fit, source, robust=model, standard=model).claims
    assert claims and not [claim for claim in claims if "shift" in claim.text]


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.9, 1.1, "holds"),
        (0.7, 2.0, "undecided"),
        (0.7, 0.8, "does not hold"),
        (1.2, 2.0, "does not hold"),
    ],
)
def test_a_peak_must_be_where_it_is_claimed(low, high, verdict):
    peak = {"value": 1, "low": low, "high": high}
    assert best_fit._peaks("", "", peak, 0.9, 1.1).verdict == verdict


def test_rotation_of_a_perfect_inverter(source):
    result = run(rotation, source, model=perfect())
    for measure in ("agreement", "texture", "shape"):
        found = result.metrics["model"][measure]
        assert found["upright"]["value"] == pytest.approx(1)
        assert found["loss"]["value"] == pytest.approx(0, abs=1e-6)


def test_rotation_of_a_model_that_cannot_turn(source):
    """One whose pictures stand upright whatever the image does."""
    inverter = perfect()
    known = set(map(np.ndarray.tobytes, images_of(source, 400)))

    def upright(inputs):
        outputs = inverter._predict(inputs)
        pictures = outputs["reconstructions"]
        for picture, image in zip(pictures, inputs["images"], strict=True):
            if image.tobytes() not in known:
                picture[:] = np.rot90(picture, -1, axes=(1, 2))
        return outputs

    model = pipeline.Pipeline(upright, inverter.metadata)
    found = run(rotation, source, robust=model, standard=model)
    assert [claim.verdict for claim in found.claims] == ["holds"] * 4
    found = found.metrics["robust"]
    assert found["texture"]["loss"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["texture"]["kept"]["value"] == pytest.approx(1)
    assert found["shape"]["loss"]["value"] > 0.3
    # Wilson's interval of as many hits as trials.
    assert found["agreement"]["upright"]["low"] == pytest.approx(
        IMAGES / (IMAGES + 1.959964**2)
    )


def test_rotation_that_loses_texture_too(source):
    """Upright, shape is half lost and texture more; rotated, both are."""
    inverter = perfect()
    random = np.random.default_rng(0)
    known = set(map(np.ndarray.tobytes, images_of(source, 400)))

    def forgetful(inputs):
        outputs = inverter._predict(inputs)
        pictures = outputs["reconstructions"]
        if inputs["images"][0].tobytes() in known:
            noise = random.normal(0, 6, pictures.shape)
            pictures[:] = np.clip(pictures + noise, 0, 255)
        else:
            # Any other image's picture.
            pictures[:] = random.permutation(pictures)
        return outputs

    model = pipeline.Pipeline(forgetful, inverter.metadata)
    found = run(rotation, source, robust=model, standard=model)
    metrics = found.metrics["robust"]
    # Shape has more to lose, and nothing is kept of either.
    assert (
        metrics["shape"]["upright"]["low"]
        > (metrics["texture"]["upright"]["high"])
    )
    kept, more, *_ = found.claims
    assert kept.verdict == "does not hold"
    assert more.verdict != "holds"
    assert "texture" in kept.note


def test_share_kept():
    upright = np.array([0.2, 0.6])
    assert rotation.share_kept(upright, np.array([0.0, 0.2])) == pytest.approx(
        0.25
    )
    # Nothing to keep.
    assert np.isnan(rotation.share_kept(-upright, upright))


def test_codes_of_factors():
    values = {
        "shape": np.array([0, 9]),
        "object_hue": np.array([0, 2]),
        "wall_hue": np.array([0.0, 0.5]),
        "floor_hue": np.array([0.25, 0.75]),
        "size": np.array([0.55, 1.0]),
        "azimuth": np.array([0.0, -40.0]),
        "brightness": np.array([0.775, 0.55]),
    }
    codes = scene_factors.encode(values)
    assert codes.shape == (2, 19) and codes.dtype == np.float32
    expected = {
        "object_hue": [[1, 0], [0, 1]],
        "wall_hue": [[1, 0], [-1, 0]],
        "floor_hue": [[0, 1], [0, -1]],
        "size": [[-1], [1]],
        "azimuth": [[0], [-1]],
        "brightness": [[0], [-1]],
    }
    for name, rows in expected.items():
        np.testing.assert_allclose(
            codes[:, scene_factors.PARTS[name]], rows, atol=1e-6
        )
    assert codes[:, scene_factors.PARTS["shape"]].argmax(-1).tolist() == [0, 9]


def test_r_squared_is_that_of_regression():
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    y = 2 * x + random.normal(size=400)

    def share(readings):
        errors = scene_factors.residuals(readings, y[:, None])
        return 1 - errors.sum() / (y.var() * len(y))

    expected = np.corrcoef(x, y)[0, 1] ** 2
    assert share(x[:, None]) == pytest.approx(expected, abs=0.02)
    assert share(random.normal(size=(400, 1))) < 0.02


@pytest.mark.parametrize("samples", [2, 8, 16])
@pytest.mark.parametrize("known", [0.25, 0.9])
def test_what_a_perfect_sampler_shows_is_nearly_what_is_known(known, samples):
    """Of any number of samples, whose mean has noise of its own."""
    random = np.random.default_rng(0)
    told = np.sqrt(known) * random.normal(size=(20_000, 1, 1))

    def drawn(count):
        noise = random.normal(size=(20_000, count, 1))
        return told + np.sqrt(1 - known) * noise

    code = drawn(1)[:, 0]
    errors = scene_factors.residuals(3 * drawn(samples) + 1, code)
    # A slope of 1 would tell all of it.
    slope = known / (known + (1 - known) / samples)
    told_of = known * (1 - (1 - slope) ** 2)
    assert errors.mean() == pytest.approx(1 - told_of, rel=0.03)
    assert samples < 16 or told_of > 0.97 * known
    # As a regression on the mean does not say.
    mean = drawn(samples).mean(axis=1)
    plain = scene_factors.residuals(mean, code).mean()
    explained = known**2 / (known + (1 - known) / samples)
    assert plain == pytest.approx(1 - explained, rel=0.03)


def toy_readings(factor, scale, count=4000):
    """Images' readings about what a probe knows, and pictures' about it."""
    random = np.random.default_rng(0)
    known = random.uniform(-1, 1, (count, 1)) * np.pi
    image = known + random.normal(0, 0.2, (count, 1))
    readings = known + random.normal(0, 0.2 * scale, (count, 16))
    part = scene_factors.PARTS[factor]
    found = {}
    for name, values in (
        ("probed", known[:, 0]),
        ("image", image[:, 0]),
        ("readings", readings),
    ):
        codes = [values]
        if factor in scene_factors.HUES:
            codes = [np.cos(values), np.sin(values)]
        found[name] = np.zeros((*values.shape, 19))
        found[name][..., part] = np.stack(codes, axis=-1)
    return found


@pytest.mark.parametrize("factor", ["azimuth", "wall_hue"])
@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_calibration_of_factors_in_closed_form(factor, scale):
    study = study_lib.Study({}, None, None, 32)
    found = factors._calibration(study, toy_readings(factor, scale), factor)
    spread = found["noise_spread"]
    assert spread["low"] < spread["value"] < spread["high"]
    values = {name: value["value"] for name, value in found.items()}
    assert values["noise_spread"] == pytest.approx(scale, rel=0.06)
    drawn = drawn_ranks(scale)
    distance = np.abs(drawn - 1 / 17).sum() / 2
    assert values["rank_distance"] == pytest.approx(distance, abs=0.02)
    # The range of 16; and 4.25 and 12.75 of them below the ends of the half.
    assert values["coverage_90"] == pytest.approx(
        1 - drawn[[0, 16]].sum(), 0.02
    )
    random = np.random.default_rng(0)
    samples = np.sort(scale * random.normal(size=(100_000, 16)))
    low = 0.75 * samples[:, 3] + 0.25 * samples[:, 4]
    high = 0.25 * samples[:, 11] + 0.75 * samples[:, 12]
    inside = (scipy.stats.norm.cdf(high) - scipy.stats.norm.cdf(low)).mean()
    assert values["coverage_50"] == pytest.approx(inside, abs=0.02)
    assert scale != 1 or inside == pytest.approx(0.5, abs=0.005)
    half = found["coverage_50"]
    assert half["low"] < half["value"] < half["high"]


def test_hues_that_are_left_open_entirely_have_flat_ranks():
    random = np.random.default_rng(0)
    points = np.exp(2j * np.pi * random.uniform(size=(4000, 17)))
    codes = np.zeros((4000, 17, 19))
    codes[..., scene_factors.PARTS["floor_hue"]] = np.stack(
        [points.real, points.imag], axis=-1
    )
    found = {"image": codes[:, 0], "readings": codes[:, 1:]}
    values, samples = factors._ranked(found, "floor_hue")
    histogram = np.bincount((samples < values[:, None]).sum(axis=1)) / 4000
    np.testing.assert_allclose(histogram, np.full(17, 1 / 17), atol=0.015)


def test_factors_that_the_class_tells_have_no_calibration():
    found = toy_readings("object_hue", 1, 10)
    study = study_lib.Study({}, None, None, 32)
    values = factors._calibration(study, found, "object_hue").values()
    assert list(values) == [None] * 5


@pytest.mark.slow
def test_information_efficiency(source, rendered, monkeypatch):
    monkeypatch.setattr(factors, "IMAGES", 200)
    monkeypatch.setattr(factors, "SAMPLES", 4)
    training = rendered("train", 2000)
    network = scene_factors.load_network()
    gallery = np.concatenate(
        [images_of(training, 2000), images_of(source, 200)]
    )
    keys = network.predict(gallery, verbose=0)

    def logits_of(images):
        return np.array(network(images, training=False))

    def nearest(logits, noise):
        distances = np.sum(keys**2, axis=-1) - 2 * logits @ keys.T
        return gallery[distances.argmin(axis=-1)]

    def drawn(logits, noise):
        seeds = np.abs(noise[:, 0] * 1e6).astype(int)
        return gallery[seeds % len(gallery)]

    # Ten numbers in disorder, one for each tenth of the sizes, and any picture
    # of that tenth: images of the same logits.
    part = scene_factors.PARTS["size"]
    order = keys[:, part].ravel().argsort()
    borders = keys[order[220::220], part].ravel()
    disorder = np.random.default_rng(0).permutation(10)

    def tenth_of(images):
        tenths = np.digitize(logits_of(images)[:, part].ravel(), borders)
        return np.stack([disorder[tenths], -disorder[tenths]], axis=-1)

    def of_the_same_tenth(logits, noise):
        tenths = disorder.argsort()[logits[:, 0].astype(int)]
        seeds = np.abs(noise[:, 0] * 1e6).astype(int)
        return gallery[order[220 * tenths + seeds % 220]]

    models = {
        "perfect": fake(logits_of, nearest, 19),
        "noise": fake(logits_of, drawn, 19),
        "tenths": fake(tenth_of, of_the_same_tenth, 2),
    }
    result = factors.run(study_lib.Study(models, source, lambda: training, 32))
    for name, values in result.metrics["perfect"].items():
        assert values["knows"]["value"] > 0.9, name
        assert values["efficiency"]["value"] == pytest.approx(1, abs=0.08), name
        assert values["noise_share"]["value"] < 0.01
        if name in factors.OPEN:
            assert values["noise_spread"]["value"] < 0.1
        # The pictures are the images.
        assert values["ceiling"]["value"] == pytest.approx(
            values["shows"]["value"]
        )
    tenths = result.metrics["tenths"]
    assert tenths["size"]["shows"]["value"] > 0.9
    for name in factors.OPEN:
        spread = tenths[name]["noise_spread"]["value"]
        assert spread == pytest.approx(1, abs=0.2), name
    # The class of the codes' largest number says little about these.
    for name in ("wall_hue", "floor_hue", "size"):
        control = result.metrics["perfect"][name]["control"]
        assert abs(control["value"]) < 0.35, name
    for name, values in result.metrics["noise"].items():
        assert abs(values["efficiency"]["value"]) < 0.15, name
        assert values["noise_share"]["value"] == pytest.approx(1, abs=0.05)


def test_the_network_probe_goes_on_where_it_is_ahead(monkeypatch):
    fits = []
    fit = keras.Sequential.fit

    def count(self, *args, **kwargs):
        fits.append(kwargs["epochs"])
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Sequential, "fit", count)
    inputs = np.random.default_rng(0).uniform(-1, 1, (3000, 4))
    inputs = inputs.astype("float32")
    codes = inputs[:, :1] * inputs[:, 1:2]
    # Of which a linear probe knows nothing.
    error = codes.var()
    parts = slice(600, None), slice(0, 600)
    ahead = probes._network_probe(inputs, codes, *parts, 0, error)
    np.testing.assert_allclose(ahead(inputs, None), codes, atol=0.15)
    probes._network_probe(inputs, codes, *parts, 0, 0.0)
    assert fits == [8, 40, 8]


def test_features_of_training_images_are_kept(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    training = rendered("train", 60)

    def opened(digest):
        return dataclasses.replace(training, identity=lambda: digest)

    classified = []

    def model(colors):
        def logits_of(images):
            classified.append(len(images))
            return images.mean(axis=(1, 2))[:, colors] / 64

        return fake(
            logits_of,
            lambda logits, noise: np.zeros((len(noise), 32, 32, 3)),
            2,
        )

    def features(count, colors=(0, 2), digest="one"):
        classified.clear()
        study = study_lib.Study(
            {"model": model(list(colors))}, None, lambda: opened(digest), 32
        )
        return probes.training_features(study, "model", count)

    first = features(40)
    assert sum(classified) == study_lib.COMPARED + 40
    images = images_of(training, 60)
    np.testing.assert_allclose(
        first["condition"], images[:40].mean(axis=(1, 2))[:, [0, 2]] / 64
    )
    # The same and fewer are read, of as many as there are.
    for count in (40, 30):
        again = features(count)
        assert sum(classified) == study_lib.COMPARED
        for name, values in again.items():
            np.testing.assert_array_equal(values, first[name][:count])
    # More images, another classifier, its classes the other way round, another
    # data set.
    changes = {"count": 60}, {"colors": (1, 2)}, {"colors": (2, 0)}
    for change in (*changes, {"digest": "two"}):
        features(**{"count": 40, **change})
        assert sum(classified) > study_lib.COMPARED


def test_controls(source, rendered, monkeypatch):
    monkeypatch.setattr(controls, "IMAGES", 20)
    model = perfect()
    found = run(controls, source, model=model).metrics["model"]
    # The held-out images are among the "training images" here.
    for way in ("inversion", "nearest image"):
        assert found[way]["agreement"]["value"] == 1
        assert found[way]["pixel_mse"]["value"] == pytest.approx(0, abs=1e-6)
        assert found[way]["seconds_per_image"] > 0
    assert "optimisation" not in found
    away = controls.run(
        study_lib.Study(
            {"model": model}, source, lambda: rendered("train", 200), 32
        )
    ).metrics["model"]
    assert away["nearest image"]["pixel_mse"]["value"] > 100


def in_tensorflow():
    """A perfect inverter with a gradient, whose logits fix the pixels."""

    def signature(images, noise, logit_scale, logit_shift):
        logits = tf.reshape(images, (len(images), -1)) / 64
        return {"logits": logits}

    inverter = perfect()
    return pipeline.Pipeline(inverter._predict, inverter.metadata, signature)


def test_optimisation_finds_linear_logits(source, monkeypatch):
    monkeypatch.setattr(controls, "STEPS", 400)
    model = in_tensorflow()
    study = study_lib.Study({"model": model}, source, lambda: source, 32)
    images, *_ = study.first(3)
    pictures = controls.optimise(study, model, model.logits(images))
    assert measures.pixel_mse(images, pictures).max() < 30


def test_the_next_report_need_not_optimise(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(controls, "STEPS", 2)
    optimise, optimised = controls.optimise, []

    def counted(study, model, condition):
        optimised.append(len(condition))
        return optimise(study, model, condition)

    monkeypatch.setattr(controls, "optimise", counted)

    def found(count, digest="one"):
        monkeypatch.setattr(controls, "IMAGES", count)
        source = dataclasses.replace(
            rendered("test", 30), identity=lambda: digest
        )
        study = study_lib.Study(
            {"model": in_tensorflow()}, source, lambda: source, 32
        )
        return controls.run(study).metrics["model"]["optimisation"]

    first = found(10)
    # The pictures, and the seconds that they took.
    assert found(10) == first
    assert optimised == [10]
    # Other images.
    found(12)
    found(10, "two")
    assert optimised == [10, 12, 10]


def test_the_same_seed_gives_the_same_numbers(source):
    runs = [
        run(noise_resampling, source, model=noise_only()).metrics
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_measured_or_left_out(
    rendered, tmp_path, monkeypatch, count
):
    """No experiment fails on a validation split of so many images."""
    monkeypatch.setattr(factors, "SAMPLES", 2)
    monkeypatch.setattr(memorisation, "TRAINING_IMAGES", 20)
    models = {
        **{"robust": noise_only(), "standard": noise_only()},
        **{"fine": of_a_layer("fine", 1), "coarse": of_a_layer("coarse", 4)},
    }
    source, training = rendered("test", count), rendered("train", 20)
    left_out = []
    for name in analyze.EXPERIMENTS:
        of_layers = name in ("layers_compared", "two_inversions")
        names = list(models)[2:] if of_layers else list(models)[:2]
        study = study_lib.Study(
            {name: models[name] for name in names},
            source,
            lambda *place: training,
            32,
        )
        module = importlib.import_module(f"kinv.analysis.{name}")
        try:
            result = module.run(study)
        except results.NotApplicable as need:
            left_out.append(f"{name} {need}")
            continue
        report.write_result(tmp_path / name, module.TITLE, result)
    need = f"calibration needs at least 6 images, the split has {count}"
    assert need in left_out
    # Pictures of what there is.
    assert (tmp_path / "reconstructions" / "grid.png").exists()


def test_experiments_have_titles_and_files():
    for name in analyze.EXPERIMENTS:
        module = importlib.import_module(f"kinv.analysis.{name}")
        assert module.TITLE and module.run.__doc__


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.1, 0.2, "holds"),
        (-0.2, -0.1, "does not hold"),
        (-0.1, 0.1, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_verdicts(low, high, verdict):
    found = {"value": 0, "low": low, "high": high}
    assert results.claim("1", "", "", found).verdict == verdict


def test_memorisation_tells_copies_from_pictures_of_ones_own(
    rendered, source, monkeypatch
):
    monkeypatch.setattr(memorisation, "TRAINING_IMAGES", 300)
    training = rendered("train", 300)
    copies = images_of(training, 300)

    def copy(logits, noise):
        flat = copies.reshape(300, -1)
        distances = measures.squared_distances(64 * logits, flat)
        return copies[distances.argmin(axis=-1)]

    learned_by_heart = fake(
        lambda images: images.reshape(len(images), -1) / 64, copy, 32 * 32 * 3
    )
    models = {"perfect": perfect(), "copies": learned_by_heart}
    study = study_lib.Study(models, source, lambda: training, 32)
    metrics = memorisation.run(study).metrics
    for measure in ("ratio", "blur_ratio"):
        assert metrics["perfect"][measure]["value"] == pytest.approx(1)
        assert metrics["copies"][measure]["value"] == pytest.approx(0, abs=1e-2)


def colors(image_of):
    """Logits are the mean colour."""
    return fake(lambda images: images.mean(axis=(1, 2)) / 64, image_of, 3)


def test_two_models_side_by_side(source):
    def model(spread, brighter=None):
        """Shows the mean colour, with noise; one image much brighter."""

        def image_of(logits, noise):
            made = 64 * logits + spread * noise[:, :3]
            if brighter is not None:
                made[np.isclose(logits, brighter).all(axis=1)] += 90
            return np.broadcast_to(
                made[:, None, None], (len(logits), 32, 32, 3)
            )

        return colors(image_of)

    images = images_of(source, 400)
    means = images.mean(axis=(1, 2))
    result = run(
        side_by_side, source, calm=model(5, means[123] / 64), wild=model(12)
    )
    of = result.metrics["calm and wild"]
    left_open = images.var(axis=(1, 2)).mean()
    groups = [means[means.argmax(axis=1) == kind] for kind in range(3)]
    within = np.mean(
        [2 * group.var(axis=0, ddof=1).sum() for group in groups for _ in group]
    )
    for name, spread in ("calm", 5), ("wild", 12):
        assert of[name]["spread"]["value"] == pytest.approx(spread, rel=0.05)
        ratio = (left_open + spread**2 / 8) / (left_open + spread**2)
        assert of[name]["error_ratio"]["value"] == pytest.approx(
            ratio, abs=0.02
        )
        # Of three colours.
        expected = within / (within + 3 * spread**2)
        assert of[name]["within_class_r2"]["value"] == pytest.approx(
            expected, abs=0.04
        )
    minus = of["wild minus calm"]
    assert 6 < minus["spread"]["low"] < 7 < minus["spread"]["high"] < 8
    assert minus["error_ratio"]["high"] < 0
    rows = result.tables["images calm and wild"]
    assert len(rows) == 400
    first = max(rows, key=lambda row: row["distance_of_means"])
    assert first["image"] == 123 and first["file"] == "image 123"
    # One of six bands differs, by 90 and what is left of the noise.
    assert first["distance_of_means"] == pytest.approx(90 / np.sqrt(6), rel=0.2)
    assert first["class_calm"] == f"class {means[123].argmax()}"
    assert "calm and wild differ most" in result.figures[0].caption
    # From the farthest on, eight to a figure.
    order = np.argsort(
        [-row["distance_of_means"] for row in rows], kind="stable"
    )
    for figure, first in (result.figures[0], 0), (result.figures[1], 8):
        shown = [
            text.get_text()
            for text in figure.drawing.findobj(matplotlib.text.Text)
        ]
        shown = [text for text in shown if text.startswith("image ")]
        assert shown == [f"image {i}" for i in order[first : first + 8]]
    assert [figure.name for figure in result.figures] == [
        "calm-wild",
        *(f"calm-wild-{number}" for number in range(8, 48, 8)),
    ]
    with pytest.raises(results.NotApplicable, match="two models"):
        run(side_by_side, source, one=model(5))


def test_two_inversions_of_one_classifier(source, monkeypatch):
    def flat(logits, noise):
        return np.broadcast_to(
            64 * logits[:, None, None], (len(logits), 32, 32, 3)
        )

    def with_noise(logits, noise):
        return flat(logits, noise) + 5 * noise[:, :3][:, None, None]

    def class_only(logits, noise):
        bright = np.eye(3)[logits.argmax(-1)] * 3
        return with_noise(bright, noise)

    result = run(
        two_inversions,
        source,
        first=colors(flat),
        second=colors(with_noise),
        class_only=colors(class_only),
        other=perfect(),
    )
    metrics = result.metrics
    # Of another classifier nothing is said.
    assert set(metrics) == {
        "first and second",
        "first and class_only",
        "second and class_only",
    }
    assert metrics["first and second"]["shared_r2"]["value"] > 0.95
    assert metrics["first and second"]["ceiling_of_first"]["value"] == 1
    assert 0.95 < metrics["first and second"]["ceiling_of_second"]["value"] < 1
    # What shows nothing of an image agrees not even with itself.
    ceiling = metrics["first and class_only"]["ceiling_of_second"]["value"]
    assert abs(ceiling) < 0.1
    assert abs(metrics["first and class_only"]["shared_r2"]["value"]) < 0.1
    hue = metrics["first and second"]["wall_hue"]["value"]
    assert hue > metrics["first and class_only"]["wall_hue"]["value"]
    with pytest.raises(results.NotApplicable, match="the same classifier"):
        run(two_inversions, source, one=colors(flat), other=perfect())
    # Of one classifier, but what they are given of it differs.
    monkeypatch.setattr(two_inversions, "IMAGES", 20)
    layers = {"fine": of_a_layer("fine", 1), "coarse": of_a_layer("coarse", 4)}
    with pytest.raises(results.NotApplicable, match="classifier and layer"):
        run(two_inversions, source, **layers)
    again = of_a_layer("fine", 1)
    assert set(run(two_inversions, source, **layers, again=again).metrics) == {
        "fine and again"
    }


def test_two_inversions_agree_as_each_with_itself(source):
    """Where the noise alone parts them, that is what the ceilings say."""
    spread = 20

    def image_of(logits, noise):
        colors = 64 * logits + spread * noise[:, :3]
        return np.broadcast_to(colors[:, None, None], (len(logits), 32, 32, 3))

    metrics = run(
        two_inversions, source, one=colors(image_of), two=colors(image_of)
    ).metrics["one and two"]
    images = images_of(source, 400)
    means = images.mean(axis=(1, 2))
    within, pairs = 0, 0
    for kind in range(3):
        group = means[means.argmax(axis=-1) == kind]
        within += 2 * len(group) * group.var(axis=0, ddof=1).sum()
        pairs += len(group)
    # Of three colours, in two means of four noises.
    noise = 3 * 2 * spread**2 / 4
    expected = 1 - noise / (noise + within / pairs)
    assert 0.4 < expected < 0.9
    for name in ("shared_r2", "ceiling_of_first", "ceiling_of_second"):
        assert metrics[name]["value"] == pytest.approx(expected, abs=0.05), name


def test_distributions(source, monkeypatch):
    monkeypatch.setattr(distributions, "IMAGES", 250)
    result = run(distributions, source, same=perfect(), noise=noise_only())
    found = result.metrics["same"]
    # Pictures that equal the images are as far from other images as these.
    assert found["floor"] > 0.01
    assert found["frechet_distance"] == pytest.approx(found["floor"], rel=1e-3)
    assert found["inception_score"] == pytest.approx(
        found["inception_score_of_images"]
    )
    other = result.metrics["noise"]
    assert other["frechet_distance"] > 10 * other["floor"]
    assert other["kernel_distance"]["low"] > found["kernel_distance"]["high"]


def without_factors(source, count):
    return dataclasses.replace(
        source,
        examples=source.examples.take(count),
        num_examples=count,
        factor_names=[],
    )


def test_distributions_take_another_network_or_say_so(source):
    source = without_factors(source, 100)
    study = study_lib.Study({"same": perfect()}, source, None, 32)
    with pytest.raises(results.NotApplicable, match="--features"):
        distributions.run(study)
    study.features = lambda images: images.mean(axis=(1, 2)), "mean colour"
    found = distributions.run(study).metrics["same"]
    assert found["features"] == "mean colour"
    assert found["frechet_distance"] == pytest.approx(found["floor"], rel=1e-3)


@pytest.mark.parametrize("count", [51, 100, 150])
def test_a_frechet_distance_and_its_floor_are_of_the_halves(source, count):
    """One image of the last batch alone included."""
    source = without_factors(source, count)
    study = study_lib.Study(
        {"same": perfect()},
        source,
        None,
        32,
        features=(lambda images: images.mean(axis=(1, 2)) / 9, "mean colour"),
    )
    [(images, *_)] = study.batches(count, batch_size=count)
    halves = [images[half::2].mean(axis=(1, 2)) / 9 for half in range(2)]
    means = [half.mean(axis=0) for half in halves]
    covariances = [np.cov(half.astype("float64").T) for half in halves]
    expected = (
        np.sum((means[0] - means[1]) ** 2)
        + np.trace(covariances[0] + covariances[1])
        - 2 * np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    )
    found = distributions.run(study).metrics["same"]
    assert found["floor"] == pytest.approx(expected, rel=1e-3)
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-3)


def test_distributions_need_images(source):
    with pytest.raises(results.NotApplicable, match="at least 4 images"):
        run(distributions, without_factors(source, 3), same=perfect())


def of_a_layer(name, blur):
    """Inverts features that are blurred pixels; its classes are known."""

    def features_of(images):
        side = 32 // blur
        blocks = images.reshape(len(images), side, blur, side, blur, 3)
        return blocks.mean(axis=(2, 4)).reshape(len(images), -1)

    inner = fake(
        lambda images: images.reshape(len(images), -1)[:, :80] / 64,
        lambda logits, noise: np.zeros((len(noise), 32, 32, 3)),
        80,
    )

    def predict(inputs):
        outputs = inner._predict({**inputs, "logit_shift": np.zeros((1, 1, 1))})
        images, noise = inputs["images"], inputs["noise"]
        features = np.zeros((1, (32 // blur) ** 2 * 3))
        if images.shape[1] > 1:
            features = features_of(images)
        given = features[:, None] * inputs["logit_scale"][..., None]
        given = np.broadcast_to(
            given + inputs["logit_shift"],
            (*noise.shape[:2], features.shape[1]),
        )
        side = 32 // blur
        pictures = given.reshape(*noise.shape[:2], side, side, 3)
        pictures = pictures.repeat(blur, axis=2).repeat(blur, axis=3)
        return {
            "logits": outputs["logits"],
            "features": features.astype("float32"),
            "reconstructions": pictures.astype("float32"),
        }

    metadata = {
        **inner.metadata,
        "layer": name,
        "layer_maps": "flatten",
        "condition_dim": (32 // blur) ** 2 * 3,
    }
    return pipeline.Pipeline(predict, metadata)


def test_layers_compared(source, monkeypatch):
    monkeypatch.setattr(layers_compared, "IMAGES", IMAGES)
    models = {"fine": of_a_layer("fine", 1), "coarse": of_a_layer("coarse", 4)}
    shown = {}
    draw = grids.captioned_grid
    monkeypatch.setattr(
        grids,
        "captioned_grid",
        lambda rows, **options: (
            shown.update(rows=rows) or draw(rows, **options)
        ),
    )
    result = run(layers_compared, source, **models)
    fine, coarse = result.metrics["fine"], result.metrics["coarse"]
    assert fine["layer"] == "features of fine" and fine["numbers"] == 3072
    assert fine["pixel_mse"]["value"] == 0 and fine["psnr"]["value"] == 100
    originals = images_of(source, IMAGES)
    blocks = originals.reshape(IMAGES, 8, 4, 8, 4, 3)
    # A mean loses the variance of what it is taken of.
    lost = blocks.var(axis=(2, 4)).mean()
    assert coarse["pixel_mse"]["value"] == pytest.approx(lost, rel=1e-3)
    assert fine["object_hue"]["value"] > 0.9
    names = [figure.name for figure in result.figures]
    assert names == ["pictures", "pixels", "similarity", "factors"]
    # Two noises of each layer, which change nothing here.
    image, *fine_rows, coarse_row, _ = shown["rows"]
    np.testing.assert_array_equal(image, originals[: layers_compared.SHOWN])
    np.testing.assert_allclose(fine_rows, [image] * 2, atol=1e-3)
    assert np.abs(coarse_row - image).max() > 10
    with pytest.raises(results.NotApplicable, match="several layers"):
        run(layers_compared, source, one=models["fine"])
    with pytest.raises(results.NotApplicable, match="several layers"):
        run(layers_compared, source, fine=models["fine"], other=perfect())


def test_experiments_on_features(source):
    models = {"coarse": of_a_layer("coarse", 4)}
    found = run(reconstructions, source, **models).metrics["coarse"]
    # The pictures' features are the images'.
    assert found["within_class_r2_of_features"]["value"] in (
        None,
        pytest.approx(1),
    )
    found = run(logit_interpolation, source, **models).metrics["coarse"]
    assert found["pixel_length"]["value"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(results.NotApplicable, match="the features of coarse"):
        run(manipulation, source, **models)


def test_perceptual_distances_are_of_the_reconstructions(source):
    study = study_lib.Study(
        {"perfect": perfect()},
        source,
        lambda: source,
        32,
        perceptual=measures.pixel_mse,
    )
    found = reconstructions.run(study).metrics["perfect"]
    assert found["perceptual_distance"]["value"] == 0
    shuffled = found["shuffled_perceptual_distance"]
    assert shuffled == found["shuffled_pixel_mse"]


def test_ranks_are_compared_with_chance_of_all_of_them():
    found = calibration.rank_distances(np.zeros((100, 8), int))
    chance = np.sqrt(16 / (2 * np.pi * 800))
    assert found["flat_rank_distance"] == pytest.approx(chance)
    assert found["rank_distance"] == pytest.approx(16 / 17)


@pytest.mark.parametrize("left_open", [(9, 1), (1, 9)])
def test_spread_is_measured_against_the_less_that_is_left_open(left_open):
    left_open = (np.array([value], float) for value in left_open)
    assert factors._noise_spread(np.array([4.0]), *left_open) == 2


def test_readings_that_know_nothing_explain_nothing():
    random = np.random.default_rng(0)
    readings = random.normal(size=(100, 30))
    codes = random.normal(size=(100, 1))
    # Fitted to these very images they would tell a third.
    errors = scene_factors.residuals(readings, codes)
    assert errors.sum() >= np.sum(codes**2)


def test_one_image_may_be_kept_better_than_another():
    # Each error is half of that against another image.
    found = rotation._against_chance(np.array([1.0, 3]), np.array([2.0, 6]))
    np.testing.assert_allclose(found, [0.5, 0.5])


def test_the_class_mean_of_a_class_without_images_is_that_of_all():
    model = types.SimpleNamespace(num_classes=3)
    features = {
        "condition": np.array([[0.0], [2], [7]], "float32"),
        "classes": np.array([0, 0, 2]),
    }
    assert probes.class_means(model, features).tolist() == [[1], [3], [7]]


def probed(classes_of, mix_of, count=3000, noise=0.0):
    """R² with which probes tell factors of as many new images."""
    random = np.random.default_rng(0)

    def make(split):
        of = scenes.scene_factors(split, range(count))
        codes = scene_factors.encode(of)[:, 12:]
        classes = classes_of(random, count)
        condition = np.stack(
            [x @ mix_of(k) for x, k in zip(codes, classes, strict=True)]
        )
        condition += noise * random.normal(size=condition.shape)
        return {
            **of,
            "condition": condition.astype("float32"),
            "classes": classes,
        }

    train, test = make("train"), make("test")
    study = types.SimpleNamespace(
        models={"m": types.SimpleNamespace(layer=None)}, seed=0
    )
    found = probes.predict(
        study, "m", train, test["condition"], test["classes"]
    )
    codes = scene_factors.encode(test)
    return {
        name: scene_factors.r_squared(codes[:, part], found[:, part])
        for name, part in scene_factors.PARTS.items()
        if name not in ("shape", "object_hue")
    }


def test_probes_tell_what_is_linear_in_all_classes_or_in_each():
    mix = np.random.default_rng(1).normal(size=(7, 7))
    found = probed(lambda draw, n: draw.integers(300, size=n), lambda k: mix)
    assert min(found.values()) > 0.99
    # The other way round in every other class.
    found = probed(
        lambda draw, n: draw.integers(2, size=n), lambda k: mix * (-1) ** k
    )
    assert min(found.values()) > 0.99


def test_probes_of_classes_of_ten_images_are_not_learned_by_heart():
    found = probed(
        lambda draw, n: draw.integers(80, size=n),
        lambda k: np.eye(7),
        count=800,
        noise=0.5,
    )
    for name in ("size", "azimuth", "brightness"):
        # A uniform code in [-1, 1], with noise of .5.
        assert found[name] == pytest.approx(1 / 3 / (1 / 3 + 0.25), abs=0.08)


def test_the_class_alone_is_shown_by_the_mean_of_its_logits(
    source, monkeypatch
):
    monkeypatch.setattr(controls, "IMAGES", 20)

    def image_of(logits, noise):
        made = 64 * logits[:, None, None]
        return np.broadcast_to(made, (len(logits), 32, 32, 3))

    metrics = run(controls, source, flat=colors(image_of)).metrics["flat"]
    images = images_of(source, 400)
    means = images.mean(axis=(1, 2))
    classes = means.argmax(axis=-1)
    of_class = np.stack([means[classes == k].mean(axis=0) for k in range(3)])
    shown = of_class[classes[:20], None, None]
    expected = np.mean((images[:20] - shown) ** 2)
    assert metrics["class only"]["pixel_mse"]["value"] == pytest.approx(
        expected, rel=1e-3
    )


def test_pixels_that_are_optimised_stay_pixels(source, monkeypatch):
    monkeypatch.setattr(controls, "STEPS", 100)
    model = in_tensorflow()
    study = study_lib.Study({"model": model}, source, lambda: source, 32)
    far = np.full((1, 3072), 9.0, "float32")
    assert controls.optimise(study, model, far).max() == 255


def test_misclassified_images_are_compared_right_minus_wrong():
    right = np.arange(200) < 100
    same = np.arange(200) % 100 < np.where(right, 90, 40)
    errors = np.full(200, 0.5), np.ones(200)
    study = study_lib.Study({}, None, None, 32)
    claims = misclassified._claims(study, "model", 10, same, errors, right)
    assert claims[1].value == pytest.approx(0.5)
    assert claims[1].verdict == "holds"
