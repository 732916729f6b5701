"""What others make of a whole file: bytes, JSON values and texts, changed at random.

Every draw comes from one seeded generator, so that a number names an input for ever.
"""

import io
import json
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

VALUES = (
    0, 1, -1, 2, 7, 64, 255, 65536, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0,
    float("nan"), float("inf"), 1e308, "", "a", " ", "../../x", "/etc/passwd", "\0", "\ud800", "é",
    "=1+1", None, True, False, [], {}, [[]], {"a": 1}, [1, 2], "9" * 400, 10**400,
)  # fmt: skip
PIECES = (
    b"\0", b"\xff", b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"{", b"}", b"[", b"]", b":",
    b"\\", b"../", b"NaN", b"null", b"-1", b"1e999", b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 30,
    b"9" * 5000, b"[" * 3000, b"(" * 300, b"-" * 3000, b"\\u0000", b"\\ud800", b"\x1f\x8b",
    b"\xc2\xb2", b"\xe2\x80\xa8", b"file_name", b"text", b"prompt", b"=1+1",
)  # fmt: skip


class Mutator:
    """A random source of changes."""

    def __init__(self, seed: str):
        self.rng = random.Random(seed)

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return self.rng.random() < share

    def bytes(self, content: bytes, most: int = 6) -> bytes:
        """Flips, cuts, repeats and insertions, 1 to `most` of them."""
        rng, x = self.rng, bytearray(content)
        for _ in range(rng.randint(1, most)):
            # Headers stand at the start: half of the places are near it.
            at = rng.randrange(len(x) + 1)
            if self.chance(0.5):
                at = min(int(rng.expovariate(0.05)), len(x))
            match rng.randrange(8):
                case 0 | 1 if at < len(x):
                    x[at] = rng.randrange(256)
                case 2 if at < len(x):
                    x[at] ^= 1 << rng.randrange(8)
                case 3:
                    x[at:at] = rng.choice(PIECES)
                case 4:
                    del x[at : at + rng.randint(1, 40)]
                case 5:
                    start = rng.randrange(len(x) + 1)
                    x[at:at] = x[start : start + rng.randint(1, 60)]
                case 6 if self.chance(0.5):
                    del x[at:]
                case 7 if len(x) >= 8:
                    at = min(at, len(x) - 8)
                    number = rng.choice((0, 1, -1, 2**31, 2**62, 2**63 - 1, len(x), len(x) - 8))
                    x[at : at + 8] = struct.pack("<q", number)
        return bytes(x)

    def value(self, value: Any, times: int = 1) -> Any:
        """A JSON value with one place changed, or `times` places."""
        for _ in range(times):
            value = self._changed(value)
        return value

    def _changed(self, value: Any) -> Any:
        rng = self.rng
        if isinstance(value, dict) and value and self.chance(0.9):
            key, value = rng.choice(list(value)), dict(value)
            match rng.randrange(10):
                case 0:
                    del value[key]
                case 1:
                    names = ("x", "", " ", "__class__", "a.b", f"{key}_", key.upper())
                    value[rng.choice(names)] = rng.choice(VALUES)
                case _:
                    value[key] = self._changed(value[key])
            return value
        if isinstance(value, list) and value and self.chance(0.8):
            at, value = rng.randrange(len(value)), list(value)
            if self.chance(0.2):
                del value[at]
            else:
                value[at] = self._changed(value[at])
            return value
        if type(value) in (int, float) and self.chance(0.3):
            return rng.choice((value + 1, value - 1, value * 8, -value))
        return rng.choice(VALUES)

    def json(self, value: Any, times: int = 1) -> bytes:
        """The text of a JSON value: changed as a value, or as bytes."""
        if self.chance(0.25):
            return self.bytes(dumped(value))
        return dumped(self.value(value, times), ascii=self.chance(0.5))

    def lines(self, rows: list[Any]) -> bytes:
        """JSON lines, some of which are changed."""
        if self.chance(0.3):
            return self.bytes(b"".join(dumped(row) + b"\n" for row in rows))
        return b"".join(
            dumped(self.value(row) if self.chance(0.5) else row) + b"\n" for row in rows
        )

    def table(self, rows: list[list[str]]) -> bytes:
        """A CSV: cells, rows and names changed, or its bytes."""
        if self.chance(0.4):
            return self.bytes(_csv(rows))
        rows = [list(row) for row in rows]
        for _ in range(self.rng.randint(1, 3)):
            row = self.rng.choice(rows)
            match self.rng.randrange(6):
                case 0:
                    rows.append(list(row))
                case 1 if row:
                    row.pop(self.rng.randrange(len(row)))
                case 2:
                    row.append("x")
                case _ if row:
                    at = self.rng.randrange(len(row))
                    row[at] = str(self.rng.choice(VALUES))
        return _csv(rows)

    def image(self, encoded: bytes) -> bytes:
        """An image file; most PNGs get right checksums, so that changes come through."""
        changed = self.bytes(encoded, 4)
        if changed.startswith(b"\x89PNG") and self.chance(0.8):
            return _with_checksums(changed)
        return changed


def dumped(value: Any, ascii: bool = True) -> bytes:
    """JSON text, lone surrogates and NaN included."""
    return json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")


def packed(header: Any, body: bytes) -> bytes:
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else dumped(header)
    return struct.pack("<Q", len(text)) + text + body


def encoded(mode: str = "L", kind: str = "PNG", **options: Any) -> bytes:
    """An image of 16 x 12 pixels in a mode and a file format of Pillow's."""
    ramp = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)
    if mode == "I;16":
        image = Image.fromarray(ramp * 300)
    else:
        image = Image.fromarray((ramp % 256).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _csv(rows: list[list[str]]) -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text

    text = "".join(",".join(map(cell, row)) + "\n" for row in rows)
    return text.encode("utf-8", "surrogatepass")


def _with_checksums(png: bytes) -> bytes:
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if size > len(png) - at - 12:
            break
        chunk = png[at + 4 : at + 8 + size]
        out += png[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + size
    return bytes(out) + png[at:]
