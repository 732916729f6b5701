"""How a reconstruction by a VAE is measured."""

from ml_collections import ConfigDict, config_dict


def reconstruction_config() -> ConfigDict:
    """How `medsd-jax reconstruct` measures."""
    config = ConfigDict()
    # Images, spread evenly over the set; None: all.
    config.num_images = config_dict.placeholder(int)
    # Pixels, square; None: of the workdir's recipe, else what the U-Net was made for.
    config.image_size = config_dict.placeholder(int)
    # As data.resize_mode; None: of the workdir's recipe, else "pad".
    config.resize_mode = config_dict.placeholder(str)
    # Means that are good enough: conventions of lossy compression, no medical validation.
    config.least_psnr = 30.0  # decibels
    config.least_ssim = 0.9  # of 1 at most
    config.batch_size = 4  # on each device
    config.seed = 0  # of the intervals' resamples
    return config
