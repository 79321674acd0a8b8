"""Generator and discriminator: BigGAN, conditioned on a classifier's logits.

Reference:
    Supplementary, section 7.1, Tables 1 and 2; google/compare_gan,
    `resnet_biggan`, which the authors used.
"""

import keras
import numpy as np
from keras import ops

from kinv import errors, pixels
from kinv.inversion import blocks, conditioning, layers, normalization, presets

# Channels in units of `base_channels`. 64 px is the paper's (Tables 1 and 2),
# 128 px compare_gan's; 32 px has one block less, and no map wider than 8. 8 px,
# for the smallest pictures and for tests, has one block.
GENERATOR_CHANNELS = {
    8: (8, 8),
    32: (8, 8, 4, 2),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
}
DISCRIMINATOR_CHANNELS = {
    8: (8, 8),
    32: (2, 4, 8, 8),
    64: (2, 4, 8, 16, 16),
    128: (1, 2, 4, 8, 16, 16),
}
# Height of the map that the self-attention sees: the paper's at 64 px.
GENERATOR_ATTENTION = {8: 8, 32: 16, 64: 64, 128: 64}
DISCRIMINATOR_ATTENTION = {8: 4, 32: 16, 64: 32, 128: 64}


def _validate(image_size, base_channels):
    presets.check_choice("image_size", image_size)
    # The narrowest map that self-attention sees has 8 channels or more.
    multiple = 8 if image_size == 128 else 4
    if base_channels < multiple or base_channels % multiple:
        raise errors.InputError(
            f"Expected a positive multiple of {multiple} at {image_size} "
            "pixels, since self-attention takes an eighth of the channels. "
            f"Received: base_channels={base_channels}."
        )


