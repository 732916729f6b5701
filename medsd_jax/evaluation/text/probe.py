"""A linear probe: can a finding be read off a text's embedding by one hyperplane?

For each finding a logistic regression (scikit-learn's) on standardised embeddings,

    min_w,b  |w|^2 / 2 + C sum_i log(1 + exp(-s_i (w.x_i + b))),   s_i = +1 present, -1 absent   (1)

with C chosen out of `STRENGTHS` by the log loss of held-out patients among the training patients.
Scores are of test patients, whom neither has seen. Two encoders are compared on the same texts and
the same resamples of patients, so that what both find hard cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import auroc, enough, f1, score_labels
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval
from medsd_jax.evaluation.reports.base import LabelScores
from medsd_jax.evaluation.reports.text_probe import EncoderDifference, ScoreDifference

STRENGTHS = tuple(10.0 ** np.arange(-5, 2))
"""Values of C; small means much regularisation."""
_FOLDS = 5
_MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class ProbeResult:
    """What the embeddings of some encoders tell.

    Attributes:
        labels: encoder -> finding -> scores on the test texts.
        strengths: encoder -> finding -> C of (1), of those that are scored.
        differences: of each pair of encoders, the second minus the first.
    """

    labels: Mapping[str, dict[str, LabelScores]]
    strengths: Mapping[str, dict[str, float]]
    differences: tuple[EncoderDifference, ...]


@dataclass(frozen=True)
class Group:
    """Texts of some patients.

    Attributes:
        targets: [n, findings], 1 present, 0 absent, NaN unknown.
        patient_ids: [n].
    """

    targets: Float[np.ndarray, "n findings"]
    patient_ids: tuple[str, ...]


def probe(
    names: Sequence[str],
    train: Group,
    test: Group,
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> ProbeResult:
    """Probes every encoder for every finding.

    Args:
        names: of the findings.
        train: patients whose texts fit the hyperplanes.
        test: other patients, who score them.
        embeddings: encoder -> (of train's texts [n, D], of test's texts [m, D]).
        num_resamples: of the bootstrap over test patients.
        seed: of the bootstrap.

    Returns:
        Scores and their differences. A finding without `label_scores.enough` texts in either group
        is marked too_few and left out of the differences.

    Raises:
        UserError: a patient is in both groups.
    """
    if both := set(train.patient_ids) & set(test.patient_ids):
        raise UserError(f"{len(both)} patients train and test the probe, such as {min(both)}")
    fit_for = [i for i, _ in enumerate(names) if _enough(train, i) and _enough(test, i)]
    labels: dict[str, dict[str, LabelScores]] = {}
    strengths: dict[str, dict[str, float]] = {}
    probabilities: dict[str, np.ndarray] = {}
    for encoder, (x_train, x_test) in embeddings.items():
        result, strengths[encoder] = np.zeros(test.targets.shape), {}
        for i in fit_for:
            known = ~np.isnan(train.targets[:, i])
            result[:, i], strengths[encoder][names[i]] = probabilities_of(
                x_train[known],
                train.targets[known, i] > 0.5,
                np.asarray(train.patient_ids)[known],
                x_test,
            )
        probabilities[encoder] = result
        scored = [names[i] for i in fit_for]
        scores = score_labels(
            scored, result[:, fit_for], test.targets[:, fit_for], test.patient_ids,
            num_resamples=num_resamples, seed=seed,
        )  # fmt: skip
        labels[encoder] = {
            name: scores[name] if name in scores else _counts(test, i)
            for i, name in enumerate(names)
        }
    differences = tuple(
        EncoderDifference(
            encoder=second,
            minus=first,
            labels={
                names[i]: _difference(
                    test, i, probabilities[first], probabilities[second], num_resamples, seed
                )
                for i in fit_for
            },
        )
        for first, second in combinations(embeddings, 2)
    )
    return ProbeResult(labels, strengths, differences)


def probabilities_of(
    x: Float[np.ndarray, "n D"],
    present: Bool[np.ndarray, " n"],
    patients: np.ndarray,
    x_test: Float[np.ndarray, "m D"],
) -> tuple[np.ndarray, float]:
    """Fits (1) for one finding.

    Args:
        x: embeddings to fit on.
        present: which of them have the finding; both kinds occur.
        patients: [n], kept together where C is chosen.
        x_test: embeddings to classify.

    Returns:
        Probabilities [m] float64 and the C that was chosen.
    """
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    center, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0  # a number that never changes carries nothing
    x, x_test = (x - center) / spread, (x_test - center) / spread
    # The solver multiplies matrices with vectors, where threads wait for each other: on a busy
    # machine of two cores, one thread took 0.15 s for a fit of 3,000 texts and two took 4 s.
    with threadpool_limits(1):
        strength = _choose_strength(x, present, patients)
        return _fit(x, present, strength).predict_proba(x_test)[:, 1], strength


def _choose_strength(x: np.ndarray, present: np.ndarray, patients: np.ndarray) -> float:
    # Folds that leave one kind out in either group cannot be scored; a rare finding has fewer.
    fewest = min(len(set(patients[present])), len(set(patients[~present])))
    if fewest < 2:
        return 1.0  # scikit-learn's own: one patient's texts cannot choose
    folds = StratifiedGroupKFold(min(_FOLDS, fewest), shuffle=True, random_state=0)
    losses = np.zeros(len(STRENGTHS))
    for kept, left in folds.split(x, present, patients):
        if present[kept].all() or not present[kept].any():
            continue
        for number, strength in enumerate(STRENGTHS):
            guess = _fit(x[kept], present[kept], strength).predict_proba(x[left])[:, 1]
            losses[number] += log_loss(present[left], guess, labels=[False, True]) * len(left)
    return STRENGTHS[int(np.argmin(losses))]


def _fit(x: np.ndarray, present: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=1e-6).fit(x, present)


def _enough(group: Group, column: int) -> bool:
    of = group.targets[:, column]
    known = ~np.isnan(of)
    return enough(of[known] > 0.5, np.asarray(group.patient_ids)[known])


def _counts(group: Group, column: int) -> LabelScores:
    known = ~np.isnan(group.targets[:, column])
    return LabelScores(
        num_images=int(known.sum()),
        num_present=int((group.targets[:, column] == 1).sum()),
        num_patients=len(set(np.asarray(group.patient_ids)[known])),
        too_few=True,
    )


def _difference(
    test: Group, column: int, first: np.ndarray, second: np.ndarray, num_resamples: int, seed: int
) -> ScoreDifference:
    known = ~np.isnan(test.targets[:, column])
    rows = (test.targets[known, column] > 0.5, first[known, column], second[known, column])
    units = np.asarray(test.patient_ids)[known]
    differences = {
        name: bootstrap_interval(
            lambda present, a, b, score=score: score(present, b) - score(present, a),
            *rows, units=units, num_resamples=num_resamples, seed=seed,
        )
        for name, score in (("auroc", auroc), ("f1", f1))
    }  # fmt: skip
    return ScoreDifference(**differences)
