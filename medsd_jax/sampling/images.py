"""Images at the edge of the program: PNG files that say how they were made, and grids."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from medsd_jax.errors import UserError
from medsd_jax.files import parse_object

_KEYWORD = "medsd_jax"
"""The PNG text chunk that holds all metadata as one JSON object: it brings the types back."""


def save_png(
    image_u8: UInt8[np.ndarray, "H W 3"], path: str | Path, metadata: Mapping[str, Any]
) -> None:
    """Write one image with its origin in the file's text chunks.

    Each entry becomes a chunk of its own for other programs (text as it is, the rest as JSON); one
    more chunk holds all entries for ``read_metadata``.

    Args:
        image_u8: [H, W, 3] uint8.
        path: the file to write; its folder exists.
        metadata: name -> JSON value (numpy scalars pass), such as prompt, seed and settings. A name
            has 1 to 79 Latin-1 characters, which is PNG's own limit.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, value in metadata.items():
        assert 1 <= len(name) <= 79 and name != _KEYWORD, name
        text = value if isinstance(value, str) else _to_json(value)
        # A command line that is no UTF-8 arrives as lone surrogates, which no chunk can hold.
        chunks.add_itxt(name, text.encode("utf-8", "replace").decode("utf-8"))
    chunks.add_itxt(_KEYWORD, _to_json(dict(metadata)))
    Image.fromarray(image_u8).save(path, format="PNG", pnginfo=chunks)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what ``save_png`` stored.

    Args:
        path: a PNG written by ``save_png``.

    Returns:
        The metadata, with the types of JSON.

    Raises:
        UserError: the file is missing, no PNG, or not one of ours.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text chunks may stand behind the pixels
            text = image.info.get(_KEYWORD)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # Pillow's parsers let pass whatever a damaged file leads them into
        raise UserError(f"{path} is not a readable PNG file") from error
    if text is None:
        raise UserError(f"{path} was not written by medsd_jax: it has no {_KEYWORD!r} text chunk")
    return parse_object(text, f"{path}: the {_KEYWORD!r} text chunk", "copy the image again")


def make_grid(
    images_u8: UInt8[np.ndarray, "B H W 3"],
    columns: int | None = None,
    padding: int = 2,
    captions: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "GH GW 3"]:
    """Lay images out row by row on white.

    Args:
        images_u8: [B, H, W, 3] uint8, B at least 1.
        columns: images per row; the nearly square layout when None.
        padding: white pixels around each image.
        captions: one text an image, written under it in at most three lines of its width.

    Returns:
        [GH, GW, 3] uint8.
    """
    count, height, width, _ = images_u8.shape
    assert count > 0 and padding >= 0 and (captions is None or len(captions) == count)
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    font = ImageFont.load_default(size=max(9, min(16, height // 12)))
    lines = [_wrap(caption, font, width) for caption in captions or [""] * count]
    ascent, descent = font.getmetrics()
    line_height = ascent + descent
    cell_h = height + padding + line_height * max(len(wrapped) for wrapped in lines)
    cell_w = width + padding
    grid = Image.new("RGB", (columns * cell_w + padding, rows * cell_h + padding), "white")
    draw = ImageDraw.Draw(grid)
    for i, (image, wrapped) in enumerate(zip(images_u8, lines, strict=True)):
        x = padding + i % columns * cell_w
        y = padding + i // columns * cell_h
        grid.paste(Image.fromarray(image), (x, y))
        for n, line in enumerate(wrapped):
            draw.text((x, y + height + n * line_height), line, fill="black", font=font)
    return np.asarray(grid)


def _wrap(caption: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int = 3) -> list[str]:
    """Break a caption between words; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines[max_lines - 1] += "…"
    return [_cut(line, font, width) for line in lines[:max_lines]]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("…")
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _to_json(value: Any) -> str:
    # ASCII: lone surrogates survive as escapes. NaN is no JSON, so that it raises here, not later.
    return json.dumps(value, allow_nan=False, default=lambda scalar: scalar.item())
