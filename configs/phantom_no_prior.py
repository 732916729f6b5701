r"""Ten phantoms without prior preservation: what the prior is good for shows beside it.

Command:   medsd-jax train --config phantom_no_prior --workdir runs/no_prior \
               --config.model.path=runs/base   (after phantom_base)
Hardware:  two CPU cores, about 2 minutes.
Expected:  effusions come unasked too: 59.8 % (53.7 to 65.6) of 256 images show what their prompt
           asks for, and 88.3 % (83.8 to 91.7) from the base model that `reproduce` trains.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """phantom_few_shot.py with lambda 0."""
    config = load_config("phantom_few_shot")
    config.prior.weight = 0.0
    return config
