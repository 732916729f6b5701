"""The summary of a feature space, and the failures it must show."""

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.metrics import fidelity as fidelity_module
from medsd_jax.evaluation.metrics.fidelity import fidelity
from medsd_jax.evaluation.metrics.frechet import frechet_distance, moments_of

WIDTH = 6


@pytest.fixture(scope="module")
def real():
    return np.random.default_rng(0).normal(size=(240, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def alike(real):
    """Another draw of the same distribution."""
    other = np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)
    return fidelity(real, other)


def test_two_draws_of_one_distribution(alike):
    halves = alike.fid_real_halves
    assert halves.num_images == 120 and halves.range[0] <= halves.mean <= halves.range[1]
    # As far apart as two halves of the real set, which are smaller.
    assert alike.fid.value < 2 * halves.mean
    low, high = alike.kid.ci95
    assert low < 0 < high
    assert min(getattr(alike, name).value for name in ("precision", "recall", "coverage")) > 0.85


def test_mode_collapse_lowers_recall_and_coverage(real, alike):
    rng = np.random.default_rng(2)
    few = real[rng.integers(0, 3, 200)] + 0.01 * rng.normal(size=(200, WIDTH))
    collapsed = fidelity(real, few.astype(np.float32))
    assert collapsed.recall.value < 0.2 < alike.recall.value
    assert collapsed.coverage.value < 0.2 < alike.coverage.value
    assert collapsed.fid.value > 5 * alike.fid.value


def test_a_shift_shows_everywhere(real, alike):
    shifted = np.random.default_rng(1).normal(3.0, 1.0, (200, WIDTH)).astype(np.float32)
    apart = fidelity(real, shifted)
    # The Frechet distance of two unit Gaussians is the squared distance of their means.
    assert apart.fid.value == pytest.approx(WIDTH * 3.0**2, rel=0.1)
    assert apart.precision.value < 0.1 < alike.precision.value
    assert apart.kid.ci95[0] > 0.8 * apart.kid.value > 0


def test_equal_seeds_give_equal_numbers(real):
    other = real[:100] + np.float32(0.1)
    assert fidelity(real, other, seed=3) == fidelity(real, other, seed=3)


def test_intervals_hold_their_values_and_patients_widen_them(real):
    other = np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)
    result = fidelity(real, other)
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        low, high = getattr(result, name).ci95
        assert low <= getattr(result, name).value <= high and low < high, name
    assert result.precision.n == 200 and result.recall.n == 240
    # Two patients with 120 alike images each know next to nothing.
    patients = ["a"] * 120 + ["b"] * 120
    shifted = np.concatenate([real[:120], real[120:] + 1.0])
    wide, narrow = (fidelity(shifted, other, real_patients=p).coverage for p in (patients, None))
    assert wide.n == 2 and np.diff(wide.ci95) > 2 * np.diff(narrow.ci95)


class TestHalves:
    """The distance between two halves of the real set: no patient is in both."""

    def halves(self, real, patients):
        other = np.random.default_rng(9).normal(size=(60, WIDTH)).astype(np.float32)
        return fidelity(real, other, real_patients=patients).fid_real_halves

    def test_copies_of_a_patients_image_do_not_bring_the_halves_nearer(self, real):
        names = [f"p{i}" for i in range(60)]
        once = self.halves(real[:60], names)
        for copies in (2, 5):
            many = self.halves(
                np.repeat(real[:60], copies, axis=0), np.repeat(names, copies).tolist()
            )
            # The same patients are split: only n / (n - 1) of the covariances differs.
            assert many.mean == pytest.approx(once.mean, rel=0.06)
            assert many.num_images == copies * once.num_images and many.num_patients == 60
        assert self.halves(np.repeat(real[:60], 5, axis=0), None).mean < once.mean / 2

    def test_they_are_as_far_apart_as_fresh_patients(self):
        """60 patients with three alike images each, against sets of 30 other patients."""
        rng = np.random.default_rng(0)

        def draw(patients):
            own = np.repeat(rng.normal(size=(patients, WIDTH)), 3, axis=0)
            return (own + 0.3 * rng.normal(size=own.shape)).astype(np.float32)

        names = np.repeat(np.arange(60), 3).astype(str).tolist()
        result = np.mean([self.halves(draw(60), names).mean for _ in range(12)])
        fresh = np.mean(
            [frechet_distance(moments_of(draw(30)), moments_of(draw(30))) for _ in range(60)]
        )
        assert result == pytest.approx(fresh, rel=0.2)  # 60 and 12 x 5 draws know it to 5 % each

    @pytest.mark.parametrize("sizes", [[1] * 41, [3] * 20, [30, 5, 5, 5, 5, 5, 3, 2], [7, 5, 1, 1]])
    def test_no_patient_is_split_and_sizes_are_even(self, sizes):
        sizes = np.array(sizes)
        chosen = [
            fidelity_module._in_second_half(sizes, np.random.default_rng(s)) for s in range(20)
        ]
        gaps = [abs(sizes[c].sum() - sizes[~c].sum()) for c in chosen]
        assert max(gaps) <= max(1, 2 * sizes.max() - sizes.sum(), sizes.sum() % 2 + 2 * sizes.min())
        assert len({tuple(c) for c in chosen}) > 1

    def test_one_patient_with_all_but_an_image_is_reported(self, real):
        with pytest.raises(UserError, match="leave a single image to the other half"):
            self.halves(real, ["a"] * 239 + ["b"])
