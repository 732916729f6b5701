r"""Ten phantoms, five of them with an effusion, and prior preservation: the paper's E6 made small.

Command:   python train.py --config configs/phantom_few_shot.py --workdir runs/few_shot \
               --config.model.path=runs/base   (after configs/phantom_base.py)
Hardware:  two CPU cores, about 3 minutes.
Expected:  not measured yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """base.py with ten pictures and a prior."""
    config = base.get_config()
    config.data.num_images = 1000
    config.data.phantom_seed = 100  # other patients than those of the base model
    config.data.image_size = 64
    config.data.batch_size = 10
    config.data.cache_latents = True
    config.few_shot.images_per_prompt = 5
    config.prior.weight = 1.0
    config.prior.batch_size = 10
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 10
    config.train.steps = 200
    config.train.ema_decay = 0.98
    config.train.caption_dropout = 0.0
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 1
    config.validation.every_steps = 50
    config.validation.num_images = 256
    config.preview.every_steps = 100
    config.preview.num_steps = 25
    return config
