import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kinv import errors
from kinv.inversion import export
from kinv.serving import client, limits, pipeline

NUM_CLASSES, NOISE_DIM, SIZE = 3, 2, 4
METADATA = {
    "class_names": ["red", "green", "blue"],
    "num_classes": NUM_CLASSES,
    "noise_dim": NOISE_DIM,
    "image_size": SIZE,
}


class Arithmetic:
    """Stands for the model: every output can be told by hand.

    The logits are the mean colour; a reconstruction is uniformly of the
    shifted logits, plus the first number of the noise.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, inputs):
        self.calls.append({k: v.shape for k, v in inputs.items()})
        assert all(v.dtype == np.float32 for v in inputs.values())
        logits = inputs["images"].mean(axis=(1, 2))
        colors = logits[:, None] * inputs["logit_scale"][..., None]
        colors = colors + inputs["logit_shift"]
        colors = colors + inputs["noise"][..., :1]
        shape = (*inputs["noise"].shape[:2], SIZE, SIZE, 3)
        return {
            "logits": logits,
            "reconstructions": np.broadcast_to(colors[:, :, None, None], shape),
        }


@pytest.fixture
def arithmetic():
    return Arithmetic()


@pytest.fixture
def model(arithmetic):
    return pipeline.Pipeline(arithmetic, METADATA)


def random_inputs(batch, samples):
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (batch, 5, 5, 3)).astype("float32")
    noise = random.standard_normal((batch, samples, NOISE_DIM), "float32")
    return images, noise


def test_logits_run_no_generator(model, arithmetic):
    images, _ = random_inputs(4, 1)
    expected = images.mean(axis=(1, 2))
    np.testing.assert_allclose(model.logits(images), expected, rtol=1e-5)
    assert arithmetic.calls[0]["noise"] == (4, 0, NOISE_DIM)
    # Bytes are taken as they come from a file.
    images = images.astype("uint8")
    expected = images.mean(axis=(1, 2))
    np.testing.assert_allclose(model.logits(images), expected, rtol=1e-5)


def test_reconstruct_scales_and_shifts(model):
    images, noise = random_inputs(3, 2)
    means = images.mean(axis=(1, 2))[:, None]
    scale = np.array([[1.0, 2.0]])
    shift = np.arange(9.0).reshape(3, 1, 3)
    outputs = model.reconstruct(images, noise, scale, shift)
    assert outputs.shape == (3, 2, SIZE, SIZE, 3)
    expected = means * scale[..., None] + shift + noise[..., :1]
    np.testing.assert_allclose(outputs[:, :, 1, 2], expected, rtol=1e-5)
    plain = model.reconstruct(images, noise)
    np.testing.assert_allclose(
        plain[:, :, 0, 0], means + noise[..., :1], rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(7, 5), (5, 8)])
def test_the_centre_square_is_taken(model, shape):
    images = np.zeros((2, *shape, 3), "float32")
    top, left = ((side - 5) // 2 for side in shape)
    images[:, top : top + 5, left : left + 5] = 200
    np.testing.assert_allclose(model.logits(images), np.full((2, 3), 200.0))


def test_generate_ignores_the_image(model, arithmetic):
    logits = np.arange(12.0).reshape(4, 3)
    noise = np.ones((4, NOISE_DIM))
    outputs = model.generate(logits, noise)
    assert outputs.shape == (4, SIZE, SIZE, 3)
    np.testing.assert_allclose(outputs[:, 3, 3], logits + 1)
    assert arithmetic.calls[0]["images"] == (1, 1, 1, 3)


def test_a_server_is_asked_for_no_more_than_it_classifies_at_once():
    sizes = []

    def predict(inputs):
        sizes.append(len(inputs["images"]))
        return {"logits": np.zeros((sizes[-1], 2), "float32")}

    metadata = {
        "num_classes": 2,
        "noise_dim": 4,
        "image_size": 32,
        "class_names": ["a", "b"],
        "classifier_size": 224,
    }
    model = pipeline.Pipeline(predict, metadata)
    # Reconstructions are small, but the server makes them as large.
    assert model.logits(np.zeros((500, 32, 32, 3))).shape == (500, 2)
    most = limits.Limits().image_pixels // 224**2
    assert sum(sizes) == 500 and max(sizes) <= most


def test_large_requests_are_split(arithmetic, monkeypatch):
    monkeypatch.setattr(pipeline, "RECONSTRUCTED_PIXELS", 6 * SIZE**2)
    model = pipeline.Pipeline(arithmetic, METADATA)
    images, noise = random_inputs(5, 3)
    scale = np.arange(15.0).reshape(5, 3)
    shift = np.arange(45.0).reshape(5, 3, 3)
    outputs = model.reconstruct(images, noise, scale, shift)
    means = images.mean(axis=(1, 2))[:, None]
    expected = means * scale[..., None] + shift + noise[..., :1]
    np.testing.assert_allclose(outputs[:, :, 0, 0], expected, rtol=1e-5)
    assert [c["noise"][:2] for c in arithmetic.calls] == [
        (2, 3),
        (2, 3),
        (1, 3),
    ]
    # More samples than fit into one call.
    arithmetic.calls.clear()
    images, noise = random_inputs(2, 8)
    outputs = model.reconstruct(images, noise)
    expected = images.mean(axis=(1, 2))[:, None] + noise[..., :1]
    np.testing.assert_allclose(outputs[:, :, 0, 0], expected, rtol=1e-5)
    assert max(np.prod(c["noise"][:2]) for c in arithmetic.calls) <= 6
    # Large photographs, to a server and here.
    monkeypatch.setattr(pipeline, "REMOTE_IMAGE_PIXELS", 2 * 5 * 5)
    monkeypatch.setattr(pipeline, "IMAGE_PIXELS", 3 * 5 * 5)
    for signature, most in ((None, 2), (arithmetic, 3)):
        model = pipeline.Pipeline(arithmetic, METADATA, signature)
        arithmetic.calls.clear()
        model.logits(images)
        model.logits(random_inputs(5, 1)[0])
        assert max(c["images"][0] for c in arithmetic.calls) == most


def test_noise_is_drawn_of_a_seed(model):
    images, _ = random_inputs(3, 1)
    found = model.reconstruct(images, samples=2, seed=7)
    noise = np.random.default_rng(7).standard_normal((3, 2, 2), "float32")
    np.testing.assert_array_equal(found, model.reconstruct(images, noise))
    assert model.reconstruct(images, seed=7).shape[:2] == (3, 1)
    for wrong in ({"samples": -1}, {"samples": 1.5}, {"seed": -1}):
        (name,) = wrong
        with pytest.raises(errors.InputError, match=f"Expected {name} to be"):
            model.reconstruct(images, **{"seed": 7, **wrong})


def test_noise_or_a_seed_but_not_both(model):
    images, noise = random_inputs(3, 1)
    with pytest.raises(errors.InputError, match="Received: neither"):
        model.reconstruct(images)
    with pytest.raises(errors.InputError, match="Received: both"):
        model.reconstruct(images, noise, seed=0)


def test_empty_batch(model):
    images, noise = random_inputs(0, 2)
    assert model.logits(images).shape == (0, NUM_CLASSES)
    assert model.reconstruct(images, noise).shape == (0, 2, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((4, 4, 3)), r"shape \(4, 4, 3\)"),
        (np.zeros((1, 4, 4, 1)), r"shape \(1, 4, 4, 1\)"),
        (np.zeros((1, 0, 4, 3)), r"shape \(1, 0, 4, 3\)"),
        (np.full((1, 4, 4, 3), -1.0), r"from -1.0"),
        (np.full((1, 4, 4, 3), 256.0), r"to 256.0"),
        (np.full((1, 4, 4, 3), np.nan), r"nan"),
    ],
)
def test_wrong_images(model, images, message):
    with pytest.raises(errors.InputError, match=message):
        model.logits(images)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": np.zeros((3, 2, NOISE_DIM))}, r"\(2, any, 2\)"),
        ({"noise": np.zeros((2, NOISE_DIM))}, r"Received: shape \(2, 2\)"),
        ({"noise": np.full((2, 1, NOISE_DIM), np.inf)}, "finite"),
        ({"logit_scale": np.zeros((2, 3))}, "logit_scale"),
        ({"logit_scale": np.zeros(2)}, "logit_scale"),
        ({"logit_shift": np.zeros((2, 1, 4))}, r"\(2, 1, 3\)"),
        ({"logit_shift": np.nan}, "finite"),
    ],
)
def test_wrong_arrays(model, change, message):
    images, noise = random_inputs(2, 1)
    with pytest.raises(errors.InputError, match=message):
        model.reconstruct(images, **{"noise": noise, **change})


def test_wrong_logits(model):
    with pytest.raises(errors.InputError, match=r"\(any, 3\)"):
        model.generate(np.zeros((2, 4)), np.zeros((2, NOISE_DIM)))
    with pytest.raises(errors.InputError, match=r"\(2, 2\)"):
        model.generate(np.zeros((2, 3)), np.zeros((3, NOISE_DIM)))


def save_arithmetic(path, outputs=("logits", "reconstructions")):
    """A SavedModel with the contract's signature."""
    module = tf.Module()
    module.bias = tf.Variable(float(path.name), dtype=tf.float32)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, None, 3), name="images"),
            tf.TensorSpec((None, None, NOISE_DIM), name="noise"),
            tf.TensorSpec((None, None), name="logit_scale"),
            tf.TensorSpec((None, None, None), name="logit_shift"),
        ]
    )
    def invert(images, noise, logit_scale, logit_shift):
        logits = tf.reduce_mean(images, axis=(1, 2)) + module.bias
        colors = logits[:, None] * logit_scale[..., None] + logit_shift
        colors = (colors + noise[..., :1])[:, :, None, None]
        results = logits, tf.tile(colors, (1, 1, SIZE, SIZE, 1))
        return dict(zip(outputs, results, strict=True))

    tf.saved_model.save(module, path, signatures=invert)
    (path / "assets.extra").mkdir()
    export.write_metadata(path, METADATA)


