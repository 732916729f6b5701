"""Which pixels of an image a mask file asks to redraw.

A mask is white where the image is redrawn and black where it stays, in any kind of file that
data/stored_image.py reads: what reaches half of the mask's largest value is redrawn. That holds for
masks of 0 and 255, for label masks of 0 and 1, and for what JPEG makes of either. Of a coloured
mask the brightest channel counts.

Transparent parts are black: they stay. Programs that erase mean the opposite by them; such a mask
asks for most of the image and is refused, as is a photograph, whose greys are neither.
"""

import io

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError

_MAX_GREY = 0.25
_GREY_REPORTED = 0.02


def redrawn(pixels: np.ndarray, transparent: bool, where: str) -> tuple[np.ndarray, str]:
    """Which pixels a mask asks to redraw.

    Args:
        pixels: [H, W] or [H, W, 3] uint8, as data/stored_image.py reads the mask.
        transparent: whether the file has transparent parts, see `is_transparent`.
        where: the flag and the file, for messages.

    Returns:
        [H, W] bool, true where the image is redrawn; and what the user should know of it, "" where
        there is nothing.

    Raises:
        UserError: it asks for nothing, is no mask, or its transparency has two meanings.
    """
    values = (pixels if pixels.ndim == 2 else pixels.max(axis=-1)).astype(np.int32)
    largest = int(values.max())
    if not largest:
        raise UserError(f"{where} is black all over: nothing would be redrawn")
    mask = 2 * values >= largest
    grey = float(((4 * values > largest) & (4 * values < 3 * largest)).mean())
    if grey > _MAX_GREY:
        raise UserError(
            f"{where} is no mask: {grey:.0%} of it is neither black nor white; draw white on black"
        )
    if mask.mean() > 0.5 and transparent:
        raise UserError(
            f"{where} would redraw {mask.mean():.0%} of the image: its transparent parts stay as "
            "they are; save it without transparency, white where the image is redrawn, else black"
        )
    if grey > _GREY_REPORTED:
        return mask, f"{grey:.0%} of it is grey: what reaches half of the largest value is redrawn"
    return mask, ""


def is_transparent(raw: bytes) -> bool:
    """Whether a readable image file has pixels that are not opaque."""
    with Image.open(io.BytesIO(raw)) as image:
        return image.convert("RGBA").getextrema()[3][0] < 255
