"""The generator, its training and its export: section 7 of the paper.

In: a classifier and batches of images. Out: a SavedModel of one signature. It
may import `kinv.serving.signature`, and no other package. `layers`,
`conditioning`, `blocks`, `networks` and `losses` need no TensorFlow.
"""
