"""The explorer: a page in the browser that inverts pictures."""

import base64
import io
import json
import pathlib
import re

from PIL import Image

from kinv import pixels

PLACE = "/*CONFIG*/ {}"
# Images of others' data sets, a folder and a licence each.
EXAMPLES = pathlib.Path(__file__).with_name("examples")


def page(models, examples):
    """The page as one HTML file, which asks nothing but a served model.

    It speaks the REST protocol of TensorFlow Serving and no other, so that it
    also works in front of one; what that does not tell, such as the names of
    the classes, is written into the page.

    Args:
        models: dict of `pipeline.Pipeline` by the name they are served under.
        examples: what the page offers: by the name of a data set, a part of
            its path or of its name at TFDS, a list of `(name, image)`, images
            `(height, width, 3)` in [0, 255]. Models of another one are given
            the first.

    Returns:
        string.
    """
    config = {
        "models": {
            name: {
                "classNames": model.class_names,
                "conditionDim": model.condition_dim,
                "noiseDim": model.noise_dim,
                "inputSize": model.metadata.get(
                    "classifier_size", model.image_size
                ),
            }
            for name, model in models.items()
        },
        "examples": [
            {
                # In links, which other pages of other models open.
                "key": f"{dataset}-{place}",
                "name": name,
                "source": _data_address(picture),
                "models": suited,
            }
            for dataset, suited in _suited(models, examples).items()
            for place, (name, picture) in enumerate(examples[dataset])
        ],
    }
    template = pathlib.Path(__file__).with_suffix(".html")
    # A class may be called anything, "</script>" included.
    text = json.dumps(config).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace(PLACE, text)


def _suited(models, examples):
    """Names of the models that the examples of each data set suit."""
    suited = {dataset: [] for dataset in examples}
    first = next(iter(examples))
    for name, model in models.items():
        # TFDS names may end in a version: fashion_mnist:3.0.1.
        parts = re.split("[/:]", str(model.metadata.get("dataset")))
        known = [part for part in parts if part in examples]
        suited[(*known, first)[0]].append(name)
    return {dataset: names for dataset, names in suited.items() if names}


def _data_address(picture):
    file = io.BytesIO()
    Image.fromarray(pixels.to_uint8(picture)).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/png;base64,{encoded}"
