"""Likeness of two grey images: SSIM, MS-SSIM, PSNR, RMSE; and of the images of one prompt.

Symbols: x, y images in [0, 1]; m_x, v_x, c_xy mean, variance and covariance under the window w,
a Gaussian of sigma 1.5 on 11 taps; C1 = 0.01^2, C2 = 0.03^2; s the scale, 1 the finest.

    (1)  l  = (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1)                       Wang et al. 2004, eq. 6
    (2)  cs = (2 c_xy + C2) / (v_x + v_y + C2)                              eq. 9 times 10
    (3)  SSIM = mean over positions of l cs                                 eq. 13, 15
    (4)  MS-SSIM = mean(l_S cs_S)^w_S prod_{s < S} mean(cs_s)^w_s           Wang et al. 2003, eq. 7
    (5)  RMSE = sqrt(mean (x - y)^2),   PSNR = -20 log10 RMSE

Positions are those where the whole window lies inside the image, so that nothing is padded and a
margin of 5 pixels counts only through its neighbours. scikit-image does the same: it pads, then
crops the padded positions.

MS-SSIM follows pytorch_msssim, RoentGen's choice: negative means are set to 0 before the powers;
from scale to scale images are averaged over 2 x 2 pixels, and an odd side gets a row of zeros at
each end. Five scales need sides of 161; smaller images need fewer scales (`most_scales`), whose
weights are the first of the five, scaled to the sum 1. Such values stand for themselves: they do
not compare with those of five scales.

Variances are taken of x - 1/2, which changes nothing but float32's rounding: E[x^2] - m_x^2 cancels
in bright flat regions, and C2 is only 9e-4.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medsd_jax.errors import UserError

Grey = Float[jax.Array | np.ndarray, "B H W 1"]
"""Grey images in [0, 1]: metrics are defined on this range, not on the models' [-1, 1]."""

_TAPS = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@jax.jit
def rmse(x: Grey, y: Grey) -> Float[Array, " B"]:
    """Compute the root mean squared error of each pair, by (5).

    Args:
        x: [B, H, W, 1] float in [0, 1].
        y: Like x.

    Returns:
        [B] float32, in units of the range.
    """
    difference = jnp.asarray(x, jnp.float32) - jnp.asarray(y, jnp.float32)
    return jnp.sqrt(jnp.mean(jnp.square(difference), axis=(1, 2, 3)))


@jax.jit
def psnr(x: Grey, y: Grey) -> Float[Array, " B"]:
    """Compute the peak signal-to-noise ratio of each pair, by (5).

    Args:
        x: [B, H, W, 1] float in [0, 1].
        y: Like x.

    Returns:
        [B] float32 in decibels; inf for equal images.
    """
    return -20.0 * jnp.log10(rmse(x, y))


