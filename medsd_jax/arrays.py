"""Array vocabulary: one word a thing, the axis legend used throughout the package, and the range.

B batch, H W pixels, h w latent cells (H / 8 in Stable Diffusion), C channels, L image tokens,
S text tokens (77 for CLIP), D width, N heads, K head width, T train timesteps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Params = dict[str, jax.Array]
"""Flat weights: diffusers/transformers state-dict path -> array, e.g. ``unet.conv_in.kernel``."""

Images = Float[Array, "B H W 3"]
"""Float images in [-1, 1], channels last."""

ImagesU8 = UInt8[Array, "B H W 3"]
"""8-bit images, channels last."""

Latents = Float[Array, "B h w C"]
"""VAE latents multiplied by ``vae.scaling_factor``: what the diffusion sees."""

PromptIds = Int[Array, "B S"]
"""Token ids of prompts, padded to the text encoder's length."""

Context = Float[Array, "B S D"]
"""The text encoder's last hidden state: what the U-Net attends to."""

Timesteps = Int[Array, " B"]
"""Diffusion times, int32 in [0, T)."""

# -- Range ---------------------------------------------------------------------------------------
#
# Rounding follows diffusers' image processor, so that equal floats give equal pixels in both:
#
#     images_u8 = round(255 * clip(images / 2 + 1/2, 0, 1))        half to even
#     images    = 2 * images_u8 / 255 - 1

_STEP = np.float32(1 / 127.5)
"""Between two of 256 grey levels on [-1, 1]."""

_STEP_HIGH = (_STEP.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
_STEP_LOW = _STEP - _STEP_HIGH
"""Their sum is _STEP. The first has 16 significant bits and the second 8."""


def from_uint8(images_u8: jax.Array | np.ndarray) -> jax.Array:
    """8-bit images on the device -> the model's range; may be called inside jit.

    Every backend and every program gives the bits of `from_uint8_on_host`. Written as x / 127.5 - 1
    it would not: XLA multiplies where a division is asked for, and joins product and difference
    into one rounding where it compiles them together. Here both products are exact, eight bits
    times sixteen at most, so it does not matter what is joined.

    Args:
        images_u8: [...] uint8.

    Returns:
        [...] float32 in [-1, 1].
    """
    levels = jnp.asarray(images_u8, jnp.float32)
    return (levels * _STEP_HIGH + levels * _STEP_LOW) - 1.0


def from_uint8_rounded_once(images_u8: jax.Array | np.ndarray) -> jax.Array:
    """`from_uint8` as sampling and evaluation compute it, where XLA rounds it as it likes.

    Inside jit it is one rounding on a CPU, and 158 levels differ from `from_uint8` by their last
    bit. It stays because their numbers do: with the other, one pixel in some thousands of an edited
    image would change by one level, and a classifier's scores by 1e-7.

    Args:
        images_u8: [...] uint8.

    Returns:
        [...] float32 in [-1, 1].
    """
    return jnp.asarray(images_u8, jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """Quantize images; may be called inside jit.

    Args:
        images: [...] float, nominally in [-1, 1]; values outside are clipped.

    Returns:
        [...] uint8; those of ``from_uint8(images_u8)`` are ``images_u8`` again.
    """
    unit = jnp.clip(images.astype(jnp.float32) * 0.5 + 0.5, 0.0, 1.0)
    return jnp.round(unit * 255.0).astype(jnp.uint8)


def from_uint8_on_host(images_u8: np.ndarray) -> np.ndarray:
    """8-bit images on the host, [...] uint8 -> the model's range, float32 in [-1, 1]."""
    images = images_u8.astype(np.float32)
    images *= _STEP
    images -= np.float32(1.0)
    return images


def evenly_spread(length: int, count: int) -> list[int]:
    """Rows that are spread over all of `length`, ascending, the first and the last among them.

    Args:
        length: of what is chosen from.
        count: how many rows; all of them where there are no more.
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
