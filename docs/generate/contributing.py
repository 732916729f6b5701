"""Parts of the site that stand elsewhere in the repository already."""

import ast
import tomllib
from pathlib import Path
from typing import Any


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
    text = ["| package | who may import it |", "|---|---|"]
    for contract in _contracts(pyproject):
        if contract["type"] != "protected":
            continue
        names = [_short(name) for name in contract["protected_modules"]]
        text.append(
            f"| {', '.join(names)} | {', '.join(map(_short, contract['allowed_importers']))} |"
        )
    return "\n".join(text) + "\n"


def floors(root: Path) -> str:
    """The packages from the top to the ground, with the first line of each one's docstring.

    Args:
        root: of the repository; pyproject.toml there has a contract of the type "layers".

    Raises:
        ValueError: a package says nothing of itself.
    """
    text = ["| floor | what it holds |", "|---|---|"]
    for contract in _contracts(root / "pyproject.toml"):
        for layer in contract.get("layers", ()):
            for name in layer.split(" | "):
                file = root / "medsd_jax" / name / "__init__.py"
                file = file if file.is_file() else file.parent.with_suffix(".py")
                docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
                if not docstring:
                    raise ValueError(f"{file} has no docstring: what does the package hold?")
                metadata = docstring.partition("\n\n")[0].replace("\n", " ")
                text.append(f"| `{name}` | {metadata} |")
    return "\n".join(text) + "\n"


def _contracts(pyproject: Path) -> list[dict[str, Any]]:
    contents = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    return contents["tool"]["importlinter"]["contracts"]


def _short(module: str) -> str:
    return f"`{module.removeprefix('medsd_jax.')}`"
