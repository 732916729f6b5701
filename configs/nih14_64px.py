r"""Second step: the demo's U-Net and text encoder on NIH ChestX-ray14, 64 pixels, split by patient.

Command:   medsd-jax train --config nih14_64px --workdir runs/nih \
               --config.data.path=FOLDER   (after nih14_vae_64px)
Hardware:  two CPU cores, about 6 minutes.
Expected:  validation loss falls from about 0.17 to about 0.064.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """demo.py with other data and a lower learning rate."""
    config = load_config("demo")
    config.model.path = "runs/nih_vae"
    config.data.source = "nih14"
    config.data.validation_fraction = 0.3  # enough other patients to measure against
    config.optim.learning_rate = 5e-4
    config.train.steps = 800
    config.preview.prompts = ("Chest X-ray. No finding.", "Chest X-ray. Pleural effusion.")
    config.preview.images_per_prompt = 8
    config.preview.guidance_scale = 2.0  # 582 captions bear less of it than the phantoms' 3,626
    return config
