"""What synthetic images are good for: classifiers trained with and without them.

All arms train the same network for as many optimizer steps, each with the same S seeds, and are
tested on the same real images. m is AUROC, accuracy or F1 of one finding, p_as the probabilities
of arm a trained with seed s:

    score(a) = mean_s m(p_as)                                                      (1)
    gain(a)  = mean_s [m(p_as) - m(p_rs)],    r the arm of real images alone     (2)

An interval lies between percentiles of resamples. One resample draws P of the P patients and S - 1
of the S seeds with replacement, once for all arms and findings: a gain compares the same patients
and the same seeds on both sides, and what both sides have in common cancels.

Why S - 1: the mean of k of S values drawn with replacement has the variance s^2 (S - 1) / (S k),
where s^2 is their unbiased variance. With k = S - 1 it is s^2 / S, that of a mean of S seeds; with
k = S and three seeds it would be a third too small. A single seed is used as it is; the interval
then speaks of the patients alone.

Few seeds stay few. In simulations of gains in accuracy, 95 % intervals held the truth in 97 % of
cases or more where patients vary at least as much as seeds (what a patient and a seed do together
counts more than once), but in 82 % with 3 seeds, 89 % with 5, 91 % with 10 where seeds vary most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import enough
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.classifiers import ArmGains, ArmScores, LabelUtility, MeanUtility

REAL, SYNTHETIC = "real", "synthetic"
JOINT, FINE_TUNED = "real_and_synthetic", "synthetic_then_real"
ARMS = (REAL, SYNTHETIC, JOINT, FINE_TUNED)

_WEIGHTS_AT_ONCE = 10**7
_TAILS = (0.025, 0.975)

_Weights = Float[np.ndarray, "R n"]
_Kinds = Bool[np.ndarray, " n"]
_Probabilities = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class PlannedStage:
    """A part of an arm's training.

    Attributes:
        images: REAL, SYNTHETIC or both, drawn alike: each image as often as any other.
        steps: optimizer steps.
        fine_tunes: whether it goes on from weights of an earlier stage.
    """

    images: tuple[str, ...]
    steps: int
    fine_tunes: bool = False


def plan_arms(steps: int, fine_tuning_share: float) -> dict[str, tuple[PlannedStage, ...]]:
    """The stages of each arm of `ARMS`; every arm takes `steps` optimizer steps in all.

    Args:
        steps: at least 2.
        fine_tuning_share: of the steps of FINE_TUNED, the last ones, that are on real images;
            RoentGen-v2's recipe (arXiv 2508.16783).

    Raises:
        UserError: the share leaves no step to one of the two stages.
    """
    last = round(fine_tuning_share * steps)
    if not 1 <= last < steps:
        raise UserError(
            f"fine_tuning.share = {fine_tuning_share} of {steps} steps gives {last} to real and "
            f"{steps - last} to synthetic images; each needs at least one"
        )
    return {
        REAL: (PlannedStage((REAL,), steps),),
        SYNTHETIC: (PlannedStage((SYNTHETIC,), steps),),
        JOINT: (PlannedStage((REAL, SYNTHETIC), steps),),
        FINE_TUNED: (
            PlannedStage((SYNTHETIC,), steps - last),
            PlannedStage((REAL,), last, fine_tunes=True),
        ),
    }


def weighted_auroc(weights: _Weights, present: _Kinds, probability: _Probabilities) -> np.ndarray:
    """The share of pairs, one image with the finding and one without, in the right order.

    Args:
        weights: [R, n], how often each image counts in each of R resamples.
        present: [n].
        probability: [n]; ties count half.

    Returns:
        [R] float64; nan where a resample holds images of one kind only.
    """
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))  # of equal probabilities
    weights = weights[:, order]
    with_it = np.add.reduceat(weights * present[order], starts, axis=1)
    without = np.add.reduceat(weights * ~present[order], starts, axis=1)
    below = np.cumsum(without, axis=1) - without
    right = np.sum(with_it * (below + without / 2), axis=1)
    return _ratio(right, with_it.sum(axis=1) * without.sum(axis=1))


def weighted_accuracy(
    weights: _Weights, present: _Kinds, probability: _Probabilities
) -> np.ndarray:
    """The share of images told right, above 0.5 being present; arguments as `weighted_auroc`."""
    right = (probability > 0.5) == present
    return _ratio(weights @ right, weights.sum(axis=1))


def weighted_f1(weights: _Weights, present: _Kinds, probability: _Probabilities) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); arguments as `weighted_auroc`. nan: none present and none called."""
    called = probability > 0.5
    result = weights @ (called & present)
    return _ratio(2 * result, weights @ called + weights @ present)


METRICS: Mapping[str, Callable[..., np.ndarray]] = {
    "auroc": weighted_auroc,
    "accuracy": weighted_accuracy,
    "f1": weighted_f1,
}


