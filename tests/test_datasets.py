"""Reading of data sets, offline: mocked TFDS and folders made here."""

import contextlib
import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from kinv import errors
from kinv.data import datasets, folders, rendering, scenes
from kinv.data import source as source_lib


@pytest.fixture
def folder(tmp_path):
    """30 images of 2 classes whose every pixel is the image's number."""
    for number in range(30):
        path = tmp_path / "images" / ("even", "odd")[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), number, "uint8")
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return tmp_path / "images"


def make_folders(directory, names):
    """Folders of one image each."""
    for name in names:
        (directory / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(directory / name / "image.png")


@contextlib.contextmanager
def mocked_data():
    with tfds.testing.mock_data(num_examples=20):
        yield


def numbers(batches, count):
    return [
        images[:, 0, 0, 0].numpy().tolist()
        for images, _ in itertools.islice(batches, count)
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_known_to_fit_are_read_as_others(channels):
    shape = 6, 8, 8, channels
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    examples = {"image": pixels, "label": np.zeros(6, "int64")}

    def images(decode):
        stream = tf.data.Dataset.from_tensor_slices(examples)
        opened = source_lib.Source(stream, decode, ["any"], 6)
        batches = opened.evaluation_batches(8, 6)
        assert batches.element_spec[0].shape.as_list() == [None, 8, 8, 3]
        return next(iter(batches))[0]

    def of_any_size(image):
        image = tf.numpy_function(lambda x: x, [image], tf.uint8)
        return tf.ensure_shape(image, (None, None, channels))

    fitting, others = images(lambda image: image), images(of_any_size)
    np.testing.assert_array_equal(fitting, others)


def test_folder_has_every_image_once_with_its_label(folder):
    source = datasets.open_dataset(folder, "train[:100%]")
    assert source.class_names == ["even", "odd"]
    assert source.num_examples == 30
    seen = []
    for images, labels in source.evaluation_batches(16, 7):
        assert images.dtype == tf.float32
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)
        seen += images[:, 0, 0, 0].numpy().tolist()
    assert sorted(seen) == list(range(30))


def test_train_and_validation_of_a_folder_are_disjoint(folder):
    parts = [
        sum(
            numbers(
                datasets.open_dataset(folder, split).evaluation_batches(16, 5),
                None,
            ),
            [],
        )
        for split in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [27, 3]
    assert sorted(parts[0] + parts[1]) == list(range(30))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_resumed_stream_equals_the_uninterrupted_one(folder, crop):
    source = datasets.open_dataset(folder, "train[:100%]")
    whole = numbers(source.training_batches(16, 4, seed=5, crop=crop), 20)
    tf.random.set_seed(0)  # must not matter
    for done in (1, 8, 17):  # 8 batches end in the second pass
        resumed = source.training_batches(
            16, 4, seed=5, start=4 * done, crop=crop
        )
        assert numbers(resumed, 20 - done) == whole[done:]
    first_pass = sorted(sum(whole, [])[:30])
    assert first_pass == list(range(30))
    assert sum(whole, [])[:30] != sum(whole, [])[30:60]
    assert numbers(source.training_batches(16, 4, seed=6), 20) != whole


def test_random_crops_repeat_and_stay_within_half_the_area(tmp_path):
    (tmp_path / "a").mkdir()
    ramp = np.arange(64, dtype="uint8")
    channels = np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(0))
    pixels = np.stack(channels, axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a" / "ramp.png")
    source = datasets.open_dataset(tmp_path, "train[:100%]")

    def crops(start):
        batches = source.training_batches(
            64, 1, seed=1, start=start, crop="random"
        )
        return [i[0].numpy() for i, _ in itertools.islice(batches, 12)]

    sides = []
    for image in crops(0):
        # Gradients of the ramp tell the side of the crop.
        rows = np.ptp(image[..., 0]) + 1
        columns = np.ptp(image[..., 1]) + 1
        assert rows == pytest.approx(columns, abs=1.5)
        sides.append(rows)
    assert min(sides) >= np.sqrt(0.5) * 64 - 1.5 and max(sides) <= 64
    assert np.ptp(sides) > 3
    np.testing.assert_array_equal(crops(0)[5:], crops(5)[:7])


def test_resize_is_antialiased_and_takes_the_centre_square(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.zeros((32, 64, 3), "uint8")
    pixels[:, 16:48] = np.indices((32, 32)).sum(0)[..., None] % 2 * 255
    Image.fromarray(pixels).save(tmp_path / "a" / "checks.png")
    source = datasets.open_dataset(tmp_path, "train[:100%]")
    image = next(iter(source.evaluation_batches(8, 1)))[0][0]
    # Fine checks average to grey; the black sides are cropped away.
    np.testing.assert_allclose(image[1:-1, 1:-1], 127.5, atol=2)


def test_grey_and_transparent_images_become_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    grey = np.full((8, 8), 77, "uint8")
    Image.fromarray(grey).save(tmp_path / "a" / "grey.png")
    Image.fromarray(np.full((8, 8, 4), 77, "uint8")).save(
        tmp_path / "a" / "transparent.png"
    )
    source = datasets.open_dataset(tmp_path, "train[:100%]")
    images = next(iter(source.evaluation_batches(8, 2)))[0]
    # Over white: 77 of 255 parts are 77, the others 255.
    assert sorted(np.unique(images)) == [77, round(255 - 178 * 77 / 255)]


@pytest.mark.parametrize("name", ["cifar10", "imagenet_resized/64x64"])
def test_mocked_tfds(name):
    with mocked_data():
        source = datasets.open_dataset(name, "train")
        assert len(source.class_names) == (10 if name == "cifar10" else 1000)
        assert source.factor_names == []
        batches = source.training_batches(32, 4, seed=0)
        images, labels = next(iter(batches))
    assert images.shape == (4, 32, 32, 3) and labels.dtype == tf.int64
    assert 0 <= np.min(images) and np.max(images) <= 255


def test_scenes_come_with_their_factors():
    with mocked_data():
        source = datasets.open_dataset("kinv_scenes/32", "test")
        batches = source.evaluation_batches(32, 4, 6, with_factors=True)
        sizes = [(len(labels), factors) for _, labels, factors in batches]
    assert [size for size, _ in sizes] == [4, 2]
    assert (
        set(sizes[0][1])
        == set(source.factor_names)
        == {
            "shape",
            "object_hue",
            "wall_hue",
            "floor_hue",
            "size",
            "azimuth",
            "brightness",
        }
    )


def test_unreadable_image_is_named_or_skipped(folder):
    broken = folder / "odd" / "01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(errors.InputError, match="01.png"):
        datasets.open_dataset(folder, "train[:100%]")
    source = datasets.open_dataset(folder, "train[:100%]", True)
    assert (source.num_examples, source.num_skipped) == (29, 1)


def test_an_empty_name_is_not_this_folder():
    with pytest.raises(errors.InputError, match="Received: an empty name"):
        datasets.open_dataset("", "train")


def test_unknown_name():
    with pytest.raises(errors.InputError, match="Received: no_such_data"):
        datasets.open_dataset("no_such_data", "train")


def test_scenes_are_prepared_and_an_unknown_split_refused(
    data_dir, monkeypatch
):
    monkeypatch.setattr(scenes, "SPLITS", {"train": 8})
    source = datasets.open_dataset("kinv_scenes/32", "train[:50%]")
    assert source.num_examples == 4
    images, _ = next(iter(source.evaluation_batches(32, 4)))
    expected = rendering.render(scenes.scene_factors("train", np.arange(4)), 32)
    np.testing.assert_array_equal(images, expected)
    with pytest.raises(errors.InputError, match="train.*Received: dev"):
        datasets.open_dataset("kinv_scenes/32", "dev")
    # The large one goes on where the other ends.
    config = scenes.KinvScenes.builder_configs["32-large"]
    assert config.num_images["train"] == 240_000
    monkeypatch.setitem(config.num_images, "train", 12)
    source = datasets.open_dataset("kinv_scenes/32-large", "train")
    assert source.num_examples == 12
    more, _ = next(iter(source.evaluation_batches(32, 12)))
    np.testing.assert_array_equal(more[:4], images)
    expected = rendering.render(
        scenes.scene_factors("train", np.arange(12)), 32
    )
    np.testing.assert_array_equal(more, expected)


def test_missing_label():
    with mocked_data():
        with pytest.raises(errors.InputError, match="no feature 'image'"):
            datasets.open_dataset("titanic", "train")


def test_folder_without_classes_or_images(tmp_path):
    with pytest.raises(errors.InputError, match="none that can be read"):
        datasets.open_dataset(tmp_path, "train")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "image.png")
    with pytest.raises(errors.InputError, match="Received: a, c without any"):
        datasets.open_dataset(tmp_path, "train")
    with pytest.raises(errors.InputError, match="sub-folder test"):
        datasets.open_dataset(tmp_path, "test")


def test_damage_inside_a_file_stops_the_stream_with_its_name(folder, capsys):
    broken = folder / "odd" / "01.png"
    data = bytearray(broken.read_bytes())
    # The pixels; the first and the last chunk stay whole.
    start = data.index(b"IDAT") + 4
    data[start : start + 8] = bytes(8)
    broken.write_bytes(data)
    source = datasets.open_dataset(folder, "train[:100%]")
    assert source.num_examples == 30

    def read():
        list(source.evaluation_batches(16, 7))

    with pytest.raises(SystemExit):
        errors.run(read)
    message = capsys.readouterr().err
    assert "01.png" in message and "--skip-unreadable" in message
    assert len(message.splitlines()) == 1
    source = datasets.open_dataset(folder, "train[:100%]", True)
    assert (source.num_examples, source.num_skipped) == (29, 1)


def test_a_file_that_vanishes_is_named(folder, capsys, monkeypatch):
    # Without what other tests have left.
    monkeypatch.setattr(folders, "_opened", [])
    source = datasets.open_dataset(folder, "train[:100%]")
    path = next(folder.rglob("*.png"))
    path.unlink()
    with pytest.raises(SystemExit):
        errors.run(lambda: list(source.evaluation_batches(8, 4)))
    message = capsys.readouterr().err
    assert f"{path}, which is missing. Put it back." in message


def test_opening_a_folder_decodes_no_image(folder, monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    assert datasets.open_dataset(folder, "train[:100%]").num_examples == 30
    assert datasets.open_dataset(folder, "train[:]").num_examples == 30


def test_a_single_image_leaves_none_to_train_on(tmp_path):
    (tmp_path / "a").mkdir()
    image = np.full((8, 8, 3), 90, "uint8")
    Image.fromarray(image).save(tmp_path / "a" / "one.png")
    np.savez(tmp_path / "one.npz", x=image[None])
    for place in (tmp_path, tmp_path / "one.npz"):
        assert datasets.open_dataset(place, "validation").num_examples == 1
        # The report then leaves out what needs training images.
        with pytest.raises(errors.EmptySplitError, match="Received: none"):
            datasets.open_dataset(place, "train")


@pytest.mark.parametrize("suffix", [".jpg", ".gif", ".bmp"])
def test_files_that_were_cut_off_are_named(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"whole{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), "uint8")
    Image.fromarray(pixels).save(path)
    assert datasets.open_dataset(tmp_path, "train[:100%]").num_examples == 1
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(errors.InputError, match=f"whole{suffix}"):
        datasets.open_dataset(tmp_path, "train[:100%]")


def test_mocked_imagenet_is_cropped_alike_for_all():
    with mocked_data():
        source = datasets.open_dataset("imagenet2012", "train")
        held_out = datasets.open_dataset("imagenet2012", "validation")
    assert len(source.class_names) == 1000
    crops = [
        next(iter(source.training_batches(64, 8, seed=3, crop="random")))
        for _ in range(2)
    ]
    # The crop is a function of the seed, one image for classifier and target.
    np.testing.assert_array_equal(crops[0][0], crops[1][0])
    assert crops[0][0].shape == (8, 64, 64, 3)
    first, second = (
        np.concatenate([x for x, _ in held_out.evaluation_batches(64, 8)])
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_split_that_lacks_a_class_keeps_the_others_numbers(tmp_path):
    make_folders(tmp_path, ("train/a", "train/b", "train/c", "validation/b"))
    source = datasets.open_dataset(tmp_path, "validation")
    assert source.class_names == ["a", "b", "c"]
    ((_, labels),) = source.evaluation_batches(8, 2)
    assert labels.numpy().tolist() == [1]
    (tmp_path / "validation" / "d").mkdir()
    with pytest.raises(errors.InputError, match="Received: d as well"):
        datasets.open_dataset(tmp_path, "validation")


def test_a_class_may_be_called_train(tmp_path):
    make_folders(tmp_path, ("bus", "car", "train"))
    source = datasets.open_dataset(tmp_path, "train[:100%]")
    assert source.class_names == ["bus", "car", "train"]
    # Splits without classes are not taken for classes.
    (tmp_path / "bus").rename(tmp_path / "validation")
    (tmp_path / "car").rename(tmp_path / "test")
    source = datasets.open_dataset(tmp_path, "train")
    assert source.num_examples == 1 and source.class_names == []


@pytest.mark.parametrize(
    "names, message",
    [
        (("Training/a", "Training/b", "Testing/a"), "Testing/ and Training/"),
        (("val/a", "val/b"), "val/, which may be either"),
        (("train/a", "train/b", "val/a"), "sub-folder validation.*train, val"),
        (("train", "val"), "sub-folder validation.*train, val"),
    ],
)
def test_doubtful_splits_are_named(tmp_path, names, message):
    make_folders(tmp_path, names)
    with pytest.raises(errors.InputError, match=message):
        datasets.open_dataset(tmp_path, "validation")
    # They are read where they are named.
    split = names[-1].split("/")[0]
    source = datasets.open_dataset(tmp_path, split)
    assert set(source.class_names) <= {"a", "b"} and source.num_examples


@pytest.mark.parametrize(
    "beside, held_out",
    [
        ("image.png", "validation"),
        ("cats/image.png", "validation"),
        ("image.png", "val"),
    ],
)
def test_held_out_images_are_not_trained_on(tmp_path, beside, held_out):
    for path in (tmp_path / beside, tmp_path / held_out / "image.png"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(errors.InputError, match=f"{held_out}/, which may be"):
        datasets.open_dataset(tmp_path, "train")


def test_a_folder_that_may_be_a_split_is_to_be_renamed(tmp_path):
    make_folders(tmp_path, ("train", "val", "cats"))
    with pytest.raises(
        errors.InputError, match="either. Rename or move the folders"
    ):
        datasets.open_dataset(tmp_path, "train")


def test_what_is_not_taken_is_counted(folder):
    (folder / "even" / ".checkpoints").mkdir()
    (folder / "even" / ".checkpoints" / "00.png").touch()
    (folder / "odd" / "notes.txt").touch()
    (folder / "odd" / "photo.HEIC").touch()
    source = datasets.open_dataset(folder, "train[:100%]")
    assert source.num_examples == 30
    place, counts = source.left_out.split(": ")
    assert place == f"left out of {folder}"
    assert set(counts.split(", ")) == {"1 hidden", "1 .txt", "1 .heic"}
    beside = folder.parent / "split"
    (beside / "train").mkdir(parents=True)
    for name in ("train/even", "cats"):
        shutil.copytree(folder / "even", beside / name)
    source = datasets.open_dataset(beside, "train")
    assert "15 in cats/, no split" in source.left_out


def test_names_that_are_no_text(folder):
    name = os.fsdecode(b"caf\xe9 \n" + b"a" * 220 + b".png")
    (folder / "odd" / "01.png").rename(folder / "odd" / name)
    (folder / "even").rename(folder / os.fsdecode(b"\xe9ven"))
    source = datasets.open_dataset(folder, "train[:100%]")
    assert source.class_names == ["odd", "\ufffdven"]
    images = np.concatenate([x for x, _ in source.evaluation_batches(16, 7)])
    assert sorted(images[:, 0, 0, 0]) == list(range(30))
    assert source.describe()["digest"]


def test_another_format_is_named_or_skipped(folder):
    path = folder / "odd" / "01.png"
    Image.new("RGB", (16, 16)).save(path, format="TGA")
    with pytest.raises(errors.InputError, match="01.png, which kinv can"):
        datasets.open_dataset(folder, "train[:100%]")
    source = datasets.open_dataset(folder, "train[:100%]", skip_unreadable=True)
    assert source.num_examples == 29 and source.num_skipped == 1


def test_a_copy_is_the_same_data_set_and_changed_data_are_not(folder, tmp_path):
    def describe(path):
        return datasets.open_dataset(path, "train[:100%]").describe()

    described = describe(folder)
    assert described["class_names"] == ["even", "odd"]
    assert described["num_examples"] == 30
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "odd" / "01.png", (0, 0))
    assert describe(copy) == described
    (copy / "odd" / "01.png").rename(copy / "odd" / "31.png")
    assert describe(copy)["digest"] != described["digest"]
    (copy / "odd" / "31.png").rename(copy / "odd" / "01.png")
    assert describe(copy) == described
    Image.new("RGB", (40, 40)).save(copy / "odd" / "01.png")
    assert describe(copy)["digest"] != described["digest"]
    # A class of another name, each file of the same name and size.
    (copy / "even").rename(copy / "z")
    assert describe(copy)["class_names"] == ["odd", "z"]


def test_a_prepared_split_describes_itself():
    with mocked_data():
        splits = ("train", "train[:50%]", "test")
        described = [
            datasets.open_dataset("cifar10", split).describe()
            for split in splits
        ]
    assert len({d["digest"] for d in described}) == 3
    assert len(described[0]["class_names"]) == 10


def test_damage_that_pillow_finds_stops_the_stream_with_the_name(
    folder, capsys
):
    path = folder / "odd" / "transparent.png"
    Image.new("RGBA", (16, 16)).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)
    source = datasets.open_dataset(folder, "train[:100%]")
    assert source.num_examples == 31
    with pytest.raises(SystemExit):
        errors.run(lambda: list(source.evaluation_batches(16, 7)))
    message = capsys.readouterr().err
    assert "transparent.png" in message and "--skip-unreadable" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "split, other, may",
    [
        ("test", "train", False),
        ("train", "train", True),
        ("train[:100%]", "train", True),
        ("train[90%:]", "train", True),
        ("train[90%:]", "train[:90%]", False),
        ("train[:50%]", "train[40%:60%]", True),
        ("train[:100]", "train[90%:]", True),
        ("train[:100]", "test", False),
        ("test+train", "train", True),
        ("train + test", "test", True),
        ("test+validation", "train", False),
        ("all", "test", True),
        ("all[:50%]", "train[50%:]", True),
        ("all[:50%]", "all[50%:]", False),
    ],
)
def test_splits_that_may_share_images(split, other, may):
    places = ("a data set", split), ("a data set", other)
    for one, two in (places, places[::-1]):
        assert folders.may_overlap(one, two) is may
    assert not folders.may_overlap(places[0], ("another", split))


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize(
    "train, validation, warned",
    [
        ("train", "validation", False),
        ("train[10%:]", "train[:10%]", False),
        # Where there are no splits, that is train[90%:].
        ("train[10%:]", "validation", True),
        ("train[:50%]", "train[40%:]", True),
    ],
)
def test_held_out_images_that_are_training_images(
    image_folder, tmp_path, capsys, kind, train, validation, warned
):
    dataset = image_folder
    if kind == "npz":
        dataset = tmp_path / "a.npz"
        np.savez(dataset, x=np.zeros((40, 8, 8, 3), "uint8"))
    options = {
        "dataset": str(dataset),
        "train_split": train,
        "validation_split": validation,
    }
    datasets.open_splits(options, None)
    assert ("too good" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((5, 3, 8, 8), "uint8"), "some of that shape, channels last"),
        (np.zeros((5, 192), "uint8"), "some of that shape, channels last"),
        (np.zeros((5, 8, 8), "float32"), "Save them as uint8, 0 black"),
        (np.full((5, 8, 8), 255, "uint16"), "up to 255. Save them as uint8"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, images, message):
    np.savez(tmp_path / "a.npz", x=images)
    with pytest.raises(errors.InputError, match=message):
        datasets.open_dataset(str(tmp_path / "a.npz"), "train")


def test_a_lone_array(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 8, 3), "uint8"))
    with pytest.raises(errors.InputError, match=r"numpy.savez\('images.npz'"):
        datasets.open_dataset(str(tmp_path / "a.npy"), "train")


def test_images_of_an_array_are_named_by_their_place_in_it(tmp_path):
    values = np.arange(40, dtype="uint8")
    images = np.tile(values[:, None, None, None], (1, 8, 8, 3))
    np.savez(tmp_path / "a.npz", x=images)
    source = datasets.open_dataset(str(tmp_path / "a.npz"), "validation")
    [batch] = source.evaluation_batches(8, 40, limit=3).as_numpy_iterator()
    names = [source.name_of(number) for number in range(3)]
    assert names == [f"image {image[0, 0, 0]:.0f}" for image in batch[0]]


def test_the_licence_of_a_folder_of_images(folder):
    assert folders.read_licence(folder) is None
    assert folders.read_licence("fashion_mnist") is None
    (folder / "LICENSE.png").write_bytes(b"\x89PNG")
    (folder / "LICENSE").mkdir()
    assert folders.read_licence(folder) is None
    (folder / "LICENCE.md").write_text("CC0, by Zoë", encoding="utf-8")
    assert folders.read_licence(folder) == "CC0, by Zoë"
    (folder / "LICENCE.md").write_bytes(b"\xff")
    with pytest.raises(errors.InputError, match="UTF-8"):
        folders.read_licence(folder)
