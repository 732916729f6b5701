"""Gains of training arms: against scipy, scikit-learn and closed forms, and how often they hold."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.downstream_utility import (
    ARMS,
    FINE_TUNED,
    JOINT,
    METRICS,
    REAL,
    SYNTHETIC,
    compare_arms,
    plan_arms,
    seed_weights,
)
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.classifiers import LabelUtility

SKLEARN = {
    "auroc": lambda y, p, w: roc_auc_score(y, p, sample_weight=w),
    "accuracy": lambda y, p, w: accuracy_score(y, p > 0.5, sample_weight=w),
    "f1": lambda y, p, w: f1_score(y, p > 0.5, sample_weight=w),
}


def planted(rng, n=120, seeds=1, skill=(0.5, 1.0)):
    """Targets [n, 1] and the probabilities of two arms, the second one better."""
    targets = (np.arange(n) % 3 == 0).astype(np.float64)[:, None]
    common = rng.normal(size=(1, n, 1))  # images that are hard for every arm
    arms = {}
    for arm, separation in zip((REAL, SYNTHETIC), skill, strict=True):
        noise = 0.7 * rng.normal(size=(seeds, n, 1))
        arms[arm] = scipy.stats.norm.cdf(separation * (2 * targets - 1) + common + noise)
    return targets, arms


class Found(NamedTuple):
    labels: dict
    mean_of_labels: object


def compare(arms, targets, patients=None, **settings):
    patients = [f"p{i}" for i in range(len(targets))] if patients is None else patients
    labels = [f"finding {i}" for i in range(targets.shape[1])]
    return Found(*compare_arms(labels, arms, targets, patients, **settings))


@pytest.mark.parametrize("name", METRICS)
def test_weighted_metrics_equal_scikit_learn(name):
    rng = np.random.default_rng(0)
    present = rng.random(50) < 0.4
    probability = np.round(rng.random(50), 1)  # many ties
    weights = rng.integers(0, 4, (7, 50)).astype(np.float64)
    ours = METRICS[name](weights, present, probability)
    expected = [SKLEARN[name](present, probability, w) for w in weights]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_metrics_without_a_meaning_are_nan():
    weights = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    present, probability = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.2, 0.7])
    assert np.isnan(METRICS["auroc"](weights, present, probability)).all()
    np.testing.assert_array_equal(METRICS["f1"](weights, present, probability), [1.0, 0.0, np.nan])
    # None present and none called.
    assert np.isnan(METRICS["f1"](np.array([[0.0, 0, 1, 0]]), present, probability)).all()


@pytest.mark.parametrize("name", METRICS)
def test_paired_interval_equals_scipy_s(name):
    """One seed, one image per patient: scipy.stats.bootstrap(paired=True) with sklearn's scores."""
    rng = np.random.default_rng(1)
    targets, arms = planted(rng)
    result = compare(arms, targets, num_resamples=4000).labels["finding 0"].gains[SYNTHETIC]
    ones = np.ones(len(targets))

    def gain(present, real, synthetic):
        k = len(present)
        return SKLEARN[name](present, synthetic, ones[:k]) - SKLEARN[name](present, real, ones[:k])

    data = (targets[:, 0], arms[REAL][0, :, 0], arms[SYNTHETIC][0, :, 0])
    theirs = scipy.stats.bootstrap(
        data, gain, paired=True, vectorized=False, n_resamples=1500, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert getattr(result, name).value == pytest.approx(gain(*data), abs=1e-12)
    low, high = theirs.confidence_interval
    # Ends of 1,500 resamples are known to about 7 % of the half width, three times the s.e.: 10 %
    # of the width.
    np.testing.assert_allclose(getattr(result, name).ci95, [low, high], atol=0.1 * (high - low))


def test_pairing_is_what_narrows_the_gain():
    """Both arms find the same images hard: the gain is surer than a difference of two scores."""
    targets, arms = planted(np.random.default_rng(2), seeds=2)
    result = compare(arms, targets).labels["finding 0"]
    width = {
        "gain": np.ptp(result.gains[SYNTHETIC].auroc.ci95),
        **{arm: np.ptp(result.scores[arm].auroc.ci95) for arm in arms},
    }
    assert width["gain"] < 0.8 * np.hypot(width[REAL], width[SYNTHETIC])
    same = compare({REAL: arms[REAL], SYNTHETIC: arms[REAL]}, targets).labels["finding 0"]
    assert same.gains[SYNTHETIC].auroc == Estimate(0.0, 120, (0.0, 0.0))
    turned = compare({REAL: arms[SYNTHETIC], SYNTHETIC: arms[REAL]}, targets)
    ours, theirs = (x.labels["finding 0"].gains[SYNTHETIC].auroc.ci95
                    for x in (Found({"finding 0": result}, None), turned))  # fmt: skip
    np.testing.assert_allclose(ours, [-theirs[1], -theirs[0]], atol=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_vary_as_a_mean_of_them_does(seeds):
    """Variance s^2 / S, with s^2 unbiased. Drawing S of S would give (S - 1) / S of it."""
    scores = np.random.default_rng(seeds).normal(size=seeds)
    weights = seed_weights(np.random.default_rng(0), 20_000, seeds)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    means = weights @ scores
    # 20,000 draws know a variance to 1 %.
    np.testing.assert_allclose(means.var(), scores.var(ddof=1) / seeds, rtol=0.05)
    np.testing.assert_allclose(means.mean(), scores.mean(), atol=0.05 * scores.std())


def test_the_spread_of_seeds_is_in_the_interval():
    """Every patient has 20 images of which each seed tells the same number right."""
    rng, patients, each, seeds = np.random.default_rng(0), 30, 20, 24
    right = rng.integers(8, 20, seeds)
    pattern = np.arange(each)[None] < right[:, None]  # [seeds, each]
    targets = np.tile(np.arange(each) % 2, patients).astype(np.float64)[:, None]
    called = np.tile(pattern, (1, patients))[:, :, None]
    probability = np.where(called == (targets > 0.5), 0.9, 0.1)
    ids = np.repeat([f"p{i}" for i in range(patients)], each)
    result = compare({REAL: probability}, targets, ids.tolist(), num_resamples=4000)
    accuracy = result.labels["finding 0"].scores[REAL].accuracy
    assert accuracy.value == pytest.approx(right.mean() / each)
    half = 1.96 * (right / each).std(ddof=1) / np.sqrt(seeds)
    expected = [right.mean() / each - half, right.mean() / each + half]
    # Means of 24 even values are close to normal; ends of 4,000 resamples: 3 % of the half width.
    np.testing.assert_allclose(accuracy.ci95, expected, atol=0.1 * half)


def test_patients_are_drawn_whole():
    targets, arms = planted(np.random.default_rng(3), seeds=2)
    ids = [f"p{i}" for i in range(len(targets))]
    tenfold = {arm: np.repeat(p, 10, axis=1) for arm, p in arms.items()}
    single = compare(arms, targets, ids)
    copies = compare(tenfold, np.repeat(targets, 10, axis=0), np.repeat(ids, 10).tolist())
    for key in ("scores", "gains"):
        first, again = (getattr(x.labels["finding 0"], key)[SYNTHETIC] for x in (single, copies))
        np.testing.assert_allclose(first.auroc.ci95, again.auroc.ci95, atol=1e-12)
        assert first.auroc.n == again.auroc.n == 120


def test_unknown_and_rare_labels():
    rng = np.random.default_rng(4)
    targets, arms = planted(rng)
    rare = np.zeros((120, 1))
    rare[:4] = 1
    holes = targets.copy()
    holes[:30] = np.nan
    three = np.concatenate([targets, holes, rare], axis=1)
    thrice = {arm: np.repeat(p, 3, axis=2) for arm, p in arms.items()}
    result = compare(thrice, three)
    labels = result.labels
    few = LabelUtility(num_images=120, num_present=4, num_patients=120, too_few=True)
    assert labels["finding 2"] == few
    assert labels["finding 1"].num_images == labels["finding 1"].num_patients == 90
    alone = compare({arm: p[:, 30:] for arm, p in arms.items()}, targets[30:])
    for arm in arms:
        ours, theirs = (x.scores[arm] for x in (labels["finding 1"], alone.labels["finding 0"]))
        assert ours.auroc.value == theirs.auroc.value
    mean = result.mean_of_labels
    assert mean.labels == ("finding 0", "finding 1")
    for metric in METRICS:
        values = [getattr(labels[name].gains[SYNTHETIC], metric).value for name in mean.labels]
        assert getattr(mean.gains[SYNTHETIC], metric).value == pytest.approx(np.mean(values))
    json.dumps(dataclasses.asdict(mean), allow_nan=False)


def test_a_finding_of_one_patient_is_too_few():
    """Six images with it, but resamples without that patient have no AUROC."""
    targets, arms = planted(np.random.default_rng(5), n=12)
    targets[:] = 0
    targets[:6] = 1
    ids = ["one"] * 6 + [f"p{i}" for i in range(6)]
    result = compare(arms, targets, ids)
    assert result.labels["finding 0"].too_few and result.mean_of_labels is None
    result = compare(arms, targets, ["one"] * 5 + ["two"] + ids[6:])
    assert result.labels["finding 0"].gains[SYNTHETIC].auroc.n == 8
    with pytest.raises(UserError, match="1 held-out patient"):
        compare(arms, targets, ["one"] * 12)


def test_intervals_hold_the_truth():
    """Arms whose accuracies truly are 0.7 and 0.75 on average over patients and seeds."""
    rng, hits, runs = np.random.default_rng(6), 0, 150
    targets = (np.arange(100) % 2).astype(np.float64)[:, None]
    for _ in range(runs):
        arms = {}
        for arm, rate in ((REAL, 0.7), (SYNTHETIC, 0.75)):
            rates = rate + 0.02 * rng.normal(size=(3, 1, 1))
            right = rng.random((3, 100, 1)) < rates
            arms[arm] = np.where(right == (targets > 0.5), 0.9, 0.1)
        result = compare(arms, targets, num_resamples=300, seed=int(rng.integers(1000)))
        low, high = result.labels["finding 0"].gains[SYNTHETIC].accuracy.ci95
        hits += low <= 0.05 <= high
    # Three seeds are few and images and seeds act together: the intervals err on the long side.
    assert 0.92 * runs <= hits


def test_every_arm_has_as_many_steps():
    for steps in (2, 7, 500):
        plan = plan_arms(steps, 0.4)
        assert tuple(plan) == ARMS
        assert {sum(stage.steps for stage in stages) for stages in plan.values()} == {steps}
    assert [(s.images, s.steps, s.fine_tunes) for s in plan_arms(500, 0.4)[FINE_TUNED]] == [
        ((SYNTHETIC,), 300, False),
        ((REAL,), 200, True),
    ]
    assert [s.images for s in plan_arms(500, 0.4)[JOINT]] == [(REAL, SYNTHETIC)]
    for share in (0.0, 1.0, 1.5, -0.2):
        with pytest.raises(UserError, match=f"fine_tuning.share = {share}"):
            plan_arms(500, share)
