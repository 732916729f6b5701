"""Full fine-tuning of the weights whose names match: the U-Net alone, or more."""

import re
from collections.abc import Sequence

import jax

from medsd_jax.adaptation.adaptation import NEVER_TRAINED, Adaptation
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError


def full(patterns: Sequence[str]) -> Adaptation:
    r"""Trains every weight whose name matches one of the regular expressions.

    A BERT's pooler is never trained: nothing that is computed here depends on it.

    Args:
        patterns: searched for in the full name, e.g. ``(r"^unet\.", r"^text_encoder\.")``.

    Raises:
        UserError: at init, when a pattern matches nothing or the pooler alone; here, when one is no
            regular expression.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(
            f"train pattern {error.pattern!r} is not a regular expression: {error}"
        ) from None
    if not compiled:
        raise UserError("no train pattern given: nothing would be trained")

    def init(params: Params, rng: jax.Array) -> Params:
        del rng  # nothing is drawn: training starts from the checkpoint's values
        for pattern in compiled:
            if not any(pattern.search(name) for name in params):
                raise UserError(
                    f"train pattern {pattern.pattern!r} matches none of the {len(params)} weights"
                )
            if not any(pattern.search(name) for name in params if not NEVER_TRAINED.search(name)):
                raise UserError(
                    f"train pattern {pattern.pattern!r} matches the text encoder's pooler alone, "
                    "which no loss reads; leave it out"
                )
        return {
            name: x
            for name, x in params.items()
            if any(pattern.search(name) for pattern in compiled) and not NEVER_TRAINED.search(name)
        }

    def apply(frozen: Params, trainable: Params) -> Params:
        return {**frozen, **trainable}

    return Adaptation(init, apply)
