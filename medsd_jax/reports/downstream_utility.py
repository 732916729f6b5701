"""The comparison of classifiers trained with and without synthetic images, in words."""

from medsd_jax.evaluation.by_classifier.downstream_utility import ARMS, METRICS, REAL
from medsd_jax.evaluation.reports.classifiers import DownstreamUtilityReport

REPORT = "report.json"
_WORDS = {"auroc": "AUROC", "accuracy": "accuracy", "f1": "F1"}


def table(report: DownstreamUtilityReport) -> str:
    """Scores on real images alone, and what the other arms gain over them, with intervals."""
    others = [arm for arm in ARMS if arm != REAL]
    rows = [["", "", "real", *(f"gain of {arm}" for arm in others)]]
    findings = dict(report.labels)
    mean = report.mean_of_labels
    if mean is not None and len(mean.labels) > 1:
        findings["mean"] = mean
    for label, entry in findings.items():
        if entry.scores is None:
            counts = f"{entry.num_present} of {entry.num_images} images: too few to score"
            rows.append([label, "", counts])
            continue
        for number, metric in enumerate(METRICS):
            gains = [f"{getattr(entry.gains[arm], metric):+.3f}" for arm in others]
            real = f"{getattr(entry.scores[REAL], metric):.3f}"
            rows.append([label if number == 0 else "", _WORDS[metric], real, *gains])
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    held_out, steps = report.images["held_out"], report.config["train"]["steps"]
    summary = (
        f"{held_out.num_images} real images of {held_out.num_patients} held-out patients; "
        f"{len(report.seeds)} seed(s); {steps} optimizer steps in each arm; 95 % intervals"
    )
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    return "\n".join([summary, *lines])
