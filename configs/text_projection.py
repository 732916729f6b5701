r"""A projection from an in-domain encoder into CLIP's space: the paper's E4 (arXiv 2210.04133).

Command:   medsd-jax train-projection --config text_projection \
               --workdir runs/projection --config.encoder.path=FOLDER_OF_A_BERT \
               --config.data.prompts=prompts.txt
Hardware:  one GPU or TPU with 16 GB; both encoders run forward alone.
Expected:  not measured yet; the paper's images by this method did not resemble chest X-rays.
Settings:  the paper says: one hidden layer, frozen encoder (PubMedBERT, for example), 1,000,000
           prompts of LAION-400M, which prompts.txt holds, one per line. It is silent about the
           loss, the layer's width, its activation, learning rate, batch and steps. Ours: mean
           squared error at every position, the encoder's width, exact GELU, AdamW at 1e-3 with
           cosine decay, 256 prompts per step, ten passes.
"""

from ml_collections import ConfigDict

from medsd_jax.config import text_projection_config


def get_config() -> ConfigDict:
    """The projection's base at the paper's scale."""
    config = text_projection_config()
    config.model.path = "CompVis/stable-diffusion-v1-4"
    config.model.dtype = "bfloat16"
    config.data.validation_fraction = 0.01
    config.optim.warmup_steps = 500
    config.train.steps = 38_670  # ten passes over 99 % of a million prompts
    config.checkpoint.every_steps = 2000
    config.validation.every_steps = 2000
    return config
