"""Files that are whole or not there, and a hash of what was in them."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames that file to `path` at the end.

    A killed run leaves what was at `path` before, and perhaps a hidden part of its own name; after
    an exception the part is removed. Several processes may write the same file: the last one's
    stays.

    Args:
        path: the file to make or to replace; its folder exists.
    """
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def content_hash(*arrays: np.ndarray | None) -> str:
    """16 hex digits that tell whether arrays, which may be missing, are the same as before."""
    digest = hashlib.blake2b(digest_size=8)
    for x in arrays:
        told = None if x is None else (x.shape, x.dtype.str)
        digest.update(repr(told).encode() + (b"" if x is None else x.tobytes()))
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys as a `whole_file`."""
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
