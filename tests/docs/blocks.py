"""The code blocks of a page of Markdown."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file it stands in.
        line: of its first line of code, counted from 1.
        language: of the fence, such as "bash"; "" where it names none.
        marks: further classes of the fence, such as "needs-weights".
        code: without the fence.
    """

    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    code: str


def code_blocks(page: Path) -> list[Block]:
    """All blocks of a page, in their order; a fence that is not closed is an error."""
    blocks, start = [], None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, indent, info = number, fence["indent"], fence["info"]
        else:
            code = [text.removeprefix(indent) for text in lines[start : number - 1]]
            language, *marks = [word.lstrip(".") for word in info.strip("{} ").split()] or [""]
            text = "\n".join(code) + "\n"
            blocks.append(Block(page, start + 1, language, tuple(marks), text))
            start = None
    assert start is None, f"{page}:{start}: this block does not end"
    return blocks


def command_lines(code: str) -> list[list[str]]:
    """The commands of a bash block as words, one list a command; comments are left out."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word in (";", "&&", "||", "|"):
                commands.append(words)
                words = []
            else:
                words.append(word)
        commands.append(words)
    return [words for words in commands if words]


def commands_in_text(text: str) -> list[list[str]]:
    """Our commands among other words, as in a recipe's heading or an example of ``--help``.

    A command goes on behind a backslash, and ends with its line or at a remark in parentheses. One
    that is quoted in a sentence is left alone.
    """
    text = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"(?<!`)(?:\bpython (?:-m medsd_jax|\w+\.py)|\bmedsd-jax) .*", text)
    return [shlex.split(re.sub(r"\s+\([^()]*\)?$", "", line)) for line in lines]
