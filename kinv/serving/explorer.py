"""The explorer: a page in the browser that inverts pictures."""

import base64
import io
import json
import pathlib

from PIL import Image

from kinv import images

PLACE = "/*CONFIG*/ {}"


def page(models, examples):
    """The page as one HTML file, which asks nothing but a served model.

    It speaks the REST protocol of TensorFlow Serving and no other, so that it
    also works in front of one; what that does not tell, such as the names of
    the classes, is written into the page.

    Args:
        models: dict of `pipeline.Pipeline` by the name they are served under.
        examples: list of `(name, image)` that the page offers, images
            `(height, width, 3)` in [0, 255].

    Returns:
        string.
    """
    config = {
        "models": {
            name: {
                "classNames": model.class_names,
                "conditionDim": model.condition_dim,
                "noiseDim": model.noise_dim,
                "imageSize": model.image_size,
                "inputSize": model.metadata["classifier_size"],
            }
            for name, model in models.items()
        },
        "examples": [
            {"name": name, "source": _data_address(picture)}
            for name, picture in examples
        ],
    }
    template = pathlib.Path(__file__).with_suffix(".html")
    # A class may be called anything, "</script>" included.
    text = json.dumps(config).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace(PLACE, text)


def _data_address(picture):
    file = io.BytesIO()
    Image.fromarray(images.to_uint8(picture)).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/png;base64,{encoded}"
