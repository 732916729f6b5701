"""The report of what text encoders know of the findings in a text."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    Estimate,
    Hash,
    LabelScores,
    Positive,
    Report,
)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of some patients."""

    __pydantic_config__ = CHECKED
    num_texts: Positive
    """One for each image."""
    num_distinct_texts: Positive
    """Without repetitions."""
    num_patients: Positive
    """Whose they are."""


@dataclass(frozen=True, kw_only=True)
class ProbedData:
    """The data set whose captions are the texts."""

    __pydantic_config__ = CHECKED
    source: str
    """Kind of the data set."""
    fingerprint: Hash
    """Names the content; equal for equal data."""
    train: Texts
    """Patients whose texts fit the probes."""
    validation: Texts
    """Other patients, who score them."""


@dataclass(frozen=True, kw_only=True)
class ProbedEncoder:
    """A text encoder and what its embeddings tell."""

    __pydantic_config__ = CHECKED
    name: str
    """As it was named."""
    architecture: Literal["Bert", "CLIP"]
    """Kind of the encoder."""
    weights_hash: Hash
    """Changes with any bit of any weight of the encoder."""
    width: Positive
    """Dimensions of an embedding."""
    max_length: Positive
    """Tokens of a text, special ones included; the rest was cut."""
    labels: dict[str, LabelScores]
    """Finding -> scores on the validation patients' texts; num_images counts texts, one for each
    image. too_few: fewer than five texts with the finding or without it, or all of them of one
    patient, in either group."""
    strengths: dict[str, Annotated[float, pydantic.Field(gt=0)]]
    """Finding -> C of the logistic regression, chosen on training patients; of those that are
    scored."""


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """Scores of one encoder minus those of another, for one finding."""

    __pydantic_config__ = CHECKED
    auroc: Estimate
    """Difference of the AUROCs."""
    f1: Estimate
    """Difference of the F1 scores."""


@dataclass(frozen=True, kw_only=True)
class EncoderDifference:
    """Two encoders on the same texts, with intervals from the same resamples of patients."""

    __pydantic_config__ = CHECKED
    encoder: str
    """Whose scores count."""
    minus: str
    """Whose scores are subtracted."""
    labels: dict[str, ScoreDifference]
    """Finding -> differences; findings with too few texts are left out."""


@dataclass(frozen=True, kw_only=True)
class TextProbeReport(Report):
    """What `medsd-jax probe-text` writes to report.json.

    Numbers compare where data, pooling and attention_mask are the same.
    """

    kind: Literal["text_probe"] = "text_probe"
    """Of the report."""
    data: ProbedData
    """Texts and findings."""
    pooling: Annotated[str, pydantic.StringConstraints(pattern="^(last|mean|cls|kth:[0-9]+)$")]
    """How a text became one vector. last: mean of the last hidden state over all positions; mean:
    over the text's tokens; cls: at [CLS], or at CLIP's end of text; kth:N: as mean, N-th hidden
    state from the last."""
    attention_mask: bool
    """Whether BERTs were kept from attending to padding."""
    num_resamples: Positive
    """Of the bootstrap over validation patients."""
    seed: Count
    """Of the bootstrap."""
    encoders: Annotated[tuple[ProbedEncoder, ...], pydantic.Field(min_length=1)]
    """In the order in which they were named."""
    differences: tuple[EncoderDifference, ...]
    """Of each pair of encoders, the second minus the first."""
