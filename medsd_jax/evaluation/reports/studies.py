"""The reports of the studies: the demo, and the comparison of adaptations."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    Hash,
    LabelScores,
    NotNegative,
    Positive,
    Report,
)
from medsd_jax.evaluation.reports.evaluation import Confusion, LabelAdherence


@dataclass(frozen=True, kw_only=True)
class DemoPair:
    """The two kinds of images of the demo."""

    __pydantic_config__ = CHECKED
    plain: str
    """Prompt without the finding."""
    effusion: str
    """Prompt with it."""


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """The phantoms."""

    __pydantic_config__ = CHECKED
    source: str
    """Kind of the data set."""
    image_size: Positive
    """Pixels, square."""
    num_images: dict[str, Count]
    """Split -> images."""
    num_patients: dict[str, Count]
    """Split -> virtual patients."""


@dataclass(frozen=True, kw_only=True)
class LossAt:
    """A value of a loss curve."""

    __pydantic_config__ = CHECKED
    step: Count
    """Optimizer step."""
    value: float
    """The loss."""


@dataclass(frozen=True, kw_only=True)
class LossEnds:
    """Both ends of a loss curve."""

    __pydantic_config__ = CHECKED
    first: LossAt
    """First value of the log."""
    last: LossAt
    """Last value of the log."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training of the demo."""

    __pydantic_config__ = CHECKED
    steps: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Images in a step."""
    train_loss: LossEnds
    """On the images of the steps."""
    validation_loss: LossEnds
    """On held-out phantoms."""


@dataclass(frozen=True, kw_only=True)
class VaeError:
    """What the autoencoder loses."""

    __pydantic_config__ = CHECKED
    l1: NotNegative
    """Mean |image - reconstruction| on the [-1, 1] range."""
    n: Positive
    """Held-out phantoms."""


@dataclass(frozen=True, kw_only=True)
class DemoReport(Report):
    """What `medsd-jax demo` writes to report.json."""

    kind: Literal["demo"] = "demo"
    """Of the report."""
    prompts: DemoPair
    """The two texts."""
    num_images: dict[Literal["plain", "effusion"], Count]
    """Images sampled from each."""
    image_size: tuple[Positive, Positive]
    """Height and width in pixels."""
    parameters: dict[Literal["unet", "vae", "text_encoder", "total"], Count]
    """Of each network, and of all."""
    model_fingerprint: Hash
    """Changes with any bit of any weight."""
    data: DemoData
    """What was trained on."""
    training: dict[Literal["vae", "diffusion"], TrainingRun]
    """The two trainings."""
    vae_reconstruction: VaeError
    """Of held-out phantoms."""
    prompt_accuracy: Estimate
    """Share of the images in which the classifier agrees with the prompt about pleural effusion."""
    classifier_accuracy: Estimate | None
    """Of that classifier on held-out phantoms; null where there are too few."""
    prompt_adherence: LabelAdherence
    """What the classifier says of the generated images."""
    classifier: LabelScores
    """Its scores on held-out phantoms."""
    seconds: dict[str, NotNegative]
    """Stage -> seconds of this run, and total."""
    device: str
    """What it ran on, in words."""


@dataclass(frozen=True, kw_only=True)
class AdaptationTraining:
    """One training of an adaptation, and its measures."""

    __pydantic_config__ = CHECKED
    seed: Count
    """Added to the recipe's."""
    model: str
    """As `medsd_jax.load` takes it."""
    fid: Estimate
    """Distance to held-out real images."""
    prompt_accuracy: Estimate
    """Share of images in which the classifier agrees with the prompt."""
    confusion: Confusion
    """Counts of images."""
    ms_ssim: Estimate
    """Between images of one prompt, in groups of four."""
    trained_parameters: Count
    """Parameters that the optimizer moves."""
    seconds: NotNegative | None
    """Of the training; null where nothing was trained."""
    evaluation: str
    """Folder of its evaluation, relative to the report's."""


