r"""Fine-tune the U-Net of a Stable Diffusion checkpoint on your own images, 512 pixels.

Command:   medsd-jax train --config finetune --workdir runs/mine \
               --config.model.path=stable-diffusion-v1-5/stable-diffusion-v1-5 \
               --config.data.source=folder --config.data.path=my_images
Hardware:  one GPU or TPU chip; more devices by --config.mesh.*.
Memory:    40 GB (computed 31.0); 24 GB (computed 19.7) with train.accumulation_steps=8 and
           train.ema_decay=0.
Expected:  not run at this size yet.
Settings:  RoentGen's learning rate 5e-5 and AdamW (arXiv 2211.12737), at a batch that one device
           holds; RoentGen's batch of 256 is data.batch_size=256 on many devices, or with
           train.accumulation_steps.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with the differences of fine-tuning."""
    config = training_config()
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.data.source = "folder"
    config.data.batch_size = 8
    config.data.cache_latents = True
    config.optim.learning_rate = 5e-5
    config.optim.warmup_steps = 100
    config.train.steps = 12_500
    return config
