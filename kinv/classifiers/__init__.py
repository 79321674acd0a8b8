"""The classifier that is inverted.

In: a Keras file, a SavedModel, a name. Out: a frozen Keras model, images in
[0, 255] to logits; and kinv's own small classifiers, standard and robust. It
may import `kinv.data`.
"""
