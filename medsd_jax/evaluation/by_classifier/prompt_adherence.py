"""Does a generated image show what its prompt asked for, as in arXiv 2210.04133, section 4.

A classifier that has seen real images alone looks at the images of each prompt. The headline is
the share of images in which it agrees with the prompt, over all prompts together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from medsd_jax.classifier.model import Classifier, predict
from medsd_jax.data.labels import label_values
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import score_labels
from medsd_jax.evaluation.images.image_sets import ImageSet, resize_to_square
from medsd_jax.evaluation.metrics.intervals import share_interval
from medsd_jax.evaluation.metrics.subgroups import MIN_IMAGES, find_subgroups
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.evaluation import (
    Confusion,
    LabelAdherence,
    PromptAdherence,
    PromptScore,
    TooFewImages,
)

PROMPTS_LISTED = 50
"""A data set of prompts has thousands; each has few images then."""
_IMAGES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class PromptPredictions:
    """What the classifier says of every image.

    Attributes:
        label: the finding in question.
        prompts: [n], of each image.
        asked: [n] bool, whether the prompt asks for the finding.
        probability: [n] float32, the classifier's that the finding is there.
        rows: [n] int, where in their set the images stand.
        units: [n], equal for images of one start noise; each its own if None.
    """

    label: str
    prompts: tuple[str, ...]
    asked: np.ndarray
    probability: np.ndarray
    rows: np.ndarray
    units: tuple[str, ...] | None = None

    @property
    def seen(self) -> np.ndarray:
        """[n] bool, whether the classifier calls the finding present."""
        return self.probability > 0.5

    @property
    def right(self) -> np.ndarray:
        """[n] bool, whether image and prompt agree."""
        return self.seen == self.asked

    def report(self, subgroups: Mapping[str, np.ndarray] | None = None) -> LabelAdherence:
        """The report's entry, with the `PROMPTS_LISTED` most frequent prompts.

        Args:
            subgroups: name -> [n] bool, which images are in it.
        """
        rows_of: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            rows_of.setdefault(prompt, []).append(row)
        by_prompt = []
        listed = sorted(rows_of.items(), key=lambda item: -len(item[1]))[:PROMPTS_LISTED]
        for prompt, numbers in listed:
            rows = np.array(numbers)
            by_prompt.append(
                PromptScore(
                    prompt=prompt,
                    asks=bool(self.asked[rows][0]),
                    num_images=len(rows),
                    num_seen=int(self.seen[rows].sum()),
                    accuracy=self.share(rows),
                )
            )
        scores = score_labels(
            [self.label], self.probability[:, None], self.asked[:, None].astype(np.float32),
            self.units or [str(row) for row in range(len(self.asked))],
        )[self.label]  # fmt: skip
        return LabelAdherence(
            label=self.label,
            prompt_accuracy=self.share(),
            auroc=scores.auroc,
            f1=scores.f1,
            confusion=Confusion(
                true_positives=int((self.asked & self.seen).sum()),
                false_negatives=int((self.asked & ~self.seen).sum()),
                false_positives=int((~self.asked & self.seen).sum()),
                true_negatives=int((~self.asked & ~self.seen).sum()),
            ),
            prompts=tuple(by_prompt),
            num_prompts=len(rows_of),
            by_subgroup={
                name: TooFewImages(num_images=int(subgroup.sum()))
                if subgroup.sum() < MIN_IMAGES
                else self.share(subgroup)
                for name, subgroup in (subgroups or {}).items()
            },
        )

    def share(self, rows: np.ndarray | slice = slice(None)) -> Estimate:
        """How many of these images agree with their prompt.

        The interval is Wilson's, n being start noises: images of different seeds are independent,
        prompts that share theirs are not.
        """
        units = None if self.units is None else np.asarray(self.units)[rows]
        return share_interval(self.right[rows], units)

    def worst(self, count: int) -> np.ndarray:
        """The images that agree least with their prompt, worst first: [count] rows."""
        error = np.abs(self.probability - self.asked)
        return np.argsort(-error, kind="stable")[:count]


def measure_adherence(
    classifier: Classifier,
    label: str,
    images_u8: np.ndarray,
    prompts: Sequence[str],
    asked: Sequence[bool],
) -> PromptPredictions:
    """Lets the classifier say in which images the finding is.

    Args:
        classifier: trained on real images alone.
        label: the finding, one of the classifier's.
        images_u8: [n, H, W, 3] uint8, one per seed.
        prompts: [n], what each image was sampled from.
        asked: [n], whether that prompt asks for the finding.

    Raises:
        UserError: the classifier does not know the label, or the lengths do not agree.
    """
    if not len(images_u8) == len(prompts) == len(asked) > 0:
        given = f"{len(images_u8)} images, {len(prompts)} prompts, {len(asked)} answers"
        raise UserError(f"{given}: prompt adherence needs as many of each, and at least one")
    column = classifier.column(label)
    probability = predict(classifier, images_u8)[:, column]
    rows = np.arange(len(images_u8))
    return PromptPredictions(label, tuple(prompts), np.asarray(asked, bool), probability, rows)


def measure_adherence_of_sets(
    classifier: Classifier,
    real: ImageSet,
    synthetic: ImageSet,
    labels: Mapping[str, Sequence[Mapping[str, Any]]],
    mesh: Mesh,
    units: Sequence[str] | None = None,
) -> tuple[PromptAdherence, dict[str, PromptPredictions]]:
    """Measures two sets of images for all findings that the classifier knows.

    Args:
        classifier: trained on real images alone.
        real: images with known findings: how far the classifier can be trusted.
        synthetic: images with what their prompts ask for.
        labels: "real" and "synthetic" -> the labels of each image.
        mesh: the devices.
        units: of the synthetic images, see `PromptPredictions`.

    Returns:
        The report's entry, with the accuracy of each part of `subgroups.find_subgroups`; and
        finding -> predictions of the images of which it is known whether they shall show it.

    Raises:
        UserError: no image is said to show or not to show any finding of the classifier.
    """
    asked = {label: label_values(labels["synthetic"], label) for label in classifier.labels}
    known = [label for label, values in asked.items() if not np.isnan(values).all()]
    if not known:
        raise UserError(
            f"{synthetic.name}: no prompt and no label says anything about "
            f"{', '.join(classifier.labels)}, which is all that the classifier knows"
        )
    probability = _probabilities(classifier, synthetic, mesh)
    entries, predictions_by_label = {}, {}
    for label in known:
        rows = np.flatnonzero(~np.isnan(asked[label]))
        predictions = PromptPredictions(
            label,
            tuple(synthetic.texts[i] for i in rows),
            asked[label][rows] > 0.5,
            probability[rows, classifier.column(label)],
            rows,
            None if units is None else tuple(units[i] for i in rows),
        )
        predictions_by_label[label] = predictions
        subgroups = find_subgroups([labels["synthetic"][i] for i in rows])
        entries[label] = predictions.report(subgroups)
    truth = np.stack([label_values(labels["real"], label) for label in classifier.labels], axis=1)
    on_real = score_labels(
        classifier.labels, _probabilities(classifier, real, mesh), truth, real.patient_ids
    )
    missing = tuple(label for label in classifier.labels if label not in known)
    report = PromptAdherence(labels=entries, not_in_prompts=missing, on_real_images=on_real)
    return report, predictions_by_label


def _probabilities(classifier: Classifier, images: ImageSet, mesh: Mesh) -> np.ndarray:
    """[n, labels] float32, images made square as in the classifier's training."""
    size, mode, result = classifier.image_size, classifier.resize_mode, []
    for batch in images.batches(_IMAGES_AT_ONCE):
        result.append(predict(classifier, resize_to_square(batch, size, mode), mesh))
    return np.concatenate(result)
