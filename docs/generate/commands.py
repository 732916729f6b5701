"""The reference of the command line: what each command prints for ``--help``."""

import contextlib
import io
import os
from unittest import mock

from medsd_jax.cli.main import COMMANDS, main

_PROGRAM = "medsd-jax"


def help_of(command: str) -> str:
    """What ``medsd-jax COMMAND --help`` prints.

    Raises:
        RuntimeError: the command printed no help.
    """
    text = io.StringIO()
    # The width of the machine's terminal would change the page; colours would litter it.
    with mock.patch.dict(os.environ, {"COLUMNS": "90", "NO_COLOR": "1"}):
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    if not text.getvalue().startswith("usage:"):
        raise RuntimeError(f"{_PROGRAM} {command} --help printed {text.getvalue()[:200]!r}")
    return text.getvalue()


def page() -> str:
    """The page of Markdown: a list of the commands, then the help of each."""
    text = [
        "# Commands",
        "",
        "Every command is called as `medsd-jax COMMAND`; `python -m medsd_jax COMMAND` is the "
        "same. The texts below are what `--help` prints.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    text += [f"| [`{name}`](#{_anchor(name)}) | {summary} |" for name, summary in COMMANDS.items()]
    text += [
        "",
        "A command ends with exit code 0 when it is done, 1 when a check failed or a training "
        "diverged, 2 after a mistake that its last line names, and 130 when it was interrupted: "
        "the same command then goes on.",
        "",
    ]
    for name in COMMANDS:
        text += [f"## {name} {{ #{_anchor(name)} }}", "", "```text", help_of(name).rstrip()]
        text += ["```", ""]
    return "\n".join(text)


def _anchor(name: str) -> str:
    return name.replace(" ", "-")
