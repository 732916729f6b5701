"""How far two sets of pictures lie apart in one feature space: every number with what it needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from medsd_jax.evaluation.feature_sets import Features
from medsd_jax.evaluation.frechet import (
    Moments,
    extrapolated_frechet_distance,
    frechet_distance,
    moments_of,
)
from medsd_jax.evaluation.frechet_error import frechet_standard_error
from medsd_jax.evaluation.intervals import Estimate, bootstrap_interval
from medsd_jax.evaluation.kid import kid
from medsd_jax.evaluation.prdc import prdc

NEIGHBOURS = 5
"""k of precision, recall, density and coverage, as in CheXGenBench."""
_HALVES = 5
DISTANCES = ("fid", "kid", "precision", "recall")
"""What `distances` knows."""


def fidelity(
    real: Features,
    synthetic: Features,
    *,
    real_patients: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """FID, KID, precision, recall, density and coverage.

    FID grows as sets shrink, so it stands beside two more numbers: its extrapolation to infinitely
    many synthetic pictures, and the distance between two halves of the real set, which is what
    nothing but the small number of pictures does.

    Intervals: FID's and KID's are value +- 1.96 standard errors (frechet_error.py; kid.py: the
    jackknife) and tell how another draw would move the value, bias aside. Those of the four shares
    are bootstraps over the pictures that each is a mean of, the other set held fixed.

    Args:
        real: [n, d] float32.
        synthetic: [m, d] float32.
        real_patients: [n], the unit of what is a mean over real pictures; each picture its own
            where None.
        seed: of subsets, halves and resamples.

    Returns:
        num_real, num_synthetic, width; fid, kid, precision, recall, density, coverage (each value,
        n, ci95); fid_extrapolated (value, standard_error, smallest subset, sizes, distances);
        fid_real_halves (mean and range over splits, pictures in a half); k.
    """
    real_moments, moments = moments_of(real, "real"), moments_of(synthetic, "synthetic")
    whole, shares = kid(real, synthetic), prdc(real, synthetic, NEIGHBOURS)
    line = extrapolated_frechet_distance(real_moments, synthetic, seed=seed)
    fid = frechet_distance(real_moments, moments)
    error = frechet_standard_error(real, synthetic, (real_moments, moments), real_patients)
    smaller = min(len(real), len(synthetic))
    patients = None if real_patients is None else np.asarray(real_patients)

    def mean_over(values: np.ndarray, units: np.ndarray | None = None) -> dict[str, Any]:
        return bootstrap_interval(np.mean, values, units=units, seed=seed).to_dict()

    return {
        "num_real": len(real),
        "num_synthetic": len(synthetic),
        "width": real.shape[1],
        "fid": _with_error(fid, error, smaller, least=0.0).to_dict(),
        "fid_extrapolated": {
            "value": line.value,
            "standard_error": line.standard_error,
            "smallest_subset": int(line.sizes[0]),
            "sizes": line.sizes.tolist(),
            "distances": line.distances.tolist(),
        },
        "fid_real_halves": _real_halves(real, seed),
        "kid": _with_error(whole.value, whole.standard_error, smaller).to_dict(),
        "precision": mean_over((shares.balls_of_synthetic > 0).astype(np.float64)),
        "recall": mean_over(shares.recalled.astype(np.float64), patients),
        "density": mean_over(shares.balls_of_synthetic / shares.k),
        "coverage": mean_over(shares.covered.astype(np.float64), patients),
        "k": NEIGHBOURS,
    }


def _with_error(value: float, error: float, n: int, *, least: float = -np.inf) -> Estimate:
    reach = float(scipy.stats.norm.ppf(0.975)) * error
    return Estimate(value, max(value - reach, least), value + reach, n)


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
