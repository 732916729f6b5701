"""Random weights for all three networks: training from scratch, and tests."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from medsd_jax.arrays import Params
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.networks import constructor
from medsd_jax.models.params import abstract, with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.text_encoder import TextEncoderConfig


def random_model(
    unet: UNetConfig,
    vae: VAEConfig,
    text_encoder: TextEncoderConfig,
    scheduler: Mapping[str, Any],
    tokenizer: Any,
    seed: int,
) -> StableDiffusion:
    """A Stable Diffusion of these shapes that has learnt nothing.

    Args:
        unet: shapes; see `random_unet`.
        vae: shapes.
        text_encoder: shapes.
        scheduler: scheduler_config.json's content.
        tokenizer: of the text encoder's vocabulary.
        seed: non-negative.
    """
    rng_unet, rng_vae, rng_text = np.random.default_rng(seed).spawn(3)
    encoder = constructor("text_encoder", text_encoder)
    params = {
        **with_prefix(random_unet(unet, rng_unet), "unet"),
        **with_prefix(random_params(constructor("vae", vae), rng_vae), "vae"),
        **with_prefix(
            random_params(encoder, rng_text, embedding_std=text_encoder.initializer_range),
            "text_encoder",
        ),
    }
    return StableDiffusion(unet, vae, text_encoder, scheduler, tokenizer, params)


def random_unet(config: UNetConfig, rng: np.random.Generator) -> Params:
    """Random weights of a U-Net, by their names in it.

    The last layer of every residual branch starts at zero, so that each block starts as the
    identity and the prediction as zero: networks learn faster from there than from noise.
    """
    return _zero_branches(random_params(constructor("unet", config), rng))


def random_params(
    make_module: Callable[..., nnx.Module],
    rng: np.random.Generator,
    embedding_std: float = 0.02,
    only: str = "",
) -> Params:
    """Random float32 weights on the host, by the rule of each kind of weight.

    Kernels are normal with variance 1 / fan-in (LeCun), scales one, biases zero, embeddings normal.
    NumPy draws them, as XLA would first compile one small program for each of hundreds of shapes.

    Args:
        make_module: called as ``make_module(rngs=...)``.
        rng: advanced by the draws.
        embedding_std: standard deviation of embedding tables.
        only: draw the weights alone whose names start so.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        match name.rpartition(".")[2]:
            case "kernel":
                scale = math.prod(shape[:-1]) ** -0.5
            case "embedding":
                scale = embedding_std
            case "scale":
                return np.ones(shape, np.float32)
            case "bias":
                return np.zeros(shape, np.float32)
            case kind:
                raise AssertionError(f"no rule for the weight {name}, a {kind}")
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    _, like = abstract(make_module)
    return {name: draw(name, x.shape) for name, x in like.items() if name.startswith(only)}


_BRANCH_ENDS = ("conv2.kernel", "proj_out.kernel", "conv_out.kernel")


def _zero_branches(params: Params) -> Params:
    return {
        name: np.zeros_like(x) if name.endswith(_BRANCH_ENDS) else x for name, x in params.items()
    }
