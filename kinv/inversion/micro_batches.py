"""Micro-batches: a batch in parts, one after the other, to save memory."""

import tensorflow as tf

from kinv.inversion import layers


def split(batch, num_parts, results, networks):
    """Yields the parts of a batch, each after `results` of the ones before.

    Otherwise the activations of all of them would live at once. Every part
    sees the same normalised kernels: power iterations move once per update.

    Args:
        batch: sequence of tensors, whose first axes are multiples of
            `num_parts`.
        num_parts: number of parts.
        results: list of tensors; the caller puts into it what it has made of
            the parts before.
        networks: models whose spectral vectors move when they are called.

    Yields:
        Lists of tensors, a part of each in `batch`.
    """
    vectors = [
        vector
        for network in networks
        for vector in layers.spectral_vectors(network)
    ]
    starts = [tf.identity(vector.value) for vector in vectors]
    parts = (tf.split(tensor, num_parts) for tensor in batch)
    for index, part in enumerate(zip(*parts, strict=True)):
        if index:
            for vector, start in zip(vectors, starts, strict=True):
                vector.assign(start)
        if results:
            with tf.control_dependencies(results):
                part = [tf.identity(tensor) for tensor in part]
        yield part


def accumulate(mean_loss, values, batch, num_parts, networks, scale):
    """Loss of a batch and its gradients, a micro-batch at a time.

    Args:
        mean_loss: function of a part of the batch to its mean loss, a scalar.
        values: list of tensors, of the variables to differentiate by.
        batch: as of `split`.
        num_parts: as of `split`.
        networks: as of `split`.
        scale: function of the loss to what is differentiated.

    Returns:
        The mean loss of the batch, and the gradients of its scaled mean.
    """
    total_loss, sums = 0.0, []
    for part in split(batch, num_parts, sums, networks):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = mean_loss(*part)
            scaled_loss = scale(loss / num_parts)
        gradients = tape.gradient(scaled_loss, values)
        total_loss += loss
        pairs = zip(sums or [0.0] * len(values), gradients, strict=True)
        sums[:] = [one + other for one, other in pairs]
    return total_loss / num_parts, sums
