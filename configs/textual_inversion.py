r"""Textual inversion (arXiv 2210.04133, E5): a new word for ten radiographs, nothing else trained.

The paper's prompts with its new word in the place of "lung xray". Learning rate, steps and number
of vectors are not in the paper: those of diffusers' example, whose --scale_lr multiplies its 5e-4
by the images of an optimizer step (4 there, 2e-3 in all; 8 here, 4e-3). Its weight decay of 1e-2 is
left out: it would pull the new word towards zero, where no word lies.

Command:   medsd-jax train --config textual_inversion --workdir runs/inversion \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=nih14 --config.data.path=FOLDER
Hardware:  one GPU or TPU chip; on N of them train.accumulation_steps=1.
Memory:    16 GB (computed 11.3)
Expected:  not run at this size yet. runs/inversion/learned_embeds.safetensors holds the word,
           runs/inversion/model the model that knows it.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """The ten images of few_shot.py, and a word in the place of a U-Net; no prior."""
    config = load_config("few_shot")
    config.adaptation.name = "textual_inversion"
    config.adaptation.train = ()
    config.adaptation.placeholder_token = "<lung-xray>"
    config.adaptation.initializer_token = "photo"
    config.adaptation.num_vectors = 1
    config.few_shot.prompt_without = "A photo of a <lung-xray>"
    config.few_shot.prompt_with = "A photo of a <lung-xray> with a visible pleural effusion"
    config.preview.prompts = (config.few_shot.prompt_without, config.few_shot.prompt_with)
    config.prior.weight = 0.0
    config.optim.learning_rate = 5e-4 * config.data.batch_size
    config.optim.weight_decay = 0.0
    config.train.steps = 3000
    config.train.accumulation_steps = 2  # four images at once: no U-Net is trained
    config.train.ema_decay = 0.0
    return config
