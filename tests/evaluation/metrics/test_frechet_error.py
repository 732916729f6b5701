"""The standard error of FID against what it stands for: the spread over other draws."""

import numpy as np
import pytest
import scipy.stats

from medsd_jax.evaluation.metrics.frechet import frechet_distance, moments_of
from medsd_jax.evaluation.metrics.frechet_error import frechet_standard_error


def draws(n, width, seed):
    """Two sets of correlated, skewed vectors, as after ReLU; always of the same distributions."""
    mixing = np.random.default_rng(99).normal(size=(2, width, width)) / np.sqrt(width)
    rng = np.random.default_rng(seed)
    first = np.maximum(rng.normal(size=(n, width)) @ mixing[0], 0.0)
    second = np.maximum(rng.normal(size=(n, width)) @ (mixing[0] + 0.3 * mixing[1]) + 0.1, 0.0)
    return first, second


def fid(first, second):
    return frechet_distance(moments_of(first), moments_of(second))


@pytest.mark.parametrize(
    ("n", "width", "low", "high"),
    [
        (800, 8, 0.85, 1.15),  # 120 draws know their spread to 7 %
        (20, 30, 0.8, 1.6),  # fewer vectors than features: too large, never much too small
    ],
)
def test_it_is_the_spread_over_other_draws(n, width, low, high):
    spread = np.std([fid(*draws(n, width, seed)) for seed in range(120)])
    error = np.mean([frechet_standard_error(*draws(n, width, seed)) for seed in range(8)])
    assert low < error / spread < high


def test_it_is_the_bootstraps_where_that_fits():
    first, second = draws(1500, 4, 0)
    rows = np.arange(1500)
    result = scipy.stats.bootstrap(
        (rows, rows), lambda a, b: fid(first[a], second[b]), vectorized=False, n_resamples=150,
        rng=np.random.default_rng(0), method="percentile",
    )  # fmt: skip
    # 150 resamples know their spread to 6 %.
    assert frechet_standard_error(first, second) == pytest.approx(result.standard_error, rel=0.2)


def test_images_of_one_patient_are_no_independent_draws():
    first, second = draws(300, 6, 1)
    alone = frechet_standard_error(first, second)
    each = [str(i) for i in range(300)]
    assert frechet_standard_error(first, second, patients=each) == pytest.approx(alone, rel=1e-12)
    # Every vector four times, of one patient: no more is known than from one of each.
    copied = np.repeat(first, 4, axis=0)
    by_patient = frechet_standard_error(copied, second, patients=np.repeat(each, 4).tolist())
    assert by_patient == pytest.approx(alone, rel=0.05)
    assert frechet_standard_error(copied, second) < 0.9 * by_patient