@jax.jit
def ssim(x: Grey, y: Grey) -> Float[Array, " B"]:
    """Compute the structural similarity of each pair, by (3).

    Args:
        x: [B, H, W, 1] float in [0, 1], sides of at least 11.
        y: Like x.

    Returns:
        [B] float32 in [-1, 1]; 1 for equal images.

    Raises:
        UserError: If the images are too small.
    """
    _check_side(x, 1)
    luminance, contrast = _terms(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    return jnp.mean(luminance * contrast, axis=(1, 2, 3))


@partial(jax.jit, static_argnames="num_scales")
def ms_ssim(x: Grey, y: Grey, *, num_scales: int = 5) -> Float[Array, " B"]:
    """Compute the multi-scale structural similarity of each pair, by (4).

    Args:
        x: [B, H, W, 1] float in [0, 1], sides above 10 * 2^(num_scales - 1).
        y: Like x.
        num_scales: 5 for the published measure; `most_scales` gives the largest that fits.

    Returns:
        [B] float32 in [0, 1]; 1 for equal images.

    Raises:
        UserError: If the images are too small for the scales.
    """
    if not 1 <= num_scales <= len(_WEIGHTS):
        raise UserError(f"num_scales={num_scales}: MS-SSIM has weights for 1 to {len(_WEIGHTS)}")
    _check_side(x, num_scales)
    weights = np.array(_WEIGHTS[:num_scales])
    if num_scales < len(_WEIGHTS):  # the five sum to 1.0001 and stay as published
        weights /= weights.sum()
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    result = jnp.ones(len(x), jnp.float32)
    for scale, weight in enumerate(weights, start=1):
        luminance, contrast = _terms(x, y)
        if scale == num_scales:
            contrast = luminance * contrast
        mean = jnp.maximum(jnp.mean(contrast, axis=(1, 2, 3)), 0.0)
        result = result * mean ** float(weight)
        if scale < num_scales:
            x, y = _halve(x), _halve(y)
    return result


def most_scales(height: int, width: int) -> int:
    """Tell how many scales of MS-SSIM fit, from 0 (not even SSIM) to 5.

    Args:
        height: Of the images.
        width: Of the images.

    Returns:
        The largest S for which the shorter side is above 10 * 2^(S - 1).
    """
    size = min(height, width)
    return sum(size > _largest_size_too_small(scales) for scales in range(1, len(_WEIGHTS) + 1))


@dataclass(frozen=True, eq=False)
class IntraPromptMsSsim:
    """MS-SSIM between the images of each prompt: the lower, the more diverse.

    Attributes:
        pairs: [P, K (K - 1) / 2] float32; columns in the order 01, 02, 03, 12, 13, 23. These are
            the 6 columns that RoentGen's script writes.
        num_scales: Scales of MS-SSIM; 5 is the published measure.
    """

    pairs: Float[np.ndarray, "P pairs"]
    num_scales: int

    @property
    def of_prompts(self) -> Float[np.ndarray, " P"]:
        """[P] float64, mean over the pairs of each prompt: the unit of an interval."""
        return self.pairs.mean(axis=1, dtype=np.float64)

    @property
    def mean(self) -> float:
        """Mean over all pairs of all prompts."""
        return float(self.pairs.mean(dtype=np.float64))

    @property
    def std(self) -> float:
        """Standard deviation over all pairs of all prompts; no standard error of the mean."""
        return float(self.pairs.std(dtype=np.float64))


def intra_prompt_ms_ssim(
    images: Float[np.ndarray, "P K H W 1"], *, num_scales: int = 5
) -> IntraPromptMsSsim:
    """Compute MS-SSIM of all pairs of images that share a prompt.

    RoentGen's protocol: 4 images per prompt, 6 pairs, grey, [0, 1], 2,000 prompts.

    Args:
        images: [P, K, H, W, 1] float in [0, 1], K images of each prompt.
        num_scales: As for `ms_ssim`.

    Returns:
        All pairs and their summary.

    Raises:
        UserError: If there is no pair, a value is outside [0, 1], or the images are too small.
    """
    num_prompts, num_images, height, width, _ = images.shape
    if num_prompts < 1 or num_images < 2:
        raise UserError(
            f"{num_prompts} prompts with {num_images} images each make no pair; "
            "RoentGen's protocol takes 4 images per prompt"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UserError(
            f"images have values from {low:g} to {high:g}, but MS-SSIM takes [0, 1]: scale them"
        )
    first, second = np.array(list(combinations(range(num_images), 2))).T
    # Two blocks of pairs of at most 64 MiB; the last block may be shorter and compiles once more.
    step = max(1, 2**24 // (len(first) * height * width))
    result = []
    for start in range(0, num_prompts, step):
        block = images[start : start + step]
        x, y = (block[:, which].reshape(-1, height, width, 1) for which in (first, second))
        values = ms_ssim(x, y, num_scales=num_scales)
        result.append(np.asarray(values).reshape(len(block), len(first)))
    return IntraPromptMsSsim(np.concatenate(result), num_scales)


def _largest_size_too_small(num_scales: int) -> int:
    return (_TAPS - 1) * 2 ** (num_scales - 1)


def _check_side(x: Grey, num_scales: int) -> None:
    height, width = x.shape[1:3]
    needed = _largest_size_too_small(num_scales) + 1
    if min(height, width) < needed:
        fitting = most_scales(height, width)
        way_out = f"use num_scales={fitting}" if fitting else "use larger images"
        raise UserError(
            f"images of {height} x {width} are too small for {num_scales} scale(s) of SSIM, which "
            f"need sides of at least {needed}; {way_out}"
        )


def _terms(
    x: Float[Array, "B H W 1"], y: Float[Array, "B H W 1"]
) -> tuple[Float[Array, "B h w 1"], Float[Array, "B h w 1"]]:
    """(1) and (2) at every position of the window inside the image."""
    x, y = x - 0.5, y - 0.5
    products = jnp.concatenate([x, y, x * x + y * y, x * y], axis=-1)
    mx, my, both, cross = jnp.split(_blur(products), 4, axis=-1)
    variances = both - mx * mx - my * my
    covariance = cross - mx * my
    mx, my = mx + 0.5, my + 0.5
    luminance = (2.0 * mx * my + _C1) / (mx * mx + my * my + _C1)
    return luminance, (2.0 * covariance + _C2) / (variances + _C2)


def _blur(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Average under the window, along one axis and then the other.

    Sums of shifted slices, not a convolution: those run at reduced precision on a TPU.
    """
    taps = np.exp(-0.5 * (np.arange(_TAPS) - _TAPS // 2) ** 2 / _SIGMA**2)
    taps /= taps.sum()
    for axis in (1, 2):
        length = x.shape[axis] - _TAPS + 1
        x = sum(
            float(tap) * jax.lax.slice_in_dim(x, i, i + length, axis=axis)
            for i, tap in enumerate(taps)
        )
    return x


def _halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Average over 2 x 2 pixels; an odd side gets a row of zeros at each end."""
    _, height, width, _ = x.shape
    edges = ((0, 0), (height % 2,) * 2, (width % 2,) * 2, (0, 0))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), edges) / 4.0
