"""Classifier-free guidance: push the prediction away from what the negative prompt would give.

Symbols: f(c) the network's output with context c, c_neg the context of the negative prompt (the
empty prompt where there is none), s = guidance_scale.

    (1)  f_guided = f(c_neg) + s (f(c) - f(c_neg))       2207.12598 eq. 6, with s = 1 + w

    (2)  f_rescaled = f_guided std(f(c)) / std(f_guided)        2305.08891 eq. 15
    (3)  f_final    = phi f_rescaled + (1 - phi) f_guided       2305.08891 eq. 16

s = 1 is the plain conditional prediction, s = 0 the unconditional one. (1) is linear with weights
that sum to 1, so it may be applied to epsilon, v and x0 alike. A large s also makes the prediction
larger, which over-exposes the image; (2) takes the standard deviation of one example's values
back to that of f(c), and phi = guidance_rescale says how far. The paper takes phi = 0.7; 0 is off.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Real

from medsd_jax.arrays import Context, Latents

Times = Real[Array, " B"]
"""Diffusion times as a sampler tells them; some samplers' are fractions."""


def guided(
    denoise: Callable[[Latents, Times, Context], Latents],
    guidance_scale: Real[ArrayLike, ""] | Real[Array, " B"],
    guidance_rescale: Real[ArrayLike, ""] = 0.0,
) -> Callable[[Latents, Times, Context, Context], Latents]:
    """Wrap a network so that it predicts with classifier-free guidance, in one doubled batch.

    Args:
        denoise: Maps (x [B, h, w, C], t [B], context [B, S, D]) to a prediction
            [B, h, w, C].
        guidance_scale: s, one for all or one for each example; may be traced.
        guidance_rescale: phi in [0, 1]; may be traced.

    Returns:
        A function of (x, t, context, negative_context), the last two [B, S, D] each, that returns
        the guided prediction [B, h, w, C].
    """

    def guided_denoise(
        x: Latents, t: Times, context: Context, negative_context: Context
    ) -> Latents:
        # The two runs of an example lie side by side, [neg 0, pos 0, neg 1, pos 1, ...]: a batch
        # that is split over devices stays where it is. With all negatives first, every device
        # would have to trade half of its rows.
        contexts = jnp.stack([negative_context, context], axis=1)
        outputs = denoise(
            jnp.repeat(x, 2, axis=0),
            jnp.repeat(t, 2, axis=0),
            contexts.reshape(-1, *context.shape[1:]),
        )
        pairs = outputs.reshape(-1, 2, *outputs.shape[1:])
        negative, positive = pairs[:, 0], pairs[:, 1]
        scale = jnp.broadcast_to(guidance_scale, x.shape[:1])[:, None, None, None]
        prediction = negative + scale * (positive - negative)
        return prediction * _rescaling(positive, prediction, jnp.asarray(guidance_rescale))

    return guided_denoise


def _rescaling(
    positive: Latents, prediction: Latents, phi: Real[jax.Array, ""]
) -> Real[Array, "B 1 1 1"]:
    """Compute what (2) and (3) multiply a guided prediction with; exactly 1 where phi is 0."""
    axes = (1, 2, 3)
    ratio = jnp.std(positive, axes, keepdims=True) / jnp.std(prediction, axes, keepdims=True)
    return jnp.where(phi > 0, phi * ratio + (1 - phi), 1.0)
