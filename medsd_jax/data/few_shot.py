"""A few images of two kinds, one prompt per kind: the data of arXiv 2210.04133, section 3.

The paper adapts to five radiographs with a visible pleural effusion and five without, and tells
them apart by two prompts alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from medsd_jax.data.labels import NO_FINDING, find_label, findings_of, label_name
from medsd_jax.data.patient_split import patient_order
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.errors import UserError


def few_shot(
    split: RecordSplit,
    *,
    label: str,
    prompt_with: str,
    prompt_without: str,
    images_per_prompt: int | None,
) -> RecordSplit:
    """The images of a split that show one finding alone or nothing at all, under two prompts.

    Args:
        split: with `label` 1 or 0 in its labels.
        label: of the finding, in any spelling.
        prompt_with: the caption of all images that show it.
        prompt_without: the caption of all others.
        images_per_prompt: of each kind so many, of as many patients, the first ones in the order
            of the patients' hashes; None for all.

    Returns:
        Those with the finding, then those without.

    Raises:
        UserError: there are not as many patients of one kind.
    """
    findings = findings_of(split.labels)
    if not any(label_name(label) in row for row in findings) and find_label(split.labels, label):
        raise UserError(
            f"few_shot.label = {label!r}: in the {split.name} split it is no finding; write 1 or "
            "0, and -1 or nothing where it is not known"
        )
    places = []
    for value in (1, 0):
        rows = [i for i, row in enumerate(findings) if _kind(row, label_name(label)) == value]
        if images_per_prompt is not None:
            rows = _one_per_patient(rows, split.patient_ids)[:images_per_prompt]
        if len(rows) < (images_per_prompt or 1):
            there = f"{len(rows)} patients" if images_per_prompt else "no image"
            raise UserError(
                f"few_shot.images_per_prompt = {images_per_prompt}: the {split.name} split has "
                f"{there} with {label} = {value}"
            )
        places.append(rows)
    texts = [prompt_with] * len(places[0]) + [prompt_without] * len(places[1])
    chosen = [*places[0], *places[1]]
    digest = hashlib.sha256(json.dumps([chosen, texts]).encode()).hexdigest()[:8]
    return split.select(chosen, f"{split.name}-few-shot-{digest}", texts)


def _kind(findings: Mapping[str, int], label: str) -> int | None:
    """1 with the finding, 0 without; None where it is not known, or something else is found."""
    others = {name: x for name, x in findings.items() if name not in (label, NO_FINDING)}
    return None if 1 in others.values() else findings.get(label)


def _one_per_patient(rows: Sequence[int], patient_ids: Sequence[str]) -> list[int]:
    first = {}
    for row in rows:
        first.setdefault(patient_ids[row], row)
    return [first[patient] for patient in patient_order(first)]
