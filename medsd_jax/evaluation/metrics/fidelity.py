"""How far two sets of images lie apart in one feature space: every number with what it needs."""

from collections.abc import Sequence

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.feature_sets import Features
from medsd_jax.evaluation.metrics.frechet import (
    Moments,
    extrapolated_frechet_distance,
    frechet_distance,
    moments_of,
)
from medsd_jax.evaluation.metrics.frechet_error import frechet_interval, frechet_standard_error
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval, share_interval
from medsd_jax.evaluation.metrics.kid import kid
from medsd_jax.evaluation.metrics.prdc import prdc
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.evaluation import Distances, ExtrapolatedFid, RealHalves

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
    synthetic_units: Sequence[str] | None = None,
    seed: int = 0,
) -> Distances:
    """FID, KID, precision, recall, density and coverage.

    FID grows as sets shrink, so it stands beside two more numbers: its extrapolation to infinitely
    many synthetic images, and the distance between two halves of the real set, which is what
    nothing but the small number of patients and images does: no patient is in both halves.

    Intervals: FID's and KID's (frechet_error.py; kid.py: the jackknife, a patient at a time) tell
    how another draw of patients would move the value, bias aside. Those of the other four count the
    units of the images that each is a mean of, the other set held fixed: precision's and
    density's know nothing of other real patients, recall's and coverage's nothing of other
    generated images. Shares have `share_interval`, as a bootstrap of nothing but ones has no
    width; density, which is none, has the bootstrap.

    Args:
        real: [n, d] float32.
        synthetic: [m, d] float32.
        real_patients: [n], who is drawn at once in the real set; each image its own patient if
            None.
        synthetic_units: [m], what is drawn at once in the synthetic set, such as the images of
            one start noise; each image its own unit if None.
        seed: of subsets, halves and resamples.

    Returns:
        Every number with its interval; KID has none where a set has two units only.
    """
    real_moments, moments = moments_of(real, "real"), moments_of(synthetic, "synthetic")
    whole = kid(real, synthetic, real_groups=real_patients, synthetic_groups=synthetic_units)
    shares = prdc(real, synthetic, NEIGHBOURS)
    line = extrapolated_frechet_distance(real_moments, synthetic, units=synthetic_units, seed=seed)
    patients, units = (
        np.arange(len(rows)) if names is None else np.asarray(names)
        for names, rows in ((real_patients, real), (synthetic_units, synthetic))
    )

    return Distances(
        num_real=len(real),
        num_synthetic=len(synthetic),
        width=real.shape[1],
        fid=fid(real, synthetic, real_patients, synthetic_units, (real_moments, moments)),
        fid_extrapolated=ExtrapolatedFid(
            value=line.value,
            standard_error=line.standard_error,
            smallest_subset=int(line.sizes[0]),
            sizes=tuple(line.sizes.tolist()),
            distances=tuple(line.distances.tolist()),
        ),
        fid_real_halves=_real_halves(real, patients, seed),
        kid=Estimate(whole.value, whole.num_units, whole.interval()),
        precision=share_interval(shares.balls_of_synthetic > 0, units),
        recall=share_interval(shares.recalled, patients),
        density=bootstrap_interval(
            np.mean, shares.balls_of_synthetic / shares.k, units=units, seed=seed
        ),
        coverage=share_interval(shares.covered, patients),
        k=NEIGHBOURS,
    )


def fid(
    real: Features,
    synthetic: Features,
    real_patients: Sequence[str] | None = None,
    synthetic_units: Sequence[str] | None = None,
    moments: tuple[Moments, Moments] | None = None,
) -> Estimate:
    """FID alone with its interval; arguments as `fidelity`.

    Args:
        real: [n, d] float32.
        synthetic: [m, d] float32.
        real_patients: [n].
        synthetic_units: [m].
        moments: of both, where they are known already.
    """
    if moments is None:
        moments = moments_of(real, "real"), moments_of(synthetic, "synthetic")
    value = frechet_distance(*moments)
    error = frechet_standard_error(real, synthetic, moments, real_patients, synthetic_units)
    num_units = min(
        len(rows) if names is None else len(set(names))
        for names, rows in ((real_patients, real), (synthetic_units, synthetic))
    )
    return Estimate(value, num_units, frechet_interval(value, error, num_units))


def distances(
    real: Features,
    real_moments: Moments,
    synthetic: Features,
    names: Sequence[str],
    real_patients: Sequence[str] | None = None,
) -> dict[str, float]:
    """Some of the numbers alone, cheap enough to follow a training with.

    Args:
        real: [n, d] float32.
        real_moments: of `real`: they are the same every time.
        synthetic: [m, d] float32.
        names: of `DISTANCES`.
        real_patients: [n], as `fidelity` takes them.

    Returns:
        name -> value, each as `fidelity` computes it.
    """
    result = {}
    if "fid" in names:
        result["fid"] = frechet_distance(real_moments, moments_of(synthetic, "synthetic"))
    if "kid" in names:
        result["kid"] = kid(real, synthetic, real_groups=real_patients).value
    if "precision" in names or "recall" in names:
        shares = prdc(real, synthetic, NEIGHBOURS)
        result |= {"precision": shares.precision, "recall": shares.recall}
    return {name: result[name] for name in names}


def _real_halves(real: Features, patients: np.ndarray, seed: int) -> RealHalves:
    names, of_row = np.unique(patients, return_inverse=True)
    sizes = np.bincount(of_row)
    rng, distances, smallest = np.random.default_rng(seed), [], len(real)
    for _ in range(_HALVES):
        second = _in_second_half(sizes, rng)[of_row]
        halves = real[~second], real[second]
        smallest = min(smallest, *map(len, halves))
        if smallest < 2:
            raise UserError(
                f"{len(real)} real images of {len(names)} patients, one of whom has "
                f"{sizes.max()}, leave a single image to the other half; add patients"
            )
        distances.append(frechet_distance(*map(moments_of, halves)))
    return RealHalves(
        mean=float(np.mean(distances)),
        range=(min(distances), max(distances)),
        num_images=smallest,
        num_patients=len(names),
    )


def _in_second_half(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[patients] bool: a random split whose halves hold nearly as many images each.

    Patients with many images are dealt out first, each to the half that has fewer so far.
    """
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    second, ahead = np.zeros(len(sizes), bool), 0  # images of the first half less the second's
    for patient in order:
        second[patient] = ahead > 0 or (ahead == 0 and rng.random() < 0.5)
        ahead += -sizes[patient] if second[patient] else sizes[patient]
    return second
