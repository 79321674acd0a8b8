"""The cache of logits: what it holds, and what a killed process leaves."""

import concurrent.futures
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import errors
from kinv.classifiers import features as features_lib
from kinv.classifiers import saved_models, small
from kinv.classifiers.logit_cache import LogitCache, check_place
from kinv.data import datasets
from kinv.data import source as source_lib

SIZE = 32


@pytest.fixture(scope="module")
def source(image_folder):
    return datasets.open_dataset(str(image_folder), "train")


@pytest.fixture(scope="module")
def classifier(classifier_file):
    return keras.models.load_model(classifier_file)


def everything(source, start=0):
    """Images, logits and labels of two passes, in training order."""
    batches = source.training_batches(SIZE, 12, seed=3, start=start)
    batches = batches.take((2 * source.num_examples - start) // 12)
    flat = map(tf.nest.flatten, batches)
    return [np.concatenate(x) for x in zip(*flat, strict=True)]


def test_a_cache_among_the_images_is_refused(image_folder, tmp_path):
    for inside in (image_folder, image_folder / "cache"):
        with pytest.raises(errors.InputError, match="outside that of the im"):
            check_place(inside, str(image_folder))
    assert not (image_folder / "cache").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.InputError, match="a file"):
        check_place(tmp_path / "file", str(image_folder))
    check_place(tmp_path / "cache", str(image_folder))
    # A name of TensorFlow Datasets that a folder might have, and has not.
    check_place(tmp_path / "cache", "mnist")


def test_cache_holds_what_the_classifier_says_in_the_same_order(
    source, classifier, tmp_path
):
    cache = LogitCache(source, classifier, None, SIZE, tmp_path)
    cache.write()
    cached = cache.read()
    for start in (0, 60):
        images, labels = everything(source, start)
        cached_images, logits, cached_labels = everything(cached, start)
        # These images are stored at that size in whole numbers.
        np.testing.assert_array_equal(cached_images, images)
        np.testing.assert_array_equal(cached_labels, labels)
        # Half a unit of float16's 11 bits.
        expected = np.array(classifier(images))
        np.testing.assert_allclose(logits, expected, rtol=2**-11, atol=1e-6)


def test_other_sizes_are_rounded_to_whole_numbers(source, classifier, tmp_path):
    cache = LogitCache(source, classifier, None, 16, tmp_path)
    cache.write()
    cached = cache.read()
    images = next(iter(source.training_batches(SIZE, 12, seed=3)))[0]
    batch = next(iter(cached.training_batches(16, 12, seed=3)))
    targets = batch[0]["images"]
    # Antialiasing by two, as Pillow's.
    expected = keras.ops.image.resize(images, (16, 16), antialias=True)
    np.testing.assert_allclose(targets, expected, atol=0.501)


def test_a_pass_goes_on_where_it_was_killed(
    source, classifier, tmp_path, monkeypatch
):
    LogitCache(source, classifier, None, SIZE, tmp_path / "a").write()
    (whole,) = (tmp_path / "a").glob("*/*.tfrecord")
    content = whole.read_bytes()
    partial = tmp_path / "b" / whole.parent.name / "logits.partial"
    partial.parent.mkdir(parents=True)
    # In the middle of the 41st record.
    record = len(content) // source.num_examples
    partial.write_bytes(content[: 40 * record + 17])
    with pytest.raises(errors.InputError, match="Received: 0 bytes"):
        LogitCache(source, classifier, None, SIZE, tmp_path / "b").read()
    asked = []
    batches = source_lib.Source.evaluation_batches

    def count(self, *arguments, start=0, **options):
        asked.append(start)
        return batches(self, *arguments, start=start, **options)

    monkeypatch.setattr(source_lib.Source, "evaluation_batches", count)
    LogitCache(source, classifier, None, SIZE, tmp_path / "b").write()
    # The first records are compared, then it goes on.
    assert asked == [0, 40] and not partial.exists()
    assert partial.with_name(whole.name).read_bytes() == content
    # Complete: nothing to do.
    LogitCache(source, classifier, None, SIZE, tmp_path / "b").write()
    assert asked == [0, 40]


def test_another_classifier_split_or_size_is_another_cache(
    source, classifier, image_folder, classifier_file
):
    def path(source=source, classifier=classifier, size=SIZE):
        return LogitCache(source, classifier, None, size, "cache").path

    again = keras.models.load_model(classifier_file)
    assert path(classifier=again) == path()
    keras.utils.set_random_seed(1)
    other = small.build_classifier(SIZE, 2, 4)
    part = datasets.open_dataset(str(image_folder), "train[:50%]")
    paths = {path(), path(classifier=other), path(part), path(size=64)}
    assert len(paths) == 4


