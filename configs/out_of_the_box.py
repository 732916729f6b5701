r"""Stable Diffusion as it is, asked for chest X-rays (arXiv 2210.04133, E2). Nothing is trained.

Command:   medsd-jax evaluate --config out_of_the_box \
               --model CompVis/stable-diffusion-v1-4 --real runs/classifier/data:validation \
               --classifier runs/classifier --features xrv=FILE --output runs/out_of_the_box
               (runs/classifier: by train-classifier, on your data)
Hardware:  one GPU or TPU chip of 16 GB.
Expected:  not run at this size yet. The paper: realistic medical images are hard to get from it.
Settings:  the paper's two prompts of its fine-tuning; how it asked the model as it is, and how many
           images it drew, it does not tell. Sampled as in RoentGen: PNDM, 75 steps, guidance 4.
           Both prompts get the same seeds, so that nothing but the prompt differs: the images of
           the two are pairs.
"""

from ml_collections import ConfigDict

from medsd_jax.config import sampling_config


def get_config() -> ConfigDict:
    """The default sampling with the paper's prompts."""
    config = sampling_config()
    config.prompts = (
        "A photo of a lung xray",
        "A photo of a lung xray with a visible pleural effusion",
    )
    config.num_images = 128
    config.same_seeds = True
    config.sampler = "pndm"
    config.num_steps = 75
    config.guidance_scale = 4.0
    return config
