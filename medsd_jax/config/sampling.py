"""What is sampled before it is evaluated."""

from ml_collections import ConfigDict

from medsd_jax.config.sections import add_sampling


def sampling_config() -> ConfigDict:
    """What is drawn from a model before it is measured."""
    config = ConfigDict()
    config.prompts = ()  # or give --prompts_csv
    config.num_images = 1  # of each prompt
    config.seed = 0  # of the first image; image i of all has seed + i
    # Image i of each prompt has seed + i: only the prompts tell such images apart.
    config.same_seeds = False
    add_sampling(config, guidance_scale=7.5)
    return config
