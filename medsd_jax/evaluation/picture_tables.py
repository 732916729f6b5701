"""Tables that name pictures: ours, and those of the papers whose results are compared.

    metadata.csv, metadata.jsonl    file_name,text[,patient_id,...]: image folders
    samples.jsonl                   file, prompt, row: what sample.py writes; `row` holds the other
                                    columns of its --prompts_csv
    any .csv                        one of PATH_COLUMNS; CheXpert's, RoentGen's, CheXGenBench's

Labels are findings, 1 present and 0 absent, under lower-case names with underscores
(pleural_effusion), and the traits sex, age and view. A finding that is left empty or uncertain
(CheXpert's -1) is not known and has no label.
"""

import ast
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsd_jax.data.sources.tables import read_csv
from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

Labels = Mapping[str, str | int | float]

PATH_COLUMNS = ("path", "Path", "file", "file_name", "img_savename", "synthetic_filename")
"""Columns that may hold the path; the first that is there does."""
TEXT_COLUMNS = ("prompt", "text", "annotated_prompt")
ID_COLUMNS = ("id", "dicom_id", "image_id")
PATIENT_COLUMNS = ("patient_id", "patientID", "Patient ID", "subject_id")
TRAIT_COLUMNS = {
    "sex": ("sex", "Sex", "gender", "Patient Gender"),
    "age": ("age", "Age", "anchor_age", "Patient Age"),
    "view": ("view", "ViewPosition", "View Position", "AP/PA"),
}
"""Trait -> the names it goes by."""
LABEL_COLUMNS = ("labels", "chexpert_labels")
"""Columns that hold all findings of a picture as one object."""
SAMPLES_FILE = "samples.jsonl"
_YES_OR_NO = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
_UNCERTAIN = ("-1", "-1.0")
_TABLES = (SAMPLES_FILE, "metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Row:
    """One picture of a table.

    Attributes:
        path: of the file.
        text: prompt or caption; "" where none is known.
        id: what the table calls the picture or its prompt; "" where it does not.
        patient_id: "" where none is known.
        labels: see the module.
    """

    path: Path
    text: str = ""
    id: str = ""
    patient_id: str = ""
    labels: Labels = field(default_factory=dict)


def find_table(where: Path) -> Path | None:
    """The table itself, or the one in a folder; None where there is none.

    Of a folder that sample.py wrote, the pictures are those of its samples.jsonl: the grid is none.
    """
    if where.is_dir():
        return next((where / name for name in _TABLES if (where / name).is_file()), None)
    return where if where.suffix.lower() == ".csv" and where.is_file() else None


def read_table(table: Path) -> list[Row]:
    """Reads every row; relative paths start at the table's folder.

    Raises:
        UserError: there is no column of paths, no row, or a row that cannot be understood.
    """
    entries = _read_csv(table) if table.suffix.lower() == ".csv" else _read_jsonl(table)
    if not entries:
        raise UserError(f"{table} names no picture")
    columns = list(dict.fromkeys(name for _, entry in entries for name in entry))
    # A sample's row may hold the path of the real picture that its prompt was written for.
    of_paths = ("file",) if table.name == SAMPLES_FILE else PATH_COLUMNS
    path_column = _first(of_paths, columns)
    if path_column is None:
        listed = ", ".join(of_paths)
        raise UserError(f"{table} has no column of paths (one of {listed})")
    about = {
        attribute: column
        for attribute, names in (
            ("text", TEXT_COLUMNS), ("id", ID_COLUMNS), ("patient_id", PATIENT_COLUMNS)
        )
        if (column := _first(names, columns)) is not None
    }  # fmt: skip
    traits = {
        column: trait
        for trait, names in TRAIT_COLUMNS.items()
        if (column := _first(names, columns)) is not None
    }
    others = [
        name
        for name in columns
        if name not in (path_column, *about.values(), *traits, *LABEL_COLUMNS)
    ]
    of_findings = _finding_columns(others, entries)
    rows = []
    for where, entry in entries:
        if not entry.get(path_column):
            raise UserError(f"{where} has no {path_column}")
        labels: dict[str, str | int | float] = {}
        for name in LABEL_COLUMNS:
            labels |= _findings(entry.get(name), where)
        for name in of_findings:
            if (value := _finding(entry.get(name))) is not None:
                labels[label_name(name)] = value
        for name, trait in traits.items():
            labels |= _trait(trait, entry.get(name))
        rows.append(
            Row(
                path=table.parent / str(entry[path_column]),
                labels=labels,
                **{attribute: str(entry.get(column) or "") for attribute, column in about.items()},
            )
        )
    unused = [name for name in others if name not in of_findings]
    if unused:
        _log.info("%s: columns taken for no labels: %s", table, ", ".join(unused))
    return rows


def label_name(column: str) -> str:
    """A label's one spelling: "Pleural Effusion" and "pleural_effusion" are pleural_effusion."""
    return "_".join(column.strip().lower().replace("-", " ").split())


def _first(known: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in known if name in columns), None)


def _finding_columns(names: list[str], entries: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Those of the columns whose cells are all yes, no, uncertain or empty, and not all empty."""
    found = []
    for name in names:
        cells = {_text(entry.get(name)) for _, entry in entries} - {""}
        if cells and cells <= {*_YES_OR_NO, *_UNCERTAIN}:
            found.append(name)
    return found


def _finding(cell: Any) -> int | None:
    """1, 0, or None for what is not known."""
    return _YES_OR_NO.get(_text(cell))


def _text(cell: Any) -> str:
    return str("" if cell is None else cell).strip().lower()


def _findings(cell: Any, where: str) -> dict[str, int]:
    """Findings of one object, or of its text form as CheXGenBench stores it."""
    if cell in (None, ""):
        return {}
    try:
        found = ast.literal_eval(cell) if isinstance(cell, str) else cell
        items = list(found.items())
    except (ValueError, SyntaxError, AttributeError) as error:
        raise UserError(
            f"{where}: labels {str(cell)[:60]!r} are no object of name: 1 or 0"
        ) from error
    values = {label_name(name): _finding(value) for name, value in items}
    return {name: value for name, value in values.items() if value is not None}


def _trait(trait: str, cell: Any) -> Labels:
    """Sex as F or M, age in years, view in capitals; nothing where the cell is empty or unclear."""
    text = _text(cell).upper()
    if trait == "sex":
        return {"sex": text[0]} if text[:1] in ("F", "M") else {}
    if trait == "age":
        digits = text.rstrip("Y").partition(".")[0]  # NIH: 057Y
        return {"age": int(digits)} if digits.isdigit() else {}
    return {"view": text} if text else {}


def _read_csv(table: Path) -> list[tuple[str, dict[str, str]]]:
    _, rows = read_csv(table)
    return [(f"{table} line {n}", row) for n, row in enumerate(rows, start=2)]  # 1: the header


def _read_jsonl(table: Path) -> list[tuple[str, dict[str, Any]]]:
    entries = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{table} line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}); write the file anew") from error
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no JSON object; write the file anew")
        if table.name == SAMPLES_FILE:
            # Its other entries are settings: a seed of 1 is no finding.
            settings = entry
            entry = {name: settings[name] for name in ("file", "prompt") if name in settings}
            entry |= settings.get("row", {})
        entries.append((where, entry))
    return entries
