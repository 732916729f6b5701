"""Numbers with their uncertainty: bootstrap over patients, Wilson's interval for a share.

The bootstrap draws whole units (patients) with replacement: images of one patient are alike, and
drawing them one by one would give intervals that are too short. Its percentile interval fits means,
shares, AUROC and the like. It does not fit FID: a drawn set holds copies, which raise FID itself.
"""

import warnings
from collections.abc import Callable

import numpy as np
import scipy.stats
from jaxtyping import Shaped

from medsd_jax.errors import UserError
from medsd_jax.evaluation.reports.base import Estimate

_LEVEL = 0.95
_TAIL = (1.0 - _LEVEL) / 2.0


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: Shaped[np.ndarray, "n ..."],
    units: Shaped[np.ndarray, " n"] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Compute a statistic and its percentile bootstrap interval.

    Args:
        statistic: Maps the arrays, with any selection of rows, to a number. nan means that the rows
            do not define it (AUROC of one class): such resamples are left out.
        *arrays: One or more of [n, ...], rows belonging together, such as labels and scores.
        units: [n], the unit of each row, such as its patient id; None makes each row a unit.
        num_resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        The statistic on all rows, its interval, and the number of units.

    Raises:
        UserError: If there are fewer than 2 units, or most resamples do not define the statistic.
    """
    num_rows = len(arrays[0])
    if units is None:
        rows_of_unit = [np.array([row]) for row in range(num_rows)]
    else:
        names, of_row = np.unique(units, return_inverse=True)
        order = np.argsort(of_row, kind="stable")
        rows_of_unit = np.split(order, np.cumsum(np.bincount(of_row))[: len(names) - 1])
    num_units = len(rows_of_unit)
    if num_rows < 1 or num_units < 2:
        raise UserError(f"a bootstrap interval needs at least 2 units (patients), not {num_units}")

    def of_units(drawn: np.ndarray) -> float:
        rows = np.concatenate([rows_of_unit[unit] for unit in drawn])
        return float(statistic(*(array[rows] for array in arrays)))

    with warnings.catch_warnings():
        # Of resamples that do not define the statistic; they are counted below.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        values = scipy.stats.bootstrap(
            (np.arange(num_units),),
            of_units,
            vectorized=False,
            n_resamples=num_resamples,
            batch=max(1, 10**7 // num_units),  # at most 80 MB of drawn numbers at once
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    undefined = int(np.isnan(values).sum())
    if 2 * undefined >= num_resamples:
        raise UserError(
            f"{undefined} of {num_resamples} resamples of {num_units} units do not define the "
            "statistic; there are too few units for an interval"
        )
    low, high = np.nanquantile(values, [_TAIL, 1.0 - _TAIL])
    return Estimate(float(statistic(*arrays)), num_units, (float(low), float(high)))


def wilson_interval(successes: int, n: int) -> Estimate:
    """Compute a share and its Wilson score interval, which stays in [0, 1] at 0 and n successes.

    Args:
        successes: How many of the n, in [0, n].
        n: Number of independent trials, at least 1. Where one patient has several images, use
            `bootstrap_interval` instead.

    Returns:
        The share with its interval.

    Raises:
        UserError: If there are no trials.
    """
    if n < 1:
        raise UserError("a share of 0 trials is not defined; the group is empty")
    assert 0 <= successes <= n, (successes, n)
    interval = scipy.stats.binomtest(successes, n).proportion_ci(_LEVEL, method="wilson")
    return Estimate(successes / n, n, (float(interval.low), float(interval.high)))


def share_interval(
    right: Shaped[np.ndarray, " n"],
    units: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Compute a share and Wilson's interval, at as many trials as the units are worth.

    Rows of one unit are alike or opposite, so that n rows are worth n / D independent ones, D being
    the variance of the share over units by that of n independent rows (Kish's design effect); never
    more than n, and as many as there are units where all rows agree. Few units know D badly: the
    number is lowered by (z / t)^2, t of units - 1 degrees of freedom, as Korn and Graubard (1998).

    Args:
        right: [n] bool.
        units: [n], of each row; each row its own unit if None.

    Returns:
        The share with its interval; n is the number of units.

    Raises:
        UserError: If there are no rows.
    """
    right = np.asarray(right, np.float64)
    n = len(right)
    numbers = np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]
    num_units = int(numbers.max()) + 1 if n else 0
    if num_units == n:
        return wilson_interval(int(right.sum()), n)
    share = float(right.mean())
    z = scipy.stats.norm.ppf((1.0 + _LEVEL) / 2.0)
    worth = float(num_units)
    if 0.0 < share < 1.0 and num_units > 1:
        sums = np.bincount(numbers, weights=right - share)
        variance = num_units / (num_units - 1) * float(sums @ sums) / n**2
        worth = min(n, share * (1.0 - share) / variance) if variance else float(n)
        worth *= (z / scipy.stats.t.ppf((1.0 + _LEVEL) / 2.0, num_units - 1)) ** 2
    # Wilson (1927) at a number of trials that need not be whole.
    middle = (share + z * z / (2 * worth)) / (1 + z * z / worth)
    reach = z / (1 + z * z / worth)
    reach *= np.sqrt(share * (1 - share) / worth + z * z / (4 * worth * worth))
    # Rounding must not leave the share itself outside.
    low = 0.0 if share == 0.0 else float(middle - reach)
    high = 1.0 if share == 1.0 else float(middle + reach)
    return Estimate(share, num_units, (low, high))
