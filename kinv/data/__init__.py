"""Images to train on and to look at.

In: the name of a TFDS data set, or a folder. Out: a `source.Source`, streams
of batches of float32 images in [0, 255] and labels. It imports none of kinv's
other packages.
"""
