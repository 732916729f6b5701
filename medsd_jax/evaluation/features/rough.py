"""Feature spaces for a first look, where no network for chest X-rays is at hand.

thumbnail       8 x 8 grey cells: what is light and dark, and where
latent=MODEL    the means of 4 x 4 parts of the VAE's latents

No paper measures in them, and neither knows what a finding is.
"""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medsd_jax.evaluation.images.image_sets import resize_to_square

THUMBNAIL, LATENT = "thumbnail", "latent"
CELLS = 8
THUMBNAIL_CHAIN = f"bilinear to {CELLS}x{CELLS}, pad; mean of the channels; x / 127.5 - 1"
PARTS = 4
"""Of a side. Latents are 16,384 numbers per image of 512 pixels: too many for a covariance."""


class Thumbnail(nnx.Module):
    """A network without weights: its input is the feature."""

    def __init__(self, *, rngs):
        del rngs

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """[B, H, W, C] -> [B, H W C] float32."""
        return images.reshape(images.shape[0], -1).astype(jax.numpy.float32)


def thumbnails(images: list[np.ndarray]) -> np.ndarray:
    """Images [H, W] or [H, W, 3] uint8 -> [B, 8, 8, 1] float32 in [-1, 1]."""
    return (
        resize_to_square(images, CELLS).mean(axis=-1, keepdims=True, dtype=np.float32) / 127.5 - 1.0
    )


def part_means(
    features: Float[np.ndarray, "n D"], shape: tuple[int, int, int]
) -> Float[np.ndarray, "n d"]:
    """Average flattened maps over parts of their sides.

    Args:
        features: [n, h w C], position (y, x), channel c at (y w + x) C + c.
        shape: h, w, C.

    Returns:
        [n, 4 4 C] float32, or fewer numbers where a side is shorter than four.
    """
    maps = features.reshape(-1, *shape)
    for axis in (1, 2):
        parts = np.array_split(maps, min(PARTS, maps.shape[axis]), axis=axis)
        maps = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis=axis)
    return np.ascontiguousarray(maps.reshape(len(maps), -1), np.float32)
