r"""LoRA on the attention of the U-Net: a few million parameters in the place of 860 million.

Command:   medsd-jax train --config lora --workdir runs/lora \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=folder --config.data.path=my_images
           The text encoder too: --config.adaptation.train="('\.to_(q|k|v|out\.0)\.', '_proj\.')"
Hardware:  one GPU or TPU chip; on N of them train.accumulation_steps=1.
Memory:    16 GB (computed 11.2)
Expected:  not run at this size yet. runs/lora/lora holds the difference in the layouts of PEFT and
           kohya, runs/lora/model the model with it merged.

2210.04133 and RoentGen do not use LoRA; rank and learning rate are usual ones of PyTorch's tools.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """Fine-tuning by a low-rank difference."""
    config = load_config("finetune")
    config.adaptation.name = "lora"
    config.adaptation.train = (r"^unet\..*\.to_(q|k|v|out\.0)\.",)
    config.adaptation.lora_rank = 16
    config.adaptation.lora_alpha = 16.0
    config.optim.learning_rate = 1e-4
    config.train.accumulation_steps = 2  # four images at once
    return config
