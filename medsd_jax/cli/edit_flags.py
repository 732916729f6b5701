"""Flags of ``sample`` that redraw a given image, or a part of it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

if TYPE_CHECKING:  # importing it waits for JAX, which --help need not
    from medsd_jax.sampling.edits import Edit

_NEED_AN_IMAGE = ("strength", "resize_mode", "mask", "mask_box", "mask_polygon")


def add_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the group of flags."""
    group = parser.add_argument_group(
        "redraw a given image",
        "Writes beside each image NAME_pair.png: original, result, absolute difference\n"
        "(4 times as bright). Outside of the mask every pixel stays as it is.",
    )
    group.add_argument("--init_image", type=Path, metavar="FILE", help="the image to start from")
    group.add_argument(
        "--strength", type=float,
        help="above 0, at most 1: how much is redrawn, the last part of the steps (default 0.8)",
    )  # fmt: skip
    group.add_argument(
        "--resize_mode", choices=RESIZE_MODES,
        help="for an image that is not square, as data.resize_mode in training (default pad)",
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


def read_edit(args: argparse.Namespace) -> "Edit | None":
    """The image and mask asked for, in the image's own size; None without --init_image.

    Raises:
        UserError: a file cannot be read, the mask does not fit the image, or a flag has no
            image to work on.
    """
    if args.init_image is None:
        for name in _NEED_AN_IMAGE:
            if getattr(args, name) is not None:
                raise UserError(f"--{name} needs --init_image FILE, the image to redraw")
        return None
    if args.height and args.width and args.height != args.width:
        raise UserError(
            f"--init_image is made square, but --height is {args.height} and --width {args.width}"
        )
    from medsd_jax.sampling import edits

    strength = edits.DEFAULT_STRENGTH if args.strength is None else args.strength
    return edits.read_edit(
        args.init_image,
        mask=args.mask,
        box=args.mask_box,
        polygon=args.mask_polygon,
        strength=strength,
        resize_mode=args.resize_mode or "pad",
    )


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