@dataclass(frozen=True, kw_only=True)
class AdaptationRow:
    """One adaptation.

    With several trainings a value is their mean, and its interval goes from the lowest to the
    highest end of their intervals: what parts two rows then parts every training of theirs.
    """

    __pydantic_config__ = CHECKED
    name: str
    """Of the adaptation."""
    title: str
    """Of its row in the table."""
    paper: str
    """What the papers found."""
    fid: Estimate
    """Distance to held-out real images."""
    prompt_accuracy: Estimate
    """Share of images in which the classifier agrees with the prompt."""
    ms_ssim: Estimate
    """Between images of one prompt, in groups of four."""
    trained_parameters: Count
    """Parameters that the optimizer moves."""
    seconds: NotNegative | None
    """Mean over the trainings; null where nothing was trained."""
    prompts: tuple[str, ...]
    """Without and with the finding."""
    trainings: Annotated[tuple[AdaptationTraining, ...], pydantic.Field(min_length=1)]
    """One for each seed."""


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim of the papers beside these numbers."""

    __pydantic_config__ = CHECKED
    claim: str
    """In words."""
    metric: str
    """That the claim is about."""
    estimates: dict[str, Estimate]
    """The two adaptations that it compares -> their values."""
    result: Literal["agrees", "disagrees", "undecided"]
    """agrees where the two intervals part, disagrees where they part the other way."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderInShort:
    """What the base model's autoencoder keeps of held-out images."""

    __pydantic_config__ = CHECKED
    num_images: Positive
    """Images that were measured."""
    image_size: Positive
    """Pixels, square."""
    rmse: Estimate
    """Mean over images."""
    psnr: Estimate
    """Mean over images, in decibels."""
    ssim: Estimate
    """Mean over images."""
    ms_ssim: Estimate
    """Mean over images."""
    good_enough: bool
    """By the usual thresholds of lossy compression."""
    prediction_flips: Estimate
    """Share of images that the classifier calls otherwise after the round trip."""
    report: str
    """The whole report, relative to this one."""


@dataclass(frozen=True, kw_only=True)
class EncoderInShort:
    """What one text encoder knows; null where too few captions have the finding, or lack it."""

    __pydantic_config__ = CHECKED
    name: str
    """Of the row whose encoder it is."""
    architecture: Literal["Bert", "CLIP"]
    """Kind of the encoder."""
    width: Positive
    """Dimensions of an embedding."""
    auroc: Estimate | None
    """Of the linear probe."""
    f1: Estimate | None
    """Of the linear probe."""


@dataclass(frozen=True, kw_only=True)
class TextEncodersInShort:
    """What the text encoders know of the finding in a caption."""

    __pydantic_config__ = CHECKED
    num_texts: Positive
    """Captions that score."""
    encoders: tuple[EncoderInShort, ...]
    """Before and after training."""
    report: str
    """The whole report, relative to this one."""


@dataclass(frozen=True, kw_only=True)
class ReproductionReport(Report):
    """What `medsd-jax reproduce` writes to results.json."""

    kind: Literal["reproduction"] = "reproduction"
    """Of the report."""
    scale: Literal["phantom", "full"]
    """Phantoms, or the papers' scale."""
    base_model: str
    """What all adaptations start from."""
    real: str
    """Held-out real images."""
    features: tuple[str, ...]
    """Feature spaces; FID is of the first."""
    classifier: str
    """Folder of the classifier."""
    guidance_scale: float
    """Of sampling."""
    sampler: str
    """Of sampling."""
    num_steps: Positive
    """Of sampling."""
    num_images: Positive
    """Of each training, both prompts together."""
    rows: tuple[AdaptationRow, ...]
    """One for each adaptation that is finished."""
    autoencoder: AutoencoderInShort | None
    """Nothing is trained for it."""
    text_encoders: TextEncodersInShort | None
    """Null until all rows are finished."""
    claims: tuple[ClaimResult, ...]
    """What the papers claim that these numbers can be held against."""
    device: str
    """What it ran on, in words."""
