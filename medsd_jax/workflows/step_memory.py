"""The memory of a recipe's train step on one device; see training/memory.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.arrays import from_uint8
from medsd_jax.models.attention import xla_attention
from medsd_jax.models.networks import graph
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.training.memory import StepMemory, kept_for_backward, largest_block, num_bytes
from medsd_jax.training.step import Draws, denoising_loss, draw
from medsd_jax.training.vae_step import vae_losses
from medsd_jax.workflows.train.adaptation import make_adaptation
from medsd_jax.workflows.train.data import batch_shapes, optimizer_batch
from medsd_jax.workflows.train.steps import make_diffusion_model, optimizer_of


def step_memory(config: ConfigDict, model: StableDiffusion) -> StepMemory:
    """What one device holds that trains a recipe alone.

    Attention is XLA's, which keeps all scores; the fused kernel of NVIDIA GPUs needs less. A
    perceptual network is not counted.

    Args:
        config: of the recipe.
        model: its shapes, as `load_structure` gives them; or with its weights.
    """
    is_vae = config.task == "vae"
    adaptation = full(tuple(config.vae.train)) if is_vae else make_adaptation(config, model)
    trained = jax.eval_shape(lambda p: adaptation.init(p, jax.random.key(0)), model.params)
    frozen = frozen_params(model.params, trained)
    _, optimizer = optimizer_of(config)
    losses, *inputs = (_vae_losses if is_vae else _denoising_losses)(config, model)

    def loss(trained, frozen, *inputs):
        return jnp.mean(losses(adaptation.apply(frozen, trained), *inputs))

    arguments = trained, frozen, *inputs
    size, summed = num_bytes(trained), config.train.accumulation_steps > 1
    return StepMemory(
        weights=size + num_bytes(frozen),
        moments=num_bytes(jax.eval_shape(optimizer.init, trained)),
        average=size if config.train.ema_decay else 0,
        gradients=2 * size if summed else size,
        kept=kept_for_backward(loss, *arguments),
        block=largest_block(loss, *arguments),
    )


def _denoising_losses(config: ConfigDict, model: StableDiffusion) -> tuple[Callable, dict, Draws]:
    """``(params, batch, draws) -> [B]``, and the shapes of one micro-batch."""
    diffusion = make_diffusion_model(
        model, dtype=config.model.dtype, attention="xla", remat=config.model.remat
    )
    size, tokens = _at_once(config), min(77, model.text_encoder.max_position_embeddings)
    batch = batch_shapes(config, model, size, tokens)
    draws = jax.eval_shape(
        lambda b: draw(diffusion, b, jax.random.key(0), caption_dropout=0.0), batch
    )
    losses = partial(
        denoising_loss,
        diffusion,
        empty_prompt_ids=np.zeros(tokens, np.int32),
        min_snr_gamma=config.train.min_snr_gamma,
    )
    return losses, batch, draws


def _vae_losses(config: ConfigDict, model: StableDiffusion) -> tuple[Callable, Any, Any]:
    """``(params, images, noise) -> [B]``, and the shapes of one micro-batch."""
    vae = graph("vae", model.vae, dtype=jnp.dtype(config.model.dtype), attend=xla_attention)
    images, size = _images(config), config.data.image_size // model.vae.downscale
    noise = (images.shape[0], size, size, model.vae.latent_channels)

    def losses(params, images_u8, noise):
        l1, kl, _ = vae_losses(vae, params, from_uint8(images_u8), noise)
        return l1 + config.vae.kl_weight * kl

    return losses, images, jax.ShapeDtypeStruct(noise, np.float32)


def _images(config: ConfigDict) -> jax.ShapeDtypeStruct:
    size = config.data.image_size
    return jax.ShapeDtypeStruct((_at_once(config), size, size, 3), np.uint8)


def _at_once(config: ConfigDict) -> int:
    """Images of a micro-batch on the one device."""
    return optimizer_batch(config) // config.train.accumulation_steps
