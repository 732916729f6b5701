"""Does a classifier call a reconstruction what it calls the original?

    changed = share of images whose call (probability above 0.5) differs
    difference = AUROC of the reconstructions - AUROC of the originals, where labels are known

Both images of a patient are resampled together: what the two AUROCs have in common cancels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medsd_jax.classifier.model import Classifier
from medsd_jax.data.labels import TRAIT_COLUMNS, label_name, label_values
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import auroc, enough
from medsd_jax.evaluation.metrics.intervals import share_interval
from medsd_jax.evaluation.reconstruction import estimate
from medsd_jax.evaluation.reports.reconstruction import LabelFlips, PairedAuroc


def check_classifier(
    classifier: Classifier, labels: Sequence[Mapping[str, Any]], image_size: int
) -> None:
    """Raises UserError where the classifier cannot say anything of these images.

    Args:
        classifier: the classifier.
        labels: of each image, as `prompt_labels.known_labels` reads them.
        image_size: pixels that originals and reconstructions have.
    """
    if classifier.image_size > image_size:
        raise UserError(
            f"the classifier looks at {classifier.image_size} pixels, but the reconstructions have "
            f"{image_size}: enlarged, they would show it what no image holds; take a larger "
            "image_size, or a classifier of smaller images"
        )
    known = {name for row in labels for name in row} - set(TRAIT_COLUMNS)
    if known and not known & set(map(label_name, classifier.labels)):
        raise UserError(
            f"the classifier knows {', '.join(classifier.labels)}, but the images are labelled "
            f"with {', '.join(sorted(known))}"
        )


def prediction_flips(
    classifier: Classifier,
    calls: tuple[np.ndarray, np.ndarray],
    labels: Sequence[Mapping[str, Any]],
    patient_ids: Sequence[str],
    *,
    seed: int,
) -> dict[str, LabelFlips]:
    """The report's entry of each finding.

    Args:
        classifier: the classifier.
        calls: its probabilities of the originals and of the reconstructions, each [n, labels].
        labels: [n], label -> value.
        patient_ids: [n], the unit of the intervals.
        seed: of the bootstrap.

    Returns:
        finding -> the share of predictions that change, n = patients, and the AUROC before and
        after: None where no label is known.
    """
    units = np.asarray(patient_ids)
    entries: dict[str, LabelFlips] = {}
    for column, name in enumerate(classifier.labels):
        before, after = (probabilities[:, column] for probabilities in calls)
        called = before > 0.5, after > 0.5
        truth = label_values(labels, name).astype(np.float64)
        entries[name] = LabelFlips(
            prediction_flips=share_interval(called[0] != called[1], units),
            appeared=int((called[1] & ~called[0]).sum()),
            vanished=int((called[0] & ~called[1]).sum()),
            auroc=_aurocs(before, after, truth, units, seed),
        )
    return entries


def _aurocs(
    before: np.ndarray, after: np.ndarray, truth: np.ndarray, units: np.ndarray, seed: int
) -> PairedAuroc | None:
    known = ~np.isnan(truth)
    if not known.any():
        return None
    present, before, after, units = truth[known] > 0.5, before[known], after[known], units[known]
    counts = {"num_images": int(known.sum()), "num_present": int(present.sum())}
    if not enough(present, units):
        return PairedAuroc(**counts, too_few=True)

    def difference(present: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
        return auroc(present, after) - auroc(present, before)

    return PairedAuroc(
        **counts,
        too_few=False,
        original=estimate(auroc, present, before, units=units, seed=seed),
        reconstruction=estimate(auroc, present, after, units=units, seed=seed),
        difference=estimate(difference, present, before, after, units=units, seed=seed),
    )
