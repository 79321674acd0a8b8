"""Labels of a data set as a classifier's classes: one rule."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from kinv import errors
from kinv.data import datasets, labels, source


def images_of(class_names, numbers=None):
    """A source of one image of each class, or with these labels."""
    if numbers is None:
        numbers = range(len(class_names))
    numbers = np.array([*numbers], "int64")
    pixels = np.zeros((len(numbers), 8, 8, 3), "uint8")
    return source.in_memory(
        pixels,
        numbers,
        class_names,
        unlabelled="" if class_names else "it has none",
        identity=lambda: "digest",
    )


def read(found):
    batches = found.evaluation_batches(8, 100).as_numpy_iterator()
    return np.concatenate([numbers for _, numbers in batches]).tolist()


def test_numbers_in_the_order_of_text_are_named():
    for numbers, said in (
        (range(10), False),
        (sorted("0 1 2 10".split()), True),
    ):
        own = [str(number) for number in numbers]
        names = labels.placeholders(len(own))
        found, line = labels.match(images_of(own), names)
        assert read(found) == list(range(len(own)))
        assert ("0, 1, 10, ..., that of text" in line) is said
        # The way out.
        by_number = sorted(own, key=int)
        found, _ = labels.match(images_of(own), by_number)
        assert read(found) == [by_number.index(name) for name in own]


COLORS = ["red", "green", "blue", "Dark Grey"]


@pytest.mark.parametrize(
    "own, classifier, expected",
    [
        (COLORS, COLORS, [0, 1, 2, 3]),
        # In another order, and a part of them, written otherwise.
        (["blue", "dark_grey", "green", "red"], COLORS, [2, 3, 1, 0]),
        (["dark-grey", "GREEN"], COLORS, [3, 1]),
        (["n02085620-Chihuahua"], ["n01440764", "n02085620"], [1]),
        # Names of one only.
        (COLORS, labels.placeholders(4), [0, 1, 2, 3]),
        (["0", "1", "2", "3"], COLORS, [0, 1, 2, 3]),
        (["0", "3"], ["0", "1", "2", "3"], [0, 3]),
        # Two cranes, of which neither can be told.
        (["crane", "tench"], ["crane", "tench", "crane"], [-1, 1]),
        # Folders sort 10 before 2: their order tells nothing.
        ([str(x) for x in sorted(map(str, range(11)))], COLORS, None),
        (["10", "7", "8", "9"], COLORS, None),
        (["anna", "bob"], labels.placeholders(4), None),
        (["anna", "bob", "carl", "dora"], COLORS, None),
        (["red", "green", "blue", "pink"], COLORS, None),
        ([], COLORS, None),
    ],
)
def test_labels_are_the_classifier_s_under_one_rule(own, classifier, expected):
    given = images_of(own, None if own else [-1])
    found, line = labels.match(given, classifier)
    assert line.startswith("labels: ") and "\n" not in line
    if expected is None:
        assert "not used" in line
        assert found.class_names == [] and found.unlabelled
        assert set(read(found)) == {-1}
    else:
        assert read(found) == expected
        assert found.class_names == classifier
    # It is the same data set all the same.
    assert found.describe() == given.describe()
    assert found.describe()["class_names"] == own


@pytest.mark.parametrize(
    "count, order", [(11, "taken to be the same"), (5, "")]
)
def test_names_that_are_numbers_are_no_names(count, order):
    own = sorted(f"class_{index}" for index in range(count))
    found, line = labels.match(images_of(own), labels.placeholders(11))
    if order:
        # In the order of the folders: 0, 1, 10, 2, ...
        assert order in line and read(found) == list(range(11))
    else:
        assert "not used" in line and set(read(found)) == {-1}


def test_imagenet_s_numbers_are_known_where_its_names_are():
    names = [f"animal {index}" for index in range(1000)]
    names[0], names[-1] = "tench", "toilet_tissue"
    numbers = ["n15075141", "n01440764"]
    assert read(labels.match(images_of(numbers), names)[0]) == [999, 0]


def test_a_single_image_may_lack_its_label():
    given = images_of(COLORS, [1, -1, 0])
    found, _ = labels.match(given, COLORS[::-1])
    assert read(found) == [2, -1, 3]
    batches = labels.require(given.evaluation_batches(8, 2), "colors")
    with pytest.raises(tf.errors.OpError, match="colors.*1 of 2.*label -1"):
        list(batches)
    whole = images_of(COLORS).evaluation_batches(8, 4)
    ((_, numbers),) = labels.require(whole, "colors")
    assert numbers.numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "names", [("a.png", "b/c.png"), ("a.png",), ("b/c.png", "b.png", "d/e.png")]
)
def test_folders_without_classes_have_no_labels(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    opened = datasets.open_dataset(tmp_path, "train[:100%]")
    assert opened.num_examples == len(names)
    assert opened.class_names == [] and opened.unlabelled
    assert read(opened) == [-1] * len(names)


def pictures(count, start=0):
    """Grey images whose every pixel is their number."""
    numbers = np.arange(start, start + count, dtype="uint8")
    return np.broadcast_to(numbers[:, None, None], (count, 6, 5)).copy()


def everything(path, split):
    opened = datasets.open_dataset(str(path), split)
    found = opened.evaluation_batches(5, 100).as_numpy_iterator()
    shown, numbers = next(found)
    order = np.argsort(shown[:, 0, 0, 0])
    return opened, shown[order], numbers[order]


def test_arrays_of_one_file(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=pictures(20), y=np.arange(20) % 3)
    opened, shown, numbers = everything(path, "train[:100%]")
    assert opened.class_names == ["0", "1", "2"]
    assert shown.shape == (20, 5, 5, 3)
    expected = np.repeat(pictures(20)[:, :5, :, None], 3, 3)
    np.testing.assert_array_equal(shown, expected)
    assert numbers.tolist() == [i % 3 for i in range(20)]
    parts = [everything(path, s)[1] for s in ("train", "validation")]
    assert [len(part) for part in parts] == [18, 2]
    both = np.concatenate(parts)[:, 0, 0, 0]
    assert sorted(both) == list(range(20))
    with pytest.raises(errors.InputError, match="Received: test"):
        datasets.open_dataset(str(path), "test")
    # Without labels, and of 16 bits.
    np.savez(path, x=pictures(20).astype("uint16") * 257)
    opened, shown, numbers = everything(path, "train[:100%]")
    np.testing.assert_array_equal(shown, expected)
    assert opened.class_names == [] and "without any" in opened.unlabelled
    # No 30 grey ones of 3 columns.
    np.savez(path, x=np.zeros((30, 30, 3), "uint8"))
    with pytest.raises(errors.InputError, match="Received: one of"):
        datasets.open_dataset(str(path), "train")


def test_labels_that_are_no_numbers_of_classes(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=pictures(3), y=np.array([7, 1_000_000_007, 8]))
    opened, _, numbers = everything(path, "train[:100%]")
    assert opened.class_names == [] and "1,000,000,007" in opened.unlabelled
    assert numbers.tolist() == [-1, -1, -1]


def test_arrays_of_several_splits(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(
        path,
        x_train=pictures(8),
        y_train=np.arange(8)[:, None],
        x_test=pictures(3, 50),
        y_test=np.arange(3)[:, None],
        # Of no images: no labels.
        y_weight=np.array([255]),
    )
    assert everything(path, "train")[2].tolist() == list(range(8))
    _, shown, numbers = everything(path, "test")
    assert shown[:, 0, 0, 0].tolist() == [50, 51, 52]
    assert numbers.tolist() == [0, 1, 2]
    # A small split may lack the last classes, not the data set.
    splits = (datasets.open_dataset(str(path), x) for x in ("train", "test"))
    for opened in splits:
        assert opened.class_names == [str(number) for number in range(8)]
    with pytest.raises(errors.NoSplitError, match=": train, test. Received"):
        datasets.open_dataset(str(path), "validation")
    np.savez(path, z=pictures(3))
    with pytest.raises(errors.InputError, match="no array x but z"):
        datasets.open_dataset(str(path), "train")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("other", ["", ".gz"])
def test_idx_files(tmp_path, ending, other):
    def write(name, code, values):
        content = bytes([0, 0, 8, code])
        for length in values.shape:
            content += length.to_bytes(4, "big")
        content += values.astype("uint8").tobytes()
        if name.endswith(".gz"):
            content = gzip.compress(content)
        (tmp_path / name).write_bytes(content)

    write(f"train-images-idx3-ubyte{ending}", 3, pictures(10))
    # Packed, whether the images are or not.
    write(f"train-labels-idx1-ubyte{other}", 1, np.arange(10) % 2)
    write(f"t10k-images-idx3-ubyte{other}", 3, pictures(4, 90))
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    opened, shown, numbers = everything(path, "train[:100%]")
    assert shown[:, 4, 4, 1].tolist() == list(range(10))
    assert numbers.tolist() == [0, 1] * 5 and opened.class_names == ["0", "1"]
    opened, shown, _ = everything(path, "test")
    assert shown[:, 0, 0, 0].tolist() == [90, 91, 92, 93]
    assert opened.class_names == []
    # A split that lacks the last class.
    write(f"t10k-labels-idx1-ubyte{ending}", 1, np.zeros(4))
    opened, _, numbers = everything(path, "test")
    assert numbers.tolist() == [0] * 4 and opened.class_names == ["0", "1"]
    assert everything(path, "validation")[1].shape[0] == 1
    assert everything(tmp_path, "test")[0].num_examples == 4
    with pytest.raises(errors.InputError, match="Received: dev. Name"):
        datasets.open_dataset(str(path), "dev")


def encrypted(path):
    """An archive whose entry says that it has a password."""
    np.savez(path, x=pictures(3))
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(start) + flags] |= 1
    path.write_bytes(content)


def huge(path):
    """An array whose header claims more than any memory holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**9)},
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())


