"""Redrawing a part of a given image: what a mask means for latents and for pixels.

Symbols: x0 the latents of the given image, z its noise, m the mask on latents, M in [0, 1] the
weights on pixels, P the given image, R the decoded result.

    (1)  x   <- m x + (1 - m) (signal x0 + noise z)     after every network call; blended latent
                                                        diffusion 2111.14818, RePaint 2201.09865
    (2)  out  = M R + (1 - M) P                         and exactly P where M = 0

A latent cell is redrawn as soon as one of its pixels is: the finding may fill the mask up to its
border. What the decoder then changes outside of the mask, (2) takes back. M rises from 0 outside of
the mask to 1 over `RIM` of a cell inside of it, so that no seam is seen.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from medsd_jax.arrays import Images, ImagesU8, from_uint8_rounded_once, to_uint8
from medsd_jax.errors import UserError

RIM = 0.5
"""Width of the soft rim, in latent cells."""


def redrawn_cells(weights: Float[jax.Array, "B H W"], downscale: int) -> Bool[jax.Array, "B h w 1"]:
    """Computes m of (1) from M: which latent cells hold a pixel that is redrawn."""
    b, height, width = weights.shape
    cells = weights.reshape(b, height // downscale, downscale, width // downscale, downscale)
    return (cells.max(axis=(2, 4)) > 0)[..., None]


def blend(
    images: Images, given_u8: ImagesU8, weights: Float[jax.Array, "B H W"]
) -> UInt8[jax.Array, "B H W 3"]:
    """Lays decoded images into the given ones by (2).

    Args:
        images: [B, H, W, 3] float, R, nominally in [-1, 1].
        given_u8: [B, H, W, 3] uint8, P.
        weights: [B, H, W] float32 in [0, 1], M.

    Returns:
        [B, H, W, 3] uint8, equal to `given_u8` where weights are 0.
    """
    m = weights[..., None]
    mixed = to_uint8(m * images + (1 - m) * from_uint8_rounded_once(given_u8))
    return jnp.where(m > 0, mixed, given_u8)


def soft_weights(mask: Bool[np.ndarray, "H W"], downscale: int) -> Float[np.ndarray, "H W"]:
    """Computes M from a mask, on the host.

    Args:
        mask: [H, W], true where the image is redrawn.
        downscale: pixels of a latent cell along one side.

    Returns:
        [H, W] float32 in [0, 1], 0 exactly where the mask is false.
    """
    if mask.all():
        return np.ones(mask.shape, np.float32)
    distance = distance_transform_edt(mask)  # 1 for the pixels next to the outside
    return np.minimum(distance / (RIM * downscale + 1), 1.0).astype(np.float32)


def edit_inputs(
    n: int, init_images: np.ndarray, masks: np.ndarray | None, downscale: int
) -> dict[str, np.ndarray]:
    """Checks the images to redraw, and lays them out as `make_inputs` takes them.

    Args:
        n: prompts.
        init_images: [H, W, 3] uint8 for all prompts, or [n, H, W, 3].
        masks: [H, W] bool for all prompts, or [n, H, W]; None redraws everything.
        downscale: pixels of a latent cell along one side.

    Returns:
        given_u8 [n, H, W, 3] uint8 and weights [n, H, W] float32; what is one for all is repeated
        without copies.

    Raises:
        UserError: shapes or types do not fit, or a mask is empty.
    """
    images = np.asarray(init_images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        given = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"init_images must be uint8 [H, W, 3] or [{n}, H, W, 3], not {given}")
    images = images.reshape(-1, *images.shape[-3:])
    size = images.shape[1:3]
    masks = np.ones(size, bool) if masks is None else np.asarray(masks)
    if masks.dtype != bool or masks.ndim not in (2, 3):
        given = f"{masks.dtype} {list(masks.shape)}"
        raise UserError(f"masks must be bool [H, W] or [{n}, H, W], not {given}")
    masks = masks.reshape(-1, *masks.shape[-2:])
    if masks.shape[1:] != size:
        raise UserError(
            f"a mask of {masks.shape[2]} x {masks.shape[1]} pixels does not fit an image of "
            f"{size[1]} x {size[0]}"
        )
    for name, rows in (("init_images", images), ("masks", masks)):
        if len(rows) not in (1, n):
            raise UserError(f"{n} prompts need 1 or {n} {name}, not {len(rows)}")
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise UserError(f"mask {empty[0]} covers no pixel: nothing would be redrawn")
    weights = np.stack([soft_weights(mask, downscale) for mask in masks])
    return {
        "given_u8": np.broadcast_to(images, (n, *images.shape[1:])),
        "weights": np.broadcast_to(weights, (n, *size)),
    }


def box_mask(height: int, width: int, box: Sequence[int | float]) -> Bool[np.ndarray, "H W"]:
    """Draws a rectangle.

    Args:
        height: of the image, pixels.
        width: likewise.
        box: x0, y0, x1, y1 in pixels from the upper left corner; x1 and y1 are the first ones
            outside of it.

    Returns:
        [H, W], true for pixels whose centre lies in the box.

    Raises:
        UserError: the box is empty or leaves the image.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"mask box {_listed(box)} must lie within the image of {width} x {height} pixels, as "
            "x0,y0,x1,y1 with x0 < x1 and y0 < y1"
        )
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    return ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]


def polygon_mask(
    height: int, width: int, corners: Sequence[Sequence[int | float]]
) -> Bool[np.ndarray, "H W"]:
    """Draws a filled polygon with its outline.

    Args:
        height: of the image, pixels.
        width: likewise.
        corners: at least three points (x, y), pixels from the upper left corner.

    Returns:
        [H, W], true inside.

    Raises:
        UserError: there are too few corners, or one lies outside of the image.
    """
    if len(corners) < 3:
        raise UserError(f"a mask polygon needs at least 3 corners, not {len(corners)}")
    for x, y in corners:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(
                f"corner {_listed((x, y))} of the mask polygon lies outside of the image of "
                f"{width} x {height} pixels"
            )
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in corners], fill=1, outline=1)
    return np.array(image)


def _listed(numbers: Sequence[int | float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
