"""The report of `evaluate`: two sets of images and every number about them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    Hash,
    ImageSetSummary,
    LabelScores,
    NotNegative,
    Positive,
    Report,
    Share,
    TooFew,
)


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """The network that distances are measured with, and its input."""

    __pydantic_config__ = CHECKED
    network: Literal["inception", "xrv", "classifier", "clip", "rad-dino", "latent", "thumbnail"]
    """Kind of the network."""
    weights_and_input: Hash
    """Changes with any bit of the weights, and with the input chain."""
    input_chain: str
    """How an image becomes the network's input, in words."""
    rough: bool
    """For a first look alone: no paper measures in this space. Of latents, the means of 4 x 4
    parts."""


@dataclass(frozen=True, kw_only=True)
class ExtrapolatedFid:
    """FID at infinitely many synthetic images (arXiv 1911.07023), from FID at `sizes`."""

    __pydantic_config__ = CHECKED
    value: float
    """Can be negative, by as much as the estimate errs."""
    standard_error: NotNegative
    """Of the value, from the residuals of the line."""
    smallest_subset: Count
    """The first of the sizes."""
    sizes: tuple[Count, ...]
    """Numbers of synthetic images."""
    distances: tuple[float, ...]
    """FID at these sizes."""


@dataclass(frozen=True, kw_only=True)
class RealHalves:
    """FID between halves of the real set, no patient in both.

    It is what the number of patients and images alone makes.
    """

    __pydantic_config__ = CHECKED
    mean: float
    """Over several random splits."""
    range: tuple[float, float]
    """Smallest and largest."""
    num_images: Count
    """Of the smallest half."""
    num_patients: Count
    """Of both halves together."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How far real and synthetic images lie apart in one feature space."""

    __pydantic_config__ = CHECKED
    num_real: Count
    """Real images."""
    num_synthetic: Count
    """Generated images."""
    width: Count
    """Numbers in a feature vector."""
    fid: Estimate
    """Frechet distance; grows as sets shrink, which its interval does not cover. n: patients or
    other independent units of the set with fewer."""
    fid_extrapolated: ExtrapolatedFid
    """Without the part of FID that the number of synthetic images makes."""
    fid_real_halves: RealHalves
    """What FID is between real images of different patients."""
    kid: Estimate
    """Unbiased, whole sets, pairs of different patients; can be negative. n: patients or other
    independent units of the set with fewer; no interval where a set has two of them."""
    precision: Estimate
    """Share of synthetic images among the real ones. Its interval holds the real set fixed, as
    density's does: it says nothing of other real patients. Recall's and coverage's hold the
    generated set fixed."""
    recall: Estimate
    """Share of real images among the synthetic ones."""
    density: Estimate
    """How many real neighbourhoods hold a synthetic image, over k; may exceed 1."""
    coverage: Estimate
    """Share of real images with a synthetic one nearby."""
    k: Positive
    """Neighbours of precision, recall, density and coverage."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of images: what their prompts ask for against what the classifier sees."""

    __pydantic_config__ = CHECKED
    true_positives: Count
    """Asked for and seen."""
    false_negatives: Count
    """Asked for and not seen."""
    false_positives: Count
    """Not asked for, but seen."""
    true_negatives: Count
    """Neither asked for nor seen."""


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """The images of one prompt."""

    __pydantic_config__ = CHECKED
    prompt: str
    """Its text."""
    asks: bool
    """Whether it asks for the finding."""
    num_images: Count
    """Images of this prompt."""
    num_seen: Count
    """Those in which the classifier sees the finding."""
    accuracy: Estimate
    """Share in which classifier and prompt agree."""


@dataclass(frozen=True, kw_only=True)
class TooFewImages:
    """A subgroup with too few images for a share."""

    __pydantic_config__ = CHECKED
    num_images: Count
    """Images in it."""
    too_few: Literal[True] = True
    """Tells this entry from one with a number."""


@dataclass(frozen=True, kw_only=True)
class LabelAdherence:
    """Whether the classifier agrees with the prompts about one finding."""

    __pydantic_config__ = CHECKED
    label: str
    """The finding."""
    prompt_accuracy: Estimate
    """Share of images in which classifier and prompt agree; Wilson's interval, n being start
    noises: prompts that share their seeds are one draw."""
    auroc: Estimate | None
    """Of the classifier's probability for what the prompts ask for; null where too few do, or too
    few do not."""
    f1: Estimate | None
    """Likewise, of what the classifier calls present."""
    confusion: Confusion
    """Counts of images."""
    prompts: tuple[PromptScore, ...]
    """The prompts with the most images."""
    num_prompts: Count
    """All of them."""
    by_subgroup: dict[str, Estimate | TooFewImages]
    """Subgroup of the images -> share that agrees."""


