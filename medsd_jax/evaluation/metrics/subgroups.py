"""The same numbers for subgroups of the images: one finding, one sex, ten years of age, one view.

A subgroup is compared with the same one of the other set: images of effusions with real effusions.
Subgroups with too few images are marked and get no number, as it would be noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medsd_jax.evaluation.metrics.feature_sets import Features
from medsd_jax.evaluation.metrics.fidelity import fidelity
from medsd_jax.evaluation.reports.base import TooFew
from medsd_jax.evaluation.reports.evaluation import Distances

AGE_BAND = 20  # years
MIN_IMAGES = 50
"""Of each set in a subgroup."""
MIN_UNITS = 10
"""Patients of a subgroup: many images of a few patients say little, and nothing of their spread."""
_TRAITS = ("sex", "view")


def find_subgroups(labels: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Finds the subgroups of a set.

    Args:
        labels: of each image: findings 1 or 0, sex, age in years, view.

    Returns:
        subgroup -> [n] bool; "pleural_effusion" for images that show it, "sex=F", "age=40-59",
        "view=PA". Findings come first, each group in alphabetical order. A finding that no image
        shows has no subgroup.
    """
    findings, traits = {}, {}
    names = sorted({name for row in labels for name in row})
    for name in names:
        values = [row.get(name) for row in labels]
        if name == "age":
            bands = [_band(value) for value in values]
            traits |= {f"age={b}": np.array([x == b for x in bands]) for b in _sorted(bands)}
        elif name in _TRAITS:
            known = sorted({str(value) for value in values if value not in (None, "")})
            traits |= {f"{name}={k}": np.array([str(v) == k for v in values]) for k in known}
        elif {value for value in values if value is not None} <= {0, 1}:
            shown = np.array([value == 1 for value in values])
            if shown.any():
                findings[name] = shown
    return findings | traits


def subgroup_fidelity(
    real: Features,
    synthetic: Features,
    real_labels: Sequence[Mapping[str, Any]],
    synthetic_labels: Sequence[Mapping[str, Any]],
    *,
    real_patients: Sequence[str] | None = None,
    synthetic_units: Sequence[str] | None = None,
    least: int = MIN_IMAGES,
    seed: int = 0,
    whole: Distances | None = None,
) -> dict[str, Distances | TooFew]:
    """Computes `fidelity` for each subgroup that both sets have.

    Args:
        real: [n, d] float32.
        synthetic: [m, d] float32.
        real_labels: [n].
        synthetic_labels: [m].
        real_patients: [n], as `fidelity` takes them.
        synthetic_units: [m], likewise.
        least: images of each set that a subgroup needs, of `MIN_UNITS` patients or more.
        seed: of the estimates.
        whole: what `fidelity` returned for all images with these settings, for a subgroup that all
            of them are in: it is not measured twice.

    Returns:
        subgroup -> what `fidelity` returns, or that it has too few images or patients. Parts of the
        real set that no synthetic image is in are there too, and the other way round.
    """
    of_real, of_synthetic = find_subgroups(real_labels), find_subgroups(synthetic_labels)
    result: dict[str, Distances | TooFew] = {}
    for name in dict.fromkeys([*of_real, *of_synthetic]):
        rows, others = of_real.get(name), of_synthetic.get(name)
        counts = {
            "num_real": 0 if rows is None else int(rows.sum()),
            "num_synthetic": 0 if others is None else int(others.sum()),
        }
        if min(counts.values()) < least:
            result[name] = TooFew(**counts)
            continue
        patients = _of(real_patients, rows)
        units = _of(synthetic_units, others)
        if any(len(set(x)) < MIN_UNITS for x in (patients, units) if x is not None):
            result[name] = TooFew(**counts)
            continue
        if whole is not None and rows.all() and others.all():
            result[name] = whole
            continue
        result[name] = fidelity(
            real[rows], synthetic[others], real_patients=patients, synthetic_units=units, seed=seed
        )
    return result


def _of(names: Sequence[str] | None, rows: np.ndarray) -> list[str] | None:
    return None if names is None else [names[row] for row in np.flatnonzero(rows)]


def _band(age: Any) -> str:
    if age is None or age == "":
        return ""
    first = int(age) // AGE_BAND * AGE_BAND
    return f"{first}-{first + AGE_BAND - 1}"


def _sorted(bands: Sequence[str]) -> list[str]:
    return sorted({band for band in bands if band}, key=lambda band: int(band.partition("-")[0]))
