r"""Ten radiographs without prior preservation: what few_shot.py gains shows beside it.

Command:   medsd-jax train --config few_shot_no_prior --workdir runs/no_prior \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=nih14 --config.data.path=FOLDER
Hardware:  as few_shot.py.
Memory:    24 GB (computed 19.7)
Expected:  not run at this size yet.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """few_shot.py with lambda 0."""
    config = load_config("few_shot")
    config.prior.weight = 0.0
    return config
