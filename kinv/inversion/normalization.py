"""Batch normalisation, plain and conditional, written with `keras.ops`.

Variables, moments, gains and offsets are float32, whatever the dtype policy;
what is done to each value of a map runs in the policy's compute dtype.
"""

import keras
from keras import ops

from kinv.inversion import layers

SPATIAL_AND_BATCH = (0, 1, 2)
# Of batch renormalisation: the updates that the running averages cover, and
# those between which it is phased in. Early moments change too fast for the
# averages to follow.
MEMORY = 25
FIRST_UPDATE, FULL_UPDATE = 1000, 2000
# Bounds of the two corrections.
LARGEST_RATIO, LARGEST_SHIFT = 3.0, 5.0
# Added to variances.
EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="kinv")
class BatchMoments(keras.layers.Layer):
    """Mean and variance per channel, as batch normalisation needs them.

    In training they are those of the whole batch, over all replicas. At
    inference they are standing statistics: the averages over the batches that
    training calls saw while `accumulating` was set. Without any, inference
    leaves the input as it is (mean 0, variance 1).

    Note:
        No running averages exist during training
        (`standardize_batch.use_moving_averages = False`), but where
        `calls_per_update` is set, as it is for `renormalize`, which needs them.

    Reference:
        Supplementary, section 7.2; compare_gan's accumulators.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.accumulating = False
        self.calls_per_update = 0

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.mean_sum = self._add_sum("mean_sum", shape)
        self.variance_sum = self._add_sum("variance_sum", shape)
        self.count = self._add_sum("count", ())

    def _add_sum(self, name, shape):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer="zeros",
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, training=False):
        """Returns mean and (biased) variance, float32 `(channels,)` each."""
        if not training:
            count = ops.maximum(self.count, 1.0)
            empty = ops.cast(ops.equal(self.count, 0.0), "float32")
            return self.mean_sum / count, self.variance_sum / count + empty
        mean, variance = ops.moments(
            inputs,
            axes=SPATIAL_AND_BATCH,
            # Keras synchronises over replicas on TensorFlow alone.
            synchronized=keras.backend.backend() == "tensorflow",
        )
        if self.accumulating:
            self.mean_sum.assign_add(mean)
            self.variance_sum.assign_add(variance)
            self.count.assign_add(1.0)
        elif self.calls_per_update:
            count = self.count + 1.0
            memory = MEMORY * self.calls_per_update
            for total, moment in (
                (self.mean_sum, mean),
                (self.variance_sum, variance),
            ):
                average = total / ops.maximum(self.count, 1.0)
                change = ops.stop_gradient(moment) - average
                average += change / ops.minimum(count, memory)
                total.assign(average * count)
            self.count.assign(count)
        return mean, variance

    def renormalize(self, mean, variance):
        """From values that the batch's moments standardised to the averages'.

        Inference standardises with moments of many batches. So does training
        then, and the moments of one batch are no noise in a picture, while
        gradients still know of them. From `FIRST_UPDATE` to `FULL_UPDATE` more
        and more. The averages have the batch in them already, with its weight.

        Args:
            mean: of the batch, `(channels,)`.
            variance: of the batch, `(channels,)`.

        Returns:
            Factor and, then, summand, float32 `(channels,)`, constants.

        Reference:
            Ioffe, Batch Renormalization (2017), algorithm 1: `r` and `d`, there
            of the averages before the batch.
        """
        inverse = ops.rsqrt(self.variance_sum / self.count + EPSILON)
        ratio = ops.clip(
            inverse * ops.sqrt(variance + EPSILON),
            1 / LARGEST_RATIO,
            LARGEST_RATIO,
        )
        shift = ops.clip(
            (mean - self.mean_sum / self.count) * inverse,
            -LARGEST_SHIFT,
            LARGEST_SHIFT,
        )
        update = self.count / self.calls_per_update
        begun = (update - FIRST_UPDATE) / (FULL_UPDATE - FIRST_UPDATE)
        begun = ops.clip(begun, 0.0, 1.0)
        return tuple(
            map(ops.stop_gradient, (1 + begun * (ratio - 1), begun * shift))
        )


class _Normalization(keras.layers.Layer):
    """Standardises per channel, then applies a gain and an offset."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.moments = BatchMoments(name="moments")

    def normalize(self, inputs, gain, offset, training):
        """`(inputs - mean) / sqrt(variance + EPSILON) * gain + offset`."""
        mean, variance = self.moments(inputs, training=training)
        inverse = ops.rsqrt(variance + EPSILON)
        if training and self.moments.calls_per_update:
            factor, summand = self.moments.renormalize(mean, variance)
            inverse = inverse * factor
            offset = offset + gain * summand
        # One multiplication and one addition per value of the large tensor.
        scale = gain * inverse
        shift = offset - mean * scale
        return inputs * ops.cast(scale, inputs.dtype) + ops.cast(
            shift, inputs.dtype
        )


@keras.saving.register_keras_serializable(package="kinv")
class BatchNormalization(_Normalization):
    """Batch normalisation with a gain (1) and offset (0) for each channel."""

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.moments.build(input_shape)
        self.gain = self.add_weight(
            name="gain", shape=shape, initializer="ones", autocast=False
        )
        self.offset = self.add_weight(
            name="offset", shape=shape, initializer="zeros", autocast=False
        )

    def call(self, inputs, training=False):
        gain = ops.convert_to_tensor(self.gain)
        offset = ops.convert_to_tensor(self.offset)
        return self.normalize(inputs, gain, offset, training)


@keras.saving.register_keras_serializable(package="kinv")
class ConditionalBatchNormalization(_Normalization):
    """Batch normalisation whose gain and offset are linear in a condition.

    `x_hat * (gain_offset + condition W_gain) + condition W_offset`, both maps
    without bias and spectrally normalised.

    Args:
        gain_offset: 0 as in compare_gan and the paper, 1 as in BigGAN. With 0
            a zero condition gives a zero output.

    Call arguments:
        inputs: tensor `(batch, height, width, channels)`.
        condition: float32 tensor `(batch, condition_dim)`.

    Reference:
        Supplementary, section 7.1 (`G.batch_norm_fn =
        @conditional_batch_norm`); Brock et al., BigGAN, ICLR 2019.
    """

    def __init__(self, gain_offset, **kwargs):
        # Mixed precision would round the condition on its way in.
        super().__init__(autocast=False, **kwargs)
        self.gain_offset = gain_offset

    def build(self, inputs_shape, condition_shape):
        self.moments.build(inputs_shape)
        # float32 in every precision: these maps carry what the logits know.
        options = {"use_bias": False, "dtype": "float32"}
        self.gain = layers.SpectralDense(
            inputs_shape[-1], name="gain", **options
        )
        self.offset = layers.SpectralDense(
            inputs_shape[-1], name="offset", **options
        )
        self.gain.build(condition_shape)
        self.offset.build(condition_shape)

    def call(self, inputs, condition, training=False):
        gain = self.gain_offset + self.gain(condition, training=training)
        offset = self.offset(condition, training=training)
        gain, offset = gain[:, None, None, :], offset[:, None, None, :]
        return self.normalize(inputs, gain, offset, training)
