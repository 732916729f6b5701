"""The evaluation on disk: OUTPUT/report.json by its schema, and OUTPUT/report.html.

The page needs no other file and no network. schemas/evaluation.json says what every
key of report.json means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from medsd_jax.arrays import evenly_spread
from medsd_jax.evaluation.by_classifier.prompt_adherence import PromptJudgement
from medsd_jax.evaluation.images.image_sets import PictureSet, squared
from medsd_jax.evaluation.memorization.alarm import FEW_PATIENTS
from medsd_jax.evaluation.memorization.nearest_images import Audit
from medsd_jax.evaluation.metrics.realism import Realism
from medsd_jax.files import write_text
from medsd_jax.reports.evaluation_plots import plot_distances, plot_extrapolation, plot_parts
from medsd_jax.reports.page import page_template
from medsd_jax.reports.writing import schema

_SHOWN, _PAIRS_SHOWN, _CASES_SHOWN, _SIDE = 16, 12, 8, 128


@dataclass(frozen=True)
class Cases:
    """What single pictures of the page are chosen by.

    Attributes:
        realism: of every generated picture, in the first feature space.
        judgements: finding -> the judge's word on every picture.
        audits: space -> nearest training pictures.
    """

    realism: Realism
    judgements: Mapping[str, PromptJudgement]
    audits: Mapping[str, Audit]


def write(
    output: Path, report: Mapping[str, Any], sets: Mapping[str, PictureSet], cases: Cases
) -> Path:
    """Write both files.

    Args:
        output: the folder; gets report.json and report.html.
        report: what report.json holds, by the schema.
        sets: "real", "synthetic" and, with an audit, "train".
        cases: what single pictures are chosen by.

    Returns:
        The path of report.html.
    """
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    jsonschema.validate(json.loads(text), schema("evaluation"))
    write_text(output / "report.json", text)
    page = page_template("evaluation.html.jinja").render(
        report=report,
        few_held_out=FEW_PATIENTS,
        pictures={
            **{name: _evenly(sets[name]) for name in ("real", "synthetic")},
            "suspicious": _suspicious(report["privacy"], sets),
            "cases": _by_realism(cases.realism, sets),
            "disagreeing": {
                label: _disagreeing(judgement, sets["synthetic"])
                for label, judgement in cases.judgements.items()
            },
        },
        plots={
            "extrapolation": {
                spec: plot_extrapolation(space) for spec, space in report["fidelity"].items()
            },
            "parts": _plots_of_parts(report["parts"]),
            "distances": {
                name: plot_distances(audit.distances, audit.held_out, audit.threshold)
                for name, audit in cases.audits.items()
            },
        },
    )
    path = output / "report.html"
    write_text(path, page)
    return path


def _plots_of_parts(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Of each feature space with a part that is large enough, KID by part."""
    measured = {
        spec: [(name, row["kid"]) for name, row in rows.items() if not row.get("too_few")]
        for spec, rows in parts.items()
    }
    return {spec: plot_parts(rows, "KID") for spec, rows in measured.items() if rows}


def _evenly(pictures: PictureSet) -> list[np.ndarray]:
    return [_shown(pictures, i) for i in evenly_spread(len(pictures), _SHOWN)]


def _by_realism(realism: Realism, sets: Mapping[str, PictureSet]) -> dict[str, list[dict]]:
    """The generated pictures that lie nearest to real ones and farthest from them."""
    order = np.argsort(realism.distance, kind="stable")
    rows = {"nearest": order[:_CASES_SHOWN], "farthest": order[::-1][:_CASES_SHOWN]}
    return {
        name: [
            {
                "picture": _shown(sets["synthetic"], i),
                "neighbour": _shown(sets["real"], realism.neighbour[i]),
                "name": _name(sets["synthetic"], i),
                "distance": float(realism.distance[i]),
            }
            for i in chosen
        ]
        for name, chosen in rows.items()
    }


def _disagreeing(judgement: PromptJudgement, synthetic: PictureSet) -> list[dict[str, Any]]:
    """The pictures that agree least with their prompt."""
    return [
        {
            "picture": _shown(synthetic, judgement.rows[i]),
            "prompt": judgement.prompts[i],
            "asked": bool(judgement.asked[i]),
            "probability": float(judgement.probability[i]),
        }
        for i in judgement.worst(_CASES_SHOWN)
    ]


def _suspicious(
    privacy: Mapping[str, Any] | None, sets: Mapping[str, PictureSet]
) -> list[dict[str, Any]]:
    if privacy is None:
        return []
    place = {name: {key: i for i, key in enumerate(p.keys)} for name, p in sets.items()}
    return [
        {
            "picture": _shown(sets["synthetic"], place["synthetic"][row["picture"]]),
            "nearest": _shown(sets["train"], place["train"][row["nearest"]]),
            "name": Path(row["picture"]).name,
            "ratio": row["ratio"],
            "space": row["space"],
        }
        for row in privacy["most_suspicious"][:_PAIRS_SHOWN]
    ]


def _name(pictures: PictureSet, index: int) -> str:
    return Path(pictures.keys[index]).name


def _shown(pictures: PictureSet, index: int) -> np.ndarray:
    """A picture [128, 128, 3] uint8 for the page."""
    return squared([pictures.read(int(index))], _SIDE)[0]
