"""What all report pages share: templates that need no other file, and how numbers are written."""

import base64
import io
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image


def page_template(name: str) -> Template:
    """A template of templates/ with the filters png, uri, count, loss, percent, duration, place."""
    environment = Environment(
        loader=PackageLoader("medsd_jax.reports"),
        autoescape=True,  # prompts, captions and file names are text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "png": png_uri,
        "uri": data_uri,
        "count": lambda n: f"{n:,}",
        "loss": lambda x: f"{x:#.3g}".rstrip("."),
        "percent": lambda x: f"{100 * x:.1f} %",
        "duration": _duration,
        "place": place,
    }
    return environment.get_template(name)


def place(where: str) -> str:
    """How a page calls what stands at PATH or KIND=PATH: of an absolute path its last two parts.

    A page is handed on: nobody else has this machine's folders, or shall know the user's name.
    """
    kind, equals, path = where.rpartition("=")
    windows = PureWindowsPath(path)
    pure = windows if windows.drive else PurePosixPath(path)
    if not pure.is_absolute():
        return where
    parts = pure.parts[1:]
    if len(parts) > 2 and parts[0].lower() in ("home", "users"):
        parts = parts[2:]
    return kind + equals + "/".join(parts[-2:])


def png_uri(image_u8: np.ndarray) -> str:
    """An image [H, W, 3] uint8 as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image_u8).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """File content of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
