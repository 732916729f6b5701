"""Random weights for all three networks: training from scratch, and tests."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from medsd_jax.arrays import Params
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.models.params import init_params, with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL


def random_model(
    unet: UNetConfig,
    vae: VAEConfig,
    text_encoder: CLIPTextConfig,
    scheduler: Mapping[str, Any],
    tokenizer: Any,
    rng: jax.Array,
) -> StableDiffusion:
    """A Stable Diffusion of these shapes that has learnt nothing.

    The last layer of every residual branch of the U-Net starts at zero, so that each block starts
    as the identity and the prediction as zero: networks learn faster from there than from noise.

    Args:
        unet: shapes.
        vae: shapes.
        text_encoder: shapes.
        scheduler: scheduler_config.json's content.
        tokenizer: of the text encoder's vocabulary.
        rng: key, used up.
    """
    rng_unet, rng_vae, rng_text = jax.random.split(rng, 3)
    params = {
        **with_prefix(
            _zero_branches(init_params(functools.partial(UNet2DConditionModel, unet), rng_unet)),
            "unet",
        ),
        **with_prefix(init_params(functools.partial(AutoencoderKL, vae), rng_vae), "vae"),
        **with_prefix(
            init_params(functools.partial(CLIPTextModel, text_encoder), rng_text), "text_encoder"
        ),
    }
    return StableDiffusion(unet, vae, text_encoder, scheduler, tokenizer, params)


_BRANCH_ENDS = ("conv2.kernel", "proj_out.kernel", "conv_out.kernel")


def _zero_branches(params: Params) -> Params:
    return {
        name: jnp.zeros_like(x) if name.endswith(_BRANCH_ENDS) else x for name, x in params.items()
    }
