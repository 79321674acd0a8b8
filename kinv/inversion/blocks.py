"""Residual blocks of the generator and of the discriminator.

Reference:
    Supplementary, section 7.1, Tables 1 and 2; google/compare_gan,
    `resnet_biggan`.
"""

import keras
from keras import ops

from kinv.inversion import layers, normalization

# How much stronger than the picture a discriminator sees its two finest bands.
DETAIL_GAINS = (8.0, 4.0)


class GeneratorBlock(keras.layers.Layer):
    """Residual block that doubles height and width (Table 1).

    Conditional norm, ReLU, upsampling, 3x3 convolution, conditional norm, ReLU,
    3x3 convolution; the shortcut is upsampling and 1x1 convolution of the
    input.

    Args:
        channels: output channels.
        gain_offset: see `normalization.ConditionalBatchNormalization`.
        norms_per_block: 2 as in compare_gan; 3 adds a conditional norm on the
            main path's output, our reading of the supplementary's "3
            conditional-batch norms".
        upsampling, padding: see `layers.SpectralConv2D`.
    """

    def __init__(
        self,
        channels,
        gain_offset,
        norms_per_block,
        upsampling,
        padding,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.norms = [
            normalization.ConditionalBatchNormalization(
                gain_offset, name=f"norm_{i}"
            )
            for i in range(norms_per_block)
        ]
        self.first = layers.SpectralConv2D(
            channels, 3, upsampling=upsampling, padding=padding
        )
        self.second = layers.SpectralConv2D(channels, 3, padding=padding)
        self.shortcut = layers.SpectralConv2D(
            channels, 1, upsampling=upsampling
        )
        # By the first call of its layers: Keras would call it once to build
        # it, then again.
        self.built = True

    def call(self, inputs, condition, training=False):
        x = ops.relu(self.norms[0](inputs, condition, training=training))
        x = self.first(x, training=training)
        x = ops.relu(self.norms[1](x, condition, training=training))
        x = self.second(x, training=training)
        for norm in self.norms[2:]:
            x = norm(x, condition, training=training)
        return x + self.shortcut(inputs, training=training)


class DiscriminatorBlock(keras.layers.Layer):
    """Residual block, halving height and width when `downsample` (Table 2).

    ReLU, 3x3 convolution, ReLU, 3x3 convolution, average pool; the shortcut is
    average pool and 1x1 convolution of the input. A block that keeps the
    number of channels has no shortcut at all, as in compare_gan.

    Args:
        channels: output channels.
        downsample: whether to halve height and width.
    """

    def __init__(self, channels, downsample, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.downsample = downsample
        self.first = layers.SpectralConv2D(channels, 3)
        self.second = layers.SpectralConv2D(channels, 3, pool=downsample)
        self.shortcut = None

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.channels))
        if input_shape[-1] != self.channels:
            self.shortcut = layers.SpectralConv2D(
                self.channels, 1, dtype=self.dtype_policy
            )
            self.shortcut.build(input_shape)

    def call(self, inputs, training=False):
        x = self.first(ops.relu(inputs), training=training)
        x = self.second(ops.relu(x), training=training)
        if self.downsample:
            # The pool goes before the shortcut's convolution: they commute.
            inputs = ops.average_pool(inputs, 2, strides=2)
        if self.shortcut is None:
            return x
        return x + self.shortcut(inputs, training=training)


def with_fine_bands(images):
    """Images in [0, 1], and their two finest bands as further channels."""
    finest, low = layers.finest_band(images)
    second, _ = layers.finest_band(low)
    bands = (finest, layers.repeat_pixels(second))
    # Around 0.5, so that weak detail of both signs passes the first block's
    # ReLU; what is darker by more than 1/16 (finest) or 1/8 is cut off.
    bands = [
        0.5 + gain * band
        for gain, band in zip(DETAIL_GAINS, bands, strict=True)
    ]
    return ops.concatenate([images, *bands], axis=-1)
