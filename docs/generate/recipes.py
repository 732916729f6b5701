"""The reference of the recipes: the heading of each file in configs/."""

import ast
from collections.abc import Iterable
from pathlib import Path


def page(files: Iterable[Path]) -> str:
    """The page of Markdown: every recipe's docstring, its first sentence as a list in front.

    Args:
        files: the recipes; those that only others build on, without a Command, are left out.
    """
    headings = {file.stem: docstring(file) for file in files}
    headings = {name: text for name, text in headings.items() if "Command:" in text}
    text = [
        "# Recipes",
        "",
        "A recipe is a Python file in `configs/` that changes what differs from the defaults. "
        "`--config` takes the file, or the recipe by its name.",
        "",
        "| recipe | subject |",
        "|---|---|",
    ]
    text += [f"| [`{name}`](#{name}) | {_subject(doc)} |" for name, doc in headings.items()]
    for name, doc in headings.items():
        body = doc.partition("\n")[2].strip("\n")
        text += ["", f"## {name} {{ #{name} }}", "", _subject(doc), "", "```text", body, "```"]
    return "\n".join(text) + "\n"


def docstring(file: Path) -> str:
    """The docstring of a Python file, without running it."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _subject(doc: str) -> str:
    return doc.partition("\n")[0].strip()
