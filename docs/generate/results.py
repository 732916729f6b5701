"""The table of adaptations, from a results.json that `reproduce` wrote."""

import json
from pathlib import Path
from typing import Any


def table(file: Path) -> str:
    """The rows of a results.json as a table of Markdown.

    Args:
        file: has ``rows``, each with title, fid, prompt_accuracy, ms_ssim and trained_parameters.
    """
    results = json.loads(file.read_text(encoding="utf-8"))
    text = [
        "| | FID | shows what its prompt asks for | MS-SSIM | trained parameters |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = (
            row["title"],
            _estimate(row["fid"], 1 if row["fid"]["value"] >= 10 else 2),
            _estimate(row["prompt_accuracy"], 1, 100, " %"),
            _estimate(row["ms_ssim"], 3),
            f"{row['trained_parameters']:,}",
        )
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def claims(file: Path) -> str:
    """What the papers claim, and whether the numbers bear it out, as a table of Markdown."""
    results = json.loads(file.read_text(encoding="utf-8"))
    words = {
        "agrees": "agree",
        "disagrees": "disagree",
        "undecided": "do not tell: the intervals overlap",
    }
    text = ["| claim | these numbers |", "|---|---|"]
    text += [f"| {x['claim']} | {words[x['result']]} |" for x in results["claims"]]
    return "\n".join(text) + "\n"


def _estimate(value: dict[str, Any], decimals: int, times: float = 1, unit: str = "") -> str:
    numbers = [value["value"], *(value.get("ci95") or ())]
    number, *ends = (f"{times * x:.{decimals}f}" for x in numbers)
    return f"{number}{unit} ({' to '.join(ends)})" if ends else f"{number}{unit}"
