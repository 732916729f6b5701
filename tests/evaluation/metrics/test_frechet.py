import logging

import numpy as np
import pytest
import scipy.linalg

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.frechet import (
    Moments,
    MomentsAccumulator,
    extrapolated_frechet_distance,
    frechet_distance,
    moments_of,
)


def distance_of(real, synthetic):
    return frechet_distance(moments_of(real), moments_of(synthetic))


def sqrtm_distance(real, synthetic):
    """The formula with scipy's general matrix root."""
    real, synthetic = real.astype(np.float64), synthetic.astype(np.float64)
    s1, s2 = np.cov(real.T), np.cov(synthetic.T)
    root = scipy.linalg.sqrtm(s1 @ s2)
    step = real.mean(axis=0) - synthetic.mean(axis=0)
    return step @ step + np.trace(s1 + s2 - 2.0 * root.real)


def test_equals_scipy_sqrtm(feature_sets):
    real, synthetic = feature_sets()
    # Both are float64 on well-conditioned covariances.
    np.testing.assert_allclose(
        distance_of(real, synthetic), sqrtm_distance(real, synthetic), rtol=1e-9
    )


@pytest.mark.torch
@pytest.mark.parametrize(("real", "synthetic"), [(70, 90), (9, 90), (9, 7)])
def test_equals_torchmetrics(feature_sets, real, synthetic):
    """With fewer images than features too, where the covariances are singular."""
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    sets = feature_sets(real, synthetic)
    means = [torch.tensor(s.astype(np.float64)).mean(dim=0) for s in sets]
    covariances = [torch.tensor(np.cov(s.astype(np.float64).T)) for s in sets]
    expected = fid._compute_fid(means[0], covariances[0], means[1], covariances[1])
    # torchmetrics takes roots of eigenvalues: 1e-8 of the largest for each zero one.
    np.testing.assert_allclose(distance_of(*sets), float(expected), rtol=1e-6)


def test_singular_covariances_in_different_planes():
    """Two sets of 2 vectors each: the root of (S_1 S_2) is known in closed form."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 30))
    # S = u u^T with u = (x_1 - x_0) / sqrt(2), so that tr sqrt(S_1 S_2) = |u_1 . u_2|.
    u, v = (a[1] - a[0]) / np.sqrt(2), (b[1] - b[0]) / np.sqrt(2)
    step = a.mean(axis=0) - b.mean(axis=0)
    expected = step @ step + u @ u + v @ v - 2 * abs(u @ v)
    np.testing.assert_allclose(distance_of(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [8, 40, 400])
def test_same_set_is_at_zero(feature_sets, n):
    """Also where n < d; the traces cancel to float64's 1e-16 times d."""
    real, _ = feature_sets(real=n, width=40)
    assert distance_of(real, real) < 1e-12 * np.trace(np.cov(real.T))
    moved = distance_of(real, real + np.float32(0.5))
    np.testing.assert_allclose(moved, 40 * 0.25, rtol=1e-6)  # float32 sums of the moved set


def test_dead_features_do_not_count(feature_sets):
    """Constant columns, as of dead units, in one set or both leave a closed form."""
    real, synthetic = feature_sets()
    expected = distance_of(real, synthetic)
    dead = [np.full((len(s), 5), 3.0, np.float32) for s in (real, synthetic)]
    both = distance_of(np.hstack([real, dead[0]]), np.hstack([synthetic, dead[1]]))
    np.testing.assert_allclose(both, expected, rtol=1e-9)

    live = np.random.default_rng(1).normal(3.0, 1.0, (len(synthetic), 1))
    one = distance_of(np.hstack([real, dead[0][:, :1]]), np.hstack([synthetic, live]))
    # The real covariance has no root in that direction; the correlation of `live` with the other
    # columns changes nothing, because S_1 never looks there.
    extra = live.var(ddof=1) + (live.mean() - 3.0) ** 2
    np.testing.assert_allclose(one, expected + extra, rtol=1e-9)


def test_gaussians_give_the_closed_form():
    """Diagonal covariances: sum of (m_1 - m_2)^2 + (s_1 - s_2)^2."""
    rng = np.random.default_rng(0)
    d, n = 6, 40_000
    s1, s2 = np.linspace(0.5, 2.0, d), np.linspace(1.0, 1.5, d)
    shift = np.linspace(-1.0, 1.0, d)
    x, y = rng.normal(size=(n, d)) * s1, rng.normal(size=(n, d)) * s2 + shift
    expected = np.sum(shift**2) + np.sum((s1 - s2) ** 2)
    # The means' errors of 1e-2 enter twice shift: 2 % covers three standard errors.
    np.testing.assert_allclose(distance_of(x, y), expected, rtol=0.02)


@pytest.mark.parametrize("decades", [0, 6, 12])
def test_common_directions_give_the_closed_form(decades):
    """Two covariances with the same eigenvectors: the sum of (s_1 - s_2)^2."""
    rng = np.random.default_rng(0)
    d, n = 60, 1000
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    s1 = 10.0 ** (-decades / 2 * np.linspace(0, 1, d))
    s2 = s1 * rng.uniform(0.5, 1.5, d)
    one, two = (Moments(n, np.zeros(d), (n - 1) * (turn * s**2) @ turn.T) for s in (s1, s2))
    # Rounding of the covariances moves the smallest roots by up to 1e-8, and there are 60.
    np.testing.assert_allclose(frechet_distance(one, two), np.sum((s1 - s2) ** 2), rtol=1e-6)


