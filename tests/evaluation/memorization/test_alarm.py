"""The alarm goes off for other patients as often as it says, whatever their number and images."""

import numpy as np
import pytest
import scipy.stats

from medsd_jax.errors import UserError
from medsd_jax.evaluation.memorization.alarm import is_of_another_origin, make_alarm

OTHERS = 380


def distances(rng, sizes, likeness):
    """Of sizes[p] images of each patient p: alike by `likeness`, all log-normal."""
    patients = np.repeat(np.arange(len(sizes)), sizes)
    own = rng.normal(size=len(sizes))[patients]
    logarithm = np.sqrt(likeness) * own + np.sqrt(1 - likeness) * rng.normal(size=len(patients))
    return np.exp(logarithm / 5), patients.astype(str).tolist()


@pytest.mark.parametrize(
    ("sizes", "likeness"),
    [
        ([1] * 20, 0.0),
        ([1] * 50, 0.0),
        ([1] * 190, 0.0),
        ([3] * 20, 0.8),
        ([3] * 60, 0.8),
        ([3] * 50, 1.0),
        ([1, 2, 9] * 20, 0.8),
    ],
)
def test_it_goes_off_as_often_as_it_says(sizes, likeness):
    stated, observed, inside = [], [], []
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        alarm = make_alarm(*distances(rng, sizes, likeness))
        expected, low, high = alarm.by_chance(OTHERS)
        # The chance of another patient is known: the share itself, not a draw of it, is compared.
        rate = scipy.stats.norm.cdf(5 * np.log(alarm.threshold))
        count = rng.binomial(OTHERS, rate)
        stated.append(expected / OTHERS)
        observed.append(rate)
        inside.append(low <= count <= high)
    # The rate varies by its own size from run to run: 1,500 runs know its mean to 3 %.
    assert np.mean(observed) == pytest.approx(np.mean(stated), rel=0.1)
    assert np.mean(inside) >= 0.9  # 0.92 of the worst of these: J is small and itself drawn


def test_of_single_images_the_rate_is_the_order_statistics():
    rng = np.random.default_rng(0)
    for count, rank in ((20, 1), (50, 1), (190, 2), (999, 10)):
        drawn = rng.normal(size=count)
        alarm = make_alarm(drawn)
        assert alarm.threshold == np.sort(drawn)[rank - 1]
        assert alarm.rate == pytest.approx(rank / (count + 1), rel=1e-12)
        spread = scipy.stats.betabinom(OTHERS, rank, count + 1 - rank)
        assert alarm.by_chance(OTHERS)[1:] == tuple(map(int, spread.ppf([0.025, 0.975])))


@pytest.mark.parametrize("likeness", [0.0, 1.0])
def test_other_patients_that_come_in_threes_spread_wider(likeness):
    """As generated images of one start noise do; the interval holds however alike they are."""
    inside, by_images = [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        # So many that chance is the other patients' rather than the threshold's.
        alarm = make_alarm(*distances(rng, [1] * 2000, 0.0))
        others, _ = distances(rng, [3] * 100, likeness)
        count = np.sum(others < alarm.threshold)
        mean, low, high = alarm.by_chance(300, num_units=100)
        assert mean == alarm.by_chance(300)[0]
        inside.append(low <= count <= high)
        low, high = alarm.by_chance(300)[1:]
        by_images.append(low <= count <= high)
    assert np.mean(inside) >= 0.95
    assert likeness < 1.0 or np.mean(by_images) < 0.95  # what is prevented


def test_equal_images_of_a_patient_count_once():
    drawn = np.random.default_rng(1).normal(size=40)
    names = [f"p{i}" for i in range(40)]
    once = make_alarm(drawn, names)
    again = make_alarm(np.repeat(drawn, 2), np.repeat(names, 2).tolist())
    assert again == once


def test_few_patients_are_reported_however_many_images_they_have():
    with pytest.raises(UserError, match="60 held-out images of 19 patients"):
        make_alarm(np.arange(60.0), [str(min(i, 18)) for i in range(60)])


def test_equal_distances_do_not_break_the_interval():
    alarm = make_alarm(np.full(30, 0.5))
    assert alarm.rate == 0.0 and alarm.by_chance(50)[0] == 0.0
    assert alarm.by_chance(50)[1] <= alarm.by_chance(50)[2] <= 50


class TestOrigin:
    def alarms(self, seed, shift, copies=0.0, held_out=60):
        rng = np.random.default_rng(seed)
        yardstick = np.exp(rng.normal(size=held_out) / 5)
        training = np.exp((rng.normal(size=150) - shift) / 5)
        training[: int(150 * copies)] *= 0.1
        return is_of_another_origin(make_alarm(yardstick), yardstick, training)

    def test_one_origin_is_not_doubted(self):
        assert not any(self.alarms(seed, 0.0) for seed in range(300))
        assert not any(self.alarms(seed, 0.0, held_out=20) for seed in range(300))

    def test_another_origin_is(self):
        assert all(self.alarms(seed, 3.0) for seed in range(100))

    def test_near_copies_within_the_training_set_do_not_silence_the_alarm(self):
        assert not any(self.alarms(seed, 0.0, copies=0.25) for seed in range(100))

    def test_few_training_patients_say_nothing(self):
        yardstick = np.linspace(5.0, 6.0, 30)
        assert not is_of_another_origin(make_alarm(yardstick), yardstick, np.ones(19))