def saved_model(directory, kernel):
    """A SavedModel, images to means of their channels times a kernel."""
    module = tf.Module()
    module.kernel = tf.Variable(np.array(kernel, "float32"))

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3))])
    def classify(images):
        return {"logits": tf.reduce_mean(images, (1, 2)) @ module.kernel}

    tf.saved_model.save(module, str(directory), signatures=classify)
    return saved_models.load(directory)


def test_saved_models_of_other_variables_have_other_caches(source, tmp_path):
    kernels = [[1, 0], [0, 1], [0, 0]], [[0, 1], [1, 0], [0, 0]]
    one, other = (
        saved_model(tmp_path / str(index), kernel)
        for index, kernel in enumerate(kernels)
    )
    one.save(tmp_path / "one.keras")
    again = keras.models.load_model(tmp_path / "one.keras")
    digests = [
        LogitCache(source, model, None, SIZE, tmp_path).description[
            "classifier"
        ]
        for model in (one, other, again)
    ]
    assert digests[0] == digests[2] != digests[1]


def test_a_cache_of_another_computation_is_refused(source, tmp_path):
    def between_layers(scale):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.GlobalAveragePooling2D()(scale * inputs)
        return keras.Model(inputs, keras.layers.Dense(2)(x))

    one, other = between_layers(1 / 255), between_layers(1 / 127.5)
    LogitCache(source, one, None, SIZE, tmp_path).write()
    LogitCache(source, one, None, SIZE, tmp_path).read()
    with pytest.raises(errors.InputError, match="of this classifier") as raised:
        LogitCache(source, other, None, SIZE, tmp_path).read()
    assert "\n" not in str(raised.value)
    # Nor is what a killed pass left gone on with.
    (path,) = tmp_path.glob("*/*.tfrecord")
    path.rename(path.with_suffix(".partial"))
    with pytest.raises(errors.InputError, match="of this classifier"):
        LogitCache(source, other, None, SIZE, tmp_path).write()


def test_two_runs_at_once_make_one_cache(source, classifier, tmp_path):
    LogitCache(source, classifier, None, SIZE, tmp_path / "a").write()
    (whole,) = (tmp_path / "a").glob("*/*.tfrecord")
    barrier = threading.Barrier(2)

    def write():
        barrier.wait()
        LogitCache(source, classifier, None, SIZE, tmp_path / "b").write()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(write) for _ in range(2)]:
            future.result()
    directory = tmp_path / "b" / whole.parent.name
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["description.json", whole.name]
    assert (directory / whole.name).read_bytes() == whole.read_bytes()


def test_features_are_kept_instead_of_logits(source, classifier, tmp_path):
    model = features_lib.add_features(classifier, "pooled", "pool")
    cache = LogitCache(source, model, "pooled", SIZE, tmp_path)
    cache.write()
    cached = cache.read()
    images, features, _ = everything(cached)
    expected = np.array(model(images)[1])
    np.testing.assert_allclose(features, expected, rtol=2**-11, atol=1e-6)


def test_a_damaged_cache_is_one_clear_line(source, classifier, tmp_path):
    LogitCache(source, classifier, None, SIZE, tmp_path).write()
    (path,) = tmp_path.glob("*/*.tfrecord")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.InputError, match="Remove it") as raised:
        LogitCache(source, classifier, None, SIZE, tmp_path).read()
    assert "\n" not in str(raised.value)


def test_flipped_bits_are_found(source, classifier, tmp_path):
    LogitCache(source, classifier, None, SIZE, tmp_path).write()
    (path,) = tmp_path.glob("*/*.tfrecord")
    content = path.read_bytes()
    cached = LogitCache(source, classifier, None, SIZE, tmp_path).read()
    assert len(list(cached.examples)) == source.num_examples
    random = np.random.default_rng(0)
    # A length, both checksums, and ten bits wherever they are.
    positions = [0, 9, len(content) - 1]
    positions += [*random.integers(0, len(content), 10)]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
            list(cached.examples)


def test_zeroed_records_are_found(source, classifier, tmp_path):
    LogitCache(source, classifier, None, SIZE, tmp_path).write()
    (path,) = tmp_path.glob("*/*.tfrecord")
    content = bytearray(path.read_bytes())
    content[-1000:] = bytes(1000)
    path.write_bytes(content)
    cached = LogitCache(source, classifier, None, SIZE, tmp_path).read()
    with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
        list(cached.examples)


def test_logits_beyond_float16_are_refused(source, tmp_path):
    classifier = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, kernel_initializer="ones"),
            keras.layers.Rescaling(1e6),
        ]
    )
    with pytest.raises(errors.InputError, match="float16"):
        LogitCache(source, classifier, None, SIZE, tmp_path).write()
