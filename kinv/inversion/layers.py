"""Layers of spectrally normalised kernels, written with `keras.ops`.

They keep their variables in float32 and take spectral norms in float32,
whatever the dtype policy; convolutions, attention and what is done to each
value of a map run in the policy's compute dtype.
"""

import inspect

import keras
import numpy as np
from keras import ops

# The taps that replace a 3x3 kernel along one axis, as (phase, tap, row of the
# kernel). Zeros: output rows 2j and 2j + 1 from input rows j and j + 1.
# Nearest: output rows 2j - 1 and 2j from input rows j - 1 and j. Pool: the mean
# of two output rows from four input rows, two in each phase.
TAPS = {
    "zeros": np.array([[[0, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]]),
    "nearest": np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]]),
    "pool": np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]) / 2,
}


def settings_of(network):
    """What a network was made with, for `get_config`.

    Arguments of its constructor, each kept as the attribute of its name. Those
    of layers Keras finds by itself.
    """
    names = inspect.signature(type(network).__init__).parameters
    own = [name for name in names if name not in ("self", "kwargs")]
    return {name: getattr(network, name) for name in own}


def spectral_layers(network):
    """The layers of a network whose kernels are spectrally normalised."""
    layers = network._flatten_layers()
    return [layer for layer in layers if isinstance(layer, SpectralLayer)]


def build(network, **shapes):
    """Builds a network by a symbolic call with a dict of inputs.

    Without spectral norms, half of the work; nobody else may call networks.
    """
    SpectralLayer.folded = True
    try:
        network({name: keras.Input(shape) for name, shape in shapes.items()})
    finally:
        SpectralLayer.folded = False


class SpectralLayer(keras.layers.Layer):
    """A layer whose kernel is divided by its largest singular value.

    The raw kernel is what the optimizer sees; the gradient passes through
    `kernel / sigma(kernel)`. `sigma` is estimated by one power iteration per
    call. Its vector lies on the smaller side of the kernel's matrix
    (`spectral_norm.singular_value = 'auto'`) and moves in training calls only,
    while `moves`. (compare_gan moves it in inference calls too. So an exported
    model would not answer the same request with the same bits.)

    Subclasses call `add_kernel` in `build` and use `normalized_kernel`.

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial
        Networks, ICLR 2018; supplementary, section 7.2.
    """

    folded, moves = False, True

    def add_kernel(self, shape, initializer="orthogonal"):
        """Adds the raw kernel and the vector of the power iteration.

        Args:
            shape: shape of the kernel, `(..., outputs)`.
            initializer: Keras initializer of the kernel.
        """
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=initializer, autocast=False
        )
        self._matrix_shape = (int(np.prod(shape[:-1])), shape[-1])
        self.spectral_vector = self.add_weight(
            name="spectral_vector",
            shape=(min(self._matrix_shape),),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            trainable=False,
            autocast=False,
        )

    def normalized_kernel(self, training):
        """Kernel over its spectral norm, float32.

        Args:
            training: whether the power iteration's vector moves on.
        """
        kernel = ops.convert_to_tensor(self.kernel)
        if not self.folded:
            vector, sigma = self._power_iteration(
                kernel, ops.convert_to_tensor(self.spectral_vector)
            )
            if training and self.moves:
                self.spectral_vector.assign(vector)
            kernel = kernel / sigma
        return kernel

    def fold(self, iterations):
        """Replaces the kernel by `kernel / sigma(kernel)` for good.

        Args:
            iterations: number of power iterations, which start at the stored
                vector.
        """
        vector = ops.convert_to_tensor(self.spectral_vector)
        for _ in range(iterations):
            vector, sigma = self._power_iteration(self.kernel.value, vector)
        self.kernel.assign(self.kernel / sigma)
        # By which a copy, which is not folded, divides by 1.
        self.spectral_vector.assign(vector)
        self.folded = True

    def _power_iteration(self, kernel, vector):
        matrix = ops.reshape(kernel, self._matrix_shape)
        rows, columns = self._matrix_shape
        if rows > columns:
            matrix = ops.transpose(matrix)
        detached = ops.stop_gradient(matrix)
        other = _unit(ops.matmul(ops.expand_dims(vector, 0), detached))
        projected = ops.matmul(matrix, ops.transpose(other))[:, 0]
        vector = _unit(ops.stop_gradient(projected))
        return vector, ops.sum(vector * projected)


def _unit(vector):
    return vector * ops.rsqrt(ops.maximum(ops.sum(ops.square(vector)), 1e-12))


