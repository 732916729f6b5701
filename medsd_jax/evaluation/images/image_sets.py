"""A set of images to evaluate, with what is known of each: caption, patient, labels.

    FOLDER                  all images in it and below it
    FOLDER                  with metadata.csv, metadata.jsonl or samples.jsonl (sample.py's): those
                            that the table names
    TABLE.csv               a path in each row, relative to the table's folder; .tsv, .csv.gz or
                            .jsonl as well
    FOLDER:train            a prepared data set (ArrayRecord), as `medsd-jax data` makes
    FOLDER:validation       it; FOLDER is the set itself or holds one
    an array                [n, H, W, 3] or [n, H, W] uint8, as `medsd_jax.sample` returns

Images are read as training data is (data/stored_image.py): a set and its own prepared copy have
the same pixels. Those that are not readable are named and counted, never replaced: a black image
in their place would move every distance.
"""

import collections
import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medsd_jax.data.labels import evaluated_labels
from medsd_jax.data.patients import patient_of, warn_of_unknown
from medsd_jax.data.records import SPLITS
from medsd_jax.data.sources.image_files import IMAGE_SUFFIXES, list_images
from medsd_jax.data.stored_image import UnreadableImageError, read_pixels, to_stored
from medsd_jax.data.transforms import resize
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.tables import SAMPLES_FILE, Labels, Row, find_table, read_table
from medsd_jax.evaluation.reports.base import ImageSetSummary

_log = logging.getLogger(__name__)

