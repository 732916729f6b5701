"""What the columns of a table say about an image: findings and traits. One reading for all.

A finding is 1, present, or 0, absent. It may be written 1, 1.0, true, 0, 0.0 or false; -1
(uncertain, as CheXpert has it), an empty cell and nan mean that it is not known, and the image has
no such label. Its name has one spelling: "Pleural Effusion" is pleural_effusion.

A column "Finding Labels", as NIH's table has it, lists what is present ("Effusion|Mass"); whatever
another row of the table lists is absent.

Traits are sex (F or M), age (whole years) and view (AP, PA, ...). They, and numbers of studies and
the like (`NO_FINDINGS`), are no findings even where they are 1 or 0.
"""

import ast
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsd_jax.data.records import LabelValue
from medsd_jax.data.sources.tables import is_no_text
from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

NO_FINDING = "no_finding"
"""The label that says that nothing is found."""
TRAIT_COLUMNS = {
    "sex": ("sex", "gender", "patient_gender", "patient_sex", "patientsex", "patientsex_dicom"),
    "age": ("age", "anchor_age", "patient_age", "patientage"),
    "view": ("view", "viewposition", "view_position", "ap/pa", "ap_pa", "viewposition_dicom"),
}
"""Trait -> its names in the spelling of `label_name`; the first that is there counts."""
LABEL_COLUMNS = ("labels", "chexpert_labels")
"""Columns that hold all findings of an image as one object."""
_LIST_COLUMN = "finding_labels"
_LISTED = {"effusion": "pleural_effusion"}
"""NIH's names of findings that CheXpert and the captions of data/findings.py call otherwise."""
NO_FINDINGS = frozenset(
    (
        " ".join(name for names in TRAIT_COLUMNS.values() for name in names)
        + " frontal/lateral frontal_lateral frontal lateral laterality portable projection"
        " study study_id studyid series series_id visit visits follow_up follow_up_# followup"
        " id index number image_id imageid dicom_id patient patient_id patientid subject"
        " subject_id seed fold split site hospital scanner year race ethnicity weight height"
        " width rows columns count prompt text caption path file file_name"
    ).split()
)
"""Names of columns that are no findings, in the spelling of `label_name`."""
_MAX_LABELS_TEXT = 20_000
_DAYS_OF_UNIT = {"Y": 365.25, "M": 30.4375, "W": 7.0, "D": 1.0}
_MAX_YEARS = 125
_AGE = re.compile(r"(\d{1,3})(?:\.\d*)?\s*(?:([YMWD])(?:EARS?|ONTHS?|EEKS?|AYS?)?)?", re.ASCII)


class NotAFinding(ValueError):
    """A cell that is neither 1 nor 0 nor a way to say that it is not known."""


def label_name(column: str) -> str:
    """A label's one spelling: "Pleural Effusion" and "pleural_effusion" are pleural_effusion."""
    return "_".join(column.strip().lower().replace("-", " ").split())


def finding(cell: Any) -> int | None:
    """Read one cell of a finding.

    Returns:
        1, 0, or None where it is not known.

    Raises:
        NotAFinding: it is something else.
    """
    text = str("" if cell is None else cell).strip().lower()
    if text in ("", "true", "false"):
        return {"true": 1, "false": 0}.get(text)
    if is_no_text(text):
        return None
    try:
        number = float(text.replace(",", "."))  # a spreadsheet may write 1,0
    except ValueError:
        number = math.inf
    if number not in (1.0, 0.0, -1.0):
        raise NotAFinding(text)
    return None if number < 0 else int(number)


def is_finding(cell: Any) -> bool:
    """Whether a cell can be read as a finding that is present, absent or not known."""
    try:
        finding(cell)
    except NotAFinding:
        return False
    return True


def find_label(rows: Sequence[Mapping[str, Any]], label: str) -> str | None:
    """The name under which records have a label, whatever its spelling; None where none has it."""
    names = dict.fromkeys(name for row in rows for name in row)
    if label in names:
        return label
    return next((name for name in names if label_name(name) == label_name(label)), None)


def label_values(rows: Sequence[Mapping[str, Any]], label: str) -> np.ndarray:
    """Values of one finding, in whatever spelling.

    Args:
        rows: [n] labels of records.
        label: the finding.

    Returns:
        [n] float32: 1, 0, or NaN where it is not known.
    """
    name = find_label(rows, label)
    cells = [row.get(name) for row in rows]
    known = [finding(cell) if is_finding(cell) else None for cell in cells]
    return np.array([np.nan if value is None else value for value in known], np.float32)


def findings_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Of the labels of records, those that are findings and known: label -> 1 or 0."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    names = {
        name
        for name, cells in values.items()
        if label_name(name) not in NO_FINDINGS and all(map(is_finding, cells))
    }
    found = [{n: finding(value) for n, value in row.items() if n in names} for row in rows]
    return [{label_name(n): x for n, x in row.items() if x is not None} for row in found]


def evaluated_labels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, LabelValue]]:
    """Of the labels of records, findings and traits: what a table of the same rows would give."""
    found = []
    for row, findings in zip(rows, findings_of(rows), strict=True):
        traits = {trait: _trait(trait, row.get(trait)) for trait in TRAIT_COLUMNS}
        found.append({**findings, **{t: x for t, x in traits.items() if x is not None}})
    return found