@dataclass(frozen=True, kw_only=True)
class PromptAdherence:
    """What a classifier sees in the images against what their prompts ask for."""

    __pydantic_config__ = CHECKED
    labels: dict[str, LabelAdherence]
    """Finding -> does the classifier agree with the prompts."""
    not_in_prompts: tuple[str, ...]
    """Findings that the classifier knows and no prompt mentions."""
    on_real_images: dict[str, LabelScores]
    """The classifier on the real set, whose labels are known: how far it can be trusted."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """MS-SSIM between images of one prompt.

    Its interval resamples prompts: start noises that they share are held fixed.
    """

    __pydantic_config__ = CHECKED
    ms_ssim: Estimate
    """Mean over all pairs; the lower, the more diverse."""
    std: NotNegative
    """Over all pairs; no standard error of the mean."""
    images_per_prompt: Annotated[int, pydantic.Field(ge=2)]
    """That are compared with each other."""
    num_prompts: Positive
    """With so many images."""
    prompts_left_out: Count
    """With fewer."""
    num_scales: Annotated[int, pydantic.Field(ge=1, le=5)]
    """Of MS-SSIM; 5 is the published measure."""


@dataclass(frozen=True, kw_only=True)
class NearestInSpace:
    """Distances of generated images to their nearest training image, in one space."""

    __pydantic_config__ = CHECKED
    threshold: NotNegative
    """Of the alarm: a distance below it is suspicious."""
    num_suspicious: Count
    """Generated images below it."""
    expected_by_chance: NotNegative
    """Of as many images of other patients: alarm_rate times their number."""
    by_chance_ci95: tuple[Count, Count]
    """How many of as many images of other patients are suspicious in 95 % of cases: beta-binomial,
    as the threshold too is drawn by chance; generated images of one start noise count as one."""
    alarm_rate: Share
    """Share of other patients' images below the threshold, by leaving out a held-out patient at a
    time; 1 in P + 1 or more with P of them."""
    num_held_out_patients: Count
    """P."""
    doubt: str | None
    """Why the alarm means nothing, such as held-out images of another origin; null where nothing
    speaks against it. num_suspicious then accuses nobody."""
    median_distance: NotNegative
    """Of generated images."""
    median_distance_of_held_out: NotNegative
    """Of real images of other patients."""
    median_distance_within_training: NotNegative | None
    """Of training images, each to the nearest one of another patient; null where there is one
    patient."""


@dataclass(frozen=True, kw_only=True)
class SuspiciousImage:
    """A generated image and the training image nearest to it."""

    __pydantic_config__ = CHECKED
    image: str
    """The generated one."""
    nearest: str
    """The training image."""
    space: str
    """In which it is nearest."""
    ratio: NotNegative
    """Distance over the alarm's threshold; 0 is a copy."""


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """Nearest training images of generated ones."""

    __pydantic_config__ = CHECKED
    quantile: Share
    """Share of other patients' images that the alarm shall call suspicious; `alarm_rate` says how
    many it does."""
    spaces: dict[str, NearestInSpace]
    """Pixels, and each feature space."""
    most_suspicious: tuple[SuspiciousImage, ...]
    """Worst first."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """What `medsd-jax evaluate` writes to report.json, and `medsd_jax.evaluate` returns.

    Numbers compare where `protocol` is the same.
    """

    kind: Literal["evaluation"] = "evaluation"
    """Of the report."""
    sets: dict[Literal["real", "synthetic", "train"], ImageSetSummary]
    """What was compared: real, synthetic and, where it was named, train."""
    feature_spaces: dict[str, FeatureSpace]
    """Feature space as it was named -> its network."""
    fidelity: dict[str, Distances]
    """Feature space -> distances in it."""
    subgroups: dict[str, dict[str, Distances | TooFew]]
    """Feature space -> subgroup of the images -> the distances within that subgroup."""
    prompt_adherence: PromptAdherence | None
    """Do the images show what their prompts ask for; null without a classifier."""
    diversity: Diversity | None
    """Null where no prompt is known that has several images."""
    memorization: Memorization | None
    """Are training images among the generated ones; null without the training images."""
    seed: int
    """Of subsets and resamples."""
    protocol: Hash
    """Hash of how the numbers were measured: networks, weights, input chains, k, definitions."""
