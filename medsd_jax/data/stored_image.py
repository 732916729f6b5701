"""Bring any image file to the one stored form: an upright PNG or JPEG with 8-bit grey or RGB.

Training data, evaluation sets, images to edit and masks are all read here, so that one file means
the same pixels everywhere. Files that already have this form are stored byte for byte. Everything
else is decided here, once, and told: which is why reading a prepared record needs no case
distinction.

    16-bit and float grey     scaled by the image's own minimum and maximum to 0..255
    16-bit colour             refused: Pillow would keep the high byte without a word
    palette, 1 bit, CMYK      converted to RGB (1 bit: to grey)
    alpha channel             laid over black, the colour that pads images to a square
    EXIF orientation          applied: left and right matter
    other file formats        (BMP, TIFF, WebP, ...) re-encoded as PNG; the first page of several
"""

import dataclasses
import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_EXIF_ORIENTATION = 0x0112
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = 0
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_JPEG_2000_SIZES = b"\xff\x51"  # the marker that the number of bits stands behind
_OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


class UnreadableImageError(Exception):
    """The bytes are no image that can be used; the message says why, in a few words."""


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image in the stored form.

    Attributes:
        encoded: PNG or JPEG bytes, 8 bits a channel, grey or RGB.
        height, width: in pixels.
        note: what was changed to get there; "" when the bytes are the file's own.
    """

    encoded: bytes
    height: int
    width: int
    note: str = ""


def to_stored(raw: bytes) -> StoredImage:
    """Check an image by decoding it, and convert it where needed.

    Args:
        raw: an image file's bytes.

    Returns:
        The image and a note on what was done to it.

    Raises:
        UnreadableImageError: truncated, broken or of a kind that cannot be read faithfully.
    """
    converted, note, file_format = _load(raw)
    if not note and file_format in ("PNG", "JPEG"):
        return StoredImage(raw, converted.height, converted.width)
    buffer = io.BytesIO()
    converted.save(buffer, format="PNG", compress_level=3)
    return StoredImage(
        buffer.getvalue(), converted.height, converted.width, note or f"{file_format} to PNG"
    )


def read_pixels(raw: bytes) -> tuple[np.ndarray, str]:
    """Decode an image file, without the way over its stored form; the pixels are the same.

    Args:
        raw: an image file's bytes.

    Returns:
        [H, W] uint8 where it is grey, else [H, W, 3] uint8; and a note on what was done to it.

    Raises:
        UnreadableImageError: truncated, broken or of a kind that cannot be read faithfully.
    """
    converted, note, _ = _load(raw)
    return np.asarray(converted), note


def _load(raw: bytes) -> tuple[Image.Image, str, str]:
    """The upright 8-bit image, what was done to it, and the file's format."""
    if not raw:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(io.BytesIO(raw)) as image:
            _refuse_deep_colour(raw, image)
            pages = getattr(image, "n_frames", 1)  # to count them ends what is loaded
            image.load()
            converted, note = _to_8_bit(image)
            if pages > 1:
                note = "; ".join(part for part in (f"first of {pages} pages", note) if part)
            return converted, note, str(image.format)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("no image, or of a kind that Pillow does not know") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError("more pixels than Pillow's safety limit") from error
    except Exception as error:  # Pillow's parsers let pass whatever a damaged file leads them into
        message = " ".join(_OBJECT.sub("", str(error)).split())
        raise UnreadableImageError(f"damaged ({message or type(error).__name__})") from error


def _refuse_deep_colour(raw: bytes, image: Image.Image) -> None:
    # Pillow keeps the high byte of 16-bit colour without a word: a 12-bit image in such a file
    # would come out nearly black.
    depth = 8
    if image.format == "PNG" and raw.startswith(_PNG_SIGNATURE):
        depth = raw[24] if raw[25] != _PNG_GREY else 8
    elif image.format == "TIFF" and image.mode not in _DEEP_MODES:
        depth = max(image.tag_v2.get(_TIFF_BITS, (8,)))
    elif image.format == "JPEG2000" and image.mode not in _DEEP_MODES:
        depth = (raw[raw.index(_JPEG_2000_SIZES) + 40] & 0x7F) + 1
    if depth > 8:
        raise UnreadableImageError(
            f"{depth} bits a channel in colour or with alpha; save it as grey"
        )


def _to_8_bit(image: Image.Image) -> tuple[Image.Image, str]:
    """Return the image in mode L or RGB, upright, and a note ("" when nothing changed)."""
    notes = []
    tags = getattr(image, "tag_v2", {})  # what is turned has them no more
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("EXIF orientation applied")
    if image.mode in _DEEP_MODES:
        # Pillow turns white-is-zero round for 8 bits only.
        negative = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
        image = _scale_by_range(image)
        notes.append("more than 8 bits scaled by the image's range")
        if negative:
            image = ImageOps.invert(image)
            notes.append("white-is-zero turned round")
    elif image.mode == "1":
        image = image.convert("L")
        notes.append("1 bit to grey")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opaque = rgba.getextrema()[3] == (255, 255)
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba).convert("RGB")
        notes.append("opaque alpha channel dropped" if opaque else "alpha laid over black")
    elif image.mode not in ("L", "RGB"):
        notes.append(f"{image.mode} to RGB")
        image = image.convert("RGB")
    return image, "; ".join(notes)


def _scale_by_range(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImageError("holds values that are not finite")
    low, high = values.min(), values.max()
    # A constant image has no range; it becomes black.
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.round(scaled).astype(np.uint8))
