"""Full fine-tuning of the weights whose names match: the U-Net alone, or more."""

from collections.abc import Sequence

import jax

from medsd_jax.adaptation.adaptation import NEVER_TRAINED, Adaptation, compile_patterns
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
    compiled = compile_patterns(patterns)

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