def test_equal_vectors_have_no_spread(feature_sets):
    """Their covariance is 0, and what is left is the other's variance and the means' distance."""
    real, _ = feature_sets()
    equal = np.ones((5, real.shape[1]))
    expected = np.sum((real.mean(axis=0) - 1.0) ** 2) + np.var(real, axis=0, ddof=1).sum()
    for one, two in ((equal, real), (real, equal)):
        np.testing.assert_allclose(distance_of(one, two), expected, rtol=1e-5)  # float32 sums
    assert distance_of(equal, equal) == 0.0


def test_symmetric_and_blind_to_order(feature_sets):
    real, synthetic = feature_sets()
    expected = distance_of(real, synthetic)
    np.testing.assert_allclose(distance_of(synthetic, real), expected, rtol=1e-12)
    shuffled = np.random.default_rng(0).permutation(real)
    np.testing.assert_allclose(distance_of(shuffled, synthetic), expected, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 7, 64, 5000])
def test_moments_do_not_depend_on_batches(batch):
    """A mean of 1e4 standard deviations: sums of raw squares would lose 8 of 16 digits."""
    features = np.random.default_rng(0).normal(1e4, 1.0, (2500, 5))
    accumulator = MomentsAccumulator(5)
    for start in range(0, len(features), batch):
        buffer = features[start : start + batch].copy()
        accumulator.update(buffer)
        buffer[:] = np.nan  # a loader that fills its buffer again
        accumulator.update(features[:0])
        if start % 3 == 0:
            accumulator.result()  # looking changes nothing
    moments = accumulator.result()
    assert moments.count == 2500
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(moments.scatter, moments.scatter.T)


def test_extrapolation_removes_the_bias():
    """1,000 images, 16 features: true distance 0.16, FID 0.26."""
    rng = np.random.default_rng(0)
    real = moments_of(rng.normal(size=(20_000, 16)))
    values, plain = [], []
    for seed in range(16):
        synthetic = 1.1 * rng.normal(size=(1000, 16))
        result = extrapolated_frechet_distance(real, synthetic, seed=seed)
        np.testing.assert_allclose(
            result.distances[-1], frechet_distance(real, moments_of(synthetic)), rtol=1e-9
        )
        assert result.slope > 0 and result.sizes[0] == 100 and result.sizes[-1] == 1000
        assert len(result.sizes) == 15
        values.append(result.value)
        plain.append(result.distances[-1])
    true = 16 * 0.1**2
    # One estimate spreads by 0.036 (60 other draws), so that the mean of 16 has the error 0.009.
    assert abs(np.mean(values) - true) < 4 * 0.009
    assert np.mean(plain) > true + 8 * 0.009


def test_extrapolation_is_seeded(feature_sets, caplog):
    real, synthetic = feature_sets()
    real = moments_of(real)
    first, again, other = (
        extrapolated_frechet_distance(real, synthetic, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.distances, again.distances)
    assert first.value == again.value != other.value
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        extrapolated_frechet_distance(real, synthetic, smallest=10)
    assert "10 images" in caplog.text and "width 12" in caplog.text


def test_bad_sets_are_named(feature_sets):
    real, synthetic = feature_sets()
    moments = moments_of(real)
    with pytest.raises(UserError, match=r"synthetic: 1 feature vector"):
        frechet_distance(moments, moments_of(synthetic[:1]))
    with pytest.raises(UserError, match=r"real: 0 feature vector"):
        frechet_distance(moments_of(real[:0]), moments)
    with pytest.raises(UserError, match=r"12 wide and synthetic ones 11"):
        frechet_distance(moments, moments_of(synthetic[:, 1:]))
    with pytest.raises(UserError, match=r"12 wide and synthetic ones 11"):
        extrapolated_frechet_distance(moments, synthetic[:, 1:])
    with pytest.raises(UserError, match=r"11 wide where 12 is expected"):
        MomentsAccumulator(12).update(real[:, 1:])
    with pytest.raises(UserError, match=r"make no line"):
        extrapolated_frechet_distance(moments, synthetic[:3])
    synthetic[[4, 9], 3] = np.nan, np.inf
    with pytest.raises(UserError, match=r"synthetic: 2 of 90 .* the first at row 4"):
        moments_of(synthetic, "synthetic")


def test_extrapolation_draws_images_of_one_unit_together():
    """Three alike images of each of 300 start noises extrapolate as one of each does."""
    rng = np.random.default_rng(0)
    real = moments_of(rng.normal(size=(20_000, 8)))
    units = np.repeat(np.arange(300), 3).astype(str).tolist()
    once, together, apart = [], [], []
    for seed in range(30):
        one = 1.2 * rng.normal(size=(300, 8))
        alike = np.repeat(one, 3, axis=0)
        once.append(extrapolated_frechet_distance(real, one, seed=seed).value)
        together.append(extrapolated_frechet_distance(real, alike, units=units, seed=seed).value)
        apart.append(extrapolated_frechet_distance(real, alike, seed=seed).value)
    true = 8 * 0.2**2
    # One estimate spreads by about 0.05, the mean of 30 by 0.01.
    assert abs(np.mean(once) - true) < 0.04 and abs(np.mean(together) - true) < 0.04
    assert np.mean(apart) > np.mean(together) + 0.05
