"""Where copies of training images are looked for, on images made up here."""

import numpy as np
import pytest
import tensorflow as tf

from kinv import errors, pixels
from kinv.analysis import memorisation
from kinv.analysis import study as study_lib
from kinv.data import source as source_lib
from kinv.serving import pipeline
from tools import analyze

SIZE = 8
# In the middle of [0, 255], so that others are at a distance.
HELD_OUT = np.full((100, SIZE, SIZE, 3), 128, "uint8")


def make_source(images, identity=lambda: None):
    labels = np.zeros(len(images), "int64")
    return source_lib.in_memory(images, labels, ["any"], identity=identity)


def random_images(count, seed):
    shape = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


def always(picture, **training):
    """A model that makes the same picture of every image."""

    def predict(inputs):
        shape = (*inputs["noise"].shape[:2], SIZE, SIZE, 3)
        return {
            "logits": np.zeros((len(inputs["images"]), 1), "float32"),
            "reconstructions": np.broadcast_to(picture, shape),
        }

    metadata = {
        "class_names": ["any"],
        "num_classes": 1,
        "noise_dim": 2,
        "image_size": SIZE,
        "training": training,
    }
    return pipeline.Pipeline(predict, metadata)


def run(model, training_source, quick=False):
    study = study_lib.Study(
        {"model": model},
        make_source(HELD_OUT),
        training_source,
        SIZE,
        quick=quick,
    )
    return memorisation.run(study)


@pytest.mark.parametrize("place, quick", [(20_500, False), (4_500, True)])
def test_a_copy_is_found_wherever_it_is(place, quick):
    training = random_images(21_000, 0)
    source = make_source(training)
    copies = run(always(training[place]), lambda: source, quick)
    others = run(always(random_images(1, 1)[0]), lambda: source, quick)
    for measure in ("ratio", "blur_ratio"):
        found = copies.metrics["model"][measure]["value"]
        assert found == pytest.approx(0, abs=1e-2)
        assert others.metrics["model"][measure]["value"] > 1
    assert copies.metrics["model"]["searched"] == 21_000
    assert "Searched: 21,000 of 21,000" in copies.figures[0].caption


def test_the_distance_is_that_of_numpy():
    training = random_images(700, 0)
    picture = random_images(1, 1)[0]
    found = run(always(picture), lambda: make_source(training))

    def nearest(image):
        differences = training.astype("float64") - image
        return np.sqrt((differences**2).sum(axis=(1, 2, 3)).min())

    expected = nearest(picture) / nearest(HELD_OUT[0])
    # Images are of 8 x 8 pixels already.
    for measure in ("ratio", "blur_ratio"):
        value = found.metrics["model"][measure]["value"]
        assert value == pytest.approx(expected, rel=1e-4)


def test_small_pictures_are_resized_as_all_are():
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (5, 20, 20, 3)).astype("float32")
    shrink = pixels.resize_weights(20, 8)
    small = memorisation._compared(images, shrink)["blur_ratio"]
    expected = tf.image.resize(images, (8, 8), antialias=True)
    np.testing.assert_allclose(small, tf.reshape(expected, (5, -1)), atol=1e-3)


@pytest.mark.parametrize("digest", ["those", "others"])
def test_another_folder_of_the_model_s_name_is_not_its_own(digest):
    source = make_source(random_images(700, 0), lambda: "those")
    model = always(HELD_OUT[0], dataset="photos", train_split="train")
    own = {**source.describe(), "digest": digest}
    model.metadata["data"] = {"train": own}
    found = run(model, lambda *place: source).metrics["model"]
    own_or_not = {
        "those": "photos, split train",
        "others": "(photos, split train) are not at hand, or are the ones "
        "analysed",
    }
    assert found["training_set"].endswith(own_or_not[digest])


def test_a_search_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    searches = []
    search = memorisation._nearest
    monkeypatch.setattr(
        memorisation,
        "_nearest",
        lambda *of: searches.append(1) or search(*of),
    )
    training = random_images(700, 0)
    source = make_source(training, lambda: "those")
    first, again, of_others, among_others = (
        run(always(picture), lambda: images).metrics["model"]
        for picture, images in (
            (training[650], source),
            (training[650], source),
            (training[650] // 2, source),
            (training[650], make_source(training // 2, lambda: "others")),
        )
    )
    assert len(searches) == 3
    assert first == again
    assert first["ratio"]["value"] == pytest.approx(0, abs=1e-2)
    for other in (of_others, among_others):
        assert other["ratio"]["value"] > 0.5


def test_a_limit_is_told(monkeypatch):
    monkeypatch.setattr(memorisation, "TRAINING_IMAGES", 600)
    training = random_images(700, 0)
    found = run(always(training[650]), lambda: make_source(training))
    metrics = found.metrics["model"]
    assert (metrics["searched"], metrics["training_images"]) == (600, 700)
    assert metrics["ratio"]["value"] > 0.5
    assert "Searched: 600 of 700 training images" in found.figures[0].caption
    for row in found.tables["ratios"]:
        assert (row["searched"], row["training_images"]) == (600, 700)


def test_a_model_s_own_training_images_are_searched():
    own, others = random_images(50, 0), random_images(60, 1)

    def open_training(name="analysed", split="train"):
        if (name, split) == ("own", "train[:90%]"):
            return make_source(own)
        if (name, split) == ("analysed", "train"):
            return make_source(others)
        raise errors.InputError("no such data set")

    picture = own[7]
    found = run(
        always(picture, dataset="own", train_split="train[:90%]"),
        open_training,
    )
    assert found.metrics["model"]["ratio"]["value"] == pytest.approx(
        0, abs=1e-2
    )
    assert found.metrics["model"]["training_set"] == "own, split train[:90%]"
    for training, reason in (
        ({"dataset": "lost", "train_split": "train"}, "(lost, split train)"),
        ({}, "names none"),
    ):
        found = run(always(picture, **training), open_training)
        assert found.metrics["model"]["training_images"] == 60
        assert found.metrics["model"]["ratio"]["value"] > 0.5
        told = found.metrics["model"]["training_set"]
        assert told.startswith("those of the analysed data set")
        assert reason in told


def test_a_folder_is_found_by_the_last_part_of_its_path(
    image_folder, tmp_path, monkeypatch
):
    """Exports keep no more of it; another split than --training-split."""
    training = {"dataset": image_folder.name, "train_split": "train[:50%]"}
    model = always(np.zeros((SIZE, SIZE, 3)), **training)
    model.num_classes = 2
    model.metadata["classifier_size"] = SIZE
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda path: model)
    out = tmp_path / "results"
    analyze.main(
        ["--model", "any", "--dataset", str(image_folder), "--out", str(out)]
        + ["--experiments", "memorisation"]
    )
    page = (out / "report.html").read_text()
    # Half of 120 images.
    assert "60 of 60 training images, colors, split train[:50%]" in page
