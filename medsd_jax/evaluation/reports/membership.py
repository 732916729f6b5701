"""The report of membership inference."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    Hash,
    NotNegative,
    Positive,
    Report,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class TruePositiveRate:
    """Share of the trained images that are found where one held-out image in a hundred is mistaken.

    tpr_by_chance is what to compare it with.
    """

    __pydantic_config__ = CHECKED
    value: Share
    """The share."""
    false_alarms: Count
    """Held-out images that are mistaken for trained ones: 0 below 100 held-out images."""


@dataclass(frozen=True, kw_only=True)
class RateByChance:
    """The true positive rate where nothing tells the two groups apart.

    Above 0.01 where few patients are held out.
    """

    __pydantic_config__ = CHECKED
    value: Share
    """The share."""
    ci95: tuple[Share, Share]
    """Of as many other patients as were trained on."""


@dataclass(frozen=True, kw_only=True)
class TimestepLosses:
    """Losses of both groups at one timestep."""

    __pydantic_config__ = CHECKED
    timestep: Count
    """From little noise to much."""
    trained_loss: NotNegative
    """Mean over trained images."""
    held_out_loss: NotNegative
    """Mean over held-out images."""
    auroc: Share
    """By the loss at this timestep alone."""


@dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """One group of images."""

    __pydantic_config__ = CHECKED
    num_images: Positive
    """Images of the split."""
    num_patients: Positive
    """Whose they are."""
    loss: NotNegative
    """Mean over images, timesteps and draws."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How well denoising losses tell trained from held-out images."""

    __pydantic_config__ = CHECKED
    auroc: Estimate
    """Chance that a trained image's loss is below a held-out one's: 0.5 where nothing tells them
    apart. n counts the patients of both groups, which the interval resamples."""
    tpr_at_one_percent_fpr: TruePositiveRate
    """Share that is found with one false alarm in a hundred."""
    tpr_by_chance: RateByChance
    """The same where nothing tells the groups apart."""
    timesteps: Annotated[tuple[TimestepLosses, ...], pydantic.Field(min_length=1)]
    """From little noise to much."""
    trained: GroupLoss
    """Images of the training split."""
    held_out: GroupLoss
    """Images of the validation split."""


@dataclass(frozen=True, kw_only=True)
class MembershipReport(Report):
    """What `medsd-jax membership` writes to membership.json.

    Numbers compare where data, num_draws, seed and the list of timesteps are the same.
    """

    kind: Literal["membership"] = "membership"
    """Of the report."""
    model: str
    """As it was named."""
    model_hash: Hash
    """Changes with any bit of any weight."""
    data: Hash
    """Fingerprint of the run's data set."""
    attack: Attack
    """What the losses tell."""
    num_draws: Positive
    """Of the noise, at each timestep."""
    seed: Count
    """Of noise and resamples."""
