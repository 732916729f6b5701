"""What every report is made of: numbers with their limits, estimates, sets of images, scores.

A string below a field is its description in the JSON schema. Nothing is checked when a report is
made; reports/writing.py checks it when it is written, and when it is read back.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

CHECKED = pydantic.ConfigDict(
    use_attribute_docstrings=True, extra="forbid", allow_inf_nan=False, strict=True
)
"""Of each dataclass here: no unknown key, no NaN, no conversion of types."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Count = Annotated[int, pydantic.Field(ge=0)]
Positive = Annotated[int, pydantic.Field(ge=1)]
Hash = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{16}$")]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What all reports say of themselves; `kind` is a field of each."""

    __pydantic_config__ = CHECKED
    # Docstrings of fields are found in a class's own source only, not in its base's.
    schema_version: Annotated[
        Literal[1],
        pydantic.Field(
            description="Grows when a key changes its meaning or goes; keys may be added."
        ),
    ] = 1
    versions: Annotated[
        dict[str, str],
        pydantic.Field(description="Python and the packages that made the report."),
    ]


@dataclass(frozen=True)
class Estimate:
    """A number, the independent units it rests on, and its 95 % interval.

    `f"{estimate:.3f}"` is "0.512 (0.431 to 0.590)".
    """

    __pydantic_config__ = CHECKED
    value: float
    """The number on all data."""
    n: Count
    """Independent units: patients, or images where each is its own unit."""
    ci95: tuple[float, float] | None = None
    """Both ends of the 95 % interval; null where there are too few units for one."""

    def __format__(self, spec: str) -> str:
        if self.ci95 is None:
            return format(self.value, spec)
        return "{} ({} to {})".format(*(format(x, spec) for x in (self.value, *self.ci95)))


@dataclass(frozen=True, kw_only=True)
class ImageSetSummary:
    """A set of images that was measured."""

    __pydantic_config__ = CHECKED
    where: str
    """The folder, table or split as it was named."""
    num_images: Positive
    """Images that could be read."""
    num_patients: Positive
    """Each image counts as a patient where none is named."""
    unreadable: tuple[str, ...]
    """Files that could not be read and were left out."""
    fingerprint: Hash
    """Of the images' content in their order."""


@dataclass(frozen=True, kw_only=True)
class TooFew:
    """A subgroup with too few images, or patients, for a number."""

    __pydantic_config__ = CHECKED
    num_real: Count
    """Real images in it."""
    num_synthetic: Count
    """Generated images in it."""
    too_few: Literal[True] = True
    """Tells this entry from one with numbers."""


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """How well probabilities of one finding agree with its known labels.

    Scores are null where either kind has too few images, or all of them are of one patient.
    """

    __pydantic_config__ = CHECKED
    num_images: Count
    """Images whose label is known."""
    num_present: Count
    """Those with the finding."""
    num_patients: Count
    """Whose images they are."""
    too_few: bool
    """Whether there are too few images for scores."""
    accuracy: Estimate | None = None
    """Above a probability of 0.5 a finding is called present."""
    auroc: Estimate | None = None
    """0.5 by chance."""
    f1: Estimate | None = None
    """2 TP / (2 TP + FP + FN)."""
    brier: Share | None = None
    """Mean squared error of the probability."""
