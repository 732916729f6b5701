"""Scores of findings: against hand counts, known labels only, marked where too few."""

import numpy as np

from medsd_jax.evaluation.by_classifier.label_scores import MIN_IMAGES, score_labels
from medsd_jax.evaluation.reports.base import LabelScores

RNG = np.random.default_rng(0)
N = 60
TARGETS = np.stack([np.arange(N) % 2, np.arange(N) < 3], axis=1).astype(np.float32)
PROBABILITIES = np.stack(
    [np.clip(0.5 + 0.3 * (TARGETS[:, 0] - 0.5) + RNG.normal(0, 0.2, N), 0, 1), RNG.random(N)],
    axis=1,
)
PATIENTS = [f"p{i // 2}" for i in range(N)]


def test_scores_equal_those_counted_by_hand():
    scores = score_labels(("a", "b"), PROBABILITIES, TARGETS, PATIENTS, num_resamples=50)["a"]
    present, called = TARGETS[:, 0] == 1, PROBABILITIES[:, 0] > 0.5
    assert scores.accuracy.value == np.mean(present == called)
    hits = np.sum(present & called)
    assert scores.f1.value == 2 * hits / (present.sum() + called.sum())
    # AUROC: the share of pairs, one with and one without, that are in the right order.
    pairs = PROBABILITIES[present, 0][:, None] > PROBABILITIES[~present, 0][None]
    np.testing.assert_allclose(scores.auroc.value, pairs.mean())
    assert scores.num_patients == scores.auroc.n == N // 2
    low, high = scores.auroc.ci95
    assert low < scores.auroc.value < high


def test_too_few_images_are_marked_and_not_scored():
    scores = score_labels(("a", "b"), PROBABILITIES, TARGETS, PATIENTS, num_resamples=50)["b"]
    assert scores.num_present == 3 < MIN_IMAGES
    assert scores == LabelScores(num_images=N, num_present=3, num_patients=30, too_few=True)


def test_unknown_labels_are_left_out():
    holes = TARGETS.copy()
    holes[:20, 0] = np.nan
    with_holes = score_labels(("a",), PROBABILITIES, holes, PATIENTS, num_resamples=50)
    without = score_labels(
        ("a",), PROBABILITIES[20:], TARGETS[20:], PATIENTS[20:], num_resamples=50
    )
    assert with_holes == without and with_holes["a"].num_images == 40


def test_patients_with_many_images_widen_the_interval():
    """Every image ten times is no new patient."""

    def width(**data):
        auroc = score_labels(("a",), num_resamples=200, **data)["a"].auroc
        return auroc.ci95[1] - auroc.ci95[0]

    single = {"probabilities": PROBABILITIES, "targets": TARGETS[:, :1], "patient_ids": PATIENTS}
    tenfold = {key: np.repeat(np.asarray(x), 10, axis=0) for key, x in single.items()}
    tenfold["patient_ids"] = tenfold["patient_ids"].tolist()
    np.testing.assert_allclose(width(**tenfold), width(**single), rtol=1e-6)


def test_a_kind_of_one_patient_is_too_few():
    """However many images it has: no resample of patients tells how another one would do."""
    present = np.repeat([1.0, 0.0], 30)[:, None]
    probability = np.linspace(0.9, 0.1, 60)[:, None]
    one = ["a"] * 30 + [f"p{i}" for i in range(30)]
    assert score_labels(("x",), probability, present, one)["x"].too_few
    assert score_labels(("x",), probability, 1 - present, one)["x"].too_few
    two = ["a", "b"] * 15 + [f"p{i}" for i in range(30)]
    assert not score_labels(("x",), probability, present, two, num_resamples=50)["x"].too_few
    # A set of one patient in all is no error of the whole report.
    assert score_labels(("x",), probability, present, ["a"] * 60)["x"].too_few


def test_all_right_is_no_certainty():
    present = np.repeat([1.0, 0.0], 30)[:, None]
    result = score_labels(("x",), 0.1 + 0.8 * present, present, PATIENTS, num_resamples=50)["x"]
    low, high = result.accuracy.ci95
    assert result.accuracy.value == high == 1.0 and 0.8 < low < 0.95
    assert result.accuracy.n == 30