@dataclass(frozen=True)
class LabelColumns:
    """Which columns of a table say what.

    Attributes:
        findings: columns whose cells are all 1, 0 or unknown, not all of them empty -> label.
        objects: columns that hold all findings of an image at once.
        lists: columns that list what is present -> all that any row lists.
        traits: column -> sex, age or view.
        others: all that is left.
    """

    findings: Mapping[str, str]
    objects: tuple[str, ...]
    lists: Mapping[str, tuple[str, ...]]
    traits: Mapping[str, str]
    others: tuple[str, ...]

    def read(self, row: Mapping[str, Any], where: str) -> dict[str, LabelValue]:
        """Findings and traits of one row; what is not known is absent.

        Raises:
            UserError: the cell of an object column is none.
        """
        labels: dict[str, LabelValue] = {}
        for column in self.objects:
            labels |= _findings_of_object(row.get(column), where)
        for column, known in self.lists.items():
            listed = _listed(row.get(column))
            labels |= {label: int(label in listed) for label in (known if listed else ())}
        for column, label in self.findings.items():
            if (value := finding(row.get(column))) is not None:
                labels[label] = value
        for column, trait in self.traits.items():
            if (value := _trait(trait, row.get(column))) is not None:
                labels[trait] = value
        return labels


def label_columns(
    names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]], where: str
) -> LabelColumns:
    """Tell the columns apart.

    Args:
        names: columns that may hold labels.
        rows: (file and line, cells) of the whole table.
        where: the table, for messages.

    Raises:
        UserError: two columns are one finding under two spellings.
    """
    cells = {name: [row.get(name) for _, row in rows] for name in names}
    traits, objects, findings, others = {}, [], {}, []
    lists: dict[str, tuple[str, ...]] = {}
    for trait, known in TRAIT_COLUMNS.items():
        by_name = {label_name(name): name for name in reversed(names)}
        column = next((by_name[name] for name in known if name in by_name), None)
        if column is not None and any(_trait(trait, cell) is not None for cell in cells[column]):
            traits[column] = trait
    for name in names:
        label = label_name(name)
        if name in traits:
            continue
        if label == LABEL_COLUMNS[1] or (
            label in LABEL_COLUMNS and any(map(_is_object, cells[name]))
        ):
            objects.append(name)
        elif label == _LIST_COLUMN and all(isinstance(c, str | None) for c in cells[name]):
            known = sorted({found for cell in cells[name] for found in _listed(cell)})
            lists[name] = (NO_FINDING, *(found for found in known if found != NO_FINDING))
        elif label in NO_FINDINGS or not _are_findings(cells[name]):
            if any(isinstance(cell, dict | list) for cell in cells[name]):
                _log.warning("%s: the lists or objects of %r are not read", where, name)
            else:
                others.append(name)
        elif label in findings.values():
            raise UserError(f"{where} has two columns for {label!r}: remove one of them")
        else:
            findings[name] = label
    return LabelColumns(findings, tuple(objects), lists, traits, tuple(others))


def _are_findings(cells: Sequence[Any]) -> bool:
    """Whether all cells can be read, and one says something: not all are empty."""
    return any(str("" if c is None else c).strip() for c in cells) and all(map(is_finding, cells))


def _listed(cell: str | None) -> frozenset[str]:
    """The findings that a cell such as "Effusion|Mass" lists; none where it is not known."""
    if not cell or is_no_text(cell):
        return frozenset()
    names = (label_name(name) for name in cell.split("|"))
    return frozenset(_LISTED.get(name, name) for name in names if name)


def _is_object(cell: Any) -> bool:
    return isinstance(cell, dict) or (isinstance(cell, str) and cell.startswith("{"))


def _findings_of_object(cell: Any, where: str) -> dict[str, int]:
    """Findings of one object, or of its text form as CheXGenBench stores it."""
    if cell in (None, ""):
        return {}
    try:
        items = list(_literal(cell).items())
        values = {label_name(name): finding(value) for name, value in items}
    # Python's parser runs out of stack, and says so in several ways, on signs and brackets nested
    # thousands deep.
    except (ValueError, SyntaxError, AttributeError, TypeError, RecursionError, MemoryError) as e:
        raise UserError(f"{where}: labels {str(cell)[:60]!r} are no object of name: 1 or 0") from e
    return {name: value for name, value in values.items() if value is not None}


def _literal(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if len(cell) > _MAX_LABELS_TEXT:
        raise ValueError("too long")
    return ast.literal_eval(re.sub(r"\bnan\b", "None", cell))


def _trait(trait: str, cell: Any) -> str | int | None:
    """Sex as F or M, age in years, view in capitals; None where the cell is empty or unclear."""
    if isinstance(cell, dict | list | bool):
        return None
    text = str("" if cell is None else cell).strip().upper()
    if trait == "sex":
        return text[0] if text[:1] in ("F", "M") else None
    if trait == "age":
        return age_in_years(text)
    return None if not text or is_no_text(text) or text.isdigit() else text


def age_in_years(text: str) -> int | None:
    """An age in whole years: "68", "68.0", or as DICOM and NIH write it, 057Y, 011M, 003D.

    Returns:
        The years; None if it is not one, or more than anybody's: NIH's first table has 411Y.
    """
    if (found := _AGE.fullmatch(text.strip().upper())) is None:
        return None
    years = int(int(found[1]) * _DAYS_OF_UNIT[found[2] or "Y"] / _DAYS_OF_UNIT["Y"])
    return years if years <= _MAX_YEARS else None


def plain_value(cell: Any) -> LabelValue:
    """A cell of any other column: a finite number as such, all else as text; "" for nan."""
    if cell is None:
        return ""
    text = str(cell).strip()
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if isinstance(value, int):
            return value if abs(value) < 2**63 else text  # longer ones are names, such as UIDs
        if math.isnan(value):
            return ""
        return value if math.isfinite(value) else text
    return text
