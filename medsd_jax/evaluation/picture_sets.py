"""A set of pictures to evaluate: a folder, or a table of paths.

Files that are not readable are named and counted, never replaced: a black picture in their place
would move every distance.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
PATH_COLUMNS = ("path", "Path", "file", "file_name", "img_savename", "synthetic_filename")
"""Columns that may hold the path, in this order: ours, RoentGen's and CheXGenBench's."""
SAMPLES_FILE = "samples.jsonl"
_NAMES_TOLD = 5


@dataclass(frozen=True)
class PictureSet:
    """Files in a fixed order, each of which has been opened once.

    Attributes:
        name: what the user called it.
        paths: of the readable pictures.
        prompts: [n], what each was sampled from, where sample.py wrote the folder; else empty.
        unreadable: names of the files that were left out.
        fingerprint: 16 hex digits of the files' bytes in their order.
    """

    name: str
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]
    unreadable: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Pictures [H, W] or [H, W, 3] uint8, at most `size` at once."""
        for start in range(0, len(self.paths), size):
            yield [read_picture(path) for path in self.paths[start : start + size]]


def open_pictures(where: Path) -> PictureSet:
    """Finds the pictures of a folder and the folders below it, or of a .csv of paths.

    Of a folder that sample.py wrote, those that its samples.jsonl names: the grid is no sample.

    Args:
        where: the folder; or a table with one of `PATH_COLUMNS`, whose relative paths start at the
            table's folder.

    Raises:
        UserError: there is nothing of that name, or no readable picture in it.
    """
    prompts: list[str] = []
    if (where / SAMPLES_FILE).is_file():
        paths, prompts = _samples(where)
    elif where.is_dir():
        paths = sorted(p for p in where.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{where} holds no picture (looked for {', '.join(SUFFIXES)})")
    elif where.suffix.lower() == ".csv" and where.is_file():
        paths = _paths_of_table(where)
    else:
        raise UserError(f"{where} does not exist; give a folder of pictures or a .csv of paths")
    readable, unreadable, digest = [], [], hashlib.blake2b(digest_size=8)
    for number, path in enumerate(paths):
        try:
            content = path.read_bytes()
            read_picture(path)
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            _log.warning("left out %s: %s", path, error)
            unreadable.append(str(path))
            continue
        readable.append(number)
        digest.update(hashlib.blake2b(content, digest_size=16).digest())
    if not readable:
        raise UserError(f"none of the {len(paths)} pictures of {where} can be read")
    if unreadable:
        more = ", ..." if len(unreadable) > _NAMES_TOLD else ""
        told = ", ".join(unreadable[:_NAMES_TOLD])
        _log.warning("%d of %d pictures left out: %s%s", len(unreadable), len(paths), told, more)
    return PictureSet(
        name=str(where),
        paths=tuple(paths[i] for i in readable),
        prompts=tuple(prompts[i] for i in readable) if prompts else (),
        unreadable=tuple(unreadable),
        fingerprint=digest.hexdigest(),
    )


def read_picture(path: Path) -> np.ndarray:
    """An 8-bit picture: [H, W] uint8 where it is stored grey, else [H, W, 3] uint8."""
    with Image.open(path) as image:
        if image.mode in ("I;16", "I", "F"):
            raise OSError(f"{image.mode} pixels have no known window; convert it to 8 bits")
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _samples(folder: Path) -> tuple[list[Path], list[str]]:
    """Pictures and prompts of a folder that sample.py wrote, from its samples.jsonl."""
    paths, prompts = [], []
    lines = (folder / SAMPLES_FILE).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            paths.append(folder / sample["file"])
            prompts.append(str(sample["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / SAMPLES_FILE} line {number} is not as sample.py writes it "
                f"({error!r}); sample anew, or give the pictures as a .csv of paths"
            ) from error
    if not paths:
        raise UserError(f"{folder / SAMPLES_FILE} names no picture")
    return paths, prompts


def _paths_of_table(table: Path) -> list[Path]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        column = next((c for c in PATH_COLUMNS if c in (reader.fieldnames or ())), None)
        if column is None:
            listed = ", ".join(PATH_COLUMNS)
            raise UserError(f"{table} has no column of paths (one of {listed})")
        paths = [table.parent / row[column] for row in reader if row[column]]
    if not paths:
        raise UserError(f"{table} names no picture in its column {column}")
    return paths
