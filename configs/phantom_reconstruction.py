r"""What the small base model's autoencoder keeps of phantoms: the paper's E1 made small.

Command:   medsd-jax reconstruct --config phantom_reconstruction \
               --model runs/reproduction/base --real runs/reproduction/real \
               --classifier runs/reproduction/classifier --output runs/reconstruction
               (after medsd-jax reproduce --scale phantom --output runs/reproduction,
               which measures by this recipe, too)
Hardware:  two CPU cores, half a minute.
Expected:  RMSE 0.056, PSNR 25.1 dB, SSIM 0.781, MS-SSIM 0.947: not good enough by the thresholds;
           the classifier changes 2.7 % of its calls.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """reconstruction.py at 64 pixels."""
    config = load_config("reconstruction")
    config.num_images = 512
    config.image_size = 64
    config.batch_size = 32
    return config
