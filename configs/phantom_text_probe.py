r"""What the small base model's text encoder and a BERT know of phantoms' captions: E3 made small.

Command:   medsd-jax probe-text --config phantom_text_probe \
               --encoder runs/reproduction/base --encoder runs/reproduction/encoder \
               --encoder runs/reproduction/unet_and_text --source phantom --output runs/text_probe
               (after medsd-jax reproduce --scale phantom --output runs/reproduction,
               which measures by this recipe, too)
Hardware:  two CPU cores, half a minute.
Expected:  AUROC of 1.000 and F1 of at least 0.995 for all three: a caption says a finding in one
           way only, and an encoder of random weights, as this BERT is, keeps its words apart.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """text_probe.py for one label of 1,000 phantoms."""
    config = load_config("text_probe")
    config.labels = ("pleural_effusion",)
    config.num_images = 1000
    config.num_resamples = 1000
    return config
