import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics import kid as kid_module
from medsd_jax.evaluation.metrics.kid import kid


def textbook(x, y):
    """Averages over pairs, written out; sklearn has the kernel."""
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a, b):
        return pairwise.polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)

    off_x, off_y = ~np.eye(len(x), dtype=bool), ~np.eye(len(y), dtype=bool)
    return k(x, x)[off_x].mean() + k(y, y)[off_y].mean() - 2 * k(x, y).mean()


@pytest.mark.parametrize("block", [1024, 16, 1])
def test_equals_the_textbook_in_any_blocks(feature_sets, monkeypatch, block):
    monkeypatch.setattr(kid_module, "_BLOCK", block)
    real, synthetic = feature_sets(real=33, synthetic=48)
    result = kid(real, synthetic)
    # float64 sums of the same numbers in another order.
    np.testing.assert_allclose(result.value, textbook(real, synthetic), rtol=1e-10)
    assert (result.num_real, result.num_synthetic) == (33, 48)


@pytest.mark.torch
def test_equals_torchmetrics(feature_sets):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torchmetrics.image.kid")
    real, synthetic = feature_sets(real=80, synthetic=80)
    expected = reference.poly_mmd(
        *(torch.tensor(s, dtype=torch.float64) for s in (real, synthetic))
    )
    np.testing.assert_allclose(kid(real, synthetic).value, float(expected), rtol=1e-9)


def test_standard_error_is_the_jackknife(feature_sets):
    real, synthetic = feature_sets(real=9, synthetic=7)
    without_x = [textbook(np.delete(real, i, axis=0), synthetic) for i in range(9)]
    without_y = [textbook(real, np.delete(synthetic, j, axis=0)) for j in range(7)]
    expected = np.sqrt(8 * np.var(without_x) + 6 * np.var(without_y))
    np.testing.assert_allclose(kid(real, synthetic).standard_error, expected, rtol=1e-9)


def test_patients_are_left_out_whole(feature_sets):
    real, synthetic = feature_sets(real=9, synthetic=7)
    patients = np.array(["a", "b", "b", "c", "c", "c", "d", "e", "f"])

    def value(rows, columns):
        """Averages over the pairs of different patients, written out."""
        x, y = real[rows].astype(np.float64), synthetic[columns].astype(np.float64)
        k = [(a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        differ = patients[rows][:, None] != patients[rows][None]
        return k[0][differ].mean() + k[1][~np.eye(len(y), dtype=bool)].mean() - 2 * k[2].mean()

    rows, columns = np.arange(9), np.arange(7)
    result = kid(real, synthetic, real_groups=patients.tolist())
    np.testing.assert_allclose(result.value, value(rows, columns), rtol=1e-10)
    without_x = [value(rows[patients != name], columns) for name in "abcdef"]
    without_y = [value(rows, np.delete(columns, j)) for j in range(7)]
    expected = np.sqrt(5 * np.var(without_x) + 6 * np.var(without_y))
    np.testing.assert_allclose(result.standard_error, expected, rtol=1e-9)
    assert result.num_units == 6
    # The other way round it is the same number, groups and all.
    other = kid(synthetic, real, synthetic_groups=patients.tolist())
    np.testing.assert_allclose(other.standard_error, result.standard_error, rtol=1e-9)


def test_a_second_copy_of_every_image_tells_nothing_new(feature_sets):
    real, synthetic = feature_sets(real=30, synthetic=40)
    names = [f"p{i}" for i in range(30)]
    once = kid(real, synthetic, real_groups=names)
    twice = kid(np.repeat(real, 2, axis=0), synthetic, real_groups=np.repeat(names, 2).tolist())
    np.testing.assert_allclose(twice.value, once.value, rtol=1e-9)
    np.testing.assert_allclose(twice.standard_error, once.standard_error, rtol=1e-9)
    assert kid(np.repeat(real, 2, axis=0), synthetic).standard_error < 0.9 * once.standard_error


def test_few_patients(feature_sets):
    real, synthetic = feature_sets(real=8, synthetic=9)
    assert np.isnan(kid(real, synthetic, real_groups=list("aaaabbbb")).standard_error)
    with pytest.raises(UserError, match=r"real: all 8 images are of one patient \(a\)"):
        kid(real, synthetic, real_groups=list("aaaaaaaa"))


def test_one_distribution_is_near_zero_and_unbiased(feature_sets):
    values, errors = [], []
    for seed in range(40):
        both, _ = feature_sets(real=120, seed=0)
        both = np.random.default_rng(seed).permutation(both)
        result = kid(both[:60], both[60:])
        values.append(result.value)
        errors.append(result.standard_error)
    # Halves of one set: within two standard errors nearly always, and no side preferred. The
    # jackknife is too large here by up to sqrt(2), which makes 36 of 40 a safe demand.
    assert np.sum(np.abs(values) < 2 * np.array(errors)) >= 36
    assert min(values) < 0 < max(values)


def test_standard_error_covers_other_draws(feature_sets):
    """Between different distributions it is the spread over fresh draws."""
    rng = np.random.default_rng(0)
    draws = [kid(rng.normal(size=(50, 6)), rng.normal(0.6, 1.0, size=(70, 6))) for _ in range(60)]
    spread = np.std([draw.value for draw in draws])
    # The spread of 60 draws is known to 10 %; three of these.
    np.testing.assert_allclose(np.mean([d.standard_error for d in draws]), spread, rtol=0.3)


def test_blind_to_order(feature_sets):
    real, synthetic = feature_sets()
    expected = kid(real, synthetic)
    shuffled = kid(real[::-1], np.random.default_rng(0).permutation(synthetic))
    np.testing.assert_allclose(shuffled.value, expected.value, rtol=1e-10)
    np.testing.assert_allclose(shuffled.standard_error, expected.standard_error, rtol=1e-10)
    np.testing.assert_allclose(kid(synthetic, real).value, expected.value, rtol=1e-10)


def test_bad_sets_are_named(feature_sets):
    real, synthetic = feature_sets()
    with pytest.raises(UserError, match="real: 2 feature vector"):
        kid(real[:2], synthetic)
    with pytest.raises(UserError, match="12 wide and synthetic ones 11"):
        kid(real, synthetic[:, 1:])
    real[3, 0] = np.nan
    with pytest.raises(UserError, match=r"real: 1 of 70 .* row 3"):
        kid(real, synthetic)
