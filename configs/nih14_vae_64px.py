r"""First step from phantoms to real X-rays: the demo's VAE learns NIH ChestX-ray14, 64 pixels.

Command:   medsd-jax train --config nih14_vae_64px --workdir runs/nih_vae \
               --config.data.path=FOLDER   (images/ and labels.csv; starts from runs/demo)
Hardware:  two CPU cores, about 4 minutes.
Expected:  the validation loss falls from 0.121 to 0.071.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """demo_vae.py with other data and the demo's weights to start from."""
    config = load_config("demo_vae")
    config.model.path = "runs/demo"
    config.data.source = "nih14"
    config.data.validation_fraction = 0.3  # enough other patients to measure against
    config.optim.learning_rate = 1e-3
    config.train.steps = 300
    return config
