"""Every kind of image file becomes 8-bit grey or RGB, told and never silently clipped."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.stored_image import UnreadableImageError, to_stored


def _bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _pixels(stored):
    with Image.open(io.BytesIO(stored.encoded)) as image:
        assert image.mode in ("L", "RGB")
        assert (image.height, image.width) == (stored.height, stored.width)
        return np.asarray(image).astype(int)


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_files_are_kept_byte_for_byte(kind, mode):
    raw = _bytes(Image.fromarray(GREY).convert(mode), kind)
    stored = to_stored(raw)
    assert stored.encoded == raw and stored.note == ""
    assert (stored.height, stored.width) == (6, 8)


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (1000, 1100), (0, 65535), (30000, 64000)])
def test_16_bit_is_scaled_by_its_range(low, high):
    values = np.linspace(low, high, 48).astype(np.uint16).reshape(6, 8)
    stored = to_stored(_bytes(Image.fromarray(values)))
    expected = (values.astype(float) - low) / (high - low) * 255
    assert np.abs(_pixels(stored) - expected).max() <= 0.5
    assert "8 bits" in stored.note


def test_32_bit_and_float_tiff_are_scaled_by_their_range():
    ints = np.array([[-1000, 0], [1000, 3000]], np.int32)
    np.testing.assert_array_equal(
        _pixels(to_stored(_bytes(Image.fromarray(ints), "TIFF"))), [[0, 64], [128, 255]]
    )
    floats = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(
        _pixels(to_stored(_bytes(Image.fromarray(floats), "TIFF"))), [[0, 64], [128, 255]]
    )


def test_constant_16_bit_is_black():
    assert not _pixels(to_stored(_bytes(Image.fromarray(np.full((4, 4), 900, np.uint16))))).any()


def test_not_finite_is_unreadable():
    floats = np.array([[0.0, np.nan]], np.float32)
    with pytest.raises(UnreadableImageError, match="finite"):
        to_stored(_bytes(Image.fromarray(floats), "TIFF"))


def test_alpha_is_laid_over_black():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = 200
    rgba[0, :, 3] = [255, 0, 128]
    stored = to_stored(_bytes(Image.fromarray(rgba)))
    np.testing.assert_array_equal(_pixels(stored)[0, :, 0], [200, 0, 100])
    assert "alpha" in stored.note


def test_opaque_alpha_changes_no_pixel():
    rgba = Image.fromarray(GREY).convert("RGBA")
    stored = to_stored(_bytes(rgba))
    np.testing.assert_array_equal(_pixels(stored)[..., 0], GREY)
    assert "opaque" in stored.note


def test_palette_grey_alpha_and_one_bit():
    palette = Image.fromarray(GREY).convert("P")
    np.testing.assert_array_equal(_pixels(to_stored(_bytes(palette)))[..., 1], GREY)
    grey_alpha = Image.fromarray(GREY).convert("LA")
    np.testing.assert_array_equal(_pixels(to_stored(_bytes(grey_alpha)))[..., 2], GREY)
    one_bit = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(_pixels(to_stored(_bytes(one_bit))), [[0, 255]])


def test_transparent_palette_colour_is_black():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 250, 250, 250])
    image.putpixel((1, 0), 1)
    stored = to_stored(_bytes(image, transparency=1))
    np.testing.assert_array_equal(_pixels(stored)[0, :, 0], [10, 0])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_become_png(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = to_stored(_bytes(Image.fromarray(GREY).convert("RGB"), kind, **options))
    np.testing.assert_array_equal(_pixels(stored)[..., 0], GREY)
    assert stored.encoded.startswith(b"\x89PNG") and "PNG" in stored.note


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored left to right
    stored = to_stored(_bytes(Image.fromarray(GREY), "PNG", exif=exif))
    np.testing.assert_array_equal(_pixels(stored), GREY[:, ::-1])
    assert "orientation" in stored.note


def test_cmyk_jpeg_becomes_rgb():
    stored = to_stored(_bytes(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert _pixels(stored).min() > 250


def _png_16_bit_rgb():
    def chunk(kind, body):
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    pixels = b"\0" + struct.pack(">6H", *[0, 2000, 4095] * 2)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def test_16_bit_colour_is_refused_not_darkened():
    raw = _png_16_bit_rgb()
    with Image.open(io.BytesIO(raw)) as image:
        assert np.asarray(image).max() < 20  # what would have been stored without a word
    with pytest.raises(UnreadableImageError, match="16 bits"):
        to_stored(raw)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_files(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    raw = _bytes(Image.fromarray(noise), kind)
    for broken in (raw[: len(raw) // 2], raw[:10], b"", b"no image at all", raw[:40] + b"\0" * 9):
        with pytest.raises(UnreadableImageError):
            to_stored(broken)
