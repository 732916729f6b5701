"""Who is trained on and who validates: by patient, never by image."""

import hashlib
from collections.abc import Iterable, Sequence

from medsd_jax.data.records import TRAIN, VALIDATION, Record
from medsd_jax.errors import UserError

_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "validate": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
}
HELD_OUT_NAMES = ("test", "testing")


def parse_split(value: str, where: str) -> str | None:
    """Read a split column's cell.

    Args:
        value: "train", "validation", one of their usual spellings, or "" for not said.
        where: file and row, for the message.

    Returns:
        "train", "validation", "test" (to be left out) or None for not said.
    """
    word = value.strip().lower()
    if not word:
        return None
    if word in HELD_OUT_NAMES:
        return "test"
    if word not in _NAMES:
        raise UserError(f"{where}: split is {value!r}; write train, validation or test")
    return _NAMES[word]


def _position(patient_id: str) -> float:
    """Return a number in [0, 1) that depends on the patient alone."""
    digest = hashlib.sha256(f"medsd_jax split {patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(records: Sequence[Record], validation_fraction: float) -> tuple[str, ...]:
    """Give every record a split.

    A given split wins, for all images of that patient. Everybody else goes by a hash of the
    patient's id, so a patient keeps the split when images are added. With two such patients or
    more and a fraction above zero, neither side stays empty.

    Args:
        records: in any order.
        validation_fraction: share of the patients, in [0, 1).

    Returns:
        "train" or "validation" for each record.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(
            f"validation_fraction is {validation_fraction}: it must be at least 0 and below 1"
        )
    given: dict[str, str] = {}
    for record in records:
        if record.split is None:
            continue
        if given.setdefault(record.patient_id, record.split) != record.split:
            raise UserError(
                f"patient {record.patient_id!r} is in train and in validation ({record.key}): "
                "give all images of a patient the same split"
            )
    free = {r.patient_id: _position(r.patient_id) for r in records if r.patient_id not in given}
    by_hash = {
        patient: VALIDATION if position < validation_fraction else TRAIN
        for patient, position in free.items()
    }
    if validation_fraction > 0 and len(free) >= 2 and len(set(by_hash.values())) == 1:
        # Few patients: the nearest one changes sides, unless the given splits fill that side.
        only = next(iter(by_hash.values()))
        missing = TRAIN if only == VALIDATION else VALIDATION
        if missing not in given.values():
            order = sorted(free, key=free.__getitem__)
            by_hash[order[0] if missing == VALIDATION else order[-1]] = missing
    splits = tuple((given | by_hash)[r.patient_id] for r in records)
    check_no_leak([r.patient_id for r in records], splits)
    return splits


def first_patients(patient_ids: Sequence[str], fraction: float) -> list[bool]:
    """Which records belong to the first `fraction` of the patients, in the order of their hashes.

    The order is the one that `assign_splits` cuts, so that the choice depends on the patients
    alone. At least one patient is chosen, and one is not.

    Raises:
        UserError: there are fewer than two patients.
    """
    patients = patient_order(set(patient_ids))
    if len(patients) < 2:
        raise UserError(f"{len(patients)} patient(s) cannot be parted: two or more are needed")
    count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    chosen = set(patients[:count])
    return [patient in chosen for patient in patient_ids]


def patient_order(patient_ids: Iterable[str]) -> list[str]:
    """Patients in the order of their hashes, which is that of every choice made here."""
    return sorted(patient_ids, key=_position)


def first_images(patient_ids: Sequence[str], count: int) -> list[bool]:
    """Which records are the first `count` of the patients in the order of their hashes.

    Whole patients, but for the last one. A larger count holds what a smaller one does.

    Raises:
        UserError: there are fewer records.
    """
    if not 1 <= count <= len(patient_ids):
        raise UserError(f"{count} images cannot be taken from {len(patient_ids)}")
    order = sorted(range(len(patient_ids)), key=lambda i: (_position(patient_ids[i]), i))
    chosen = set(order[:count])
    return [i in chosen for i in range(len(patient_ids))]


def check_no_leak(patient_ids: Sequence[str], splits: Sequence[str]) -> None:
    """Raise a UserError when a patient is in more than one split."""
    seen: dict[str, str] = {}
    for patient_id, split in zip(patient_ids, splits, strict=True):
        if seen.setdefault(patient_id, split) != split:
            raise UserError(
                f"patient {patient_id!r} is in train and in validation: "
                "give all images of a patient the same split"
            )