def test_other_files_are_refused_in_one_line(tmp_path):
    cases = {
        "a.npz": lambda path: np.savez(path, z=np.zeros(3)),
        "float.npz": lambda path: np.savez(path, x=np.zeros((3, 8, 8, 3))),
        "flat.npz": lambda path: np.savez(path, x=np.zeros((3, 8), "uint8")),
        "object.npz": lambda path: np.savez(path, x=np.array([{}], object)),
        "cut.npz": lambda path: path.write_bytes(b"PK\3\4" + bytes(30)),
        "encrypted.npz": encrypted,
        "huge.npz": huge,
        "a.json": lambda path: path.write_text(json.dumps({})),
        "cut-idx3-ubyte": lambda path: path.write_bytes(b"\0\0\x08\3" * 4),
        "short-idx3-ubyte": lambda path: path.write_bytes(b"\0\0\x08\3"),
        "cut.gz": lambda path: path.write_bytes(gzip.compress(b"\0\0")[:-4]),
        "empty": lambda path: path.touch(),
    }
    for name, write in cases.items():
        write(tmp_path / name)
        with pytest.raises(errors.InputError, match=name) as caught:
            datasets.open_dataset(str(tmp_path / name), "train")
        assert "\n" not in str(caught.value)


def prepare(folder, name, image, label, values):
    """A prepared TFDS data set of user's own, of grey images."""
    features = {"image": image}
    if label is not None:
        features["label"] = label
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            "train": [
                (
                    str(i),
                    {"image": x, "label": y}
                    if label is not None
                    else {"image": x},
                )
                for i, (x, y) in enumerate(values)
            ]
        },
        data_dir=folder,
        description="x",
        disable_shuffling=True,
    )
    del builder
    return datasets.open_dataset(name, "train")


