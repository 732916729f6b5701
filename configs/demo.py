r"""Second half of `make demo`: U-Net and text encoder on phantoms, from random weights, 64 pixels.

Command:   medsd-jax train --config demo --workdir runs/demo \
               --config.model.path=runs/demo/vae   (after demo_vae)
Hardware:  two CPU cores, about 7 minutes.
Expected:  validation loss falls from about 1.0 to about 0.05; effusions appear when asked for.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with the demo's differences."""
    config = training_config()
    config.adaptation.train = (r"^unet\.", r"^text_encoder\.")
    config.data.num_images = 4000
    config.data.image_size = 64
    config.data.batch_size = 32
    config.data.cache_latents = True
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 0.0
    config.train.steps = 1000
    config.train.ema_decay = 0.995
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 1
    config.validation.every_steps = 200
    config.validation.num_images = 256
    config.preview.every_steps = 500
    config.preview.num_steps = 25
    return config
