"""A reconstruction report on disk: OUTPUT/report.json, report.html, worst.png.

The page needs no other file and no network.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from medsd_jax.evaluation.reconstruction import Case, Measurement
from medsd_jax.evaluation.reports.reconstruction import ReconstructionReport
from medsd_jax.files import write_text
from medsd_jax.reports.evaluation_plots import plot_estimates, plot_histogram
from medsd_jax.reports.page import page_template
from medsd_jax.reports.writing import write_report
from medsd_jax.sampling.images import make_grid

AMPLIFIED = 4
"""By this much, absolute differences are shown brighter: 64 of 255 grey values become white."""
WORST_FILE = "worst.png"
_SHEET_SIDE = 192  # pixels that an image of worst.png is enlarged to, about
_UNITS = {"psnr": "PSNR in decibels", "ssim": "SSIM"}


def write(output: Path, report: ReconstructionReport, measured: Measurement) -> Path:
    """Write the three files.

    Args:
        output: the folder; made where it does not exist.
        report: what report.json holds.
        measured: the numbers of each image, and the worst ones.

    Returns:
        The path of report.html.
    """
    write_report(output / "report.json", report)
    names = [Path(row.image).name for row in report.worst]
    triples = [_triple(case) for case in measured.worst]
    Image.fromarray(_sheet(triples, names)).save(output / WORST_FILE)
    bands = [(band.name.replace("_", " "), band.bias) for band in report.bands]
    bands = [(name, bias) for name, bias in bands if bias and bias.ci95]
    page = page_template("reconstruction.html.jinja").render(
        report=report,
        amplified=AMPLIFIED,
        worst=[
            {"triple": triple, "name": name, "values": case.values}
            for triple, name, case in zip(triples, names, measured.worst, strict=True)
        ],
        plots={
            "histograms": {
                criterion.name: plot_histogram(
                    measured.values[criterion.name],
                    criterion.minimum,
                    _UNITS[criterion.name],
                )
                for criterion in report.result.criteria
            },
            "bias": plot_estimates(bands, "mean error, reconstruction minus original")
            if bands
            else None,
        },
    )
    path = output / "report.html"
    write_text(path, page)
    return path


def _triple(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original, reconstruction and their amplified difference, each [S, S, 3] uint8."""
    difference = np.abs(case.original.astype(np.int32) - case.reconstruction.astype(np.int32))
    shown = np.minimum(AMPLIFIED * difference, 255).astype(np.uint8)
    return case.original, case.reconstruction, shown


def _sheet(
    triples: list[tuple[np.ndarray, np.ndarray, np.ndarray]], names: list[str]
) -> np.ndarray:
    """All triples under each other, captioned: [H, W, 3] uint8; small pixels become squares."""
    captions = [
        caption
        for name in names
        for caption in (name, "reconstruction", f"difference x {AMPLIFIED}")
    ]
    images = np.stack([image for triple in triples for image in triple])
    times = max(1, _SHEET_SIDE // images.shape[1])
    return make_grid(images.repeat(times, axis=1).repeat(times, axis=2), 3, captions=captions)
