"""The comparison on disk and in words: WORKDIR/report.json by its schema, and a table.

schemas/downstream_utility.json says what every key of report.json means.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from medsd_jax.evaluation.by_classifier.downstream_utility import ARMS, METRICS, REAL
from medsd_jax.files import write_text
from medsd_jax.reports.writing import schema

REPORT = "report.json"
_WORDS = {"auroc": "AUROC", "accuracy": "accuracy", "f1": "F1"}


def write(workdir: Path, report: Mapping[str, Any]) -> Path:
    """Write report.json.

    Args:
        workdir: the folder, which exists.
        report: what report.json holds, by the schema.

    Returns:
        Its path.
    """
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    jsonschema.validate(json.loads(text), schema("downstream_utility"))
    path = workdir / REPORT
    write_text(path, text)
    return path


def table(report: Mapping[str, Any]) -> str:
    """Scores on real pictures alone, and what the other arms gain over them, with intervals."""
    others = [arm for arm in ARMS if arm != REAL]
    rows = [["", "", "real", *(f"gain of {arm}" for arm in others)]]
    findings = dict(report["labels"])
    mean = report["mean_of_labels"]
    if mean and len(mean["labels"]) > 1:
        findings["mean"] = mean
    for label, entry in findings.items():
        if entry.get("too_few"):
            counts = f"{entry['num_present']} of {entry['num_images']} pictures: too few to score"
            rows.append([label, "", counts])
            continue
        for number, metric in enumerate(METRICS):
            real = entry["scores"][REAL][metric]
            gains = [entry["gains"][arm][metric] for arm in others]
            name = label if number == 0 else ""
            rows.append(
                [name, _WORDS[metric], _estimate(real), *(_estimate(x, sign="+") for x in gains)]
            )
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    held_out, steps = report["pictures"]["held_out"], report["config"]["train"]["steps"]
    about = (
        f"{held_out['num_images']} real pictures of {held_out['num_patients']} held-out patients; "
        f"{len(report['seeds'])} seed(s); {steps} optimizer steps an arm; 95 % intervals"
    )
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    return "\n".join([about, *lines])


def _estimate(entry: Mapping[str, Any], sign: str = "") -> str:
    low, high = entry["ci95"]
    return f"{entry['value']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
