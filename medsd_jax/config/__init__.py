"""Every config key, its default, its unit and its meaning: the only home of defaults.

A factory returns a config with every key that its command reads. A recipe calls one and changes
what differs. On the command line ``--config.section.key=value`` changes a key of a recipe. A key
that does not exist is an error. Of commands that train nothing every key is a flag, too, and a flag
that is given wins over the recipe.
"""

from medsd_jax.config.classifier import classifier_config
from medsd_jax.config.probe import text_probe_config
from medsd_jax.config.projection import text_projection_config
from medsd_jax.config.sampling import sampling_config
from medsd_jax.config.training import training_config
from medsd_jax.config.utility import downstream_utility_config
from medsd_jax.config.vae import reconstruction_config

__all__ = [
    "classifier_config",
    "downstream_utility_config",
    "reconstruction_config",
    "sampling_config",
    "text_probe_config",
    "text_projection_config",
    "training_config",
]