@keras.saving.register_keras_serializable(package="kinv")
class SpectralDense(SpectralLayer):
    """Linear map with a spectrally normalised kernel.

    Args:
        units: number of outputs.
        use_bias: whether a bias is added.
        kernel_initializer: name of the raw kernel's Keras initializer.
    """

    def __init__(
        self, units, use_bias=True, kernel_initializer="orthogonal", **kwargs
    ):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape):
        self.add_kernel((input_shape[-1], self.units), self.kernel_initializer)
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units,), initializer="zeros"
            )

    def call(self, inputs, training=False):
        kernel = self.normalized_kernel(training)
        outputs = ops.matmul(inputs, ops.cast(kernel, self.compute_dtype))
        return outputs + self.bias if self.use_bias else outputs


@keras.saving.register_keras_serializable(package="kinv")
class SpectralConv2D(SpectralLayer):
    """Convolution with a spectrally normalised kernel, stride 1, same size.

    With `upsampling`, it first doubles height and width: `zeros` puts the
    input's values at the even rows and columns, zeros elsewhere (compare_gan's
    `unpool`); `nearest` repeats every value four times. Outputs of rows (and
    columns) of zeros would have another mean and variance than their
    neighbours, which shows as a checkerboard that training never quite
    removes; repeated values have none.
    The larger map is never made. An output pixel meets the same rows of a 3x3
    kernel as every second one beside it, or their sum where they meet the same
    value; so a 2x2 convolution gives the four phases of the output as
    channels, which are then interleaved. A 1x1 kernel acts before the
    doubling.

    With `pool`, the output is averaged over 2x2 pixels. The mean of a 3x3
    kernel at four places is a 4x4 kernel at every second one, with 4/9 of the
    multiplications. The four phases of the input are its channels, and the
    kernel is 2x2 again: gradients of strided convolutions are slow on CPU.

    Args:
        filters: number of output channels.
        kernel_size: 1 or 3.
        use_bias: whether a bias is added, after the doubling.
        upsampling: `zeros` or `nearest`, how height and width are doubled
            first; None for not at all.
        pool: whether they are halved afterwards, by averages; of 3x3 kernels.
        padding: what a 3x3 kernel meets beyond the border: `zeros`, or `edge`,
            the values on the border, with which a flat area stays flat up to
            the corner. Inserted zeros have zeros beyond the border, too.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        use_bias=True,
        upsampling=None,
        pool=False,
        padding="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.use_bias = use_bias
        self.upsampling = upsampling
        self.pool = pool
        self.padding = padding

    def build(self, input_shape):
        size = self.kernel_size
        self.add_kernel((size, size, input_shape[-1], self.filters))
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros"
            )

    def call(self, inputs, training=False):
        kernel = self.normalized_kernel(training)
        padding = "same"
        phases = self.pool or self.upsampling == "nearest"
        edge = self.padding == "edge" and self.upsampling != "zeros"
        if self.kernel_size == 3 and (phases or edge):
            inputs = _pad(inputs, self.padding)
            padding = "valid"
        if self.pool:
            inputs = _separate_phases(inputs)
            kernel = _phase_kernel(kernel, TAPS["pool"])
            kernel = ops.reshape(kernel, (2, 2, -1, self.filters))
        elif self.upsampling and self.kernel_size == 3:
            kernel = _phase_kernel(kernel, TAPS[self.upsampling])
            # The phases of the output are its outermost channels.
            kernel = ops.transpose(kernel, (0, 1, 3, 2, 4))
            kernel = ops.reshape(kernel, (2, 2, -1, 4 * self.filters))
        kernel = ops.cast(kernel, self.compute_dtype)
        outputs = ops.conv(inputs, kernel, padding=padding)
        if self.upsampling and self.kernel_size == 1:
            double = {"zeros": insert_zeros, "nearest": repeat_pixels}
            outputs = double[self.upsampling](outputs)
        elif self.upsampling:
            outputs = _interleave_phases(outputs)
            if self.upsampling == "nearest":
                outputs = _crop(outputs)
        return outputs + self.bias if self.use_bias else outputs


def _pad(inputs, padding):
    """Adds a border of one pixel."""
    if padding == "zeros":
        return ops.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        first, middle, last = _split_ends(inputs, axis)
        inputs = ops.concatenate((first, first, middle, last, last), axis)
    return inputs


def _crop(inputs):
    """Takes a border of one pixel off."""
    for axis in (1, 2):
        inputs = _split_ends(inputs, axis)[1]
    return inputs


def _split_ends(inputs, axis):
    """First row, those between, and last row; columns along axis 2.

    On CPU the gradient of a split takes a sixth of that of slices, and splits
    and joins two thirds of the time of `ops.pad(..., "symmetric")`.
    """
    return ops.split(inputs, [1, inputs.shape[axis] - 1], axis)


def insert_zeros(inputs):
    """Doubles height and width; values go to even rows and columns."""
    _, height, width, channels = inputs.shape
    # Behind the channels of each value, then behind each row: LiteRT pads at
    # most five axes.
    rows = ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, channels)))
    rows = ops.reshape(rows, (-1, height, 2 * width * channels))
    outputs = ops.pad(rows, ((0, 0), (0, 0), (0, 2 * width * channels)))
    return ops.reshape(outputs, (-1, 2 * height, 2 * width, channels))


def repeat_pixels(inputs):
    """Doubles height and width; every value stands four times."""
    return ops.repeat(ops.repeat(inputs, 2, axis=1), 2, axis=2)


def finest_band(images):
    """The finest band of the Laplacian pyramid, and what is left.

    Args:
        images: tensor `(batch, height, width, channels)` of even sizes.

    Returns:
        What averages of 2x2 pixels leave out, of the same shape, and these
        averages, `(batch, height / 2, width / 2, channels)`.

    Reference:
        Burt and Adelson, The Laplacian Pyramid as a Compact Image Code (1983);
        here with averages of 2x2 pixels.
    """
    low = ops.average_pool(images, 2, strides=2)
    return images - repeat_pixels(low), low


def _phase_kernel(kernel, taps):
    """The 2x2 kernels that a 3x3 kernel is to four phases, as one.

    Args:
        kernel: tensor `(3, 3, inputs, outputs)`.
        taps: of `TAPS`.

    Returns:
        Tensor `(2, 2, phases, inputs, outputs)`.
    """
    taps = np.einsum("pti,qsj->tspqij", taps, taps).reshape(16, 9)
    *_, inputs, outputs = kernel.shape
    kernel = ops.reshape(kernel, (9, inputs * outputs))
    kernel = ops.matmul(taps.astype("float32"), kernel)
    return ops.reshape(kernel, (2, 2, 4, inputs, outputs))


def _interleave_phases(inputs):
    """`(batch, h, w, 4 * c)` to `(batch, 2 * h, 2 * w, c)`."""
    _, height, width, channels = inputs.shape
    channels //= 4
    phases = ops.reshape(inputs, (-1, height, width, 2, 2, channels))
    phases = ops.transpose(phases, (0, 1, 3, 2, 4, 5))
    return ops.reshape(phases, (-1, 2 * height, 2 * width, channels))


def _separate_phases(inputs):
    """`(batch, 2 * h, 2 * w, c)` to `(batch, h, w, 4 * c)`."""
    _, height, width, channels = inputs.shape
    shape = (-1, height // 2, 2, width // 2, 2, channels)
    phases = ops.transpose(ops.reshape(inputs, shape), (0, 1, 3, 2, 4, 5))
    return ops.reshape(phases, (-1, height // 2, width // 2, 4 * channels))


@keras.saving.register_keras_serializable(package="kinv")
class SelfAttention(keras.layers.Layer):
    """Non-local block: `x + scale * attention(x)`, `scale` starting at 0.

    Keys and values are max-pooled by 2; there is no `1 / sqrt(dim)`.

    Reference:
        Supplementary, Tables 1 and 2 ("Non-local block"); Zhang et al.,
        Self-Attention Generative Adversarial Networks, ICML 2019.
    """

    def build(self, input_shape):
        channels = input_shape[-1]

        def add_map(filters, name, inputs=channels):
            layer = SpectralConv2D(
                filters, 1, use_bias=False, name=name, dtype=self.dtype_policy
            )
            layer.build((*input_shape[:-1], inputs))
            return layer

        self.queries = add_map(channels // 8, "queries")
        self.keys = add_map(channels // 8, "keys")
        self.values = add_map(channels // 2, "values")
        self.outputs = add_map(channels, "outputs", channels // 2)
        self.scale = self.add_weight(
            name="scale", shape=(), initializer="zeros"
        )

    def call(self, inputs, training=False):
        _, height, width, channels = inputs.shape
        queries = self.queries(inputs, training=training)
        keys = ops.max_pool(self.keys(inputs, training=training), 2, strides=2)
        values = self.values(inputs, training=training)
        values = ops.max_pool(values, 2, strides=2)
        queries = ops.reshape(queries, (-1, height * width, channels // 8))
        keys = ops.reshape(keys, (-1, height * width // 4, channels // 8))
        values = ops.reshape(values, (-1, height * width // 4, channels // 2))
        similarity = ops.matmul(queries, ops.transpose(keys, (0, 2, 1)))
        # In the compute dtype: in float32 the largest tensor of all would be
        # cast twice, and its products are rounded all the same.
        attended = ops.matmul(ops.softmax(similarity), values)
        attended = ops.reshape(attended, (-1, height, width, channels // 2))
        return inputs + self.scale * self.outputs(attended, training=training)
