"""Redrawing an image, or a part of it: what a finding is inserted with.

The mask is drawn on the image as it is in its file, and both are brought to the model's size in the
way of the training data.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.data.mask_image import is_transparent, redrawn
from medsd_jax.data.stored_image import UnreadableImageError, read_pixels
from medsd_jax.data.transforms import resize
from medsd_jax.errors import UserError
from medsd_jax.files import content_hash
from medsd_jax.sampling.editing import box_mask, polygon_mask

log = logging.getLogger(__name__)

DEFAULT_STRENGTH = 0.8
"""How much of an image is redrawn where nothing is said."""
DIFFERENCE_TIMES = 4
"""How much brighter than it is a difference is shown in NAME_pair.png."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """An image to redraw.

    Attributes:
        image: [H, W, 3] uint8.
        mask: [H, W] bool, true where it is redrawn; None redraws all of it.
        resize_mode: how both are brought to the model's size.
        strength: in (0, 1].
        metadata: what is written down of it.
    """

    image: np.ndarray
    mask: np.ndarray | None
    resize_mode: str
    strength: float
    metadata: dict[str, Any]

    def fitted(self, size: int) -> "Edit":
        """The same image and mask at `size` x `size` pixels.

        A pixel is redrawn where the mask covers at least half of it.

        Raises:
            UserError: nothing is left of the mask.
        """
        image = resize(self.image, size, self.resize_mode)
        if self.mask is None:
            return dataclasses.replace(self, image=image)
        grey = np.repeat(self.mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
        mask = resize(grey, size, self.resize_mode)[..., 0] >= 128
        if not mask.any():
            raise UserError(
                f"the mask covers no pixel of the image once it has {size} x {size} pixels; "
                "draw it larger"
            )
        return dataclasses.replace(self, image=image, mask=mask)

    def arguments(self) -> dict[str, Any]:
        """What `medsd_jax.sample` takes of it."""
        return {"init_images": self.image, "masks": self.mask, "strength": self.strength}

    def save_pair(self, result: np.ndarray, path: Path, metadata: dict[str, Any]) -> None:
        """Writes original, result and difference side by side.

        Args:
            result: [H, W, 3] uint8.
            path: the file to write.
            metadata: of the result, for the file's metadata.
        """
        from medsd_jax.sampling.images import save_png

        difference = np.abs(result.astype(np.int32) - self.image) * DIFFERENCE_TIMES
        panels = [self.image, result, difference.clip(max=255).astype(np.uint8)]
        own = {
            "panels": ["original", "result", "difference"],
            "difference_times": DIFFERENCE_TIMES,
        }
        save_png(np.concatenate(panels, axis=1), path, {**metadata, **own})


def read_edit(
    image: Path,
    *,
    mask: Path | None = None,
    box: Sequence[float] | None = None,
    polygon: Sequence[Sequence[float]] | None = None,
    strength: float = DEFAULT_STRENGTH,
    resize_mode: str = "pad",
) -> Edit:
    """An image file and what of it is redrawn: at most one of mask, box and polygon; else all.

    Args:
        image: the file.
        mask: an image file of the same size; white is redrawn, black and transparent parts stay.
        box: x0, y0, x1, y1 in pixels from the upper left corner.
        polygon: three corners (x, y) or more, likewise.
        strength: in (0, 1].
        resize_mode: how image and mask are brought to the model's size.

    Raises:
        UserError: a file cannot be read, or the mask does not fit the image.
    """
    pixels, _ = _read_pixels(image)
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    height, width = pixels.shape[:2]
    chosen, note = None, None
    if box is not None:
        if len(box) != 4:
            raise UserError(f"a mask's box needs 4 numbers x0,y0,x1,y1, not {len(box)}")
        chosen, note = box_mask(height, width, tuple(box)), {"box": list(box)}
    elif polygon is not None:
        chosen, note = polygon_mask(height, width, polygon), {"polygon": list(polygon)}
    elif mask is not None:
        chosen, note = _read_mask(mask, image, height, width), {"file": str(mask)}
    if chosen is not None:
        say = log.warning if chosen.all() else log.info
        say("%.1f %% of the image is redrawn", 100 * chosen.mean())
    metadata = {
        "init_image": str(image), "strength": strength, "mask": note, "resize_mode": resize_mode,
        "edit_hash": content_hash(pixels, chosen),
    }  # fmt: skip
    return Edit(pixels, chosen, resize_mode, strength, metadata)


def _read_mask(path: Path, image: Path, height: int, width: int) -> np.ndarray:
    """[H, W] bool, true where the image is redrawn."""
    pixels, raw = _read_pixels(path)
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"mask {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the image {image} has "
            f"{width} x {height}"
        )
    mask, note = redrawn(pixels, is_transparent(raw), f"mask {path}")
    if note:
        log.warning("mask %s: %s", path, note)
    return mask


def _read_pixels(path: Path) -> tuple[np.ndarray, bytes]:
    """[H, W] or [H, W, 3] uint8, and the file's bytes; says how they were converted."""
    try:
        raw = path.read_bytes()
        pixels, note = read_pixels(raw)
    except (OSError, UnreadableImageError) as error:
        message = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as an image: {message}") from error
    if note:
        log.info("%s: %s", path, note)
    return pixels, raw
