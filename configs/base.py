r"""The defaults, with nothing changed: a start for recipes of your own.

Command:   medsd-jax train --config base --workdir runs/first \
               --config.model.path=MODEL --config.data.source=folder --config.data.path=FOLDER
Hardware:  as the model and data.image_size ask.
Expected:  nothing of its own; medsd_jax/config/training.py says what every key means.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults."""
    return training_config()
