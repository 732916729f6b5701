"""Write records into a TFDS data set of ArrayRecord files, and read them back.

TFDS only moves bytes here: images go in as encoded PNG or JPEG and come out the same, so neither
step needs TensorFlow. Beside the ArrayRecord files stands one JSON line a record with everything
but the image, in the same order: captions and labels are read without touching the images.

    FOLDER/records/1.0.0/    the TFDS data set (features key, image, text, patient_id, labels)
    FOLDER/train.jsonl       key, text, patient_id, labels, height, width
    FOLDER/validation.jsonl
"""

import collections
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from medsd_jax.data.records import SPLITS, LabelValue, Record, identity_of
from medsd_jax.data.sources.tables import read_json_lines
from medsd_jax.data.stored_image import UnreadableImageError, to_stored
from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)
_UNREADABLE = "unreadable image"
_VERSION = "1.0.0"
_AGAIN = "remove the folder of this prepared data set, and it is made again"


@dataclasses.dataclass
class WriteReport:
    """What happened to the records.

    Attributes:
        rows: split -> one dict a record, as in the JSON lines.
        unreadable: names of images that were left out because they cannot be read.
        conversions: what was changed on the way -> how many images.
    """

    rows: dict[str, list[dict]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    unreadable: list[str] = dataclasses.field(default_factory=list)
    conversions: collections.Counter = dataclasses.field(default_factory=collections.Counter)


# Registration would offer the class under `tfds.load`, which cannot give it its records.
with tfds.core.registered.skip_registration():

    class Records(tfds.core.GeneratorBasedBuilder):
        """A TFDS builder whose splits are given as iterators of examples."""

        VERSION = tfds.core.Version(_VERSION)
        # TFDS looks beside the class's file for checksums of downloads, by way of a package that it
        # does not require (importlib_resources, in 4.9.10). There are no downloads.
        code_path = None

        def __init__(self, examples: Mapping[str, Iterator[dict]], **kwargs):
            self._examples = examples
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Medical images with captions; see medsd_jax.",
                features=tfds.features.FeaturesDict(
                    {
                        "key": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(None, None, None), dtype=np.uint8),
                        "text": tfds.features.Text(),
                        "patient_id": tfds.features.Text(),
                        "labels": tfds.features.Text(doc="JSON object, label -> value"),
                    }
                ),
                # Keeps the order of the records, which the JSON lines rely on.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded
            return {split: self._generate_examples(split) for split in self._examples}

        def _generate_examples(self, split: str):
            for example in self._examples[split]:
                yield example["key"], example


def write_records(
    folder: Path, records: Sequence[Record], splits: Sequence[str], *, progress: bool = True
) -> WriteReport:
    """Check, convert and store records.

    Args:
        folder: an empty folder; see the module for what it holds afterwards.
        records: images are read one at a time; unreadable ones are logged and left out.
        splits: "train" or "validation" for each record.
        progress: show a progress bar.

    Returns:
        The report. Splits without a readable image have no rows and no files.
    """
    report = WriteReport()
    with tqdm(total=len(records), desc="preparing", unit="img", disable=not progress) as bar:
        examples = {}
        for split in SPLITS:
            mine = [r for r, s in zip(records, splits, strict=True) if s == split]
            stream = _examples(mine, report.rows[split], report, bar)
            # TFDS cannot write an empty split: look for one readable image first.
            first = next(stream, None)
            if first is not None:
                examples[split] = itertools.chain([first], stream)
        if examples:
            _write(folder, examples)
    if len(report.unreadable) > 20:
        _log.warning("%d unreadable images were left out", len(report.unreadable))
    for note, count in sorted(report.conversions.items()):
        _log.warning("%d of %d images converted: %s", count, len(records), note)
    for split in examples:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in report.rows[split])
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return report


def _write(folder: Path, examples: Mapping[str, Iterator[dict]]) -> None:
    # TFDS would draw bars of its own and print about downloads.
    tfds.disable_progress_bar()
    builder = Records(examples, data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(compute_stats="skip")
        )
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # made by TFDS, and empty


