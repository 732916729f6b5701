"""Images of any size to a network's input, on the host, exactly as each reference does it.

Every resize here is antialiased: pixels are weighted sums over a window that grows with the
reduction. Skipping that changes a Frechet distance more than most models differ (arXiv 2104.11222).
One filter serves all references, because they agree: Pillow in its float mode, which torch's
`interpolate(..., antialias=True)` follows to rounding error.

An image is [H, W], [H, W, 1] or [H, W, 3], 8-bit or float in [0, 255]; images of a batch may
have different sizes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError

BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)
"""torchvision's rgb_to_grayscale; the sum is 0.9999, so white becomes 254.97 of 255."""


@dataclass(frozen=True)
class Preprocessing:
    """A named input chain; call it with one image.

    Attributes:
        name: of the chain, for a report.
        size: side of the square that comes out.
        channels: 3, or 1 for grey.
        low: what black becomes in the first channel.
        high: what white becomes there.
        steps: the chain in words, for a report and its protocol hash.
    """

    name: str
    size: int
    channels: int
    low: float
    high: float
    steps: str
    _apply: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """One image -> [size, size, channels] float32 in [low, high].

        Raises:
            UserError: the array is no image as the module's text describes it.
        """
        out = np.ascontiguousarray(self._apply(as_pixels(image)), np.float32)
        assert out.shape == (self.size, self.size, self.channels), out.shape
        return out

    def batch(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Images of any sizes -> [B, size, size, channels] float32; at least one."""
        return np.stack([self(image) for image in images])


def as_pixels(image: np.ndarray) -> np.ndarray:
    """Checks an image -> [H, W, 1 or 3] float32 in [0, 255]."""
    image = np.asarray(image)
    pixels = image[:, :, None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise UserError(f"an image is [H, W], [H, W, 1] or [H, W, 3], not {list(image.shape)}")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(
            f"an image of {pixels.dtype} has no known white: "
            "give uint8, or scale it to float in [0, 255]"
        )
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 255):  # also where one of them is NaN
        raise UserError(f"pixels lie in [{low}, {high}], but must lie in [0, 255]")
    return pixels.astype(np.float32)


def resize(pixels: np.ndarray, height: int, width: int, resampling: Image.Resampling) -> np.ndarray:
    """Antialiased resize of each channel in float32, without rounding or clipping.

    Args:
        pixels: [H, W, C] float32 of any range; bicubic overshoots it.
        height: of the result.
        width: of the result.
        resampling: `BILINEAR` or `BICUBIC` (a = -0.5).

    Returns:
        [height, width, C] float32; the same numbers where the size is the same.
    """
    planes = [
        np.asarray(
            # A 2-d float32 array becomes Pillow's mode "F".
            Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), resampling)
        )
        for plane in np.moveaxis(pixels.astype(np.float32, copy=False), -1, 0)
    ]
    return np.stack(planes, axis=-1)


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _clean_fid_pixels(pixels: np.ndarray) -> np.ndarray:
    return resize(_as_rgb(pixels), 299, 299, BICUBIC).clip(0, 255)


def _clean_fid(pixels: np.ndarray) -> np.ndarray:
    return (_clean_fid_pixels(pixels) - 128) / 128


def _xrv_range(grey: np.ndarray) -> np.ndarray:
    return 2048 * (grey / np.float32(255)) - 1024


def _xrv_roentgen(pixels: np.ndarray) -> np.ndarray:
    grey = (_clean_fid_pixels(pixels) * np.float32(LUMA)).sum(axis=2, keepdims=True)
    return resize(_xrv_range(grey), 224, 224, BILINEAR)


CLEAN_FID = Preprocessing(
    "clean-fid",
    299,
    3,
    -1.0,
    127 / 128,
    "grey repeated to RGB; Pillow bicubic to 299x299 per channel in float32 without keeping "
    "the aspect ratio; clipped to [0, 255]; (x - 128) / 128",
    _clean_fid,
)
"""InceptionV3 as clean-fid's mode "clean" feeds it (RoentGen's FID)."""

XRV_ROENTGEN = Preprocessing(
    "xrv-roentgen",
    224,
    1,
    -1024.0,
    2048 * sum(LUMA) - 1024,
    "grey repeated to RGB; Pillow bicubic to 299x299 per channel in float32 without keeping "
    "the aspect ratio; clipped to [0, 255]; 0.2989 R + 0.587 G + 0.114 B; 2048 x / 255 - 1024; "
    "bilinear to 224x224 in float32",
    _xrv_roentgen,
)
"""torchxrayvision's DenseNet as RoentGen's calculate_fid.py feeds it: the image has been through
clean-fid's resize first."""
