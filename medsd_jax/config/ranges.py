"""The bounds of every number in a recipe, in one place, looked at before memory is asked for.

A bound is no advice: below it a slip of the finger is still told in one line, above it only by a
machine that runs out of memory or time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict, FieldReference

from medsd_jax.bounds import (
    MAX_AT_ONCE,
    MAX_FEATURES,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_PHANTOMS,
    MAX_PIXELS,
)
from medsd_jax.data.labels import label_name
from medsd_jax.errors import UserError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with or without these two; None has no bound on that side."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, x: float) -> bool:
        """Whether x, which is finite, is one of them."""
        over = self.low is None or (x > self.low if self.above else x >= self.low)
        return over and (self.high is None or (x < self.high if self.below else x <= self.high))

    def __str__(self) -> str:
        words = []
        if self.low is not None:
            words.append(f"{'above' if self.above else 'at least'} {self.low}")
        if self.high is not None:
            high = "2**32" if self.high == _SEEDS else f"{self.high}"
            words.append(f"{'below' if self.below else 'at most'} {high}")
        return " and ".join(words)


_SEEDS = 2**32
_LARGEST = 1e30  # float32 holds it, and its products with usual numbers
_STEPS = 10**9

_SEED = Range(0, _SEEDS, below=True)
_SHARE = Range(0, 1, below=True)
_BETWEEN = Range(0, 1, above=True, below=True)
_NOT_NEGATIVE = Range(0)
_ANY = Range()

RANGES = {
    key: allowed
    for allowed, keys in (
        (_SEED, "seed validation.seed preview.seed evaluation.seed prior.seed data.phantom_seed"),
        (Range(1, _STEPS), "train.steps log.every_steps checkpoint.every_steps"),
        (
            Range(0, _STEPS),
            "validation.every_steps preview.every_steps evaluation.every_steps optim.warmup_steps",
        ),
        (
            Range(1, MAX_IMAGES),
            "data.batch_size train.accumulation_steps validation.num_images"
            " validation.num_prompts evaluation.num_images prior.num_images prior.batch_size"
            " num_images real_images checkpoint.keep",
        ),
        (Range(1, MAX_PHANTOMS), "data.num_images"),
        (Range(0, MAX_IMAGES), "few_shot.images_per_prompt"),
        (Range(1, MAX_PIXELS), "data.image_size image_size"),
        (Range(1, 1000), "preview.images_per_prompt seeds"),
        (Range(1, MAX_AT_ONCE), "batch_size adaptation.lora_rank"),
        (
            Range(1, 1000),
            "preview.num_steps evaluation.num_steps prior.num_steps num_steps",
        ),
        (Range(0, 1024), "data.num_workers"),
        (Range(-1, MAX_IMAGES), "mesh.data mesh.fsdp mesh.tensor"),
        (Range(1, 75), "adaptation.num_vectors"),  # a prompt has 77 tokens, two of them its ends
        (Range(1, 8192), "max_length"),
        (Range(1, MAX_FEATURES), "projection.hidden_features"),
        (Range(1, 100_000), "num_resamples"),
        (Range(1, 128), "network.growth_rate network.block_config"),
        (Range(1, 4096), "network.num_init_features"),
        (
            _SHARE,
            "train.caption_dropout train.ema_decay data.validation_fraction optim.b1 optim.b2",
        ),
        (_BETWEEN, "calibration_fraction validation_fraction fine_tuning.share"),
        (Range(0, 1), "augmentation.shift augmentation.contrast"),
        (Range(0, 2), "augmentation.brightness"),
        (Range(0, above=True), "optim.eps train.min_snr_gamma"),
        (Range(0, 10), "optim.learning_rate fine_tuning.learning_rate"),
        (
            _NOT_NEGATIVE,
            "optim.weight_decay optim.clip_norm vae.kl_weight vae.perceptual_weight prior.weight",
        ),
        (
            Range(-MAX_GUIDANCE, MAX_GUIDANCE),
            "guidance_scale preview.guidance_scale evaluation.guidance_scale prior.guidance_scale",
        ),
        (_ANY, "adaptation.lora_alpha"),
        (Range(0, 100, above=True), "least_psnr"),
        (Range(0, 1, above=True), "least_ssim"),
    )
    for key in keys.split()
}
"""Dotted key -> what its number, or each of its numbers, may be; all numbers of all configs."""

_NO_REPEATS = ("labels", "evaluation.metrics", "data.phantom_findings")


def check_ranges(config: ConfigDict) -> None:
    """Raises UserError where a value cannot be meant.

    A number is not finite or out of its range; a list holds another kind of value; a text holds
    the character 0, which no path has; or a name stands twice.
    """
    for key, value in leaves(config):
        _check_texts(key, value)
        if key in _NO_REPEATS:
            names = [label_name(str(name)) for name in value]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"{key} names {name!r} twice: leave one of them out")
        allowed = RANGES.get(key, _ANY)
        for x in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(x, int | float) or isinstance(x, bool):
                continue
            if not abs(x) <= _LARGEST:
                expected = f"a finite number{f', {allowed}' if str(allowed) else ''}"
            elif not allowed.holds(x):
                expected = str(allowed)
            else:
                continue
            raise UserError(f"{key} = {_short(x)} must be {expected}")


def _check_texts(key: str, value: Any) -> None:
    listed = isinstance(value, tuple | list)
    kind, named = ((int, float), "numbers") if key in RANGES else (str, "texts")
    for x in value if listed else (value,):
        if listed and (isinstance(x, bool) or not isinstance(x, kind)):
            raise UserError(f"{key} = {_short(value)} must list {named} alone, not {_short(x)}")
        if isinstance(x, str) and "\0" in x:
            raise UserError(f"{key} = {_short(x)} holds the character 0")


def check_kinds(config: ConfigDict, base: ConfigDict, where: str, prefix: str = "") -> None:
    """Raises UserError where a config that was read from JSON lacks a key, or has another kind.

    Args:
        config: what was read.
        base: the same keys, of a factory.
        where: the file, for the message.
        prefix: of the keys, for the message.
    """
    for name, default in base.items(preserve_field_references=True):
        key = prefix + name
        if not isinstance(config, ConfigDict) or name not in config:
            raise UserError(
                f"{where} has no {key}: it was written by an older version, or by no "
                "training of this package; train again"
            )
        value = config[name]
        if isinstance(default, ConfigDict):
            check_kinds(value, default, where, f"{key}.")
            continue
        may_be_none = hasattr(default, "get_type")
        kind = default.get_type() if may_be_none else type(default)
        kinds = {float: (float, int), tuple: (tuple, list)}.get(kind, (kind,))
        if type(value) not in kinds and not (value is None and may_be_none):
            raise UserError(f"{where}: {key} = {_short(value)} must be of type {kind.__name__}")


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that has one."""
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, FieldReference):
            if value.empty():
                continue
            value = value.get()
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # more digits than Python prints
        return f"{'-' if value < 0 else ''}2**{value.bit_length()} or so"
    text = repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