def compare_arms(
    labels: Sequence[str],
    probabilities: Mapping[str, np.ndarray],
    targets: np.ndarray,
    patient_ids: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, LabelUtility], MeanUtility | None]:
    """Scores of every arm and gains over REAL, with 95 % intervals.

    Args:
        labels: names of the findings.
        probabilities: arm -> [S, n, findings] in [0, 1]; REAL is one of the arms, and seed s of
            one arm belongs to seed s of the others.
        targets: [n, findings], 1 present, 0 absent, nan unknown.
        patient_ids: [n].
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Finding -> scores and gains where there is `label_scores.enough`; and the mean over those
        findings, None if there is none.

    Raises:
        UserError: all images are of one patient.
    """
    patients, patient_of = np.unique(np.asarray(patient_ids), return_inverse=True)
    if len(patients) < 2:
        raise UserError(f"{len(patients)} held-out patient(s): an interval needs 2 or more")
    seeds = len(probabilities[REAL])
    assert all(p.shape == (seeds, *targets.shape) for p in probabilities.values())
    rng = np.random.default_rng(seed)
    of_seeds = seed_weights(rng, num_resamples, seeds)
    of_patients = _counts(rng, num_resamples, len(patients), len(patients))

    tables: dict[str, LabelUtility] = {}
    whole, drawn = {}, {}
    for column, label in enumerate(labels):
        known = ~np.isnan(targets[:, column])
        present = targets[known, column] > 0.5
        counts = {
            "num_images": int(known.sum()),
            "num_present": int(present.sum()),
            "num_patients": len(set(patient_of[known])),
        }
        if not enough(present, patient_of[known]):
            tables[label] = LabelUtility(**counts, too_few=True)
            continue
        scores = {arm: p[:, known, column].astype(np.float64) for arm, p in probabilities.items()}
        # All images as one unit that counts once: the scores themselves.
        as_it_is = _by_seed(scores, present, np.zeros(len(present), int), np.ones((1, 1), int))
        resampled = _by_seed(scores, present, patient_of[known], of_patients)
        averaged = {key: _mean_over_seeds(x, of_seeds) for key, x in resampled.items()}
        whole[label] = {key: x[0] for key, x in as_it_is.items()}
        drawn[label] = averaged
        values = {key: float(x.mean()) for key, x in whole[label].items()}
        scores, gains = _entries(values, averaged, tuple(probabilities), counts["num_patients"])
        scores = {
            arm: replace(entry, auroc_by_seed=tuple(whole[label][arm, "auroc"].tolist()))
            for arm, entry in scores.items()
        }
        tables[label] = LabelUtility(**counts, too_few=False, scores=scores, gains=gains)
    return tables, _mean_of_labels(whole, drawn, probabilities, patients)


def seed_weights(rng: np.random.Generator, num_resamples: int, seeds: int) -> np.ndarray:
    """[R, S] float64: how much each seed counts in the mean of each resample; see the module."""
    if seeds == 1:
        return np.ones((num_resamples, 1))
    return _counts(rng, num_resamples, seeds, seeds - 1) / (seeds - 1)


def _counts(rng: np.random.Generator, num_resamples: int, units: int, draws: int) -> np.ndarray:
    """[R, units] int32: how often each unit is among `draws` that are drawn with replacement."""
    return rng.multinomial(draws, np.full(units, 1 / units), size=num_resamples).astype(np.int32)


def _by_seed(
    scores: Mapping[str, np.ndarray], present: _Kinds, unit_of: np.ndarray, of_units: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """(arm, metric) -> [R, S] for resamples whose units count as `of_units` [R, units] says."""
    step = max(1, _WEIGHTS_AT_ONCE // len(present))
    parts: dict[tuple[str, str], list[np.ndarray]] = {(a, m): [] for a in scores for m in METRICS}
    for start in range(0, len(of_units), step):
        weights = of_units[start : start + step, unit_of].astype(np.float64)
        for arm, of_arm in scores.items():
            for name, metric in METRICS.items():
                result = [metric(weights, present, of_seed) for of_seed in of_arm]
                parts[arm, name].append(np.stack(result, axis=1))
    return {key: np.concatenate(result) for key, result in parts.items()}


def _mean_over_seeds(by_seed: np.ndarray, of_seeds: np.ndarray) -> np.ndarray:
    # A score that is not defined matters only where its seed was drawn.
    return np.sum(np.where(of_seeds > 0, of_seeds * by_seed, 0.0), axis=1)


def _entries(
    values: Mapping[tuple[str, str], float],
    drawn: Mapping[tuple[str, str], np.ndarray],
    arms: Sequence[str],
    n: int,
) -> tuple[dict[str, ArmScores], dict[str, ArmGains]]:
    """The report's scores and gains."""

    def entry(arm: str, metric: str, *, gain: bool) -> Estimate:
        value, result = values[arm, metric], drawn[arm, metric]
        if gain:
            value, result = value - values[REAL, metric], result - drawn[REAL, metric]
        low, high = np.nanquantile(result, _TAILS)
        return Estimate(value, n, (float(low), float(high)))

    return (
        {arm: ArmScores(**{m: entry(arm, m, gain=False) for m in METRICS}) for arm in arms},
        {
            arm: ArmGains(**{m: entry(arm, m, gain=True) for m in METRICS})
            for arm in arms
            if arm != REAL
        },
    )


def _mean_of_labels(
    whole: Mapping[str, Mapping[tuple[str, str], np.ndarray]],
    drawn: Mapping[str, Mapping[tuple[str, str], np.ndarray]],
    arms: Mapping[str, Any],
    patients: np.ndarray,
) -> MeanUtility | None:
    if not whole:
        return None
    keys = next(iter(whole.values()))
    values = {key: float(np.mean([x[key].mean() for x in whole.values()])) for key in keys}
    averaged = {key: np.mean([x[key] for x in drawn.values()], axis=0) for key in keys}
    if any(2 * np.isnan(x).sum() >= len(x) for x in averaged.values()):
        return None
    scores, gains = _entries(values, averaged, tuple(arms), len(patients))
    return MeanUtility(labels=tuple(whole), scores=scores, gains=gains)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Over / under, nan where under is 0."""
    return np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)
