"""An image folder with captions: metadata.csv or metadata.jsonl beside the images.

    file_name,text,patient_id,split,effusion
    p1/001.png,Chest X-ray. Small left pleural effusion.,p1,train,1

`file_name` (relative to the folder) and `text` are required; `patient_id`, `split` (train,
validation or test) are optional; all other columns become labels. Without `patient_id` every
picture counts as a patient of its own.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from medsd_jax.data.records import LabelValue, Record, SourceRecords
from medsd_jax.data.sources.tables import Problems, check_folder, list_images, read_csv, read_text
from medsd_jax.data.splits import parse_split
from medsd_jax.errors import UserError
from medsd_jax.folders import new_folder

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
_REQUIRED = ("file_name", "text")
_KNOWN = (*_REQUIRED, "patient_id", "split")
EXPECTED = (
    'expected metadata.csv with a header and one row a picture, "file_name,text" and then '
    '"scan1.png,Chest X-ray. No finding." (optional columns: patient_id, split, labels), '
    'or metadata.jsonl with lines {"file_name": "scan1.png", "text": "..."}'
)


def load(path: Path | str | None) -> SourceRecords:
    """Read the source "folder".

    Args:
        path: the folder.

    Returns:
        A record for each picture that has a file and a text; the files are not opened yet.
    """
    folder = check_folder(path, "folder")
    rows = _read_rows(folder)
    images, problems = list_images(folder), Problems()
    records: list[Record] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        name = Path(row["file_name"]).as_posix()
        if name in seen:
            raise UserError(f"{where}: {name!r} stands in {seen[name]} already; keep one of them")
        seen[name] = where
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{where}: file_name {name!r} leaves the folder {str(folder)!r}")
        file = images.get(name) or folder / name
        split = parse_split(row.get("split", ""), where)
        if not file.is_file():
            problems.add("named in the metadata, but there is no such file", name)
        elif not row["text"]:
            problems.add("no text in the metadata", name)
        elif split == "test":
            problems.add("split test, kept away from training", name)
        else:
            records.append(
                Record(
                    key=name,
                    image=file,
                    text=" ".join(row["text"].split()),
                    patient_id=row.get("patient_id") or name,
                    labels={k: _label(v) for k, v in row.items() if k not in _KNOWN},
                    split=split,
                )
            )
    for name in images:
        if name not in seen:
            problems.add("image without a row in the metadata", name)
    return SourceRecords(tuple(records), problems.freeze())


def _read_rows(folder: Path) -> list[tuple[str, dict[str, str]]]:
    """Return (where it stands, row) for each picture named."""
    files = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if not files:
        raise UserError(f"no metadata file in {str(folder)!r}: {EXPECTED}")
    if len(files) == 2:
        raise UserError(f"{str(folder)!r} holds metadata.csv and metadata.jsonl: keep one of them")
    file = files[0]
    if file.suffix == ".csv":
        names, table = read_csv(file)
        _check_columns(file, names)
        # The header is line 1.
        return [(f"{file.name} line {n}", row) for n, row in enumerate(table, start=2)]
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg}): {EXPECTED}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object: {EXPECTED}")
        _check_columns(f"{file} line {number}", tuple(row))
        rows.append((where, {k: "" if v is None else str(v).strip() for k, v in row.items()}))
    return rows


def _check_columns(where: Path | str, names: tuple[str, ...]) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        found = ", ".join(names) or "nothing"
        raise UserError(f"{where} has no {' and no '.join(missing)} (it has {found}): {EXPECTED}")


def _label(cell: str) -> LabelValue:
    """Read a label: integers and numbers as such, all else as text."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def write_image_folder(records: Sequence[Record], folder: Path, *, progress: bool = True) -> None:
    """Write records as such a folder: one PNG each and metadata.csv.

    Args:
        records: with PNG pictures; keys become file names.
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
