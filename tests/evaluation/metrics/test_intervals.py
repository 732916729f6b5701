import dataclasses
import json

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.intervals import (
    Estimate,
    bootstrap_interval,
    share_interval,
    wilson_interval,
)


def test_report_entry():
    result = dataclasses.asdict(Estimate(0.5, 100, (0.4, 0.6)))
    assert json.loads(json.dumps(result)) == {"value": 0.5, "n": 100, "ci95": [0.4, 0.6]}
    for estimate in (wilson_interval(3, 5), bootstrap_interval(np.mean, np.arange(9.0))):
        json.dumps(dataclasses.asdict(estimate), allow_nan=False)


def test_an_estimate_is_written_with_its_interval():
    result = Estimate(0.51234, 100, (0.4, -0.0001))
    assert f"{result:.3f}" == "0.512 (0.400 to -0.000)"
    assert f"{result:+z.3f}" == "+0.512 (+0.400 to +0.000)"
    assert f"{result:.1%}" == "51.2% (40.0% to -0.0%)"
    assert f"{Estimate(3.0, 1):.3g}" == "3"


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (7, 20), (20, 20), (196, 200)])
def test_wilson_equals_the_formula(successes, n):
    """The centre and half width of Wilson (1927), and his property: 0 and n stay inside."""
    result = wilson_interval(successes, n)
    z = 1.959963984540054
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    np.testing.assert_allclose(
        [result.ci95[0], result.ci95[1]], [centre - half, centre + half], rtol=1e-12, atol=1e-15
    )
    assert (result.value, result.n) == (p, n)
    assert 0.0 <= result.ci95[0] <= p <= result.ci95[1] <= 1.0


def test_bootstrap_of_a_mean_equals_the_normal_interval():
    values = np.random.default_rng(0).exponential(size=400)
    result = bootstrap_interval(np.mean, values, num_resamples=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    # Quantiles of 4,000 resamples are known to 3 % of the half width; skewness moves them by 3 %.
    np.testing.assert_allclose(
        [result.ci95[0], result.ci95[1]],
        [values.mean() - half, values.mean() + half],
        atol=0.1 * half,
    )
    assert result.value == values.mean() and result.n == 400


def test_patients_are_drawn_whole():
    """20 images of each patient, all alike: as many images tell no more than one of each."""
    patients = np.random.default_rng(0).normal(size=60)
    order = np.random.default_rng(1).permutation(1200)
    values, ids = np.repeat(patients, 20)[order], np.repeat(np.arange(60), 20)[order]
    names = np.array([f"patient {i}" for i in ids])
    by_patient = bootstrap_interval(np.mean, values, units=names)
    by_image = bootstrap_interval(np.mean, values)
    single = bootstrap_interval(np.mean, patients)
    assert by_patient.n == 60 and by_image.n == 1200
    width = [e.ci95[1] - e.ci95[0] for e in (by_patient, by_image, single)]
    # Quantiles of 1,000 resamples: 5 % of the width.
    np.testing.assert_allclose(width[0], width[2], rtol=0.15)
    np.testing.assert_allclose(width[0] / width[1], np.sqrt(20), rtol=0.15)


def test_patients_of_unequal_size_keep_their_rows():
    """Each resample holds whole patients and rows that belong together."""
    units = np.array([3, 1, 1, 7, 3, 1])
    seen = []

    def statistic(values, copies):
        np.testing.assert_array_equal(values, copies[:, 0])
        counts = np.bincount(values, minlength=6)
        assert counts[0] == counts[4] and counts[1] == counts[2] == counts[5]
        assert counts[[0, 1, 3]].sum() == 3
        seen.append(tuple(counts))
        return values.mean()

    rows = np.arange(6)
    bootstrap_interval(statistic, rows, rows[:, None], units=units, num_resamples=100)
    assert len(set(seen)) == 10  # all multisets of 3 patients


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).normal(size=50)
    first, again, other = (
        bootstrap_interval(np.median, values, seed=s, num_resamples=200) for s in (1, 1, 2)
    )
    assert first == again != other


