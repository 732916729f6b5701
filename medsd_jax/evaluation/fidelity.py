"""How far two sets of pictures lie apart in one feature space: every number with what it needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsd_jax.evaluation.feature_sets import Features
from medsd_jax.evaluation.frechet import (
    Moments,
    extrapolated_frechet_distance,
    frechet_distance,
    moments_of,
)
from medsd_jax.evaluation.kid import kid
from medsd_jax.evaluation.prdc import prdc

NEIGHBOURS = 5
"""k of precision, recall, density and coverage, as in CheXGenBench."""
_HALVES = 5
DISTANCES = ("fid", "kid", "precision", "recall")
"""What `distances` knows."""


def fidelity(real: Features, synthetic: Features, *, seed: int = 0) -> dict[str, Any]:
    """FID, KID, precision, recall, density and coverage.

    FID grows as sets shrink, so it stands beside two more numbers: its extrapolation to infinitely
    many synthetic pictures, and the distance between two halves of the real set, which is what
    nothing but the small number of pictures does.

    Args:
        real: [n, d] float32.
        synthetic: [m, d] float32.
        seed: of subsets and halves.

    Returns:
        num_real, num_synthetic, width; fid; fid_extrapolated (value, standard_error, smallest
        subset); fid_real_halves (mean and range over splits, pictures in a half); kid (value,
        standard_error); precision, recall, density, coverage, with k.
    """
    real_moments = moments_of(real, "real")
    whole = kid(real, synthetic)
    shares = prdc(real, synthetic, NEIGHBOURS)
    line = extrapolated_frechet_distance(real_moments, synthetic, seed=seed)
    return {
        "num_real": len(real),
        "num_synthetic": len(synthetic),
        "width": real.shape[1],
        "fid": frechet_distance(real_moments, moments_of(synthetic, "synthetic")),
        "fid_extrapolated": {
            "value": line.value,
            "standard_error": line.standard_error,
            "smallest_subset": int(line.sizes[0]),
        },
        "fid_real_halves": _real_halves(real, seed),
        "kid": {"value": whole.value, "standard_error": whole.standard_error},
        "precision": shares.precision,
        "recall": shares.recall,
        "density": shares.density,
        "coverage": shares.coverage,
        "k": NEIGHBOURS,
    }


def distances(
    real: Features, real_moments: Moments, synthetic: Features, names: Sequence[str]
) -> dict[str, float]:
    """Some of the numbers alone, cheap enough to follow a training with.

    Args:
        real: [n, d] float32.
        real_moments: of `real`: they are the same every time.
        synthetic: [m, d] float32.
        names: of `DISTANCES`.

    Returns:
        name -> value, each as `fidelity` computes it.
    """
    found = {}
    if "fid" in names:
        found["fid"] = frechet_distance(real_moments, moments_of(synthetic, "synthetic"))
    if "kid" in names:
        found["kid"] = kid(real, synthetic).value
    if "precision" in names or "recall" in names:
        shares = prdc(real, synthetic, NEIGHBOURS)
        found |= {"precision": shares.precision, "recall": shares.recall}
    return {name: found[name] for name in names}


def _real_halves(real: Features, seed: int) -> dict[str, Any]:
    rng, half = np.random.default_rng(seed), len(real) // 2
    distances = []
    for _ in range(_HALVES):
        order = rng.permutation(len(real))
        first, second = (moments_of(real[rows]) for rows in (order[:half], order[half : 2 * half]))
        distances.append(frechet_distance(first, second))
    return {
        "mean": float(np.mean(distances)),
        "range": [min(distances), max(distances)],
        "pictures": half,
    }
