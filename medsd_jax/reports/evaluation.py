"""The evaluation on disk: OUTPUT/report.json, and OUTPUT/report.html.

The page needs no other file and no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.arrays import evenly_spread
from medsd_jax.evaluation.by_classifier.prompt_adherence import PromptPredictions
from medsd_jax.evaluation.images.image_sets import ImageSet, resize_to_square
from medsd_jax.evaluation.memorization.alarm import FEW_PATIENTS
from medsd_jax.evaluation.memorization.nearest_images import NearestImages
from medsd_jax.evaluation.metrics.realism import Realism
from medsd_jax.evaluation.reports.evaluation import Distances, EvaluationReport, Memorization
from medsd_jax.files import write_text
from medsd_jax.reports.evaluation_plots import plot_distances, plot_estimates, plot_extrapolation
from medsd_jax.reports.page import page_template
from medsd_jax.reports.writing import write_report

_SHOWN, _PAIRS_SHOWN, _CASES_SHOWN, _SIZE = 16, 12, 8, 128


@dataclass(frozen=True)
class Cases:
    """What single images of the page are chosen by.

    Attributes:
        realism: of every generated image, in the first feature space.
        predictions_by_label: finding -> what the classifier says of every image.
        memorization: space -> nearest training images.
    """

    realism: Realism
    predictions_by_label: Mapping[str, PromptPredictions]
    memorization: Mapping[str, NearestImages]


def write(
    output: Path, report: EvaluationReport, sets: Mapping[str, ImageSet], cases: Cases
) -> Path:
    """Write both files.

    Args:
        output: the folder; gets report.json and report.html.
        report: what report.json holds.
        sets: "real", "synthetic" and, with memorization, "train".
        cases: what single images are chosen by.

    Returns:
        The path of report.html.
    """
    write_report(output / "report.json", report)
    page = page_template("evaluation.html.jinja").render(
        report=report,
        few_held_out=FEW_PATIENTS,
        images={
            **{name: _evenly(sets[name]) for name in ("real", "synthetic")},
            "suspicious": _suspicious(report.memorization, sets),
            "cases": _by_realism(cases.realism, sets),
            "disagreeing": {
                label: _disagreeing(predictions, sets["synthetic"])
                for label, predictions in cases.predictions_by_label.items()
            },
        },
        plots={
            "extrapolation": {
                spec: plot_extrapolation(space) for spec, space in report.fidelity.items()
            },
            "subgroups": _plots_of_subgroups(report),
            "distances": {
                name: plot_distances(
                    memorization.distances, memorization.held_out, memorization.threshold
                )
                for name, memorization in cases.memorization.items()
            },
        },
    )
    path = output / "report.html"
    write_text(path, page)
    return path


def _plots_of_subgroups(report: EvaluationReport) -> dict[str, bytes]:
    """Of each feature space with a subgroup that is large enough, KID by subgroup."""
    measured = {
        spec: [(name, row.kid) for name, row in rows.items() if isinstance(row, Distances)]
        for spec, rows in report.subgroups.items()
    }
    return {spec: plot_estimates(rows, "KID") for spec, rows in measured.items() if rows}


def _evenly(images: ImageSet) -> list[np.ndarray]:
    return [_shown(images, i) for i in evenly_spread(len(images), _SHOWN)]


def _by_realism(realism: Realism, sets: Mapping[str, ImageSet]) -> dict[str, list[dict]]:
    """The generated images that lie nearest to real ones and farthest from them."""
    order = np.argsort(realism.distance, kind="stable")
    rows = {"nearest": order[:_CASES_SHOWN], "farthest": order[::-1][:_CASES_SHOWN]}
    return {
        name: [
            {
                "image": _shown(sets["synthetic"], i),
                "neighbour": _shown(sets["real"], realism.neighbour[i]),
                "name": _name(sets["synthetic"], i),
                "distance": float(realism.distance[i]),
            }
            for i in chosen
        ]
        for name, chosen in rows.items()
    }


def _disagreeing(predictions: PromptPredictions, synthetic: ImageSet) -> list[dict[str, Any]]:
    """The images that agree least with their prompt."""
    return [
        {
            "image": _shown(synthetic, predictions.rows[i]),
            "prompt": predictions.prompts[i],
            "asked": bool(predictions.asked[i]),
            "probability": float(predictions.probability[i]),
        }
        for i in predictions.worst(_CASES_SHOWN)
    ]


def _suspicious(
    memorization: Memorization | None, sets: Mapping[str, ImageSet]
) -> list[dict[str, Any]]:
    if memorization is None:
        return []
    place = {name: {key: i for i, key in enumerate(p.keys)} for name, p in sets.items()}
    return [
        {
            "image": _shown(sets["synthetic"], place["synthetic"][row.image]),
            "nearest": _shown(sets["train"], place["train"][row.nearest]),
            "name": Path(row.image).name,
            "ratio": row.ratio,
            "space": row.space,
        }
        for row in memorization.most_suspicious[:_PAIRS_SHOWN]
    ]


def _name(images: ImageSet, index: int) -> str:
    return Path(images.keys[index]).name


def _shown(images: ImageSet, index: int) -> np.ndarray:
    """An image [128, 128, 3] uint8 for the page."""
    return resize_to_square([images.read(int(index))], _SIZE)[0]