def _examples(
    records: Sequence[Record], rows: list[dict], report: WriteReport, bar: tqdm
) -> Iterator[dict]:
    for record in records:
        try:
            stored = to_stored(record.read_bytes())
        except (UnreadableImageError, OSError) as error:
            report.unreadable.append(record.key)
            if len(report.unreadable) <= 20:
                _log.warning("%s left out: %s (%s)", _UNREADABLE, record.key, error)
            continue
        finally:
            bar.update()
        if stored.note:
            report.conversions[stored.note] += 1
        row = {
            "key": record.key,
            "text": record.text,
            "patient_id": record.patient_id,
            "labels": dict(record.labels),
            "height": stored.height,
            "width": stored.width,
        }
        rows.append(row)
        yield {
            "key": record.key,
            "image": stored.encoded,
            "text": record.text,
            "patient_id": record.patient_id,
            "labels": json.dumps(row["labels"], ensure_ascii=False),
        }


class RecordSplit:
    """One split of a prepared data set, by position.

    Attributes:
        name: "train" or "validation".
        fingerprint: names the content; equal for untouched files.
        keys, texts, patient_ids, labels: one entry a record.
    """

    def __init__(self, folder: Path, name: str, fingerprint: str):
        self.name = name
        self.fingerprint = fingerprint
        index = folder / f"{name}.jsonl"
        rows = _read_rows(index) if index.is_file() else []
        self.keys: tuple[str, ...] = tuple(row["key"] for row in rows)
        self.texts: tuple[str, ...] = tuple(row["text"] for row in rows)
        self.patient_ids: tuple[str, ...] = tuple(row["patient_id"] for row in rows)
        self.labels: tuple[dict[str, LabelValue], ...] = tuple(row["labels"] for row in rows)
        self._sizes = tuple((row["height"], row["width"]) for row in rows)
        self._places: Sequence[int] = range(len(rows))
        self._source = None
        if rows:
            self._source = self._open(folder, name, len(rows))

    @staticmethod
    def _open(folder: Path, name: str, count: int) -> Sequence[Any]:
        try:
            builder = tfds.builder_from_directory(str(folder / "records" / _VERSION))
            source = builder.as_data_source(
                split=name, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except Exception as error:  # what the library makes of damaged files is of many classes
            message = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} is damaged ({message}): {_AGAIN}") from error
        if len(source) != count:
            raise UserError(
                f"{folder} is damaged: {name}.jsonl names {count} records, there are "
                f"{len(source)}: {_AGAIN}"
            )
        return source

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def identity(self) -> str:
        """Names the records by their keys, sizes and texts."""
        return identity_of(self.keys, self._sizes, self.texts)

    def select(
        self, places: Sequence[int], name: str, texts: Sequence[str] | None = None
    ) -> "RecordSplit":
        """The records at these places, as a split of this name; with these captions if given."""
        part = copy.copy(self)
        part.name, part.fingerprint = name, f"{self.fingerprint}-{name}"
        part._places = [self._places[i] for i in places]
        for column in ("keys", "texts", "patient_ids", "labels", "_sizes"):
            values = getattr(self, column)
            setattr(part, column, tuple(values[i] for i in places))
        if texts is not None:
            assert len(texts) == len(places), (len(texts), len(places))
            part.texts = tuple(texts)
        return part

    def __getitem__(self, index: int) -> Record:
        """Return one record with its encoded image."""
        try:
            example = self._source[self._places[index]]
            key = example["key"].decode()
        except IndexError:
            raise
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            raise UserError(
                f"record {index} of the {self.name} split is damaged ({message}): {_AGAIN}"
            ) from error
        if key != self.keys[index]:
            raise UserError(
                f"record {index} of the {self.name} split is {key!r}, not {self.keys[index]!r}: "
                f"{_AGAIN}"
            )
        return Record(
            key=self.keys[index],
            image=example["image"],
            text=self.texts[index],
            patient_id=self.patient_ids[index],
            labels=self.labels[index],
            split=self.name,
        )


def _read_rows(index: Path) -> list[dict[str, Any]]:
    """What the index of a split says of each record.

    Raises:
        UserError: it was changed since it was written.
    """
    rows = [row for _, row in read_json_lines(index).rows]
    for number, row in enumerate(rows, start=1):
        texts = (row.get(name) for name in ("key", "text", "patient_id"))
        sizes = (row.get(name) for name in ("height", "width"))
        whole = all(type(x) is str for x in texts) and all(type(x) is int for x in sizes)
        if not whole or not isinstance(row.get("labels"), dict):
            raise UserError(f"{index} line {number} is damaged: {_AGAIN}")
    return rows
