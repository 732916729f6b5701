"""The report of what a model's autoencoder keeps of images."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    Hash,
    ImageSetSummary,
    NotNegative,
    Positive,
    Report,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """Whose autoencoder was measured."""

    __pydantic_config__ = CHECKED
    where: str
    """The model as it was named."""
    vae_hash: Hash
    """Changes with any bit of any weight of the autoencoder."""


@dataclass(frozen=True, kw_only=True)
class MeasuredImages:
    """The images that were measured, spread evenly over the set, and their size."""

    __pydantic_config__ = CHECKED
    num_images: Annotated[int, pydantic.Field(ge=2)]
    """How many."""
    num_patients: Positive
    """Whose they are."""
    image_size: Annotated[int, pydantic.Field(ge=11)]
    """Pixels, square."""
    resize_mode: Literal["pad", "crop", "squash"]
    """How images became square."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A mean that is compared with a threshold."""

    __pydantic_config__ = CHECKED
    name: Literal["psnr", "ssim"]
    """Of the measure."""
    minimum: float
    """Threshold of the mean."""
    value: float
    """Mean over images."""
    passed: bool
    """Whether the value is not below the threshold."""
    share_below: Share
    """Of the images, below the threshold by themselves."""


@dataclass(frozen=True, kw_only=True)
class CriteriaResult:
    """Whether the means reach their thresholds."""

    __pydantic_config__ = CHECKED
    good_enough: bool
    """All criteria are passed."""
    criteria: Annotated[tuple[Criterion, ...], pydantic.Field(min_length=1)]
    """One for each threshold."""
    caveat: str
    """What the thresholds are not."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A measure over images."""

    __pydantic_config__ = CHECKED
    mean: Estimate
    """Over images; the interval resamples patients."""
    std: NotNegative
    """Of the images, not of the mean."""
    quantiles: dict[Literal["0.05", "0.5", "0.95"], float]
    """Of the images."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How like the originals the reconstructions are, on grey in [0, 1]."""

    __pydantic_config__ = CHECKED
    num_scales: Annotated[int, pydantic.Field(ge=1, le=5)]
    """Of MS-SSIM; with fewer than 5 it does not compare with published values."""
    rmse: Spread
    """Root mean squared error."""
    psnr: Spread
    """In decibels, at most 100."""
    ssim: Spread
    """Structural similarity."""
    ms_ssim: Spread
    """Multi-scale structural similarity."""


@dataclass(frozen=True, kw_only=True)
class ColourCast:
    """How far channels come apart that belong together; 0: grey stays grey.

    Root mean square over pixels of the difference of two channels, beyond the difference in the
    original; mean over images.
    """

    __pydantic_config__ = CHECKED
    red_green: Estimate
    """Of these two channels."""
    green_blue: Estimate
    """Of these two channels."""
    blue_red: Estimate
    """Of these two channels."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Pixels of all images together whose original has a grey of low <= grey < high.

    The last band holds its end, too. Black bars beside an image count as air.
    """

    __pydantic_config__ = CHECKED
    name: Literal["air", "lung", "soft_tissue", "bone"]
    """For orientation: which grey a tissue has is a matter of each image's window."""
    low: Share
    """Where it begins."""
    high: Share
    """Where it ends."""
    share: Estimate
    """Of all pixels."""
    bias: Estimate | None
    """Mean of reconstruction minus original; null where the band holds no pixel."""
    rmse: Estimate | None
    """Null where the band holds no pixel."""


@dataclass(frozen=True, kw_only=True)
class PairedAuroc:
    """AUROC of a classifier on originals and reconstructions, against the labels of the set.

    Null where either kind of label has too few images, or all of them are of one patient.
    """

    __pydantic_config__ = CHECKED
    num_images: Count
    """Images whose label is known."""
    num_present: Count
    """Those with the finding."""
    too_few: bool
    """Whether there are too few images."""
    original: Estimate | None = None
    """On the originals."""
    reconstruction: Estimate | None = None
    """On the reconstructions."""
    difference: Estimate | None = None
    """Reconstruction minus original, paired by patients."""


@dataclass(frozen=True, kw_only=True)
class LabelFlips:
    """Images that a classifier calls otherwise after the round trip, for one finding."""

    __pydantic_config__ = CHECKED
    prediction_flips: Estimate
    """Share of the images; above a probability of 0.5 a finding is called present."""
    appeared: Count
    """Images called present only after it."""
    vanished: Count
    """Images called present only before it."""
    auroc: PairedAuroc | None
    """Null where the set has no label for this finding."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFlips:
    """What a classifier says of originals and reconstructions."""

    __pydantic_config__ = CHECKED
    where: str
    """Folder of the classifier."""
    image_size: Positive
    """Pixels that it looks at."""
    labels: Annotated[dict[str, LabelFlips], pydantic.Field(min_length=1)]
    """Finding -> predictions before and after."""


@dataclass(frozen=True, kw_only=True)
class WorstImage:
    """An image with a large error."""

    __pydantic_config__ = CHECKED
    image: str
    """Path of the file, or key of the record."""
    rmse: NotNegative
    """Of this image."""
    psnr: Annotated[float, pydantic.Field(le=100)]
    """Of this image."""
    ssim: float
    """Of this image."""
    ms_ssim: float
    """Of this image."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport(Report):
    """What `medsd-jax reconstruct` writes to report.json.

    Autoencoders compare where set.fingerprint and measured are the same. Grey values lie in [0, 1];
    colours are averaged.
    """

    kind: Literal["reconstruction"] = "reconstruction"
    """Of the report."""
    model: MeasuredModel
    """Whose autoencoder it is."""
    set: ImageSetSummary
    """The whole set, of which some or all images were measured."""
    measured: MeasuredImages
    """Those that were, and how they were shown to the autoencoder."""
    result: CriteriaResult
    """Is it good enough."""
    similarity: Similarity
    """Of the images."""
    colour_cast: ColourCast
    """Of the images."""
    bands: Annotated[tuple[Band, ...], pydantic.Field(min_length=4, max_length=4)]
    """By the original's grey."""
    classifier: ClassifierFlips | None
    """Does a classifier still see the same; null without one."""
    worst: Annotated[tuple[WorstImage, ...], pydantic.Field(min_length=2)]
    """The images with the largest RMSE, largest first."""
    seed: Count
    """Of the resamples."""
