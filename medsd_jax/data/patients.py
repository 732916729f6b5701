"""Whose image it is: by a column of the table, else by the path as public data sets have it.

CheXpert    .../patient64541/study1/view1_frontal.jpg
MIMIC-CXR   .../p10/p10000032/s50414267/....jpg
NIH         .../00000013_026.png, whose table calls the patient 13
"""

import logging
import re
from collections.abc import Sequence

from medsd_jax.data.labels import label_name
from medsd_jax.data.sources.tables import is_no_text

_log = logging.getLogger(__name__)

_COLUMNS = (
    "patient_id", "patientid", "subject_id", "subjectid", "deid_patient_id", "patient", "subject",
)  # fmt: skip
"""Names of the column, in the spelling of `label_name`; the first that is there counts."""
_PATHS = (
    re.compile(r"(?:^|[\\/])(patient\d+)[\\/]study\d+[\\/]"),
    re.compile(r"(?:^|[\\/])p(\d{8})[\\/]s\d{8}(?:[\\/]|\.)"),
    # NIH numbers its patients from 1 to 30,805; eight digits of a date begin otherwise.
    re.compile(r"(?:^|[\\/])(?=000[0-3]\d{4}_)0+([1-9]\d*)_\d{3}\.(?:png|jpe?g)$"),
)


def patient_column(names: Sequence[str]) -> str | None:
    """The column that names patients; None if there is none."""
    by_name = {label_name(name): name for name in reversed(names)}
    return next((by_name[name] for name in _COLUMNS if name in by_name), None)


def patient_of(cell: str, path: str) -> str:
    """The patient of one image; "" where none is known.

    Args:
        cell: of the table's column, "" if there is none.
        path: of the image.
    """
    if cell and not is_no_text(cell):
        return re.sub(r"^(\d+)\.0+$", r"\1", cell)  # pandas makes numbers with gaps float
    matches = (pattern.search(path) for pattern in _PATHS)
    return next((match[1] for match in matches if match), "")


def warn_of_unknown(where: str, patients: Sequence[str]) -> None:
    """Say how many images have no known patient: each of them counts as a patient of its own."""
    unknown = sum(not patient for patient in patients)
    if unknown:
        _log.warning(
            "%s: of %d of %d images no patient is known, and each counts as a patient of its own; "
            "name them in a column patient_id", where, unknown, len(patients),
        )  # fmt: skip
