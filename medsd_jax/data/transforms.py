"""From encoded images to square 8-bit arrays, with nothing random.

Resize modes, for an image that is not square:

    pad     the whole image, its long side fitted, black bars to fill (RoentGen's choice)
    crop    the centre square
    squash  the whole image, stretched

Scores compare only between models and references that were prepared in the same mode.
"""

import io
from typing import Literal, get_args

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError

ResizeMode = Literal["pad", "crop", "squash"]
RESIZE_MODES = get_args(ResizeMode)


def decode(encoded: bytes) -> np.ndarray:
    """Decode a stored image -> [H, W, 3] uint8; grey is repeated to three channels."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def check_resize_mode(mode: str) -> None:
    """Raise a UserError for an unknown mode."""
    if mode not in RESIZE_MODES:
        raise UserError(f"resize_mode is {mode!r}: choose from {', '.join(RESIZE_MODES)}")


def resize(image_u8: np.ndarray, image_size: int, mode: ResizeMode = "pad") -> np.ndarray:
    """Resize with Pillow's bilinear filter, which averages when it shrinks (no aliasing).

    Args:
        image_u8: [H, W, 3] uint8.
        image_size: side length of the result in pixels.
        mode: what to do with images that are not square, see the module.

    Returns:
        [image_size, image_size, 3] uint8.
    """
    check_resize_mode(mode)
    height, width = image_u8.shape[:2]
    if (height, width) == (image_size, image_size):
        return image_u8
    image = Image.fromarray(image_u8)
    bilinear, box = Image.Resampling.BILINEAR, (0.0, 0.0, float(width), float(height))
    size = (image_size, image_size)
    if mode == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    if mode == "pad":
        scale = image_size / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = np.asarray(image.resize(size, bilinear, box=box))
    missing_y, missing_x = image_size - size[1], image_size - size[0]
    if not missing_y and not missing_x:
        return resized
    margins = ((missing_y // 2, missing_y - missing_y // 2),
               (missing_x // 2, missing_x - missing_x // 2), (0, 0))  # fmt: skip
    return np.pad(resized, margins)


def load_image(encoded: bytes, image_size: int, mode: ResizeMode = "pad") -> np.ndarray:
    """Decode and resize -> [image_size, image_size, 3] uint8."""
    return resize(decode(encoded), image_size, mode)