@pytest.fixture
def exported(tmp_path):
    for version in ("2", "10"):
        save_arithmetic(tmp_path / "tiny" / version)
    (tmp_path / "tiny" / ".writing-0").mkdir()
    (tmp_path / "tiny" / "11").mkdir()  # No SavedModel yet.
    return tmp_path / "tiny"


def test_load_takes_the_highest_version_or_the_one_named(exported):
    images, noise = random_inputs(2, 3)
    for path, bias in ((exported, 10), (exported / "2", 2)):
        model = pipeline.Pipeline.load(str(path))
        expected = images.mean(axis=(1, 2)) + bias
        np.testing.assert_allclose(model.logits(images), expected, rtol=1e-5)
        outputs = model.reconstruct(images, noise)
        assert outputs.shape == (2, 3, SIZE, SIZE, 3)
        assert model.metadata == METADATA
        assert model.class_names == ["red", "green", "blue"]
        assert (model.num_classes, model.noise_dim, model.image_size) == (
            NUM_CLASSES,
            NOISE_DIM,
            SIZE,
        )


def test_wrong_paths(tmp_path):
    with pytest.raises(errors.InputError, match="does not exist"):
        pipeline.Pipeline.load(tmp_path / "missing")
    with pytest.raises(errors.InputError, match="there is no SavedModel"):
        pipeline.Pipeline.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="a file"):
        pipeline.Pipeline.load(tmp_path / "file")


