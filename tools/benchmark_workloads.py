"""What `benchmark.py` measures: networks, their export, and what feeds them."""

import functools

from kinv.inversion import presets

SIZES = ("image_size", "base_channels")
PRECISIONS = ("float32", "mixed_bfloat16")
NUM_CLASSES = 80
# Of the networks, besides their sizes.
PRESET = presets.PRESETS["paper-small"]
PEAK = "matrix product, GFLOP", "float32"
# Training steps, or batches, per measurement.
STEPS = 2
# What the input pipeline reads.
DATASET = "kinv_scenes/32"


def multiply_adds(image_size, base_channels):
    """Multiply-adds of one image through each network.

    Those of Tables 1 and 2 but for the products with inserted zeros. What kinv
    saves in the discriminator, where pools come before or into convolutions, is
    counted as done.

    Returns:
        Those of the generator and those of the discriminator.
    """
    from kinv.inversion import networks

    def convolution(size, inputs, outputs, height):
        return size * size * inputs * outputs * height * height

    def attention(channels, height):
        positions = height * height
        maps = 2 * (channels // 8 + channels // 2) * channels * positions
        both = channels // 8 + channels // 2
        return maps + positions * positions // 4 * both

    widths = [
        c * base_channels for c in networks.GENERATOR_CHANNELS[image_size]
    ]
    chunk = PRESET["noise_dim"] // len(widths)
    generator = NUM_CLASSES * PRESET["embedding_dim"] + chunk * 16 * widths[0]
    height = 4
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        generator += 2 * (chunk + PRESET["embedding_dim"]) * (inputs + outputs)
        generator += convolution(3, inputs, outputs, height)
        generator += convolution(1, inputs, outputs, height)
        height *= 2
        generator += convolution(3, outputs, outputs, height)
        if height == networks.GENERATOR_ATTENTION[image_size]:
            generator += attention(outputs, height)
    generator += convolution(3, widths[-1], 3, height)

    widths = [
        c * base_channels for c in networks.DISCRIMINATOR_CHANNELS[image_size]
    ]
    discriminator = (NUM_CLASSES + 1) * widths[-1]
    for inputs, outputs in zip([3, *widths], widths, strict=False):
        discriminator += convolution(3, inputs, outputs, height)
        discriminator += convolution(3, outputs, outputs, height)
        if inputs != outputs:
            discriminator += convolution(1, inputs, outputs, height)
            height //= 2
            if height == networks.DISCRIMINATOR_ATTENTION[image_size]:
                discriminator += attention(outputs, height)
    return generator, discriminator


def make_workloads(options):
    """Makes what is measured.

    The networks are those of `tools/train.py --preset paper-small`; classifier
    and images are small and arbitrary.

    Returns:
        dict by `(task, how)` of `(amount, function)`: images, or GFLOP, that a
        call of the function works through.
    """
    return {
        **matrix_products(),
        **network_workloads(options),
        **data_workloads(options),
    }


def matrix_products():
    """Products of square matrices: what the machine can do at best."""
    import numpy as np
    import tensorflow as tf

    side = 2048
    values = np.random.default_rng(0).standard_normal((side, side))
    product = tf.function(tf.matmul)

    def multiply(matrix):
        for _ in range(5):
            product(matrix, matrix)[0, 0].numpy()

    return {
        ("matrix product, GFLOP", precision): (
            5 * 2 * side**3 / 1e9,
            functools.partial(multiply, tf.cast(values, dtype)),
        )
        for precision, dtype in zip(
            PRECISIONS, ("float32", "bfloat16"), strict=True
        )
    }


def network_workloads(options):
    """Training, generation, and the exported signature."""
    import keras

    from kinv.classifiers import loading
    from kinv.classifiers import small as small_lib

    size, workloads = options.image_size, {}
    amount = STEPS * options.batch_size
    # What cached logits cost: next to nothing.
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.AveragePooling2D(size // 4)(inputs)
    outputs = keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(pooled))
    trivial = keras.Model(inputs, outputs)
    small = small_lib.build_classifier(size, NUM_CLASSES, width=16)
    classifier, called = small, "kinv's classifier"
    if options.classifier:
        called = options.classifier
        classifier = loading.load_classifier(called, weights="none")
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        train = make_training(options, trivial)
        workloads["training", precision] = amount, train
    train = make_training(options, classifier)
    workloads[f"training, {called}", PRECISIONS[-1]] = amount, train
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        generate = make_generation(options, trivial)
        workloads["generation", precision] = amount, generate
    keras.config.set_dtype_policy("float32")
    exported = make_exported(options, small)
    for images, samples in ((1, 1), (1, 16), (64, 1), (64, 16)):
        workloads[
            f"exported signature, {images} x {samples} pictures", "float32"
        ] = (
            images * samples,
            functools.partial(exported, images, samples),
        )
    return workloads


def data_workloads(options):
    """The input pipeline, and rendering."""
    from kinv.data import datasets, rendering, scenes

    size, batch_size = options.image_size, options.batch_size
    source = datasets.open_dataset(DATASET, "train")
    batches = iter(source.training_batches(size, 3 * batch_size, seed=0))
    factors = scenes.scene_factors("test", range(64))
    return {
        (f"input pipeline, {DATASET}", "uint8 to float32"): (
            20 * 3 * batch_size,
            lambda: [next(batches)[0][0, 0, 0].numpy() for _ in range(20)],
        ),
        ("rendering scenes, one process", "float32"): (
            64,
            lambda: rendering.render(factors, size),
        ),
    }


def settings_of(options):
    """The preset's, of the sizes asked for."""
    return {**PRESET, **{name: getattr(options, name) for name in SIZES}}


def make_generator(options, classifier):
    """A generator, in the dtype policy of the moment."""
    from kinv.inversion import networks

    generator, _ = networks.make(classifier, settings_of(options))
    return generator


def make_training(options, classifier):
    """A function that trains `STEPS` steps by `model.fit`."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kinv.data import source as source_lib
    from kinv.inversion import gan

    keras.utils.set_random_seed(0)
    settings = settings_of(options)
    names = presets.NETWORK_SETTINGS | presets.OBJECTIVE_SETTINGS
    model = gan.InversionGAN(
        classifier, seed=0, **{name: settings[name] for name in names}
    )
    model.compile(
        PRESET["generator_learning_rate"], PRESET["discriminator_learning_rate"]
    )
    size = classifier.input_shape[1]
    images = np.random.default_rng(0).uniform(
        0, 255, (3 * options.batch_size, size, size, 3)
    )
    data = source_lib.in_background(
        tf.data.Dataset.from_tensors(
            (images.astype("float32"), np.zeros(len(images), "int64"))
        ).repeat()
    )
    return lambda: model.fit(
        data, steps_per_epoch=STEPS, shuffle=False, verbose=0
    )


def make_generation(options, classifier):
    """A function that generates `STEPS` batches, as after an export."""
    import numpy as np
    import tensorflow as tf

    from kinv import devices

    generator = make_generator(options, classifier)
    generator.fold_spectral_norms(1)
    random = np.random.default_rng(0)
    inputs = {
        "condition": random.standard_normal((options.batch_size, NUM_CLASSES)),
        "noise": random.standard_normal(
            (options.batch_size, PRESET["noise_dim"])
        ),
    }
    inputs = {k: tf.cast(value, "float32") for k, value in inputs.items()}
    compiles = devices.can_use_xla(tf.distribute.get_strategy())
    predict = tf.function(generator, jit_compile=compiles)

    def generate():
        for _ in range(STEPS):
            predict(inputs).numpy()  # Waits until it is computed.

    return generate


def make_exported(options, classifier):
    """A function that calls the exported signature once."""
    import numpy as np
    import tensorflow as tf

    from kinv.inversion import export

    generator = make_generator(options, classifier)
    generator.fold_spectral_norms(1)
    invert = export.signature(classifier, generator).get_concrete_function()
    size = options.image_size

    def call(images, samples):
        random = np.random.default_rng(0)
        pixels = random.uniform(0, 255, (images, size, size, 3))
        noise = random.standard_normal((images, samples, PRESET["noise_dim"]))
        invert(
            images=tf.cast(pixels, "float32"),
            noise=tf.cast(noise, "float32"),
            logit_scale=tf.ones((1, 1)),
            logit_shift=tf.zeros((1, 1, 1)),
        )["reconstructions"].numpy()

    return call
