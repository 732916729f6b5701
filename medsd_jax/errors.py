"""The exceptions that mean no bug of ours, and what helps to fix a mistake."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input, told in one line that names the value and the way out.

    The command line prints the line and exits with code 2; everything else is a bug of ours and
    keeps its traceback.
    """


class DivergedError(FloatingPointError):
    """A training whose numbers are not finite any more, told in one line; exit code 1."""


_MAX_CHARACTERS = 700


def one_line(text: str) -> str:
    """A message in one line, without the middle of one that quotes pages of somebody's file."""
    line = " ".join(text.split())
    if len(line) <= _MAX_CHARACTERS:
        return line
    return f"{line[: _MAX_CHARACTERS - 200]} ... {line[-195:]}"


def closest(word: str, known: Iterable[str]) -> str:
    """Suggest what was meant: `` (did you mean X?)``, or nothing where no known word is close."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""
