r"""Ten radiographs, U-Net and text encoder: RoentGen's choice of components on the paper's data.

Command:   medsd-jax train --config few_shot_unet_and_text --workdir runs/both \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=nih14 --config.data.path=FOLDER
Hardware:  as few_shot.py.
Memory:    32 GB (computed 23.6)
Expected:  not run at this size yet.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """few_shot.py with the text encoder trained too."""
    config = load_config("few_shot")
    config.adaptation.train = (r"^unet\.", r"^text_encoder\.")
    return config