_NAMES_LISTED = 5
_REASONS_LISTED = 20


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, each of which has been opened once.

    Attributes:
        name: what the user called it.
        keys: [n] of the readable images: path of the file, or key of the record.
        texts: [n] prompt or caption; "" where none is known.
        ids: [n] what its table calls it; "" where it does not. Images of one prompt share it.
        patient_ids: [n]; the image's own key where no patient is known.
        labels: [n] label -> value, as image_tables.py reads them; empty where none are known.
        unreadable: names of the images that were left out.
        fingerprint: 16 hex digits of the images' bytes in their order, and of how they are read.
        read_file: position -> the file's bytes.
    """

    name: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: tuple[Labels, ...]
    unreadable: tuple[str, ...]
    fingerprint: str
    read_file: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def summary(self) -> ImageSetSummary:
        """The report's entry."""
        return ImageSetSummary(
            where=self.name,
            num_images=len(self),
            num_patients=len(set(self.patient_ids)),
            unreadable=self.unreadable,
            fingerprint=self.fingerprint,
        )

    def read(self, index: int) -> np.ndarray:
        """One image: [H, W] uint8 where it is stored grey, else [H, W, 3] uint8."""
        return read_pixels(self.read_file(index))[0]

    def read_bytes(self, index: int) -> bytes:
        """One image in the stored form: PNG or JPEG."""
        return to_stored(self.read_file(index)).encoded

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Images [H, W] or [H, W, 3] uint8, at most `size` at once."""
        for start in range(0, len(self), size):
            yield [self.read(i) for i in range(start, min(start + size, len(self)))]


def open_images(where: Path | str | np.ndarray, *, patients: bool = True) -> ImageSet:
    """Finds the images; see the module for what `where` may be.

    Args:
        where: a folder, a table, a split of a prepared data set, or an array.
        patients: warn of images whose patient is not known; generated ones have none.

    Raises:
        UserError: there is nothing of that name, no readable image in it, or a damaged table.
    """
    if not isinstance(where, str | Path):
        return _of_array(np.asarray(where))
    folder, colon, split = str(where).rpartition(":")
    if colon and split in SPLITS and not Path(where).exists():
        result = _of_records(str(where), Path(folder), split)
        if patients:
            _warn_of_patients(result)
        return result
    path = Path(where)
    table = find_table(path)
    if table is not None:
        rows = read_table(table)
    elif path.is_dir():
        listed = list_images(path)
        listed.warn_of_others(path)
        result = sorted(listed.images.values())
        rows = [Row(file, patient_id=patient_of("", str(file))) for file in result]
        if not rows:
            raise UserError(f"{path} holds no image (looked for {', '.join(IMAGE_SUFFIXES)})")
    else:
        what = "is no folder and no table" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {what}; give a folder of images, a .csv of paths, or FOLDER:train "
            "or FOLDER:validation of a prepared data set"
        )
    result = _checked(
        str(where), [str(row.path) for row in rows], rows, lambda i: rows[i].path.read_bytes()
    )
    if patients and (table is None or table.name != SAMPLES_FILE):
        _warn_of_patients(result)
    return result


def _warn_of_patients(result: ImageSet) -> None:
    known = zip(result.patient_ids, result.keys, strict=True)
    warn_of_unknown(result.name, ["" if patient == key else patient for patient, key in known])


def resize_to_square(images: Sequence[np.ndarray], size: int, mode: str = "pad") -> np.ndarray:
    """Images [H, W] or [H, W, 3] uint8 of any sizes -> [B, size, size, 3] uint8.

    Grey is repeated; `mode` says how they become square, see data/transforms.py.
    """
    rgb = [np.stack([p] * 3, axis=-1) if p.ndim == 2 else p for p in images]
    return np.stack([resize(p, size, mode) for p in rgb])


def _of_records(name: str, folder: Path, split: str) -> ImageSet:
    sets = [p.parent for p in (folder / "info.json", *sorted(folder.glob("*/info.json")))]
    sets = [p for p in sets if (p / f"{split}.jsonl").is_file()]
    if len(sets) != 1:
        result = "several: " + ", ".join(map(str, sets)) if sets else "none"
        raise UserError(
            f"{name}: {folder} must hold one prepared data set with images to {split}, not {result}"
        )
    from medsd_jax.data.tfds_builder import RecordSplit  # TensorFlow Datasets is slow to import

    records = RecordSplit(sets[0], split, sets[0].name)
    columns = zip(
        records.keys,
        records.texts,
        records.patient_ids,
        evaluated_labels(records.labels),
        strict=True,
    )
    rows = [Row(Path(key), text, key, patient, labels) for key, text, patient, labels in columns]
    return _checked(name, records.keys, rows, lambda i: records[i].read_bytes())


def _of_array(images: np.ndarray) -> ImageSet:
    """Images without texts, patients and labels."""
    is_grey = images.ndim == 3
    if images.dtype != np.uint8 or not (is_grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise UserError(
            f"images are {images.dtype} {list(images.shape)}; give uint8 [n, H, W, 3] or [n, H, W]"
        )
    if not len(images):
        raise UserError("the array holds no image")

    def encoded(index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(images[index]).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    keys = [f"image {number:06d}" for number in range(len(images))]
    return _checked(f"array of {len(images)} images", keys, [Row(Path(k)) for k in keys], encoded)


def _checked(
    name: str, keys: Sequence[str], rows: Sequence[Row], read_file: Callable[[int], bytes]
) -> ImageSet:
    """Opens every image once and leaves out the unreadable ones."""
    readable, unreadable, digest = [], [], hashlib.blake2b(digest_size=8)
    notes: collections.Counter[str] = collections.Counter()
    for number, key in enumerate(keys):
        try:
            content = read_file(number)
            note = read_pixels(content)[1]
        except (OSError, UnreadableImageError) as error:
            unreadable.append(key)
            if len(unreadable) <= _REASONS_LISTED:
                _log.warning("left out %s: %s", key, getattr(error, "strerror", None) or error)
            continue
        readable.append(number)
        notes.update([note] if note else [])
        digest.update(hashlib.blake2b(content, digest_size=16).digest() + note.encode())
    if not readable:
        raise UserError(f"none of the {len(keys)} images of {name} can be read")
    if unreadable:
        more = ", ..." if len(unreadable) > _NAMES_LISTED else ""
        listed = ", ".join(unreadable[:_NAMES_LISTED])
        _log.warning("%d of %d images left out: %s%s", len(unreadable), len(keys), listed, more)
    for note, count in sorted(notes.items()):
        _log.warning("%s: %d of %d images converted: %s", name, count, len(keys), note)
    return ImageSet(
        name=name,
        keys=tuple(keys[i] for i in readable),
        texts=tuple(rows[i].text for i in readable),
        ids=tuple(rows[i].id for i in readable),
        patient_ids=tuple(rows[i].patient_id or keys[i] for i in readable),
        labels=tuple(rows[i].labels for i in readable),
        unreadable=tuple(unreadable),
        fingerprint=digest.hexdigest(),
        read_file=lambda i: read_file(readable[i]),
    )