def test_saved_models_that_are_not_pipelines(tmp_path):
    other = tmp_path / "1"
    save_arithmetic(other, outputs=("logits", "images"))
    with pytest.raises(errors.InputError, match="to images, logits. Export"):
        pipeline.Pipeline.load(other)
    for metadata in (
        {"a": 1},
        {**METADATA, "noise_dim": "many"},
        {**METADATA, "class_names": None},
        {**METADATA, "class_names": ["too", "few"]},
    ):
        export.write_metadata(other, metadata)
        with pytest.raises(errors.InputError, match="class_names"):
            pipeline.Pipeline.load(other)
    (other / "digests.json").unlink()
    (other / "assets.extra/kinv.json").write_text("[]")
    with pytest.raises(errors.InputError, match="JSON object"):
        pipeline.Pipeline.load(other)
    (other / "assets.extra/kinv.json").unlink()
    with pytest.raises(errors.InputError, match="kinv.json"):
        pipeline.Pipeline.load(other)


@pytest.mark.parametrize("verified", [True, False])
def test_damaged_saved_model(exported, caplog, verified):
    version, message = exported / "10", "as kinv wrote it"
    if not verified:
        # As older versions of kinv left it.
        (version / "digests.json").unlink()
        pipeline.Pipeline.load(exported)
        (line,) = caplog.messages
        assert "not verified" in line
        message = "Export it again"
    for name in ("variables/variables.index", "saved_model.pb"):
        (version / name).write_bytes(b"no")
        with pytest.raises(errors.InputError, match=message) as error:
            pipeline.Pipeline.load(exported)
        assert "\n" not in str(error.value)


def test_imports_nothing_of_the_training_side():
    script = (
        "import sys; import kinv.serving.pipeline; "
        "print(*[m for m in sys.modules if m.startswith('kinv.')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(result.stdout.split()) == {
        "kinv.errors",
        "kinv.files",
        "kinv.pixels",
        "kinv.serving",
        "kinv.serving.arguments",
        "kinv.serving.pipeline",
        "kinv.serving.signature",
    }


