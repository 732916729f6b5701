"""NIH ChestX-ray14: images and the label table, captions built from the labels.

    DIR/images/00000001_000.png            (or DIR/images_001/images/... as downloaded)
    DIR/labels.csv  or  DIR/Data_Entry_2017*.csv[.gz]

The captions use the words of the phantoms' captions, and for a share of the images the words of
the paper's prompts, so a model that was trained on phantoms already knows what they mean. The
labels were mined from reports by software: they carry no side, no size and known errors.

Cite: Wang et al., ChestX-ray8, CVPR 2017; images by the NIH Clinical Center.
"""

import hashlib
from pathlib import Path

import numpy as np

from medsd_jax.data.findings import paper_caption, report_caption
from medsd_jax.data.labels import age_in_years
from medsd_jax.data.records import LabelValue, Record, SourceRecords
from medsd_jax.data.sources.image_files import list_images
from medsd_jax.data.sources.tables import Problems, check_folder, read_csv
from medsd_jax.errors import UserError

NO_FINDING = "No Finding"
WORDS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
"""The data set's label -> the radiology words of captions; with underscores, the label's key."""

# The words the phantoms know come first in a caption, in the phantoms' order.
_ORDER = ("Effusion", "Pneumothorax", "Nodule", "Cardiomegaly")
_PAPER_FRACTION = 0.3
"""Of the captions, in the words of the paper's prompts."""
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")


def load(path: Path | str | None) -> SourceRecords:
    """Read the source "nih14".

    Args:
        path: the folder, see the module.

    Returns:
        A record for each image in the table whose file is there. No split: by patient hash.
    """
    folder = check_folder(path, "nih14")
    table = _table_file(folder)
    content = read_csv(table)
    missing = [name for name in _COLUMNS if name not in content.names]
    if missing:
        raise UserError(f"{table} has no column {missing[0]!r}: is it the NIH Data_Entry table?")
    images = {Path(name).name: file for name, file in _list_images(folder).items()}
    problems, seen = Problems(), set()
    records: list[Record] = []
    for _, row in content.rows:
        name = row["Image Index"]
        if name in seen:
            raise UserError(f"{table} names {name!r} twice: keep one of the rows")
        seen.add(name)
        if name not in images:
            problems.add("in the table, but there is no such file", name)
            continue
        records.append(_record(name, images[name], row, table))
    for name in images:
        if name not in seen:
            problems.add("image without a row in the table", name)
    return SourceRecords(tuple(records), problems.freeze())


def _table_file(folder: Path) -> Path:
    """Prefer labels.csv, the table of a subset, to the full one."""
    candidates = [folder / "labels.csv", *sorted(folder.glob("Data_Entry_2017*.csv"))]
    candidates += sorted(folder.glob("Data_Entry_2017*.csv.gz"))
    for file in candidates:
        if file.is_file():
            return file
    raise UserError(
        f"no label table in {str(folder)!r}: put labels.csv or Data_Entry_2017*.csv[.gz] there"
    )


def _list_images(folder: Path) -> dict[str, Path]:
    parents = [p for p in sorted(folder.glob("images*")) if p.is_dir()]
    if not parents:
        raise UserError(f"no folder 'images' in {str(folder)!r}: put the NIH images there")
    listed = {parent: list_images(parent) for parent in parents}
    for parent, found in listed.items():
        found.warn_of_others(parent)
    return {name: file for found in listed.values() for name, file in found.images.items()}


def _record(name: str, file: Path, row: dict[str, str], table: Path) -> Record:
    found = [label for label in row["Finding Labels"].split("|") if label != NO_FINDING]
    for label in found:
        if label not in WORDS:
            raise UserError(f"{table}: finding {label!r} of {name} is no NIH ChestX-ray14 label")
    ordered = [label for label in _ORDER if label in found]
    ordered += [label for label in found if label not in _ORDER]
    labels: dict[str, LabelValue] = {"no_finding": int(not found)}
    labels |= {words.replace(" ", "_"): int(label in found) for label, words in WORDS.items()}
    view = row["View Position"]
    labels |= {"view": view, "sex": row.get("Patient Gender", "")}
    if (age := age_in_years(row.get("Patient Age", ""))) is not None:
        labels["age"] = age
    return Record(
        key=name,
        image=file,
        text=caption([WORDS[label] for label in ordered], view, name),
        patient_id=row["Patient ID"],
        labels=labels,
    )


def caption(phrases: list[str], view: str, key: str) -> str:
    """Say the findings in one of three forms, chosen by a hash of the image's name.

    Args:
        phrases: findings in radiology words; none for a normal image.
        view: "PA", "AP" or "".
        key: the image's name; the same name gives the same caption.

    Returns:
        One line.
    """
    rng = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()[:8]))
    draw = rng.random()
    if draw < _PAPER_FRACTION:
        return paper_caption(phrases)
    with_view = draw < _PAPER_FRACTION + (1.0 - _PAPER_FRACTION) / 2
    return report_caption(phrases, view if with_view else "")
