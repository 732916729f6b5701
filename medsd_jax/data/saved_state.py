"""The data iterator's place as a checkpoint holds it: bytes that may have been changed since."""

import json
from typing import Any

from medsd_jax.errors import UserError

ADVICE = (
    "remove the checkpoint of that step, so that an earlier one is gone on from, or start a new "
    "run in another workdir"
)


def parse_state(state: bytes) -> dict[str, Any]:
    """The JSON object of a data iterator's state.

    Raises:
        UserError: it is none.
    """
    try:
        saved = json.loads(state, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the saved data state is no JSON ({error}): {ADVICE}") from error
    if not isinstance(saved, dict):
        raise UserError(f"the saved data state is no JSON object: {ADVICE}")
    return saved


def _refuse(text: str) -> float:
    # A place is counted: the library would take a fraction, and fail at the next batch.
    raise ValueError(f"{text[:40]} is no count")
