r"""One new word for ten phantoms: the paper's E5 (arXiv 2210.04133) made small.

Command:   medsd-jax train --config phantom_textual_inversion \
               --workdir runs/inversion --config.model.path=runs/base
               (after phantom_base)
Hardware:  two CPU cores, about 2 minutes.
Expected:  50.4 % (44.3 to 56.5) of 256 images show what their prompt asks for: no effusions.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """phantom_few_shot.py's data, and textual_inversion.py's word in the place of a U-Net."""
    config, word = load_config("phantom_few_shot"), load_config("textual_inversion")
    config.adaptation = word.adaptation
    config.few_shot.prompt_without = word.few_shot.prompt_without
    config.few_shot.prompt_with = word.few_shot.prompt_with
    config.preview.prompts = word.preview.prompts
    config.prior.weight = 0.0
    config.optim.learning_rate = 5e-3
    config.optim.weight_decay = 0.0
    config.train.ema_decay = 0.0
    return config
