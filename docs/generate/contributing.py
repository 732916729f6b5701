"""Parts of the site that stand elsewhere in the repository already."""

import tomllib
from pathlib import Path


def section(file: Path, title: str) -> str:
    """The text below a second-level heading of a page of Markdown.

    Raises:
        ValueError: the page has no such heading.
    """
    text = f"\n{file.read_text(encoding='utf-8')}"
    _, heading, rest = text.partition(f"\n## {title}\n")
    if not heading:
        raise ValueError(f"{file} has no heading '## {title}'")
    return rest.partition("\n## ")[0].strip() + "\n"


def importers(pyproject: Path) -> str:
    """Which packages may import which, from the contracts of import-linter, as a table.

    Args:
        pyproject: has the contracts.
    """
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]
    text = ["| package | who may import it |", "|---|---|"]
    for contract in contracts["contracts"]:
        if contract["type"] != "protected":
            continue
        names = [_short(name) for name in contract["protected_modules"]]
        text.append(
            f"| {', '.join(names)} | {', '.join(map(_short, contract['allowed_importers']))} |"
        )
    return "\n".join(text) + "\n"


def _short(module: str) -> str:
    return f"`{module.removeprefix('medsd_jax.')}`"
