"""What a classifier of your own knows of the digits that it reads.

docs/quickstart.ipynb has the same as a notebook, with its outputs.
"""

# %% Images: handwritten digits of 8 x 8 pixels, grey, 0 to 255.
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import kinv

digits = load_digits()
images = (digits.images[..., None] * 255 / 16).astype("float32")
train, held_out = images[:1500], images[1500:]
train_labels, labels = digits.target[:1500], digits.target[1500:]

# %% A classifier: any Keras model from images to logits or probabilities.
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(train, train_labels, epochs=10, verbose=0)
accuracy = model.evaluate(held_out, labels, verbose=0)[1]
print(f"accuracy: {accuracy:.1%}")

# %% The same as kinv takes it: three equal channels in, logits out.
classifier = kinv.load_classifier(model)
train, held_out = (np.repeat(x, 3, axis=-1) for x in (train, held_out))

# %% Its inversion. A step takes two batches of 32 images: 23 steps an epoch.
inversion = kinv.InversionGAN(classifier, image_size=8, base_channels=4)
epochs = 40
inversion.compile(steps=23 * epochs)
inversion.fit(train, batch_size=32, epochs=epochs, verbose=2)
measured = inversion.evaluate(held_out, return_dict=True, verbose=0)
print(f"agreement: {measured['agreement']:.1%}")
print(f"error ratio: {measured['error_ratio']:.2f} (.56 is calibrated)")

# %% Digits in the first row; below, what their logits say, with other noise.
rows = [held_out, *(inversion.predict(held_out, verbose=0) for _ in range(4))]
figure, axes = plt.subplots(len(rows), 12, figsize=(9, 4))
for row, pictures in zip(axes, rows, strict=True):
    for axis, picture in zip(row, pictures, strict=False):
        axis.imshow(np.clip(picture / 255, 0, 1))
        axis.axis("off")
plt.show()