@keras.saving.register_keras_serializable(package="kinv")
class Generator(keras.Model):
    """Makes an image of logits and noise (Table 1).

    The noise ("z" in the paper) is cut into one chunk for the first linear
    layer and one for each block; a block's condition is its chunk beside the
    embedded logits (hierarchical noise, `hierarchical_z = True`). An embedding
    that has hidden layers sees the first chunk, too.

    Args:
        condition_dim: number of logits, or of the features of another layer
            that take their place.
        channels: 3, or 1 for grey images, whose three channels are equal.
        image_size, base_channels, ...: settings, as `presets.SETTINGS` says;
            but for these two by default as in the paper's code. `noise_dim` is
            a multiple of the number of blocks plus one.

    Call arguments:
        inputs: dict of `condition`, float32 `(batch, condition_dim)`, and
            `noise`, float32 `(batch, noise_dim)`, N(0, 1).
        training: whether to normalise with the batch's moments. At inference
            `fill_standing_statistics` must have been called.

    Returns:
        float32 images `(batch, image_size, image_size, 3)` in [0, 255].

    Attributes:
        noise_scale: what the noise is multiplied by: 1, until it is fitted for
            an export (`noise_scale.fit`).
    """

    noise_scale = 1.0

    def __init__(
        self,
        image_size,
        condition_dim,
        base_channels,
        noise_dim=120,
        embedding_dim=128,
        gain_offset=0.0,
        norms_per_block=2,
        attention=True,
        logit_normalization="none",
        embedding_layers=0,
        upsampling="zeros",
        padding="zeros",
        bounded_noise=False,
        channels=3,
        **kwargs,
    ):
        # What logits know beyond the class is in their last digits, which mixed
        # precision would round away on their way in.
        super().__init__(autocast=False, **kwargs)
        _validate(image_size, base_channels)
        widths = [c * base_channels for c in GENERATOR_CHANNELS[image_size]]
        if noise_dim % len(widths):
            raise errors.InputError(
                f"Expected a multiple of {len(widths)}, one chunk for the "
                f"first layer and one for each block. Received: {noise_dim=}."
            )
        self.image_size = image_size
        self.condition_dim = condition_dim
        self.base_channels = base_channels
        self.noise_dim = noise_dim
        self.embedding_dim = embedding_dim
        self.embedding_layers = embedding_layers
        self.gain_offset = gain_offset
        self.norms_per_block = norms_per_block
        self.attention = attention
        self.logit_normalization = logit_normalization
        self.upsampling = upsampling
        self.padding = padding
        self.bounded_noise = bounded_noise
        self.channels = channels
        for name in ("norms_per_block", "upsampling", "padding"):
            presets.check_choice(name, getattr(self, name))

        self.normalize_condition = conditioning.make_normalization(
            logit_normalization
        )
        self.embed_condition = conditioning.Embedding(
            embedding_dim, embedding_layers
        )
        self.first = layers.SpectralDense(16 * widths[0])
        self.first_norm = (
            normalization.BatchNormalization() if bounded_noise else None
        )
        self.blocks = [
            blocks.GeneratorBlock(
                width, gain_offset, norms_per_block, upsampling, padding
            )
            for width in widths[1:]
        ]
        self.attend = layers.SelfAttention() if attention else None
        self.last_norm = normalization.BatchNormalization()
        self.last = layers.SpectralConv2D(channels, 3, padding=padding)
        # As a block is.
        self.built = True
        layers.build(self, condition=(condition_dim,), noise=(noise_dim,))

    def call(self, inputs, training=False):
        embedded, (first_noise, *chunks) = self._embed(**inputs)

        x = self.first(first_noise, training=training)
        x = ops.reshape(x, (-1, 4, 4, x.shape[-1] // 16))
        if self.first_norm:
            x = ops.tanh(self.first_norm(x, training=training))
        for block, chunk in zip(self.blocks, chunks, strict=True):
            condition = ops.concatenate([chunk, embedded], axis=-1)
            x = block(x, condition, training=training)
            at_attention = x.shape[1] == GENERATOR_ATTENTION[self.image_size]
            if self.attend and at_attention:
                x = self.attend(x, training=training)
        x = ops.relu(self.last_norm(x, training=training))
        x = self.last(x, training=training)
        images = 127.5 * (ops.tanh(ops.cast(x, "float32")) + 1.0)
        return images if self.channels == 3 else ops.repeat(images, 3, axis=-1)

    def _embed(self, condition, noise):
        """The embedding, and the chunks of the noise."""
        condition = ops.cast(condition, "float32")
        if self.normalize_condition:
            condition = self.normalize_condition(condition)
        noise = ops.cast(noise, "float32") * self.noise_scale
        chunks = ops.split(noise, len(self.blocks) + 1, axis=-1)
        # What logits leave open of one thing, such as where the light comes
        # from, shows in all blocks, which otherwise have noise of their own.
        if self.embedding_layers:
            condition = ops.concatenate([condition, chunks[0]], axis=-1)
        return self.embed_condition(condition), chunks

    def fold_spectral_norms(self, iterations=20):
        """Replaces each kernel by its normalised form; ends training.

        Args:
            iterations: power iterations per kernel. The averaged weights have
                drifted from the stored vectors, so at least these.
        """
        for layer in layers.spectral_layers(self):
            layer.fold(iterations)

    @property
    def moments(self):
        """The moments of all its norms."""
        return [
            layer
            for layer in self._flatten_layers()
            if isinstance(layer, normalization.BatchMoments)
        ]

    def fill_standing_statistics(self, batches):
        """Replaces the statistics that inference normalises with.

        The longest embedding of these batches is the longest from then on,
        where embeddings have hidden layers.

        Args:
            batches: iterable of call inputs; logits of real images and fresh
                noise. Each batch weighs the same.

        Reference:
            Standing statistics, BigGAN, appendix; compare_gan's accumulators.
        """
        for layer in self.moments:
            for variable in layer.variables:
                variable.assign(np.zeros(variable.shape))
            layer.accumulating = True
        # Of an earlier call; it would shorten what is measured here.
        self.embed_condition.max_norm, max_norm = None, 0.0
        try:
            for batch in batches:
                self(batch, training=True)
                # Not of a linear map, which is to tell how long logits are.
                if self.embedding_layers:
                    norms = np.linalg.norm(self._embed(**batch)[0], axis=1)
                    max_norm = max(max_norm, float(norms.max()))
        finally:
            for layer in self.moments:
                layer.accumulating = False
        self.embed_condition.max_norm = max_norm or None

    def save_own_variables(self, store):
        # What an export fits, and is no weight. Older files lack it.
        max_norm = self.embed_condition.max_norm or 0.0
        store["fitted"] = np.array([self.noise_scale, max_norm])

    def load_own_variables(self, store):
        if "fitted" in store:
            self.noise_scale, max_norm = map(float, store["fitted"])
            self.embed_condition.max_norm = max_norm or None

    def get_config(self):
        return {**super().get_config(), **layers.settings_of(self)}


@keras.saving.register_keras_serializable(package="kinv")
class Discriminator(keras.Model):
    """Scores how well an image and logits belong together (Table 2).

    `h . w + b + (condition K) . h`, where `h` is the sum over the last map: a
    projection discriminator on logits. With `patch_scores` one score for each
    place of that map, `h` being its features times the number of places, so
    that the mean of the scores is the other score.

    With `sees_detail` the input is the picture beside its two finest bands,
    what averages of 2x2 and of 4x4 pixels leave out, enlarged.
    Spectral norms bound how steeply scores change with the input, and what
    tells an image from a reconstruction late in training has little contrast.

    Args:
        condition_dim: as of `Generator`.
        image_size, base_channels, ...: settings, as `presets.SETTINGS` says;
            but for these two by default as in the paper.

    Call arguments:
        inputs: dict of `images`, float32 `(batch, image_size, image_size, 3)`
            in [0, 255], and `condition`, float32 `(batch, condition_dim)`.

    Returns:
        float32 scores, unbounded, `(batch, 1)` or `(batch, places)`.

    Reference:
        Miyato and Koyama, cGANs with Projection Discriminator, ICLR 2018; Isola
        et al., Image-to-Image Translation with Conditional Adversarial
        Networks, CVPR 2017, who score patches.
    """

    def __init__(
        self,
        image_size,
        condition_dim,
        base_channels,
        attention=True,
        logit_normalization="none",
        patch_scores=False,
        sees_detail=False,
        **kwargs,
    ):
        # As of the generator.
        super().__init__(autocast=False, **kwargs)
        _validate(image_size, base_channels)
        self.image_size = image_size
        self.condition_dim = condition_dim
        self.base_channels = base_channels
        self.attention = attention
        self.logit_normalization = logit_normalization
        self.patch_scores = patch_scores
        self.sees_detail = sees_detail

        channels = DISCRIMINATOR_CHANNELS[image_size]
        self.blocks = [
            blocks.DiscriminatorBlock(c * base_channels, downsample=True)
            for c in channels[:-1]
        ]
        self.blocks.append(
            blocks.DiscriminatorBlock(
                channels[-1] * base_channels, downsample=False
            )
        )
        self.attend = layers.SelfAttention() if attention else None
        self.score = layers.SpectralDense(1, dtype="float32")
        self.normalize_condition = conditioning.make_normalization(
            logit_normalization
        )
        self.project_condition = layers.SpectralDense(
            channels[-1] * base_channels,
            use_bias=False,
            kernel_initializer="glorot_normal",
            dtype="float32",
        )
        # As a block is.
        self.built = True
        images = image_size, image_size, 3
        layers.build(self, images=images, condition=(condition_dim,))

    def call(self, inputs, training=False):
        # In [0, 1] the first block's ReLU leaves the image as it is.
        x = inputs["images"] / 255.0
        if self.sees_detail:
            x = blocks.with_fine_bands(x)
        for block in self.blocks:
            x = block(x, training=training)
            resolution = DISCRIMINATOR_ATTENTION[self.image_size]
            # Once, also where the last blocks leave maps of that size.
            here = block.downsample and x.shape[1] == resolution
            if self.attend and here:
                x = self.attend(x, training=training)
        places = x.shape[1] * x.shape[2]
        features = ops.cast(ops.relu(x), "float32")
        features = ops.reshape(features, (-1, places, x.shape[-1]))
        if self.patch_scores:
            features = features * places
        else:
            features = ops.sum(features, axis=1, keepdims=True)
        condition = ops.cast(inputs["condition"], "float32")
        if self.normalize_condition:
            condition = self.normalize_condition(condition)
        projected = self.project_condition(condition, training=training)
        similarity = ops.sum(projected[:, None] * features, axis=-1)
        return self.score(features, training=training)[..., 0] + similarity

    def get_config(self):
        return {**super().get_config(), **layers.settings_of(self)}


def make(classifier, settings):
    """Generator and discriminator for a classifier, not trained.

    For one that sees the luminance alone, a generator of grey images.

    Args:
        classifier: as of `gan.InversionGAN`.
        settings: dict that has `presets.NETWORK_SETTINGS`, and may have others.

    Raises:
        errors.InputError: of a classifier of images of any size, or of settings
            that `presets.check` refuses.
    """
    if classifier.input_shape[1] is None:
        raise errors.InputError(
            "Expected a classifier of images of one size. Received: "
            f"{classifier.name} for {classifier.input_shape}. Choose one: "
            "kinv.load_classifier(classifier, size=64)."
        )
    presets.check(
        settings,
        classifier.input_shape[1],
        classifier.outputs[0].shape[-1],
        has_features=len(classifier.outputs) == 2,
    )

    def chosen(names):
        return {name: settings[name] for name in names}

    of_both = chosen(presets.SHARED_SETTINGS)
    of_both["condition_dim"] = classifier.outputs[-1].shape[-1]
    parts = classifier._flatten_layers()
    is_grey = any(part.name == pixels.LUMINANCE_LAYER for part in parts)
    of_generator = chosen(presets.GENERATOR_SETTINGS)
    return (
        Generator(**of_both, **of_generator, channels=1 if is_grey else 3),
        Discriminator(**of_both, **chosen(presets.DISCRIMINATOR_SETTINGS)),
    )
