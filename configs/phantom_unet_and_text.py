r"""Ten phantoms, U-Net and text encoder: RoentGen's choice of components (arXiv 2211.12737).

Command:   medsd-jax train --config phantom_unet_and_text --workdir runs/both \
               --config.model.path=runs/base   (after phantom_base)
Hardware:  two CPU cores, about 3 minutes.
Expected:  94.1 % (90.6 to 96.4) of 256 images show what their prompt asks for.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """phantom_few_shot.py with the text encoder trained too."""
    config = load_config("phantom_few_shot")
    config.adaptation.train = (r"^unet\.", r"^text_encoder\.")
    return config
