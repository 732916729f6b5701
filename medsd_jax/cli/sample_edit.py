"""Flags of sample.py that redraw a given picture, or a part of it: what a finding is inserted with.

The mask is drawn on the picture as it is in its file, and both are brought to the model's size in
the way of the training data.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.data.mask_image import is_transparent, redrawn
from medsd_jax.data.stored_image import UnreadableImageError, read_pixels
from medsd_jax.data.transforms import RESIZE_MODES, resize
from medsd_jax.errors import UserError
from medsd_jax.files import content_hash

log = logging.getLogger(__name__)

DIFFERENCE_TIMES = 4
"""How much brighter than it is a difference is shown in NAME_pair.png."""

_NEED_A_PICTURE = ("strength", "resize_mode", "mask", "mask_box", "mask_polygon")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the group of flags."""
    group = parser.add_argument_group(
        "redraw a given picture",
        "Writes beside each picture NAME_pair.png: original, result, absolute difference\n"
        f"({DIFFERENCE_TIMES} times as bright). Outside of the mask every pixel stays as it is.",
    )
    group.add_argument("--init_image", type=Path, metavar="FILE", help="the picture to start from")
    group.add_argument(
        "--strength", type=float,
        help="above 0, at most 1: how much is redrawn, the last part of the steps (default 0.8)",
    )  # fmt: skip
    group.add_argument(
        "--resize_mode", choices=RESIZE_MODES,
        help="for a picture that is not square, as data.resize_mode in training (default pad)",
    )  # fmt: skip
    masks = group.add_mutually_exclusive_group()
    masks.add_argument(
        "--mask", type=Path, metavar="FILE",
        help="image of the init image's size; white is redrawn, black and transparent parts stay",
    )  # fmt: skip
    masks.add_argument(
        "--mask_box", type=_numbers, metavar='"X0,Y0,X1,Y1"',
        help="pixels of the init image from its upper left corner",
    )  # fmt: skip
    masks.add_argument(
        "--mask_polygon", type=_corners, metavar='"X,Y X,Y X,Y"', help="likewise, 3 corners or more"
    )


@dataclasses.dataclass(frozen=True)
class Edit:
    """A picture to redraw.

    Attributes:
        image: [H, W, 3] uint8.
        mask: [H, W] bool, true where it is redrawn; None redraws all of it.
        resize_mode: how both are brought to the model's size.
        strength: in (0, 1].
        about: what is written down of it.
    """

    image: np.ndarray
    mask: np.ndarray | None
    resize_mode: str
    strength: float
    about: dict[str, Any]

    def fitted(self, side: int) -> "Edit":
        """The same picture and mask at `side` x `side` pixels.

        A pixel is redrawn where the mask covers at least half of it.

        Raises:
            UserError: nothing is left of the mask.
        """
        image = resize(self.image, side, self.resize_mode)
        if self.mask is None:
            return dataclasses.replace(self, image=image)
        grey = np.repeat(self.mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
        mask = resize(grey, side, self.resize_mode)[..., 0] >= 128
        if not mask.any():
            raise UserError(
                f"the mask covers no pixel of the picture once it has {side} x {side} pixels; "
                "draw it larger"
            )
        return dataclasses.replace(self, image=image, mask=mask)

    def arguments(self) -> dict[str, Any]:
        """What `api.sample` takes of it."""
        return {"init_images": self.image, "masks": self.mask, "strength": self.strength}

    def save_pair(self, result: np.ndarray, path: Path, about: dict[str, Any]) -> None:
        """Writes original, result and difference side by side.

        Args:
            result: [H, W, 3] uint8.
            path: the file to write.
            about: of the result, for the file's metadata.
        """
        from medsd_jax.sampling.images import save_png

        difference = np.abs(result.astype(np.int32) - self.image) * DIFFERENCE_TIMES
        panels = [self.image, result, difference.clip(max=255).astype(np.uint8)]
        told = {
            "panels": ["original", "result", "difference"],
            "difference_times": DIFFERENCE_TIMES,
        }
        save_png(np.concatenate(panels, axis=1), path, {**about, **told})


def read_edit(args: argparse.Namespace) -> Edit | None:
    """The picture and mask asked for, in the picture's own size; None without --init_image.

    Raises:
        UserError: a file cannot be read, the mask does not fit the picture, or a flag has no
            picture to work on.
    """
    if args.init_image is None:
        for name in _NEED_A_PICTURE:
            if getattr(args, name) is not None:
                raise UserError(f"--{name} needs --init_image FILE, the picture to redraw")
        return None
    if args.height and args.width and args.height != args.width:
        raise UserError(
            f"--init_image is made square, but --height is {args.height} and --width {args.width}"
        )
    from medsd_jax.api import DEFAULT_STRENGTH

    image = _read_picture("--init_image", args.init_image)
    mask, told = _read_mask(args, image.shape[0], image.shape[1])
    if mask is not None:
        say = log.warning if mask.all() else log.info
        say("%.1f %% of the image is redrawn", 100 * mask.mean())
    strength = DEFAULT_STRENGTH if args.strength is None else args.strength
    mode = args.resize_mode or "pad"
    about = {
        "init_image": str(args.init_image), "strength": strength, "mask": told, "resize_mode": mode,
        "edit_hash": content_hash(image, mask),
    }  # fmt: skip
    return Edit(image, mask, mode, strength, about)


def _read_mask(
    args: argparse.Namespace, height: int, width: int
) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """[H, W] bool and how it was given, or None twice."""
    from medsd_jax.sampling.editing import box_mask, polygon_mask

    if args.mask_box is not None:
        if len(args.mask_box) != 4:
            raise UserError(f"--mask_box needs 4 numbers x0,y0,x1,y1, not {len(args.mask_box)}")
        return box_mask(height, width, tuple(args.mask_box)), {"box": args.mask_box}
    if args.mask_polygon is not None:
        return polygon_mask(height, width, args.mask_polygon), {"polygon": args.mask_polygon}
    if args.mask is None:
        return None, None
    pixels, raw = _read_pixels("--mask", args.mask)
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"--mask {args.mask} has {pixels.shape[1]} x {pixels.shape[0]} pixels, --init_image "
            f"{args.init_image} has {width} x {height}"
        )
    mask, note = redrawn(pixels, is_transparent(raw), f"--mask {args.mask}")
    if note:
        log.warning("--mask %s: %s", args.mask, note)
    return mask, {"file": str(args.mask)}


def _read_picture(flag: str, path: Path) -> np.ndarray:
    """[H, W, 3] uint8, as training data would be read."""
    pixels, _ = _read_pixels(flag, path)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def _read_pixels(flag: str, path: Path) -> tuple[np.ndarray, bytes]:
    """[H, W] or [H, W, 3] uint8, and the file's bytes; says how they were converted."""
    try:
        raw = path.read_bytes()
        pixels, note = read_pixels(raw)
    except (OSError, UnreadableImageError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{flag} {path} cannot be read as a picture: {said}") from error
    if note:
        log.info("%s %s: %s", flag, path, note)
    return pixels, raw


def _numbers(text: str) -> list[float]:
    """Reads "1,2,3"."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,2,3") from None


def _corners(text: str) -> list[tuple[float, float]]:
    """Reads "1,2 3,4 5,6"."""
    corners = [_numbers(word) for word in text.split()]
    if any(len(corner) != 2 for corner in corners):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of corners like 1,2 3,4 5,6")
    return [(x, y) for x, y in corners]
