r"""Ten radiographs and prior preservation by LoRA.

Command:   medsd-jax train --config few_shot_lora --workdir runs/few_shot_lora \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=nih14 --config.data.path=FOLDER
Hardware:  one GPU or TPU chip; on N of them train.accumulation_steps=4 / N.
Memory:    16 GB (computed 11.2)
Expected:  not run at this size yet. The papers use no LoRA: values as in lora.py.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """few_shot.py with lora.py's adaptation."""
    config = load_config("few_shot")
    by_lora = load_config("lora")
    config.adaptation = by_lora.adaptation
    config.optim.learning_rate = by_lora.optim.learning_rate
    config.train.accumulation_steps = 4  # no gradients and moments of the U-Net
    return config
