r"""Ten radiographs and prior preservation (arXiv 2210.04133, E6): the paper's best adaptation.

Five radiographs with a pleural effusion as their sole finding, five without any finding, two
prompts; the U-Net alone is trained, on these and on images that the model drew before. The paper
says nothing of learning rate, steps, lambda and class images: learning rate and optimizer are
those of the same group's later code, lambda and 200 images DreamBooth's. The prior's prompt is
ours: it names the class, an x-ray, because the loss would otherwise ask for radiographs and for
what the model drew before under one and the same prompt.

Command:   medsd-jax train --config few_shot --workdir runs/few_shot \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=nih14 --config.data.path=FOLDER
Hardware:  one GPU or TPU chip; on N of them train.accumulation_steps=8 / N, which trains the same.
Memory:    24 GB (computed 21.3)
Expected:  not run at this size yet; phantom_few_shot is the same at 64 pixels.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with ten images and a prior."""
    config = training_config()
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.few_shot.images_per_prompt = 5
    config.data.batch_size = 8
    config.data.cache_latents = True
    config.prior.weight = 1.0
    config.prior.num_images = 200
    config.prior.batch_size = 8
    config.optim.learning_rate = 5e-6
    config.train.steps = 400
    config.train.accumulation_steps = 8  # two images at once, one of the prior
    config.train.ema_decay = 0.0
    config.train.caption_dropout = 0.0
    config.checkpoint.every_steps = 200
    config.validation.every_steps = 100
    config.preview.every_steps = 100
    return config
