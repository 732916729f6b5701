"""Classifier-free guidance: push the prediction away from what the negative prompt would give.

Symbols: f(c) the network's output with context c, c_neg the context of the negative prompt (the
empty prompt where there is none), s = guidance_scale.

    (1)  f_guided = f(c_neg) + s (f(c) - f(c_neg))       2207.12598 eq. 6, with s = 1 + w

s = 1 is the plain conditional prediction, s = 0 the unconditional one. (1) is linear with weights
that sum to 1, so it may be applied to epsilon, v and x0 alike.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Real

from medsd_jax.arrays import Context, Latents, Timesteps


def guided(
    denoise: Callable[[Latents, Timesteps, Context], Latents],
    guidance_scale: Real[ArrayLike, ""] | Real[Array, " B"],
) -> Callable[[Latents, Timesteps, Context, Context], Latents]:
    """Wrap a network so that it predicts with classifier-free guidance, in one doubled batch.

    Args:
        denoise: Maps (x [B, h, w, C], t [B] int32, context [B, S, D]) to a prediction
            [B, h, w, C].
        guidance_scale: s, one for all or one for each example; may be traced.

    Returns:
        A function of (x, t, context, negative_context), the last two [B, S, D] each, that returns
        the guided prediction [B, h, w, C].
    """

    def guided_denoise(
        x: Latents, t: Timesteps, context: Context, negative_context: Context
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
        return negative + scale * (positive - negative)

    return guided_denoise
