"""What each picture of a set is said to show: its table's labels, else the words of its prompt."""

from collections.abc import Mapping
from typing import Any

from medsd_jax.data.findings import findings_in
from medsd_jax.evaluation.picture_sets import PictureSet
from medsd_jax.evaluation.picture_tables import TRAIT_COLUMNS


def known_labels(pictures: PictureSet) -> list[Mapping[str, Any]]:
    """Labels of every picture.

    A table that has findings is believed, and its captions are not read beside it: a caption does
    not say everything. Where no picture of the set has a finding's label, the words of the prompts
    decide (data/findings.py).

    Returns:
        [n] label -> value: findings 1 or 0, sex, age in years, view.
    """
    if any(name not in TRAIT_COLUMNS for row in pictures.labels for name in row):
        return list(pictures.labels)
    return [
        {**(findings_in(text) if text else {}), **row}
        for text, row in zip(pictures.texts, pictures.labels, strict=True)
    ]
