"""The networks of a model by name: constructors, graph definitions, and shapes of weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.params import abstract
from medsd_jax.models.text_encoder import TextEncoderConfig, text_encoder_module
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL

_MODULES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


class Networks(NamedTuple):
    """Graph definitions, without weights."""

    unet: nnx.GraphDef
    vae: nnx.GraphDef
    text_encoder: nnx.GraphDef


def networks(
    unet: UNetConfig,
    vae: VAEConfig,
    text_encoder: TextEncoderConfig,
    *,
    dtype: str,
    attention: str,
    remat: bool = False,
) -> Networks:
    """All three networks of a model in one compute dtype.

    Args:
        unet: shape.
        vae: shape.
        text_encoder: shape.
        dtype: of the computation, such as "bfloat16".
        attention: implementation of the U-Net's.
        remat: recompute the U-Net's blocks in the backward pass.
    """
    attend, compute = attention_implementation(attention), jnp.dtype(dtype)
    return Networks(
        graph("unet", unet, dtype=compute, attend=attend, remat=remat),
        graph("vae", vae, dtype=compute),
        graph("text_encoder", text_encoder, dtype=compute),
    )


def constructor(name: str, config: Any, **settings: Any) -> Callable[..., nnx.Module]:
    """What builds "unet", "vae" or "text_encoder" of a config, called as ``make(rngs=...)``."""
    if name == "text_encoder":
        return text_encoder_module(config, **settings)
    return functools.partial(_MODULES[name], config, **settings)


def graph(name: str, config: Any, **settings: Any) -> nnx.GraphDef:
    """The graph definition of one network; see `constructor`."""
    return abstract(constructor(name, config, **settings))[0]


@functools.cache  # tracing a constructor takes a second or two
def weight_shapes(name: str, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and dtype of every weight of one network."""
    return abstract(constructor(name, config))[1]
