"""The reference of the configuration, read from the source: key, default, and the comment on it.

A comment belongs to the assignment that it stands above, or behind on the same line; one to
``section.KEY`` explains KEY in all sections that have no comment of their own:

    # Encode every training image once.
    config.data.cache_latents = False
    config.data.num_workers = 2  # threads that decode images

The keys and defaults themselves are those of the config that the factory returns, so that a page
lists what a run would read. A key whose comment is found nowhere is an error: `make docs` fails.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import RequiredValueError

_DIRECTIVE = re.compile(r"#\s*(fmt:|noqa|type:|pragma)")


class MissingCommentError(Exception):
    """A key of the configuration that nobody explained."""


@dataclass(frozen=True)
class Key:
    """One entry of the reference.

    Attributes:
        name: dotted, such as "data.batch_size".
        default: as Python writes it; "required" where the command line has to give it.
        meaning: the comment.
    """

    name: str
    default: str
    meaning: str


def source_comments(source: str) -> dict[str, str]:
    """Dotted key -> its comment, for the assignments to attributes in a file of defaults.

    Args:
        source: the text of a Python file.

    Returns:
        What each commented assignment such as ``config.data.path = ...`` says, under "data.path".
        Of two assignments to one key, the first comment counts.
    """
    lines = source.splitlines()
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string):
            row, column = token.start
            text = token.string.lstrip("#").strip()
            (behind if lines[row - 1][:column].strip() else alone)[row] = text

    result: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        key = _dotted(node.targets[0])
        if key is None:
            continue
        above = []
        row = node.lineno - 1
        while row in alone:
            above.insert(0, alone[row])
            row -= 1
        same = [behind[row] for row in range(node.lineno, node.end_lineno + 1) if row in behind]
        if above or same:
            result.setdefault(key, " ".join([*above, *same]))
    return result


def keys_of(config: ConfigDict, comments: Iterable[Mapping[str, str]], subject: str) -> list[Key]:
    """The keys of a config with their comments.

    Args:
        config: what a factory returned.
        comments: of the factory's own file, then of those that its sections may come from; the
            first one that knows the key explains it.
        subject: of the page, for the message.

    Raises:
        MissingCommentError: no file explains one of the keys.
    """
    comments = list(comments)
    order = [name for known in comments for name in known]
    entries, missing = [], []
    for name, default in _flatten(config, order):
        anywhere = f"*.{name.rpartition('.')[2]}"
        result = (known[key] for key in (name, anywhere) for known in comments if key in known)
        meaning = next(result, None)
        if meaning is None:
            missing.append(name)
        else:
            entries.append(Key(name, default, meaning))
    if missing:
        raise MissingCommentError(
            f"{subject}: no comment explains {', '.join(missing)}; write one above the default or "
            "behind it"
        )
    return entries


def page(
    title: str, factory: Callable[[], ConfigDict], comments: Iterable[Mapping[str, str]]
) -> str:
    """A page of Markdown: each section of the config as a list of definitions.

    Args:
        title: of the page.
        factory: gives the config; its docstring opens the page.
        comments: see `keys_of`.
    """
    comments = list(comments)
    text = [f"# {title}", "", " ".join((factory.__doc__ or "").split()), ""]
    section = ""
    for key in keys_of(factory(), comments, title):
        first = key.name.rpartition(".")[0]
        if first != section:
            section = first
            comment = next((known[first] for known in comments if first in known), "")
            text += [f"## {first}", "", _prose(comment), ""]
        # The empty link is the anchor: reference/config/training.md#data.batch_size.
        text += [f"[](){{ #{key.name} }}`{key.name}` = {_code(key.default)}"]
        text += [f":   {_prose(key.meaning)}", ""]
    return "\n".join(text)


def read_comments(files: Iterable[Path]) -> list[dict[str, str]]:
    """`source_comments` of several files, in their order."""
    return [source_comments(file.read_text(encoding="utf-8")) for file in files]


def _dotted(target: ast.expr) -> str | None:
    names = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name):
        return None
    return ".".join(["*", *names] if target.id == "section" else names)


def _flatten(
    config: ConfigDict, order: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Keys and defaults in the order of the source; a ConfigDict sorts its own."""

    def place(name: str) -> int:
        of_section = (i for i, known in enumerate(order) if f"{known}.".startswith(f"{name}."))
        return next(of_section, len(order))

    # Plain keys first: they belong to the section whose heading stands above them.
    items = config.items(preserve_field_references=True)
    items = sorted(
        items, key=lambda item: (isinstance(item[1], ConfigDict), place(prefix + item[0]))
    )
    for name, value in items:
        if isinstance(value, ConfigDict):
            yield from _flatten(value, order, f"{prefix}{name}.")
        else:
            yield prefix + name, _default(value)


def _default(value: object) -> str:
    if isinstance(value, FieldReference):
        try:
            value = value.get()
        except RequiredValueError:
            return "required"
    return repr(value)


def _code(default: str) -> str:
    return default if default == "required" else f"`{default}`"


def _prose(comment: str) -> str:
    """A comment as Markdown: names and patterns in it stay as they were typed."""
    text = re.sub(r"[\\*_<\[`]", lambda result: f"\\{result[0]}", comment)
    return text[:1].upper() + text[1:]
