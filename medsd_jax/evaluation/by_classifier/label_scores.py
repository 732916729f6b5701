"""How well probabilities of findings agree with labels: AUROC, accuracy, F1, calibration.

Intervals resample patients, not images. What too few images stand behind is marked, not printed
as a number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from medsd_jax.evaluation.metrics.intervals import bootstrap_interval, share_interval
from medsd_jax.evaluation.reports.base import LabelScores

MIN_IMAGES = 5
"""Fewest images with and without a finding that its scores are computed from."""
_MIN_PATIENTS = 2
"""Whose they are: of one patient alone, a third of the resamples hold none."""


def enough(present: Bool[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]) -> bool:
    """Whether a finding can be scored: images with and without it, of several patients each."""
    kinds = present, ~present
    return all(
        kind.sum() >= MIN_IMAGES and len(set(patients[kind])) >= _MIN_PATIENTS for kind in kinds
    )


def score_labels(
    names: Sequence[str],
    probabilities: np.ndarray,
    targets: np.ndarray,
    patient_ids: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, LabelScores]:
    """Scores of each finding on its known labels.

    Args:
        names: of the findings.
        probabilities: [n, findings] in [0, 1]; above 0.5 a finding is called present.
        targets: [n, findings], 1 present, 0 absent, NaN unknown.
        patient_ids: [n], the unit of the intervals.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        finding -> its scores, n = patients, where there is `enough`. Accuracy has
        `share_interval`, as of all or none right the bootstrap has no width.
    """
    patients = np.asarray(patient_ids)
    scores: dict[str, LabelScores] = {}
    for column, name in enumerate(names):
        known = ~np.isnan(targets[:, column])
        present, units = targets[known, column] > 0.5, patients[known]
        probability = probabilities[known, column]
        counts = {
            "num_images": int(known.sum()),
            "num_present": int(present.sum()),
            "num_patients": len(set(units)),
        }
        if not enough(present, units):
            scores[name] = LabelScores(**counts, too_few=True)
            continue
        estimates = {
            key: bootstrap_interval(
                statistic, present, probability, units=units, num_resamples=num_resamples, seed=seed
            )
            for key, statistic in (("auroc", auroc), ("f1", f1))
        }
        accuracy = share_interval((probability > 0.5) == present, units)
        brier = float(brier_score_loss(present, probability))
        scores[name] = LabelScores(
            **counts, too_few=False, accuracy=accuracy, **estimates, brier=brier
        )
    return scores


def auroc(present: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; nan where all are present or none is."""
    one_kind = present.all() or not present.any()
    return float("nan") if one_kind else float(roc_auc_score(present, score))


def f1(present: np.ndarray, probability: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), above 0.5 being called present; nan: none is, and none called."""
    return float(f1_score(present, probability > 0.5, zero_division=np.nan))
