"""The kernel distance of two feature sets (KID): the unbiased squared MMD of a cubic kernel.

Symbols: x_i real (m of them), y_j synthetic (n), d their width.

    (1)  k(x, y) = (x . y / d + 1)^3                                        1801.01401, section 4
    (2)  KID = sum_{i != i'} k(x_i, x_i') / (m (m - 1)) + sum_{j != j'} k(y_j, y_j') / (n (n - 1))
               - 2 sum_{ij} k(x_i, y_j) / (m n)                             1801.01401, eq. 4
    (3)  v = (m - 1) / m sum_i (KID_-i - mean)^2 + (n - 1) / n sum_j (KID_-j - mean)^2

Unlike FID, KID has no bias at small numbers, so it can be negative. (3) is the jackknife's
variance, KID_-i being KID without x_i; row sums of the kernel give all of them at no further cost.

The kernel is computed in float64 on the host: KID is a difference, often of 1e-3, between averages
that exceed 1, and float32 products leave less than four digits of it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medsd_jax.errors import UserError
from medsd_jax.evaluation.feature_sets import Features, check_pair

_BLOCK = 1024
"""Rows and columns of the kernel that exist at once: 8 MiB."""


@dataclass(frozen=True)
class Kid:
    """KID of whole sets.

    Attributes:
        value: (2), unbiased.
        standard_error: Square root of (3). It tells how another draw of images would change the
            value; where both sets come from one distribution it is too large, not too small.
        num_real: m.
        num_synthetic: n.
    """

    value: float
    standard_error: float
    num_real: int
    num_synthetic: int


@dataclass(frozen=True)
class KidOfSubsets:
    """KID as most papers print it: over random subsets.

    Attributes:
        mean: Mean of the subsets' KID; unbiased.
        std: Their standard deviation (divisor: number of subsets). It grows as `subset_size`
            shrinks and is no standard error of the mean.
        num_subsets: Number of subsets.
        subset_size: Vectors of each set in a subset.
    """

    mean: float
    std: float
    num_subsets: int
    subset_size: int


def kid(real: Features, synthetic: Features) -> Kid:
    """Compute KID of whole sets by (2) and its standard error by (3).

    Time grows with (m + n)^2 d; memory beyond a float64 copy of the features does not grow.

    Args:
        real: [m, d].
        synthetic: [n, d].

    Returns:
        The estimate.

    Raises:
        UserError: If a set has fewer than 3 vectors or one not finite, or the widths differ.
    """
    check_pair(real, synthetic, at_least=3)
    x, y = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    m, n = len(x), len(y)
    xx, yy = _sums_within(x), _sums_within(y)
    xy, yx = _sums_between(x, y)

    def value(xx_sum, m, yy_sum, n, xy_sum):
        return xx_sum / (m * (m - 1)) + yy_sum / (n * (n - 1)) - 2.0 * xy_sum / (m * n)

    without_x = value(xx.sum() - 2.0 * xx, m - 1, yy.sum(), n, xy.sum() - xy)
    without_y = value(xx.sum(), m, yy.sum() - 2.0 * yy, n - 1, xy.sum() - yx)
    return Kid(
        value=float(value(xx.sum(), m, yy.sum(), n, xy.sum())),
        standard_error=float(np.sqrt((m - 1) * without_x.var() + (n - 1) * without_y.var())),
        num_real=m,
        num_synthetic=n,
    )


def kid_of_subsets(
    real: Features,
    synthetic: Features,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KidOfSubsets:
    """Average KID over random subsets, each drawn without replacement from both sets.

    Args:
        real: [m, d].
        synthetic: [n, d].
        num_subsets: Number of subsets.
        subset_size: Vectors drawn from each set, in [2, min(m, n)].
        seed: Of the draws.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        UserError: If the subsets do not fit the sets or the features cannot be measured.
    """
    check_pair(real, synthetic)
    m, n = len(real), len(synthetic)
    if not 2 <= subset_size <= min(m, n):
        raise UserError(
            f"subset_size={subset_size} does not fit {m} real and {n} synthetic images; "
            f"choose one from 2 to {min(m, n)}"
        )
    if num_subsets < 1:
        raise UserError(f"num_subsets={num_subsets} leaves nothing to average; choose at least 1")
    x, y = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        xs = x[rng.permutation(m)[:subset_size]]
        ys = y[rng.permutation(n)[:subset_size]]
        within = (_sums_within(xs).sum() + _sums_within(ys).sum()) / (subset_size - 1)
        between = _sums_between(xs, ys)[0].sum() / subset_size
        values.append((within - 2.0 * between) / subset_size)
    return KidOfSubsets(float(np.mean(values)), float(np.std(values)), num_subsets, subset_size)


def _kernel(a: Float[np.ndarray, "A d"], b: Float[np.ndarray, "B d"]) -> Float[np.ndarray, "A B"]:
    base = a @ b.T / a.shape[1] + 1.0
    return base * base * base


def _sums_between(
    a: Float[np.ndarray, "A d"], b: Float[np.ndarray, "B d"]
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " B"]]:
    """Sums of k(a_i, b_j) over j and over i."""
    over_b, over_a = np.zeros(len(a)), np.zeros(len(b))
    for i in range(0, len(a), _BLOCK):
        for j in range(0, len(b), _BLOCK):
            block = _kernel(a[i : i + _BLOCK], b[j : j + _BLOCK])
            over_b[i : i + _BLOCK] += block.sum(axis=1)
            over_a[j : j + _BLOCK] += block.sum(axis=0)
    return over_b, over_a


def _sums_within(a: Float[np.ndarray, "A d"]) -> Float[np.ndarray, " A"]:
    """Sums of k(a_i, a_j) over j != i; the kernel is symmetric, so half of the blocks do."""
    sums = np.zeros(len(a))
    for i in range(0, len(a), _BLOCK):
        block = _kernel(a[i : i + _BLOCK], a[i : i + _BLOCK])
        np.fill_diagonal(block, 0.0)
        sums[i : i + _BLOCK] += block.sum(axis=1)
        after = i + _BLOCK
        if after < len(a):
            over_rest, over_block = _sums_between(a[i:after], a[after:])
            sums[i:after] += over_rest
            sums[after:] += over_block
    return sums
