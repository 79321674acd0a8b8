"""What holds for every layer of the networks."""

import keras
import numpy as np
import pytest

from kinv.inversion import conditioning, layers, normalization

MAPS, VECTORS, LOGITS = (8, 8, 16), (6,), (5,)
# How to make each layer, and the shapes of its inputs without the batch.
LAYERS = {
    "dense": (
        lambda **kwargs: layers.SpectralDense(
            3, use_bias=False, kernel_initializer="glorot_normal", **kwargs
        ),
        [VECTORS],
    ),
    "convolution": (
        lambda **kwargs: layers.SpectralConv2D(4, 3, **kwargs),
        [MAPS],
    ),
    "zeros": (
        lambda **kwargs: layers.SpectralConv2D(
            4, 3, upsampling="zeros", **kwargs
        ),
        [MAPS],
    ),
    "nearest": (
        lambda **kwargs: layers.SpectralConv2D(
            4, 3, upsampling="nearest", padding="edge", **kwargs
        ),
        [MAPS],
    ),
    "shortcut": (
        lambda **kwargs: layers.SpectralConv2D(
            4, 1, use_bias=False, upsampling="nearest", **kwargs
        ),
        [MAPS],
    ),
    "pool": (
        lambda **kwargs: layers.SpectralConv2D(4, 3, pool=True, **kwargs),
        [MAPS],
    ),
    "norm": (normalization.BatchNormalization, [MAPS]),
    "conditional norm": (
        lambda **kwargs: normalization.ConditionalBatchNormalization(
            1.0, **kwargs
        ),
        [MAPS, VECTORS],
    ),
    "attention": (layers.SelfAttention, [MAPS]),
    "deviation": (conditioning.ClassCenteredWhitening, [LOGITS]),
    "normalisation": (
        lambda **kwargs: conditioning.LogitNormalization(
            "class-centered", **kwargs
        ),
        [LOGITS],
    ),
    "embedding": (
        lambda **kwargs: conditioning.Embedding(3, 2, **kwargs),
        [LOGITS],
    ),
}
layers_of_all_kinds = pytest.mark.parametrize(
    "make, shapes", LAYERS.values(), ids=LAYERS
)


def inputs_of(shapes, batch=4):
    random = np.random.default_rng(0)
    return [random.normal(size=(batch, *s)).astype("float32") for s in shapes]


@layers_of_all_kinds
def test_config_round_trip(make, shapes):
    layer = make()
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    assert keras.saving.get_registered_name(type(layer)).startswith("kinv>")


@layers_of_all_kinds
def test_saved_and_loaded_it_gives_the_same(make, shapes, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, make()(*inputs))
    for variable in model.variables:
        value = np.random.default_rng(1).normal(1.0, 0.3, variable.shape)
        variable.assign(value)
    model.save(tmp_path / "layer.keras")
    loaded = keras.models.load_model(tmp_path / "layer.keras")
    values = inputs_of(shapes)
    np.testing.assert_array_equal(loaded(values), model(values))


@layers_of_all_kinds
def test_the_symbolic_shape_is_that_of_the_values(make, shapes):
    layer = make()
    symbolic = layer(*(keras.Input(shape) for shape in shapes))
    outputs = layer(*inputs_of(shapes))
    assert symbolic.shape == (None, *outputs.shape[1:])
    assert keras.backend.standardize_dtype(symbolic.dtype) == (
        keras.backend.standardize_dtype(outputs.dtype)
    )


@layers_of_all_kinds
def test_a_batch_of_one_is_a_row_of_the_batch(make, shapes):
    layer = make()
    inputs = inputs_of(shapes)
    whole = np.array(layer(*inputs))
    single = np.array(layer(*(x[:1] for x in inputs)))
    np.testing.assert_allclose(single, whole[:1], rtol=1e-4, atol=1e-5)


@layers_of_all_kinds
def test_mixed_precision_is_near_float32(make, shapes):
    keras.utils.set_random_seed(0)
    exact = make(dtype="float32")
    inputs = inputs_of(shapes)
    expected = np.array(exact(*inputs))
    rounded = make(dtype="mixed_bfloat16")
    rounded(*inputs)
    rounded.set_weights(exact.get_weights())
    found = keras.ops.cast(rounded(*inputs), "float32")
    # Eight bits of a number, over sums of up to 144.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=0.05 * scale)
    # What is learned stays in float32.
    for variable in rounded.variables:
        assert keras.backend.standardize_dtype(variable.dtype) == "float32"
