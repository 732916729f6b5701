r"""First half of `make demo`: a tiny VAE for 64-pixel phantoms, from random weights.

Command:   medsd-jax train --config demo_vae --workdir runs/demo/vae \
               --config.model.path=runs/demo/untrained   (`make demo` makes that folder)
Hardware:  two CPU cores, about 3 minutes.
Expected:  validation L1 (posterior mean) of about 0.08 on the [-1, 1] range; 8x8x4 latents.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with the demo's differences."""
    config = training_config()
    config.task = "vae"
    config.data.num_images = 4000
    config.data.image_size = 64
    config.data.batch_size = 16
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.weight_decay = 0.0
    config.train.steps = 400
    config.train.ema_decay = 0.99
    config.vae.kl_weight = 1e-5
    config.vae.measure_scaling_factor = True
    config.checkpoint.every_steps = 200
    config.checkpoint.keep = 1
    config.validation.every_steps = 200
    return config
