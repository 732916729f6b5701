"""What is sampled before it is evaluated."""

from ml_collections import ConfigDict


def sampling_config() -> ConfigDict:
    """What `medsd-jax evaluate --model` draws before it measures."""
    config = ConfigDict()
    config.prompts = ()  # or give --prompts_csv
    config.num_images = 1  # of each prompt
    config.seed = 0  # of the first image; image i of all has seed + i
    # Image i of each prompt has seed + i: only the prompts tell such images apart.
    config.same_seeds = False
    config.sampler = "ddim"  # a name of diffusion/config.py's SAMPLER_NAMES
    config.num_steps = 50  # of the sampler
    config.guidance_scale = 7.5  # 1 is no guidance
    return config
