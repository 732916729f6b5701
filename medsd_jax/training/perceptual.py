"""The perceptual term of the VAE's loss: distance in the feature maps of a frozen network.

Symbols: f_l(x) the map of layer l, a vector of channels at each position p; L layers.

    (1)  u_l(x)_p = f_l(x)_p / sqrt(|f_l(x)_p|^2 + epsilon)
    (2)  P(x, y) = 1 / L  sum_l mean_p |u_l(x)_p - u_l(y)_p|^2

It is LPIPS (arXiv 1801.03924, eq. 1) with all channels weighted alike. P lies in [0, 4].
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from medsd_jax.arrays import Params

Features = Callable[[Params, jax.Array], Sequence[jax.Array]]
"""``(weights, images [B, H, W, 3] in [-1, 1]) -> maps [B, h, w, D]`` of a frozen network."""

PREFIX = "perceptual"
"""Of the network's weights among the frozen ones: they travel with them, and never train."""

_EPSILON = 1e-10  # inside the root: its gradient is finite where a ReLU has left nothing


def perceptual_distance(
    features: Features, weights: Params, images: jax.Array, reconstructions: jax.Array
) -> jax.Array:
    """Computes (2) of each pair.

    Args:
        features: the network.
        weights: its weights.
        images: [B, H, W, 3] float32 in [-1, 1].
        reconstructions: likewise; what is differentiated.

    Returns:
        [B] float32.
    """
    maps = [features(weights, x) for x in (images, reconstructions)]
    distances = [
        jnp.mean(jnp.sum(jnp.square(_unit(x) - _unit(y)), axis=-1), axis=(1, 2))
        for x, y in zip(*maps, strict=True)
    ]
    return sum(distances) / len(distances)


def _unit(maps: jax.Array) -> jax.Array:
    maps = maps.astype(jnp.float32)
    return maps * jax.lax.rsqrt(jnp.sum(jnp.square(maps), axis=-1, keepdims=True) + _EPSILON)