def test_coverage_of_the_interval():
    """Of 95 % intervals of 200 samples about 95 % hold the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        result = bootstrap_interval(np.mean, rng.normal(size=40), num_resamples=200)
        hits += result.ci95[0] <= 0.0 <= result.ci95[1]
    # 200 * (0.93 +- 3 * 0.018): percentile intervals of 40 values are slightly short.
    assert 175 <= hits <= 197


def test_undefined_resamples():
    """A rare class is missing from some resamples; one that is nearly always missing is named."""
    labels = np.array([1] * 3 + [0] * 60)
    scores = np.linspace(1.0, 0.0, 63)

    def gap(labels, scores):
        if labels.all() or not labels.any():
            return float("nan")
        return scores[labels == 1].mean() - scores[labels == 0].mean()

    result = bootstrap_interval(gap, labels, scores, num_resamples=500)
    assert np.isfinite([result.ci95[0], result.ci95[1]]).all()
    assert result.ci95[0] <= result.value <= result.ci95[1]
    with pytest.raises(UserError, match="of 63 units do not define"):
        bootstrap_interval(gap, np.zeros(63), scores, num_resamples=100)


def test_too_little_is_named():
    with pytest.raises(UserError, match=r"at least 2 units .* not 1"):
        bootstrap_interval(np.mean, np.arange(5.0), units=np.zeros(5))
    with pytest.raises(UserError, match="not 0"):
        bootstrap_interval(np.mean, np.zeros(0))
    with pytest.raises(UserError, match="0 trials"):
        wilson_interval(0, 0)


class TestShareOfUnits:
    def test_single_rows_are_wilsons(self):
        right = np.arange(40) % 3 == 0
        assert share_interval(right) == wilson_interval(14, 40)
        assert share_interval(right, np.arange(40)) == wilson_interval(14, 40)

    def test_copies_tell_nothing_new(self):
        right = np.arange(200) % 3 == 0
        once = share_interval(right)
        names = np.arange(200)
        twice = share_interval(np.repeat(right, 2), np.repeat(names, 2))
        assert (twice.value, twice.n) == (once.value, 200)
        # (z / t)^2 of 199 degrees of freedom and K / (K - 1) lengthen it by 1 %.
        length, expected = (x.ci95[1] - x.ci95[0] for x in (twice, once))
        assert length == pytest.approx(expected, rel=0.015) and length > expected

    def test_where_all_agree_there_are_as_many_trials_as_units(self):
        result = share_interval(np.ones(60, bool), np.repeat(np.arange(30), 2).astype(str))
        expected = wilson_interval(30, 30)
        assert result.ci95[0] == pytest.approx(expected.ci95[0]) and result.ci95[1] == 1.0

    @pytest.mark.parametrize("likeness", [0.9, 0.0, -0.9])
    def test_it_holds_the_truth(self, likeness):
        """Pairs of one start noise: alike, independent, or one right where the other is wrong."""
        rng, held = np.random.default_rng(0), 0
        names = np.repeat(np.arange(64), 2).astype(str)
        for _ in range(400):
            z = rng.multivariate_normal([0, 0], [[1, likeness], [likeness, 1]], size=64)
            result = share_interval((z < 1.0).reshape(-1), names)
            held += result.ci95[0] <= 0.8413 <= result.ci95[1]  # the normal distribution at 1
        assert held >= 0.92 * 400  # 400 draws know 0.95 to 0.011

    def test_few_units_know_little(self):
        right = np.arange(100) % 4 != 0
        right[:50] = right[:50] | (np.arange(50) % 2 == 0)
        result = share_interval(right, np.repeat(["a", "b"], 50))
        assert result.n == 2 and result.ci95[1] - result.ci95[0] > 0.7
