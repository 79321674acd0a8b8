"""The one signature of an exported model: its names.

What it takes and gives is in `inversion.export.signature` and docs/serving.md.
"""

SIGNATURE = "serving_default"
INPUTS = {"images", "noise", "logit_scale", "logit_shift"}
OUTPUTS = {"logits", "reconstructions"}
# The output of models that invert another layer than the logits.
FEATURES = "features"
METADATA = {"class_names", "num_classes", "noise_dim", "image_size"}
