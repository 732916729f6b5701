"""Whether a checkpoint's files are those that were written: a size and a CRC-32 of each.

The format stores the numbers themselves without a checksum: a flipped bit would be trained on.
"""

import json
import zlib
from pathlib import Path

CHECKSUMS = "checksums.json"
_CHUNK = 2**24
_CHANGED_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Orbax writes these when the folder is complete; nothing is read from them."""


def write_checksums(folder: Path) -> None:
    """Writes checksums.json for all other files below the folder."""
    sums = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (CHECKSUMS, *_CHANGED_LATER)
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=0), encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None where nothing is.

    Of a checkpoint without checksums.json, which an earlier version wrote, only what the other
    files hang on is looked at.

    Args:
        folder: of one step.
    """
    if not (folder / CHECKSUMS).is_file():
        for name in ("run/metadata", "state/_METADATA"):
            if why := _no_json(folder, name):
                return why
        return None
    if why := _no_json(folder, CHECKSUMS):
        return why
    try:
        sums = dict(json.loads((folder / CHECKSUMS).read_bytes()))
        for name, (size, crc) in sums.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if _crc(path) != crc:
                return f"{name} has changed since it was written"
    except (ValueError, TypeError):
        return f"{CHECKSUMS} is no table of files"
    return None


def _no_json(folder: Path, name: str) -> str | None:
    try:
        json.loads((folder / name).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except (ValueError, RecursionError):
        return f"{name} is no JSON"
    return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
