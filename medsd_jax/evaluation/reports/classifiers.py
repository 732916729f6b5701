"""The reports of a classifier's training, and of what synthetic images add to it."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    LabelScores,
    NotNegative,
    Positive,
    Report,
    Share,
)

Arm = Literal["real", "synthetic", "real_and_synthetic", "synthetic_then_real"]
Source = Literal["real", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class ClassifierReport(Report):
    """What `medsd-jax train-classifier` writes to classifier_report.json."""

    kind: Literal["classifier"] = "classifier"
    """Of the report."""
    labels: dict[str, LabelScores]
    """Finding -> scores on the held-out patients."""
    num_images: dict[str, Positive]
    """Split of the patients -> its images."""
    steps: Positive
    """Optimizer steps."""
    image_size: Positive
    """Pixels, square."""
    started_from: str | None
    """Weights that training started from; null: random ones."""


@dataclass(frozen=True, kw_only=True)
class ArmStage:
    """A part of an arm's training, going on from the weights of the one before it."""

    __pydantic_config__ = CHECKED
    images: Annotated[tuple[Source, ...], pydantic.Field(min_length=1)]
    """Sets that are trained on, each image of both as often as any other."""
    steps: Positive
    """Optimizer steps."""
    learning_rate: NotNegative
    """Its largest."""
    epochs: NotNegative
    """How often each image is seen."""


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """Means over the seeds. Above a probability of 0.5 a finding is called present."""

    __pydantic_config__ = CHECKED
    auroc: Estimate
    """n: held-out patients; the interval resamples patients and seeds."""
    accuracy: Estimate
    """Likewise."""
    f1: Estimate
    """Likewise."""
    auroc_by_seed: tuple[Share, ...] | None = None
    """In the order of seeds; null for the mean over findings."""


@dataclass(frozen=True, kw_only=True)
class ArmGains:
    """Mean over the seeds of an arm's score less that of the arm real with the same seed.

    Both are of the same patients.
    """

    __pydantic_config__ = CHECKED
    auroc: Estimate
    """Gain of AUROC."""
    accuracy: Estimate
    """Gain of accuracy."""
    f1: Estimate
    """Gain of F1."""


Scores = Annotated[dict[Arm, ArmScores], pydantic.Field(min_length=4)]
Gains = Annotated[dict[Arm, ArmGains], pydantic.Field(min_length=3)]
"""Of all arms, and of all but one."""


@dataclass(frozen=True, kw_only=True)
class LabelUtility:
    """One finding on the held-out real images whose label is known."""

    __pydantic_config__ = CHECKED
    num_images: Count
    """Images whose label is known."""
    num_present: Count
    """Those with the finding."""
    num_patients: Count
    """Whose they are."""
    too_few: bool
    """Whether there are too few images for scores, which are then null."""
    scores: Scores | None = None
    """Arm -> its scores."""
    gains: Gains | None = None
    """The other arms -> what they gain over real images alone."""


@dataclass(frozen=True, kw_only=True)
class MeanUtility:
    """Mean over findings."""

    __pydantic_config__ = CHECKED
    labels: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """The findings."""
    scores: Scores
    """Arm -> its scores."""
    gains: Gains
    """The other arms -> what they gain over real images alone."""


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Images that are known to have a finding or not; the others do not say."""

    __pydantic_config__ = CHECKED
    present: Count
    """With it."""
    absent: Count
    """Without it."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A set of images with labels."""

    __pydantic_config__ = CHECKED
    num_images: Positive
    """How many."""
    num_patients: Positive
    """Synthetic images of a prompt count as one patient each."""
    labels: dict[str, LabelCounts]
    """Finding -> counts."""
    fingerprint: str
    """Of the prepared data."""


@dataclass(frozen=True, kw_only=True)
class DownstreamUtilityReport(Report):
    """What the comparison of classifiers trained with and without synthetic images writes.

    Arms: real, synthetic, real_and_synthetic (each image of both sets as often as any other),
    synthetic_then_real.
    """

    kind: Literal["downstream_utility"] = "downstream_utility"
    """Of the report."""
    labels: Annotated[dict[str, LabelUtility], pydantic.Field(min_length=1)]
    """Finding -> results on the held-out real images."""
    mean_of_labels: MeanUtility | None
    """Mean over the findings that are scored; null if there is none."""
    arms: dict[Arm, Annotated[tuple[ArmStage, ...], pydantic.Field(min_length=1)]]
    """Arm -> its stages. The steps of every arm add up to the same number."""
    images: dict[Literal["real", "synthetic", "calibration", "held_out"], LabelledImages]
    """real and synthetic train; calibration (real) sets slope and intercept of the probabilities;
    held_out (real) tests. No patient of the real sets is in two of them."""
    seeds: Annotated[tuple[int, ...], pydantic.Field(min_length=1)]
    """Of initial weights, order of the images and augmentation; the same ones in every arm."""
    config: dict[str, Any]
    """The recipe as it ran."""