IMAGE = tfds.features.Image(shape=(8, 8, 3))
BYTES = np.full((8, 8, 3), 100, "uint8")


@pytest.mark.parametrize(
    "label, value, reason",
    [
        (None, None, "no feature 'label'"),
        (np.int64, 1, "not a ClassLabel"),
        (tfds.features.Text(), "red", "a Text, not a ClassLabel"),
        (
            tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
            [1],
            "a Sequence, not a ClassLabel",
        ),
    ],
)
def test_other_labels_of_prepared_sets_are_not_used(
    data_dir, label, value, reason
):
    opened = prepare(data_dir, "own", IMAGE, label, [(BYTES, value)] * 2)
    assert opened.class_names == [] and reason in opened.unlabelled
    ((shown, numbers),) = opened.evaluation_batches(8, 2)
    assert (shown.numpy() == 100).all() and numbers.numpy().tolist() == [-1, -1]


def test_missing_labels_of_a_prepared_set_stay_missing(data_dir):
    label = tfds.features.ClassLabel(names=["dark", "bright"])
    values = [(BYTES, 1), (BYTES, -1)]
    opened = prepare(data_dir, "minus", IMAGE, label, values)
    found, _ = labels.match(opened, ["bright", "dark"])
    assert read(found) == [0, -1]


def test_depths_of_prepared_images(data_dir):
    deep = np.full((8, 8, 1), 100 * 257, "uint16")
    kind = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16)
    opened = prepare(data_dir, "deep", kind, None, [(deep, None)])
    ((shown, _),) = opened.evaluation_batches(8, 2)
    assert (shown.numpy() == 100).all()
    clear = np.dstack([BYTES, np.zeros((8, 8), "uint8")])
    kind = tfds.features.Image(shape=(8, 8, 4))
    opened = prepare(data_dir, "clear", kind, None, [(clear, None)])
    ((shown, _),) = opened.evaluation_batches(8, 2)
    assert (shown.numpy() == 255).all()
    kind = tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)
    with pytest.raises(errors.InputError, match="Received: float32"):
        prepare(
            data_dir, "float", kind, None, [(np.ones((8, 8, 1), "f4"), None)]
        )


def test_prepared_photographs_are_turned_upright(data_dir):
    pixels = np.zeros((16, 16, 3), "uint8")
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise.
    (data_dir / "photos").mkdir()
    kind = tfds.features.Image(shape=(16, 16, 3), encoding_format="jpeg")
    paths = []
    for name, options in (("plain", {}), ("turned", {"exif": exif})):
        path = data_dir / "photos" / f"{name}.jpg"
        Image.fromarray(pixels).save(path, quality=95, **options)
        paths.append((str(path), None))
    opened = prepare(data_dir, "photos", kind, None, paths)
    ((shown, _),) = opened.evaluation_batches(16, 2)
    np.testing.assert_allclose(shown[0], pixels, atol=4)
    np.testing.assert_allclose(shown[1], np.rot90(pixels, -1), atol=4)
