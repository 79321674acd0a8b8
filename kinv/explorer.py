"""The explorer: a page in the browser that inverts pictures."""

import base64
import io
import json
import pathlib

from PIL import Image

from kinv import images, scenes

# Held-out scenes that the page offers, by index.
EXAMPLES = (0, 1, 2, 3, 4, 5, 6, 8)
EXAMPLE_SIZE = 64
PLACE = "/*CONFIG*/ {}"


def page(models):
    """The page as one HTML file, which asks nothing but a served model.

    It speaks the REST protocol of TensorFlow Serving and no other, so that it
    also works in front of one; what that does not tell, such as the names of
    the classes, is written into the page.

    Args:
        models: dict of `pipeline.Pipeline` by the name they are served under.

    Returns:
        string.
    """
    factors = scenes.scene_factors("test", EXAMPLES)
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
            {
                "name": scenes.CLASS_NAMES[
                    int(shape) * len(scenes.OBJECT_HUES) + int(hue)
                ],
                "source": _data_address(picture),
            }
            for shape, hue, picture in zip(
                factors["shape"],
                factors["object_hue"],
                scenes.render(factors, EXAMPLE_SIZE),
                strict=True,
            )
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
