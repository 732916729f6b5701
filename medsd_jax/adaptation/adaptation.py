"""An adaptation: which parameters are trained, and how they become the model's weights.

The paper's experiments (arXiv 2210.04133) differ in this alone: the train step, the loss and the
data are the same for all of them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from medsd_jax.arrays import Params
from medsd_jax.errors import UserError

NEVER_TRAINED = re.compile(r"^text_encoder\.pooler\.")
"""No adaptation trains these: no loss reads a BERT's pooler, but weight decay would move it."""


@dataclass(frozen=True)
class Adaptation:
    """Two pure functions.

    Attributes:
        init: ``(params, rng) -> trainable``: the numbers to train, drawn from the model's weights.
        apply: ``(frozen, trainable) -> params``: the model's weights; traced inside the train step.
    """

    init: Callable[[Params, jax.Array], Params]
    apply: Callable[[Params, Params], Params]


def compile_patterns(patterns: Sequence[str]) -> list[re.Pattern]:
    """The regular expressions of `adaptation.train`.

    Raises:
        UserError: there is none, or one is no regular expression.
    """
    if not patterns:
        raise UserError("no train pattern given: nothing would be trained")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(
            f"train pattern {error.pattern!r} is not a regular expression: {error}"
        ) from None


def frozen_params(params: Params, trainable: Params) -> Params:
    """The model's weights that are not trained themselves. Nothing is stored twice."""
    return {name: x for name, x in params.items() if name not in trainable}
