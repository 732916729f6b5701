"""What a training run asks of the VAE besides training it: cached latents, and their scale."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medsd_jax.arrays import from_uint8
from medsd_jax.data.loader import EvalBatches
from medsd_jax.errors import UserError
from medsd_jax.models.networks import graph
from medsd_jax.models.params import bind, component
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import batch_sharding, put_batch, replicated
from medsd_jax.parallel.multihost import fetch, put_global

log = logging.getLogger(__name__)


def vae_fingerprint(model: StableDiffusion) -> str:
    """Changes with the VAE's shape and any bit of it: cached latents belong to one VAE."""
    vae = {name: x for name, x in model.params.items() if name.startswith("vae.")}
    shape = hashlib.sha256(repr(model.vae).encode()).hexdigest()[:8]
    return f"{shape}-{replace(model, params=vae).fingerprint()}"


def make_encoder(model: StableDiffusion, mesh: Mesh) -> Callable[[np.ndarray], np.ndarray]:
    """This process's images [b, H, W, 3] uint8 -> moments [B, h, w, 2C] of all processes' ones."""
    vae = graph("vae", model.vae)
    weights = component(model.params, "vae")
    weights = put_global(weights, dict.fromkeys(weights, replicated(mesh)))
    encode = jax.jit(
        lambda weights, images_u8: jnp.concatenate(
            bind(vae, weights).encode(from_uint8(images_u8)), axis=-1
        ),
        out_shardings=batch_sharding(mesh),
    )
    return lambda images: fetch(encode(weights, put_batch({"images": images}, mesh)["images"]))


def with_measured_scale(model: StableDiffusion, validation: EvalBatches, mesh: Mesh):
    """Sets scaling_factor so that the latents of the validation images have unit variance.

    A latent is drawn from its posterior, whose variance belongs to it.
    """
    encode = make_encoder(model, mesh)
    moments = np.concatenate([encode(batch["images"]) for batch in validation])
    moments = moments[: validation.num_examples]  # the last batch is filled up
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=-1)
    variance = mean.var() + np.exp(logvar).mean()
    if not 0 < variance < np.inf:  # also NaN
        raise UserError(
            f"the latents of the validation images have variance {variance}, so that no "
            "scaling_factor makes it 1: the VAE's encoder gives no usable numbers; take another one"
        )
    scale = float(1.0 / np.sqrt(variance))
    log.info("vae.scaling_factor = %.5f, from %d validation images", scale, len(moments))
    return replace(model, vae=replace(model.vae, scaling_factor=scale))
