import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from tensorflow_serving.apis import prediction_log_pb2

from kinv import errors
from kinv.classifiers import loading
from kinv.classifiers import small as small_lib
from kinv.inversion import export, layers, model_card, networks

SIZE = 16
METADATA = {
    "class_names": ["a", "b", "c", "d", "e"],
    "num_classes": 5,
    "noise_dim": 8,
    "image_size": 32,
}


def make_generator():
    return networks.Generator(
        32, 5, 4, 8, embedding_dim=4, gain_offset=1, embedding_layers=1
    )


def inputs_of(batch, samples, size, seed=0):
    random = np.random.default_rng(seed)
    return {
        "images": random.uniform(0, 255, (batch, size, size + 3, 3)),
        "noise": random.normal(size=(batch, samples, 8)),
        "logit_scale": random.uniform(0.5, 2, (batch, samples)),
        "logit_shift": random.normal(size=(batch, samples, 5)),
    }


def tensors(inputs):
    return {k: tf.constant(v, "float32") for k, v in inputs.items()}


def test_no_xla_is_needed_to_classify():
    inputs = keras.Input((8, 16, 3))
    outputs = keras.layers.Dense(5)(keras.layers.Flatten()(inputs))
    classifier = loading.load_classifier(keras.Model(inputs, outputs))
    # As Keras chooses for `predict` where there is a GPU. XLA has no resize.
    classifier.jit_compile = True
    images = np.zeros((2, *classifier.input_shape[1:]), "float32")
    condition = export.condition_of(classifier, images)
    np.testing.assert_allclose(condition, classifier(images), rtol=1e-6)


@pytest.fixture(scope="module")
def networks_pair():
    keras.utils.set_random_seed(0)
    classifier = small_lib.build_classifier(SIZE, 5, 4)
    generator = make_generator()
    random = np.random.default_rng(0)
    for variable in generator.trainable_variables:
        # A mean sets the largest singular value of a kernel apart.
        mean = 0.2 if variable.name == "kernel" else 0.0
        noise = random.normal(mean, 0.3, variable.shape)
        variable.assign(variable + noise)
    images = random.uniform(0, 255, (4, 16, SIZE, SIZE, 3)).astype("float32")
    batches = [(batch, None) for batch in images]
    # More than an export takes, whose vectors are not at random.
    generator.fold_spectral_norms(iterations=40)
    generator.fill_standing_statistics(
        export.generator_inputs(classifier, batches, 8, seed=0)
    )
    return classifier, generator


@pytest.fixture(scope="module")
def exported(networks_pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "1"
    path.mkdir()
    export.save(path, *networks_pair, METADATA)
    return path


def test_one_signature_with_the_shapes_of_the_contract(exported):
    signatures = tf.saved_model.load(exported).signatures
    assert list(signatures) == ["serving_default"]
    function = signatures["serving_default"]
    inputs = function.structured_input_signature[1]
    assert {k: v.shape.as_list() for k, v in inputs.items()} == {
        "images": [None, None, None, 3],
        "noise": [None, None, 8],
        "logit_scale": [None, None],
        "logit_shift": [None, None, None],
    }
    outputs = function.structured_outputs
    assert {k: v.shape.as_list() for k, v in outputs.items()} == {
        "logits": [None, 5],
        "reconstructions": [None, None, 32, 32, 3],
    }
    assert {v.dtype for v in [*inputs.values(), *outputs.values()]} == {
        tf.float32
    }


def test_litert_gives_the_same(networks_pair):
    classifier, generator = networks_pair
    interpreter = litert.Interpreter(
        model_content=export.lite_model(classifier, generator)
    )
    run = interpreter.get_signature_runner()
    inputs = tensors(inputs_of(1, 1, SIZE))
    images, noise = inputs["images"][:, :, :SIZE], inputs["noise"][0]
    found = run(images=images.numpy(), noise=noise.numpy())
    logits = classifier(images, training=False)
    made = generator({"condition": logits, "noise": noise}, training=False)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    assert found["reconstructions"].std() > 1
    np.testing.assert_allclose(found["reconstructions"], made, atol=0.1)


# 70 and 128 pictures: made in two parts, of unequal and equal size.
@pytest.mark.parametrize(
    "batch, samples", [(1, 1), (3, 2), (2, 5), (2, 0), (35, 2), (64, 2)]
)
def test_equals_the_networks_one_after_the_other(
    exported, networks_pair, batch, samples
):
    classifier, generator = networks_pair
    inputs = tensors(inputs_of(batch, samples, size=21))
    function = tf.saved_model.load(exported).signatures["serving_default"]
    outputs = function(**inputs)
    # The centre square of 21 by 24 pixels.
    square = inputs["images"][:, :, 1:22]
    resized = tf.image.resize(square, (SIZE, SIZE), antialias=True)
    logits = classifier(resized, training=False)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    shape = (batch, samples, 32, 32, 3)
    assert outputs["reconstructions"].shape == shape
    for sample in range(samples):
        scale = inputs["logit_scale"][:, sample, None]
        expected = generator(
            {
                "condition": scale * logits + inputs["logit_shift"][:, sample],
                "noise": inputs["noise"][:, sample],
            },
            training=False,
        )
        actual = outputs["reconstructions"][:, sample]
        np.testing.assert_allclose(actual, expected, atol=0.05)
        assert np.std(actual) > 1


@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_square_is_taken(exported, turned):
    function = tf.saved_model.load(exported).signatures["serving_default"]
    inputs = inputs_of(2, 1, size=20)
    images, square = inputs["images"], inputs["images"][:, :, 1:21]
    if turned:
        images, square = (np.swapaxes(x, 1, 2) for x in (images, square))
    expected = function(**tensors({**inputs, "images": square}))
    found = function(**tensors({**inputs, "images": images}))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-3)


