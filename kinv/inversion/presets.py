"""What the presets of `tools/train.py` are: one table."""

# `paper` is section 7.2 of the supplementary to the letter, `paper-small` its
# objective and networks at 32 px, a control. `small` is kinv's own objective
# (docs/measurements.md; docs/departures.md).
PRESETS = {
    "small": {
        "image_size": 32,
        "base_channels": 16,
        "upsampling": "nearest",
        "embedding_layers": 2,
        "gain_offset": 1.0,
        "logit_normalization": "class-centered",
        "adversary": "relativistic",
        "adversary_weight": 0.5,
        "score_weight": 20.0,
        "readback_weight": 2.0,
        "batch_size": 32,
        "discriminator_steps": 1,
        "steps": 11000,
        "steps_per_epoch": 500,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 4e-4,
        "learning_rate_decay": "cosine",
        "ema_decay": 0.995,
        "ema_start_step": 200,
    },
    "paper": {
        "image_size": 64,
        "base_channels": 96,
        "upsampling": "zeros",
        "embedding_layers": 0,
        "gain_offset": 0.0,
        "logit_normalization": "none",
        "adversary": "hinge",
        "adversary_weight": 1.0,
        "score_weight": 0.0,
        "readback_weight": 0.0,
        "batch_size": 2048,
        "discriminator_steps": 2,
        "steps": 250000,
        "steps_per_epoch": 2500,
        "generator_learning_rate": 1e-4,
        "discriminator_learning_rate": 5e-4,
        "learning_rate_decay": "none",
        "ema_decay": 0.9999,
        "ema_start_step": 40000,
    },
}
PRESETS["paper-small"] = {
    **PRESETS["paper"],
    "image_size": 32,
    "base_channels": 16,
    "gain_offset": 1.0,
    "logit_normalization": "standardize",
    "batch_size": 64,
    "steps": 6000,
    "steps_per_epoch": 200,
    "generator_learning_rate": 4e-4,
    "discriminator_learning_rate": 4e-4,
    "ema_decay": 0.999,
    "ema_start_step": 200,
}
# What a cosine ends at, over what it starts at.
LAST_LEARNING_RATE = 0.02
