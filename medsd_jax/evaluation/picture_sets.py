"""A set of pictures to evaluate, with what is known of each: caption, patient, labels.

    FOLDER                  all pictures in it and below it
    FOLDER                  with metadata.csv, metadata.jsonl or samples.jsonl (sample.py's): those
                            that the table names
    TABLE.csv               a path in each row, relative to the table's folder
    FOLDER:train            a prepared data set (ArrayRecord), as `python -m medsd_jax data` makes
    FOLDER:validation       it; FOLDER is the set itself or holds one

Pictures that are not readable are named and counted, never replaced: a black picture in their place
would move every distance.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medsd_jax.data.records import SPLITS
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.data.transforms import resize
from medsd_jax.errors import UserError
from medsd_jax.evaluation.picture_tables import Labels, Row, find_table, read_table

_log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
_NAMES_TOLD = 5


@dataclass(frozen=True)
class PictureSet:
    """Pictures in a fixed order, each of which has been opened once.

    Attributes:
        name: what the user called it.
        keys: [n] of the readable pictures: path of the file, or key of the record.
        texts: [n] prompt or caption; "" where none is known.
        ids: [n] what its table calls it; "" where it does not. Pictures of one prompt share it.
        patient_ids: [n]; the picture's own key where no patient is known.
        labels: [n] label -> value, as picture_tables.py reads them; empty where none are known.
        unreadable: names of the pictures that were left out.
        fingerprint: 16 hex digits of the pictures' bytes in their order.
        read_bytes: position -> the encoded picture.
    """

    name: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: tuple[Labels, ...]
    unreadable: tuple[str, ...]
    fingerprint: str
    read_bytes: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> np.ndarray:
        """One picture: [H, W] uint8 where it is stored grey, else [H, W, 3] uint8."""
        return decode(self.read_bytes(index))

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Pictures [H, W] or [H, W, 3] uint8, at most `size` at once."""
        for start in range(0, len(self), size):
            yield [self.read(i) for i in range(start, min(start + size, len(self)))]


def open_pictures(where: Path | str) -> PictureSet:
    """Finds the pictures; see the module for what `where` may be.

    Raises:
        UserError: there is nothing of that name, no readable picture in it, or a damaged table.
    """
    folder, colon, split = str(where).rpartition(":")
    if colon and split in SPLITS and not Path(where).exists():
        return _of_records(str(where), Path(folder), split)
    path = Path(where)
    table = find_table(path)
    if table is not None:
        rows = read_table(table)
    elif path.is_dir():
        rows = [Row(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not rows:
            raise UserError(f"{path} holds no picture (looked for {', '.join(SUFFIXES)})")
    else:
        raise UserError(
            f"{path} does not exist; give a folder of pictures, a .csv of paths, or FOLDER:train "
            "or FOLDER:validation of a prepared data set"
        )
    return _checked(
        str(where), [str(row.path) for row in rows], rows, lambda i: rows[i].path.read_bytes()
    )


def decode(content: bytes) -> np.ndarray:
    """An encoded 8-bit picture: [H, W] uint8 where it is stored grey, else [H, W, 3] uint8.

    Raises:
        OSError: it is damaged, or not of 8 bits.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in ("I;16", "I;16B", "I", "F"):
                raise OSError(f"{image.mode} pixels have no known window; convert it to 8 bits")
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (UnidentifiedImageError, SyntaxError) as error:
        raise OSError("it is no picture, or a damaged one") from error


def squared(pictures: Sequence[np.ndarray], side: int, mode: str = "pad") -> np.ndarray:
    """Pictures [H, W] or [H, W, 3] uint8 of any sizes -> [B, side, side, 3] uint8.

    Grey is repeated; `mode` says how they become square, see data/transforms.py.
    """
    rgb = [np.stack([p] * 3, axis=-1) if p.ndim == 2 else p for p in pictures]
    return np.stack([resize(p, side, mode) for p in rgb])


def _of_records(name: str, folder: Path, split: str) -> PictureSet:
    sets = [p.parent for p in (folder / "info.json", *sorted(folder.glob("*/info.json")))]
    sets = [p for p in sets if (p / f"{split}.jsonl").is_file()]
    if len(sets) != 1:
        found = "several: " + ", ".join(map(str, sets)) if sets else "none"
        raise UserError(
            f"{name}: {folder} must hold one prepared data set with pictures to {split}, not "
            f"{found}"
        )
    records = RecordSplit(sets[0], split, sets[0].name)
    columns = zip(records.keys, records.texts, records.patient_ids, records.labels, strict=True)
    rows = [Row(Path(key), text, key, patient, labels) for key, text, patient, labels in columns]
    return _checked(name, records.keys, rows, lambda i: records[i].read_bytes())


def _checked(
    name: str, keys: Sequence[str], rows: Sequence[Row], read_bytes: Callable[[int], bytes]
) -> PictureSet:
    """Opens every picture once and leaves out the unreadable ones."""
    readable, unreadable, digest = [], [], hashlib.blake2b(digest_size=8)
    for number, key in enumerate(keys):
        try:
            content = read_bytes(number)
            decode(content)
        except OSError as error:
            _log.warning("left out %s: %s", key, error)
            unreadable.append(key)
            continue
        readable.append(number)
        digest.update(hashlib.blake2b(content, digest_size=16).digest())
    if not readable:
        raise UserError(f"none of the {len(keys)} pictures of {name} can be read")
    if unreadable:
        more = ", ..." if len(unreadable) > _NAMES_TOLD else ""
        told = ", ".join(unreadable[:_NAMES_TOLD])
        _log.warning("%d of %d pictures left out: %s%s", len(unreadable), len(keys), told, more)
    return PictureSet(
        name=name,
        keys=tuple(keys[i] for i in readable),
        texts=tuple(rows[i].text for i in readable),
        ids=tuple(rows[i].id for i in readable),
        patient_ids=tuple(rows[i].patient_id or keys[i] for i in readable),
        labels=tuple(rows[i].labels for i in readable),
        unreadable=tuple(unreadable),
        fingerprint=digest.hexdigest(),
        read_bytes=lambda i: read_bytes(readable[i]),
    )