def test_a_model_of_a_layer_is_given_features():
    """Its one feature is the mean of the image, its logits the mean colour."""

    def predict(inputs):
        logits = inputs["images"].mean(axis=(1, 2))
        features = logits.mean(axis=-1, keepdims=True)
        levels = features[:, None] * inputs["logit_scale"][..., None]
        levels = levels + inputs["logit_shift"]
        shape = (*inputs["noise"].shape[:2], SIZE, SIZE, 3)
        return {
            "logits": logits,
            "features": features,
            "reconstructions": np.broadcast_to(levels[..., None, None], shape),
        }

    layer = {"layer": "mean", "layer_maps": "pool", "condition_dim": 1}
    model = pipeline.Pipeline(predict, {**METADATA, **layer})
    images, noise = random_inputs(4, 2)
    logits, given = model.classify(images)
    np.testing.assert_allclose(logits, images.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(given[:, 0], logits.mean(axis=-1), rtol=1e-5)
    pictures = model.reconstruct(images, noise, 0.5, np.full((4, 2, 1), 3.0))
    np.testing.assert_allclose(
        pictures[:, 1, 0, 0, 0], 0.5 * given[:, 0] + 3, rtol=1e-5
    )
    made = model.generate([[7.0], [8.0]], noise[:2, 0])
    np.testing.assert_allclose(made[:, 0, 0, 0], [7, 8])
    with pytest.raises(errors.InputError, match="logits of shape"):
        model.generate([[7.0, 1.0, 2.0]], noise[:1, 0])


def test_classify_gives_logits_twice_without_a_layer(model):
    images, _ = random_inputs(4, 1)
    logits, given = model.classify(images)
    assert given is logits


def test_an_export_of_the_flat_layout_answers_as_before():
    """Recorded at commit d912879, from the SavedModel alone."""
    model = pipeline.Pipeline.load("exported/scenes32-robust-one-hot")
    image = np.linspace(0, 255, 32 * 32 * 3, dtype="float32")
    noise = np.sin(np.arange(2 * 120, dtype="float32")).reshape(1, 2, 120)
    images = image.reshape(1, 32, 32, 3)
    np.testing.assert_allclose(
        model.logits(images)[0, :4],
        [-12.971316, -9.355735, -9.428802, -10.308433],
        rtol=1e-4,
    )
    found = model.reconstruct(images, noise)[0]
    expected = [
        [184.16257, 195.66153, 201.36232, 195.51054],
        [185.21013, 213.07307, 216.70970, 208.30878],
        [172.12472, 188.47404, 190.14508, 188.24298],
        [64.49148, 84.06903, 229.91493, 95.32386],
    ]
    np.testing.assert_allclose(found[0, ::8, ::8, 0], expected, atol=0.02)
    np.testing.assert_allclose(
        found[1, 5, 7], [214.29146, 119.54815, 79.65137], atol=0.02
    )


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64"])
def test_images_that_are_all_but_black_get_a_warning(model, dtype):
    images = np.ones((2, 5, 5, 3), dtype)
    with pytest.warns(UserWarning, match="Multiply those in"):
        model.logits(images)
    # Black is a picture, and so is one that is merely dark.
    model.logits(0 * images)
    model.logits(2 * images)


def test_a_client_sends_no_larger_images_than_the_classifier_takes(arithmetic):
    metadata = {**METADATA, "classifier_size": 10}
    model = pipeline.Pipeline(arithmetic, metadata)
    ramp = np.broadcast_to(np.arange(40.0)[:, None, None], (3, 40, 60, 3))
    found = model.logits(ramp)
    assert [call["images"] for call in arithmetic.calls] == [(3, 10, 10, 3)]
    # The mean of the ramp's rows is that of their means of four.
    np.testing.assert_allclose(found, np.full((3, 3), 19.5), rtol=1e-3)
    model.logits(ramp[:, :10, :10])
    assert arithmetic.calls[-1]["images"] == (3, 10, 10, 3)
    # The signature resizes images itself.
    pipeline.Pipeline(arithmetic, metadata, arithmetic).logits(ramp)
    assert arithmetic.calls[-1]["images"] == (3, 40, 40, 3)


@pytest.mark.parametrize("size, sent", [(16, 16), (None, 1024)])
def test_served_models_say_how_large_images_may_be(monkeypatch, size, sent):
    arithmetic = Arithmetic()
    metadata = {**METADATA, "classifier_size": size}
    monkeypatch.setattr(client, "connect", lambda _: (arithmetic, metadata))
    model = pipeline.Pipeline.load("grpc://host:1/name")
    model.logits(np.full((1, 1100, 1300, 3), 7, "uint8"))
    assert arithmetic.calls[0]["images"] == (1, sent, sent, 3)
