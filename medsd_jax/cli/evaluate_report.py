"""The evaluation on disk: OUTPUT/report.json by its schema, and OUTPUT/report.html.

The page needs no other file and no network. templates/evaluate_report.schema.json says what every
key of report.json means.
"""

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from medsd_jax.cli.report_page import page_template
from medsd_jax.data.transforms import resize
from medsd_jax.evaluation.picture_sets import PictureSet, read_picture

_SHOWN, _PAIRS_SHOWN, _SIDE = 16, 12, 128


def schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    file = importlib.resources.files("medsd_jax.cli") / "templates" / "evaluate_report.schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


def write(output: Path, report: Mapping[str, Any], sets: Mapping[str, PictureSet]) -> Path:
    """Write both files.

    Args:
        output: the folder; gets report.json and report.html.
        report: what report.json holds, by the schema.
        sets: "real" and "synthetic".

    Returns:
        The path of report.html.
    """
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    jsonschema.validate(json.loads(text), schema())
    (output / "report.json").write_text(text, encoding="utf-8")
    privacy = report["privacy"]
    pairs = [
        {
            "picture": _shown(Path(row["picture"])),
            "nearest": _shown(Path(row["nearest"])),
            "name": Path(row["picture"]).name,
            "ratio": row["ratio"],
            "space": row["space"],
        }
        for row in (privacy["most_suspicious"][:_PAIRS_SHOWN] if privacy else ())
    ]
    pictures = {name: _evenly(sets[name].paths) for name in ("real", "synthetic")}
    page = page_template("evaluate_report.html.jinja").render(
        report=report, pictures={**pictures, "suspicious": pairs}
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _evenly(paths: tuple[Path, ...]) -> list[np.ndarray]:
    chosen = np.unique(np.linspace(0, len(paths) - 1, _SHOWN).round().astype(int))
    return [_shown(paths[i]) for i in chosen]


def _shown(path: Path) -> np.ndarray:
    """A picture [128, 128, 3] uint8 for the page."""
    picture = read_picture(path)
    return resize(np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture, _SIDE)