def test_a_keras_layer_calls_it_with_a_dict(exported):
    inputs = tensors(inputs_of(2, 3, size=20))
    layer = keras.layers.TFSMLayer(str(exported), call_endpoint="serve")
    function = tf.saved_model.load(exported).signatures["serving_default"]
    expected, found = function(**inputs), layer(inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_scale_and_shift_broadcast(exported):
    function = tf.saved_model.load(exported).signatures["serving_default"]
    inputs = tensors(inputs_of(2, 3, size=SIZE))
    inputs["logit_scale"] = tf.fill((2, 1), 0.5)
    inputs["logit_shift"] = tf.fill((2, 1, 1), 2.0)
    small = function(**inputs)["reconstructions"]
    inputs["logit_scale"] = tf.fill((2, 3), 0.5)
    inputs["logit_shift"] = tf.fill((2, 3, 5), 2.0)
    np.testing.assert_array_equal(small, function(**inputs)["reconstructions"])


def test_nothing_is_resized_at_the_size_of_the_classifier(
    exported, networks_pair
):
    inputs = inputs_of(2, 0, SIZE)
    inputs["images"] = inputs["images"][:, :, :SIZE]
    inputs = tensors(inputs)
    function = tf.saved_model.load(exported).signatures["serving_default"]
    np.testing.assert_allclose(
        function(**inputs)["logits"],
        networks_pair[0](inputs["images"], training=False),
        atol=1e-4,
    )


def test_loads_without_kinv_and_answers_with_the_same_bits(exported, tmp_path):
    script = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "kinv":
                    raise ImportError("blocked: " + name)

        sys.meta_path.insert(0, Blocker())
        try:
            import kinv
        except ImportError:
            pass
        else:
            raise SystemExit("kinv could be imported")
        import numpy as np
        import tensorflow as tf

        model = tf.saved_model.load({str(exported)!r})
        inputs = dict(np.load({str(tmp_path / "inputs.npz")!r}))
        inputs = {{k: tf.constant(v, "float32") for k, v in inputs.items()}}
        answers = [
            model.signatures["serving_default"](**inputs) for _ in range(3)
        ]
        for answer in answers[1:]:
            for name, value in answer.items():
                assert np.array_equal(value, answers[0][name]), name
        assert answers[0]["reconstructions"].shape == (3, 7, 32, 32, 3)
        np.save({str(tmp_path / "out.npy")!r}, answers[0]["reconstructions"])
    """
    inputs = inputs_of(3, 7, size=40)
    np.savez(tmp_path / "inputs.npz", **inputs)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    function = tf.saved_model.load(exported).signatures["serving_default"]
    here = function(**tensors(inputs))["reconstructions"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), here, atol=1e-3)


def test_folded_kernels_have_spectral_norm_one(networks_pair):
    kernels = [
        layer.kernel.numpy()
        for layer in networks_pair[1]._flatten_layers()
        if isinstance(layer, layers.SpectralLayer)
    ]
    # First and last; for each block three convolutions and two norms of two;
    # four of the self-attention.
    assert len(kernels) == 2 + 3 * (3 + 2 * 2) + 4
    for kernel in kernels:
        matrix = kernel.reshape(-1, kernel.shape[-1])
        sigma = np.linalg.svd(matrix, compute_uv=False)[0]
        assert sigma == pytest.approx(1, abs=1e-3)


def test_saves_only_what_inference_reads(exported, networks_pair):
    reader = tf.train.load_checkpoint(str(exported / "variables/variables"))
    sizes = [
        int(np.prod(shape))
        for name, shape in reader.get_variable_to_shape_map().items()
        if "GRAPH" not in name and "COUNTER" not in name
    ]
    classifier, generator = networks_pair
    unread = sum(
        int(np.prod(v.shape))
        for v in generator.non_trainable_variables
        if v.name == "spectral_vector"
    )
    total = classifier.count_params() + generator.count_params()
    assert unread > 0
    assert sum(sizes) == total - unread


def test_warmup_requests_are_answered(exported):
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    function = tf.saved_model.load(exported).signatures["serving_default"]
    records = list(tf.data.TFRecordDataset(str(path)))
    assert records
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.signature_name == "serving_default"
        inputs = {
            name: tf.constant(tf.make_ndarray(value))
            for name, value in request.inputs.items()
        }
        outputs = function(**inputs)
        assert outputs["reconstructions"].shape[1] == inputs["noise"].shape[1]


def test_metadata(exported):
    text = (exported / "assets.extra" / "kinv.json").read_text()
    assert json.loads(text) == METADATA


def test_mixed_precision_run_is_loaded_in_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        saved = make_generator()
        saved.save(tmp_path / "generator.keras")
        generator = export.load_generator(tmp_path / "generator.keras")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    policies = {layer.compute_dtype for layer in generator._flatten_layers()}
    assert policies == {"float32"}
    for ours, theirs in zip(generator.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_generator_file_that_is_not_one(tmp_path):
    with pytest.raises(errors.InputError, match="does not exist"):
        export.load_generator(tmp_path / "missing.keras")
    (tmp_path / "text.keras").write_text("no")
    with pytest.raises(errors.InputError, match="Received"):
        export.load_generator(tmp_path / "text.keras")
    small_lib.build_classifier(8, 2, 2).save(tmp_path / "other.keras")
    with pytest.raises(errors.InputError, match="a Functional"):
        export.load_generator(tmp_path / "other.keras")


def test_model_card_tells_the_licence_of_the_images():
    metadata = {
        **METADATA,
        "classifier_size": 32,
        "dataset": "photographs",
        "training": {"classifier": "c.keras", "train_split": "train"},
        "metrics": {},
    }
    metadata["training"] |= {"steps": 11000, "batch_size": 32}
    assert "Training: steps 11000, batch size 32." in model_card.text(metadata)
    metadata["training"]["updates"] = 500
    card = model_card.text(metadata)
    assert "Training: updates 500, batch size 32." in card
    metadata["training"]["generator"] = "before/generator.keras"
    assert (
        "batch size 32, begun with the generator `before/generator.keras`."
        in model_card.text(metadata)
    )
    assert "licence of these images is their owner's" in card
    assert "## Licence" not in card
    card = model_card.text({**metadata, "dataset_licence": "CC0, by Zoë.\n"})
    assert "licence of these images is below" in card
    assert card.endswith("\n\n## Licence of the images\n\nCC0, by Zoë.\n")
    card = model_card.text({**metadata, "classifier_licence": "Apache-2.0\n"})
    assert card.endswith("\n\n## Licence of the classifier\n\nApache-2.0\n")
    card = model_card.text({**metadata, "dataset": "fashion_mnist:3.0.1"})
    assert "licence of these images is MIT (Zalando SE)." in card
    metadata["training"] |= {"preset": "small", "readback_weight": 8.0}
    metadata["training"] |= {"padding": "edge", "steps_per_epoch": 3}
    assert (
        "Training: preset small, updates 500, batch size 32, readback weight "
        "8.0, begun with the generator `before/generator.keras`.\n"
    ) in model_card.text(metadata)


def test_gradients_of_an_export_are_those_of_small_steps(exported):
    loaded = tf.saved_model.load(exported)
    signature = loaded.signatures["serving_default"]
    inputs = tensors(inputs_of(2, 2, SIZE))
    steps = {
        name: np.random.default_rng(1).normal(size=inputs[name].shape)
        for name in ("images", "noise")
    }

    def total(moved):
        outputs = signature(**{**inputs, **moved})
        logits = tf.reduce_sum(outputs["logits"] ** 2)
        return logits + tf.reduce_mean(outputs["reconstructions"])

    for name, step in steps.items():
        with tf.GradientTape() as tape:
            tape.watch(inputs[name])
            value = total({name: inputs[name]})
        gradient = tape.gradient(value, inputs[name])
        step = tf.constant(step, "float32")
        ahead, behind = (
            total({name: inputs[name] + sign * 2e-3 * step}) for sign in (1, -1)
        )
        slope = tf.reduce_sum(gradient * step)
        np.testing.assert_allclose(slope, (ahead - behind) / 4e-3, rtol=0.05)
