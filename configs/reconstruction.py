r"""What Stable Diffusion's autoencoder keeps of radiographs (arXiv 2210.04133, E1).

Command:   medsd-jax reconstruct --config reconstruction \
               --model CompVis/stable-diffusion-v1-4 --real my_images --output runs/reconstruction
Hardware:  one GPU or TPU chip of 16 GB.
Expected:  not run at this size yet. The paper reports RMSE, PSNR and SSIM, found the fidelity high
           and the autoencoder in need of no fine-tuning; its numbers are in no source we know.
Settings:  the paper's: 1,000 frontal radiographs of each data set. It does not tell their size:
           512 pixels, which Stable Diffusion was made for, square by padding as in the same group's
           later code. The thresholds of the verdict are base.py's.
"""

from ml_collections import ConfigDict

from medsd_jax.config import reconstruction_config


def get_config() -> ConfigDict:
    """The default measurement at the paper's scale."""
    config = reconstruction_config()
    config.num_images = 1000
    config.image_size = 512
    config.resize_mode = "pad"
    return config
