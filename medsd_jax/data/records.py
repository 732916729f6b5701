"""The one shape every data source speaks: an image, its text, its patient, its labels."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

LabelValue = str | int | float

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with everything that is known about it.

    Attributes:
        key: unique within its source; part of messages, so it should be readable (a file name).
        image: encoded PNG or JPEG bytes, the path of an image file, or a function that returns the
            encoded bytes (images that are drawn when they are asked for).
        text: the caption, one line.
        patient_id: images with the same id never sit in different splits.
        labels: label name -> value. Yes/no findings are the ints 1 and 0.
        split: "train" or "validation" where the source decides it, None to split by patient hash.
    """

    key: str
    image: bytes | Path | Callable[[], bytes]
    text: str
    patient_id: str
    labels: Mapping[str, LabelValue] = dataclasses.field(default_factory=dict)
    split: str | None = None

    def read_bytes(self) -> bytes:
        """Return the encoded image; an OSError of the file system passes through."""
        if isinstance(self.image, bytes):
            return self.image
        return self.image.read_bytes() if isinstance(self.image, Path) else self.image()


class Split(Protocol):
    """Records by position, with what is known of all of them at hand; keys are as of `Record`.

    `fingerprint` names the content for caches: equal only for untouched files. `identity` names the
    records, for what goes on with them: equal wherever and whenever their files were copied.
    """

    name: str
    fingerprint: str
    identity: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: tuple[dict[str, LabelValue], ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def identity_of(*columns: Sequence[Any]) -> str:
    """16 hex digits that name records by what is known of each: keys, sizes, texts."""
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class SourceRecords:
    """What a source found.

    Attributes:
        records: in a fixed order.
        problems: reason -> names of the entries left out for it (files absent, no text, ...).
    """

    records: tuple[Record, ...]
    problems: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
