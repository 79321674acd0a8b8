"""kinv inverts image classifiers: what do the logits still know?

docs/architecture.md shows the way of an image through the packages.
"""

import importlib

__version__ = "0.1.0"

# What a notebook needs. Imported on first use: a pipeline needs nothing of the
# training, and neither is needed to read a file.
_MODULES = {
    "Pipeline": "kinv.serving.pipeline",
    "InversionGAN": "kinv.inversion.gan",
    "Generator": "kinv.inversion.networks",
    "Discriminator": "kinv.inversion.networks",
    "load_classifier": "kinv.classifiers.loading",
}


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module 'kinv' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return [*globals(), *_MODULES]


def load_model(path):
    """Loads a model that holds classes of kinv, as `InversionGAN.save` writes.

    `keras.models.load_model` does, too, where they have been imported: Keras
    does not look for them.

    Args:
        path: of the `.keras` file.
    """
    for module in _MODULES.values():
        importlib.import_module(module)
    return importlib.import_module("keras").models.load_model(path)
