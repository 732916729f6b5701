"""The one exception that means "the user can fix this", and what helps to fix it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input, told in one line that names the value and the way out.

    The command line prints the line and exits with code 2; everything else is a bug of ours and
    keeps its traceback.
    """


def closest(word: str, known: Iterable[str]) -> str:
    """Suggest what was meant: `` (did you mean X?)``, or nothing where no known word is close."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""
