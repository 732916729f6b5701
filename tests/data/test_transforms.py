"""Decoding and the resize modes."""

import io

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.transforms import decode, load_image, resize
from medsd_jax.errors import UserError


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _wide():
    """[32, 64, 3]: left half 200, right half 100."""
    image = np.full((32, 64, 3), 200, np.uint8)
    image[:, 32:] = 100
    return image


def test_decode_repeats_grey():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    decoded = decode(_png(grey))
    assert decoded.shape == (3, 4, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, axis=-1))


def test_pad_keeps_the_whole_image_between_black_bars():
    out = resize(_wide(), 32, "pad")
    assert out.shape == (32, 32, 3)
    assert not out[:8].any() and not out[24:].any()
    assert (out[8:24, :14] == 200).all() and (out[8:24, 18:] == 100).all()


def test_pad_tall_image():
    out = resize(np.swapaxes(_wide(), 0, 1), 32, "pad")
    assert not out[:, :8].any() and not out[:, 24:].any() and (out[:14, 8:24] == 200).all()


def test_crop_takes_the_centre_square():
    out = resize(_wide(), 16, "crop")
    assert (out[:, :7] == 200).all() and (out[:, 9:] == 100).all()
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :16] = image[:, 48:] = 255  # exactly what a centre crop throws away
    assert not resize(image, 32, "crop").any()


def test_squash_uses_the_whole_image_without_bars():
    out = resize(_wide(), 32, "squash")
    assert out.min() == 100 and (out[:, :14] == 200).all() and (out[:, 18:] == 100).all()


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
def test_shrinking_averages(mode):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    out = resize(stripes, 64, mode).astype(float)
    # Nearest or unfiltered bilinear sampling gives 0 or 255 here. At the border half of the filter
    # is missing, so the outermost columns lean to one stripe.
    assert np.abs(out[:, 1:-1] - 127.5).max() <= 1


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
@pytest.mark.parametrize("shape", [(7, 301), (301, 7), (1, 1), (64, 64), (511, 512)])
def test_result_is_always_square(mode, shape):
    image = np.full((*shape, 3), 50, np.uint8)
    out = resize(image, 64, mode)
    assert out.shape == (64, 64, 3) and out.dtype == np.uint8 and out.max() == 50


def test_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(load_image(_png(image), 64), image)


def test_unknown_mode():
    with pytest.raises(UserError, match="stretch"):
        resize(_wide(), 8, "stretch")
