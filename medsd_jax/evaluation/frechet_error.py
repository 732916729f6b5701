"""How far another draw of pictures would move FID: its standard error, without resampling.

Symbols as in frechet.py; x a real vector, y a synthetic one, z their distance from their own mean.

    (1)  dFID / dS_2 = I - T_2,   T_2 = F_1 (F_1^T S_2 F_1)^(-1/2) F_1^T;   S_1 likewise
    (2)  I_2(y) = 2 (m_2 - m_1) . z + |z|^2 - z^T T_2 z, less its mean;     I_1 likewise
    (3)  se^2 = sum_x I_1(x)^2 / n_1^2 + sum_y I_2(y)^2 / n_2^2

(3) is the infinitesimal jackknife (Efron 1982), to which the bootstrap's variance tends. The
bootstrap itself does not fit FID: a set drawn with replacement holds copies, which lower its rank
and raise FID, by half and more where there are fewer pictures than features. T_2 is the map that
carries the synthetic Gaussian onto the real one, found from the same singular values as FID itself:

    (4)  F_1^T F_2 = U s V^T,   T_2 = (F_1 U s^(-1/2)) (F_1 U s^(-1/2))^T

Against 150 draws of rectified normal vectors, width 16 and 64: right to 5 % from 25 vectors a
feature on, 10 to 40 % too large with fewer vectors than features. It says nothing about FID's bias.
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Float

from medsd_jax.evaluation.feature_sets import Features, check_pair
from medsd_jax.evaluation.frechet import Moments, covariance_factor, moments_of

_ROWS = 1024
_LEAST = 1e-7
"""Of the largest singular value: smaller ones are rounding of zeros, and (4) divides by them."""


def frechet_standard_error(
    real: Features,
    synthetic: Features,
    moments: tuple[Moments, Moments] | None = None,
    patients: Sequence[str] | None = None,
) -> float:
    """Compute (3).

    Args:
        real: [n_1, d].
        synthetic: [n_2, d].
        moments: Of both, where they are known already.
        patients: [n_1] of the real pictures; the values (2) of one patient are then summed before
            they are squared, as pictures of one patient are no independent draws.

    Returns:
        The standard error, in squared units of the features.

    Raises:
        UserError: If the features cannot be measured.
    """
    check_pair(real, synthetic)
    first, second = moments or (moments_of(real, "real"), moments_of(synthetic, "synthetic"))
    factors = covariance_factor(first), covariance_factor(second)
    u, s, vt = scipy.linalg.svd(factors[0].T @ factors[1], full_matrices=False)
    kept = s > _LEAST * s[0]
    root = np.sqrt(s[kept])
    step = first.mean - second.mean
    of_real = _influence(real, first, factors[1] @ vt.T[:, kept] / root, step)
    of_synthetic = _influence(synthetic, second, factors[0] @ u[:, kept] / root, -step)
    if patients is not None:
        _, unit = np.unique(np.asarray(patients), return_inverse=True)
        of_real = np.bincount(unit, weights=of_real)
    variance = (of_real @ of_real) / len(real) ** 2
    variance += (of_synthetic @ of_synthetic) / len(synthetic) ** 2
    return float(np.sqrt(variance))


def _influence(
    features: Features, own: Moments, root: Float[np.ndarray, "d r"], step: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " n"]:
    """(2) of every vector; `root` root^T = T, `step` the own mean less the other one."""
    values = []
    for start in range(0, len(features), _ROWS):
        z = np.asarray(features[start : start + _ROWS], np.float64) - own.mean
        values.append(2.0 * z @ step + np.square(z).sum(axis=1) - np.square(z @ root).sum(axis=1))
    influence = np.concatenate(values)
    return influence - influence.mean()
