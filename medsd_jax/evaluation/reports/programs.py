"""The reports of what was compiled and what was exported: a plan and a certificate."""

from dataclasses import dataclass
from typing import Any, Literal

from medsd_jax.evaluation.reports.base import (
    CHECKED,
    Count,
    NotNegative,
    Positive,
    Report,
)


@dataclass(frozen=True, kw_only=True)
class PlanReport(Report):
    """What `medsd-jax plan` writes: one step of a recipe, compiled for a TPU slice."""

    kind: Literal["plan"] = "plan"
    """Of the report."""
    topology: str
    """Generation and shape of a slice."""
    slices: Positive
    """How many of them."""
    chips: Positive
    """Of all slices."""
    mesh: dict[str, Positive]
    """Axis -> devices."""
    batch_size: Positive
    """Images in an optimizer step."""
    images_per_chip: NotNegative
    """At once."""
    arguments: Count
    """Bytes on each chip."""
    temporaries: Count
    """Bytes on each chip."""
    memory: NotNegative
    """Bytes that a chip has."""
    fits: bool
    """Whether arguments and temporaries are less than that."""
    operations: NotNegative
    """Of one step on each chip."""
    bytes: NotNegative
    """That one step reads and writes on each chip. XLA counts the operands of every operation: what
    stays on the chip between two of them goes faster."""
    seconds_by_arithmetic: NotNegative
    """Of one step, at the chip's published speed."""
    seconds_by_memory: NotNegative
    """Likewise, at the published bandwidth of its memory."""


@dataclass(frozen=True, kw_only=True)
class ComponentCheck:
    """Outputs of one network in both frameworks; null where a number is not finite."""

    __pydantic_config__ = CHECKED
    max_abs_difference: float | None
    """Largest difference."""
    mean_abs_difference: float | None
    """Mean difference."""
    output_max_abs: float | None
    """Largest output."""
    ratio: float | None
    """Largest difference over largest output."""
    passed: bool
    """Whether the ratio is within the threshold."""


@dataclass(frozen=True, kw_only=True)
class ImageCheck:
    """The finished images of both frameworks."""

    __pydantic_config__ = CHECKED
    mean_abs_difference_in_255ths: NotNegative
    """Over pixels and channels."""
    max_abs_difference_in_255ths: Count
    """Of any pixel."""
    difference_png_amplification: Positive
    """How much brighter difference.png is."""
    passed: bool
    """Whether the mean is within the threshold."""


@dataclass(frozen=True, kw_only=True)
class ExportCertificate(Report):
    """What `medsd-jax export` writes to certificate.json where it compares with PyTorch."""

    kind: Literal["export_certificate"] = "export_certificate"
    """Of the report."""
    passed: bool
    """Whether both frameworks agree."""
    thresholds: dict[str, NotNegative]
    """Measure -> the largest value that passes."""
    settings: dict[str, Any]
    """What was sampled, from which weights."""
    error: str | None = None
    """Why torch cannot load the folder; the following keys are then null."""
    same_prompt_ids: bool | None = None
    """Whether the folder's tokenizer gives the same token ids."""
    components: dict[str, ComponentCheck] | None = None
    """Network -> comparison of its outputs."""
    image: ImageCheck | None = None
    """Comparison of the finished images."""
