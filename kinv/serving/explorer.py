"""The explorer: a page in the browser that inverts pictures."""

import base64
import json
import pathlib
import re

PLACE = "/*CONFIG*/ {}"
# By the name of a data set, a part of its path or of its name at TFDS. Of each
# class another image, the first one large and plain.
EXAMPLES = pathlib.Path(__file__).with_name("examples")
# Of models of any other data set.
OTHERS_EXAMPLES = "kinv_scenes"


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
                "name": path.stem.partition("-")[2].replace("_", " "),
                "source": "data:image/png;base64,"
                + base64.b64encode(path.read_bytes()).decode(),
                "models": suited,
            }
            for dataset, suited in _suited(models).items()
            for place, path in enumerate(
                sorted((EXAMPLES / dataset).glob("*.png"))
            )
        ],
    }
    template = pathlib.Path(__file__).with_suffix(".html")
    # A class may be called anything, "</script>" included.
    text = json.dumps(config).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace(PLACE, text)


def _suited(models):
    """Names of the models that the examples of each data set suit."""
    suited = {OTHERS_EXAMPLES: []}
    offered = [path.name for path in EXAMPLES.iterdir()]
    for name, model in models.items():
        # TFDS names may end in a version: fashion_mnist:3.0.1.
        parts = re.split("[/:]", str(model.metadata.get("dataset")))
        known = [part for part in parts if part in offered]
        suited.setdefault((*known, OTHERS_EXAMPLES)[0], []).append(name)
    return {dataset: names for dataset, names in suited.items() if names}
