"""An image folder with captions: metadata.csv or metadata.jsonl beside the images.

    file_name,text,patient_id,split,effusion
    p1/001.png,Chest X-ray. Small left pleural effusion.,p1,train,1

`file_name` (relative to the folder) and `text` are required; `patient_id`, `split` (train,
validation or test) are optional; all other columns become labels: findings and traits as
data/labels.py reads them, everything else under its own name. Where neither a column nor the path
names a patient (data/patients.py), an image counts as a patient of its own.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsd_jax.data.labels import label_columns, plain_value
from medsd_jax.data.patient_split import parse_split
from medsd_jax.data.patients import patient_column, patient_of, warn_of_unknown
from medsd_jax.data.records import Record, SourceRecords
from medsd_jax.data.sources.image_files import FileFinder, list_images
from medsd_jax.data.sources.tables import (
    Problems,
    Table,
    check_folder,
    is_no_text,
    read_csv,
    read_json_lines,
    text_cell,
)
from medsd_jax.errors import UserError
from medsd_jax.folders import new_folder

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
_REQUIRED = ("file_name", "text")
_SPLIT = "split"
EXPECTED = (
    'expected metadata.csv with a header and one row an image, "file_name,text" and then '
    '"scan1.png,Chest X-ray. No finding." (optional columns: patient_id, split, labels), '
    'or metadata.jsonl with lines {"file_name": "scan1.png", "text": "..."}'
)
_NO_TEXT_WORDS = "text that says there is none, such as nan or None"


def load(path: Path | str | None) -> SourceRecords:
    """Read the source "folder".

    Args:
        path: the folder.

    Returns:
        A record for each image that has a file and a text; the files are not opened yet.
    """
    folder = check_folder(path, "folder")
    file, table = _read_table(folder)
    listed, problems = list_images(folder), Problems()
    finder = FileFinder(folder, inside=True)
    of_patients = patient_column(table.names)
    rest = [n for n in table.names if n not in (*_REQUIRED, _SPLIT, of_patients)]
    columns = label_columns(rest, table.rows, str(file))
    records: list[Record] = []
    patients: list[str] = []
    seen: dict[str, str] = {}
    for where, row in table.rows:
        named = text_cell(row, "file_name", where)
        if not named:
            problems.add("row without a file_name", where)
            continue
        name, image = finder.find(named, where)
        if name in seen:
            raise UserError(f"{where}: {name!r} stands in {seen[name]} already; keep one of them")
        seen[name] = where
        text = " ".join(text_cell(row, "text", where).split())
        split = parse_split(text_cell(row, _SPLIT, where), where)
        cell = text_cell(row, of_patients, where, numbers=True) if of_patients else ""
        patient, labels = patient_of(cell, name), columns.read(row, where)
        if image is None:
            continue  # told below, with a hint
        if not text:
            problems.add("no text in the metadata", name)
        elif is_no_text(text):
            problems.add(_NO_TEXT_WORDS, name)
        elif split == "test":
            problems.add("split test, kept away from training", name)
        else:
            patients.append(patient)
            labels |= {other: plain_value(row.get(other)) for other in columns.others}
            records.append(Record(name, image, text, patient or name, labels, split))
    for name in finder.missing:
        hint = finder.hint(listed.images)
        problems.add(f"named in the metadata, but there is no such file{hint}", name)
    for name in listed.images:
        if name not in seen:
            problems.add("image without a row in the metadata", name)
    for name, kind in listed.others.items():
        if name not in seen:
            problems.add(f"not read as an image: {kind}", name)
    finder.warn(file)
    warn_of_unknown(str(file), patients)
    return SourceRecords(tuple(records), problems.freeze())


def _read_table(folder: Path) -> tuple[Path, Table]:
    files = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if not files:
        raise UserError(f"no metadata file in {str(folder)!r}{_below(folder)}: {EXPECTED}")
    if len(files) == 2:
        raise UserError(f"{str(folder)!r} holds metadata.csv and metadata.jsonl: keep one of them")
    file = files[0]
    if file.suffix == ".csv":
        table = read_csv(file)
        _check_columns(file, table.names)
    else:
        table = read_json_lines(file)
        for where, row in table.rows:
            _check_columns(where, row)
    return file, table


def _below(folder: Path) -> str:
    """Which subfolders have a table, as the splits of Hugging Face's image folders do."""
    result = [p for name in METADATA_NAMES for p in sorted(folder.glob(f"*/{name}")) if p.is_file()]
    if not result:
        return ""
    shown = ", ".join(repr(p.relative_to(folder).as_posix()) for p in result[:3])
    more = ", ..." if len(result) > 3 else ""
    return (
        f", but there is {shown}{more}; give one of these folders, or write one table here with a "
        "column split"
    )


def _check_columns(where: Path | str, names: Sequence[str] | dict[str, Any]) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        result = ", ".join(names) or "nothing"
        raise UserError(f"{where} has no {' and no '.join(missing)} (it has {result}): {EXPECTED}")


def write_image_folder(records: Sequence[Record], folder: Path, *, progress: bool = True) -> None:
    """Write records as such a folder: one PNG each and metadata.csv.

    Args:
        records: with PNG images; keys become file names.
        folder: new or empty.
        progress: show a progress bar.
    """
    label_names = list(dict.fromkeys(name for record in records for name in record.labels))
    table = METADATA_NAMES[0]
    with (
        new_folder(folder, "an export of images", last=table) as new,
        (new / table).open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*_REQUIRED, "patient_id", *label_names])
        for record in tqdm(records, desc="writing", unit="img", disable=not progress):
            name = f"{record.key}.png"
            (new / name).write_bytes(record.read_bytes())
            labels = [record.labels.get(label, "") for label in label_names]
            writer.writerow([name, record.text, record.patient_id, *labels])
