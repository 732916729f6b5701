"""Tables that name images: ours, and those of the papers whose results are compared.

    metadata.csv, metadata.jsonl    file_name,text[,patient_id,...]: image folders
    samples.jsonl                   file, prompt, row: what sample.py writes; `row` holds the other
                                    columns of its --prompts_csv
    any .csv                        one of PATH_COLUMNS; CheXpert's, RoentGen's, CheXGenBench's

Labels are findings and traits as data/labels.py reads them; what is not known has no label. A table
that came with its images names none outside of its folder; a .csv may name any file.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsd_jax.data.labels import label_columns
from medsd_jax.data.patients import patient_column, patient_of
from medsd_jax.data.sources.image_files import FileFinder, list_images
from medsd_jax.data.sources.tables import (
    Table,
    is_no_text,
    kind_of,
    read_csv,
    read_json_lines,
    text_cell,
)
from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

Labels = Mapping[str, str | int | float]

PATH_COLUMNS = ("path", "Path", "file", "file_name", "img_savename", "synthetic_filename")
"""Columns that may hold the path; the first that is there does."""
TEXT_COLUMNS = ("prompt", "text", "annotated_prompt")
ID_COLUMNS = ("id", "dicom_id", "image_id")
SAMPLES_FILE = "samples.jsonl"
_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".jsonl")
_TABLES = (SAMPLES_FILE, "metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
        path: of the file.
        text: prompt or caption; "" where none is known.
        id: what the table calls the image or its prompt; "" where it does not.
        patient_id: "" where none is known.
        labels: see the module.
    """

    path: Path
    text: str = ""
    id: str = ""
    patient_id: str = ""
    labels: Labels = field(default_factory=dict)


def find_table(where: Path) -> Path | None:
    """The table itself, or the one in a folder; None if there is none.

    Of a folder that sample.py wrote, the images are those of its samples.jsonl: the grid is none.
    """
    if where.is_dir():
        return next((where / name for name in _TABLES if (where / name).is_file()), None)
    return where if where.name.lower().endswith(_SUFFIXES) and where.is_file() else None


def read_table(table: Path) -> list[Row]:
    """Reads every row; relative paths start at the table's folder.

    Raises:
        UserError: there is no column of paths, no row, or a row that cannot be understood.
    """
    content = read_json_lines(table) if table.suffix.lower() == ".jsonl" else read_csv(table)
    if table.name == SAMPLES_FILE:
        content = _samples(content)
    if not content.rows:
        raise UserError(f"{table} names no image")
    # A sample's row may hold the path of the real image that its prompt was written for.
    of_paths = ("file",) if table.name == SAMPLES_FILE else PATH_COLUMNS
    path_column = _first(of_paths, content.names)
    if path_column is None:
        listed = ", ".join(of_paths)
        raise UserError(f"{table} has no column of paths (one of {listed})")
    text_column, id_column = (_first(n, content.names) for n in (TEXT_COLUMNS, ID_COLUMNS))
    of_patients = patient_column(content.names)
    taken = (path_column, text_column, id_column, of_patients)
    columns = label_columns([n for n in content.names if n not in taken], content.rows, str(table))
    finder = FileFinder(table.parent, inside=table.name in _TABLES)
    rows, no_texts = [], 0
    for where, entry in content.rows:
        named = text_cell(entry, path_column, where)
        if not named:
            raise UserError(f"{where} has no {path_column}")
        name, path = finder.find(named, where)
        text = text_cell(entry, text_column, where) if text_column else ""
        if is_no_text(text):
            text, no_texts = "", no_texts + 1
        patient = text_cell(entry, of_patients, where, numbers=True) if of_patients else ""
        rows.append(
            Row(
                path=path or table.parent / name,
                text=text,
                id=text_cell(entry, id_column, where, numbers=True) if id_column else "",
                patient_id=patient_of(patient, name),
                labels=columns.read(entry, where),
            )
        )
    if no_texts:
        _log.warning("%s: %d texts such as nan or None are taken for none", table, no_texts)
    if again := len(rows) - len({row.path for row in rows}):
        _log.warning("%s: %d rows name an image that another row names, too", table, again)
    finder.warn(table)
    if finder.missing:
        hint = finder.hint(list_images(table.parent).images)
        _log.warning("%s: %d files are not there%s", table, len(finder.missing), hint)
    if columns.others:
        _log.info("%s: columns taken for no labels: %s", table, ", ".join(columns.others))
    return rows


def _first(known: tuple[str, ...], columns: Sequence[str]) -> str | None:
    return next((name for name in known if name in columns), None)


def _samples(content: Table) -> Table:
    """Of a sample's entries, what says something of the image: a seed of 1 is no finding."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, settings in content.rows:
        row = settings.get("row", {})
        if not isinstance(row, dict):
            raise UserError(f"{where}: row is {kind_of(row)}, not an object; write the file anew")
        own = {name: settings[name] for name in ("file", "prompt") if name in settings}
        rows.append((where, row | own))
    return Table(tuple(dict.fromkeys(name for _, row in rows for name in row)), tuple(rows))
