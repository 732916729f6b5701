import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics.prdc import prdc

NAMES = ("precision", "recall", "density", "coverage")


def numbers(real, synthetic, k=5):
    result = prdc(real, synthetic, k)
    return {name: getattr(result, name) for name in NAMES}


@pytest.mark.parametrize(
    ("width", "offset", "k"), [(12, 0.0, 5), (12, 0.0, 1), (2, 0.0, 3), (64, 100.0, 5)]
)
def test_equals_the_authors_package(feature_sets, width, offset, k):
    """The offset makes |a|^2 a million times the squared distances."""
    reference = pytest.importorskip("prdc")
    real, synthetic = (s + np.float32(offset) for s in feature_sets(180, 150, width))
    # Its float64 for every step: sklearn is exact to 1e-7 at this offset.
    expected = reference.compute_prdc(
        real.astype(np.float64), synthetic.astype(np.float64), nearest_k=k
    )
    result = numbers(real, synthetic, k)
    assert 0.0 < expected["coverage"] < 1.0
    for name in NAMES:
        # All four are counts of comparisons, so that they agree to the last of them.
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-9, err_msg=name)


def test_a_set_and_its_copy(feature_sets):
    real, _ = feature_sets()
    copy = np.random.default_rng(0).permutation(real)
    assert numbers(real, copy) == dict.fromkeys(NAMES, 1.0)


def test_sets_apart(feature_sets):
    real, synthetic = feature_sets()
    assert numbers(real, synthetic + np.float32(1e3)) == dict.fromkeys(NAMES, 0.0)


def test_mode_collapse_lowers_recall_and_coverage(feature_sets):
    real, _ = feature_sets(real=150)
    good, _ = feature_sets(real=150, seed=0)
    good = good + np.random.default_rng(1).normal(0, 0.1, good.shape).astype(np.float32)
    healthy = numbers(real, good)
    collapsed = numbers(real, np.repeat(good[:3], 50, axis=0))
    jitter = np.random.default_rng(2).normal(0, 1e-4, good.shape).astype(np.float32)
    nearly = numbers(real, np.repeat(good[:3], 50, axis=0) + jitter)
    assert healthy["recall"] > 0.9 and healthy["coverage"] > 0.9
    for broken in (collapsed, nearly):
        assert broken["recall"] < 0.1 and broken["coverage"] < 0.3
        assert broken["precision"] > 0.9  # each of the three is a good image


def test_images_keep_their_own_values(feature_sets):
    """Means over subgroups: what an interval or a pathology needs."""
    real, synthetic = feature_sets()
    result = prdc(real, synthetic)
    assert result.balls_of_synthetic.shape == (90,)
    assert result.recalled.shape == result.covered.shape == (70,)
    order = np.random.default_rng(0).permutation(90)
    shuffled = prdc(real, synthetic[order])
    np.testing.assert_array_equal(shuffled.balls_of_synthetic, result.balls_of_synthetic[order])
    np.testing.assert_array_equal(shuffled.recalled, result.recalled)
    np.testing.assert_array_equal(shuffled.covered, result.covered)


def test_bad_sets_are_named(feature_sets):
    real, synthetic = feature_sets()
    with pytest.raises(UserError, match=r"synthetic: 5 feature vector.* at least 6"):
        prdc(real, synthetic[:5])
    with pytest.raises(UserError, match="k=0"):
        prdc(real, synthetic, 0)
    with pytest.raises(UserError, match="12 wide and synthetic ones 11"):
        prdc(real, synthetic[:, 1:])
    synthetic[7] = np.inf
    with pytest.raises(UserError, match=r"synthetic: 1 of 90 .* row 7"):
        prdc(real, synthetic)
