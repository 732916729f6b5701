"""Masks as people save them ask for the same box."""

import io

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.mask_image import is_transparent, redrawn
from medsd_jax.data.stored_image import read_pixels
from medsd_jax.errors import UserError

BOX = np.zeros((64, 64), bool)
BOX[16:40, 20:44] = True


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def asked(raw):
    return redrawn(read_pixels(raw)[0], is_transparent(raw), "--mask m")


def grey(black, white, dtype=np.uint8):
    return Image.fromarray(np.where(BOX, white, black).astype(dtype))


def colour(box, around):
    return Image.fromarray(np.where(BOX[..., None], box, around).astype(np.uint8))


@pytest.mark.parametrize(
    "raw",
    [
        saved(grey(0, 255)),
        saved(grey(0, 1)),
        saved(grey(1, 255)),
        saved(grey(3, 255)),
        saved(grey(0, 128)),
        saved(grey(0, 65535, np.uint16)),
        saved(grey(0, 255).convert("1")),
        saved(grey(0, 255), "JPEG", quality=60),
        saved(grey(0, 255).convert("RGB"), "JPEG", quality=75),
        saved(grey(0, 255), "WEBP"),
        saved(grey(0, 255).convert("P")),
        saved(colour((255, 0, 0), (0, 0, 0))),
        saved(colour((255, 255, 255, 255), (0, 0, 0, 0)).convert("RGBA")),
        saved(colour((255, 255, 255, 255), (255, 255, 255, 0)).convert("RGBA")),
    ],
)
def test_the_same_box(raw):
    mask, note = asked(raw)
    np.testing.assert_array_equal(mask, BOX)
    assert not note


def test_a_soft_edge_is_cut_at_half_and_told():
    values = np.tile(np.clip((np.arange(64) - 20) * 10.0, 0, 255), (64, 1)).astype(np.uint8)
    mask, note = asked(saved(Image.fromarray(values)))
    np.testing.assert_array_equal(mask, values >= 128)
    assert "is grey" in note


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (saved(grey(0, 0)), "black all over"),
        (saved(colour((0, 0, 0, 0), (255, 255, 255, 255)).convert("RGBA")), "would redraw 86%"),
        (saved(Image.fromarray(np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8))),
         "is no mask"),
    ],
)  # fmt: skip
def test_what_has_two_meanings_is_refused(raw, message):
    with pytest.raises(UserError, match=f"--mask m .*{message}|--mask m is {message}"):
        asked(raw)
