"""The plots of an evaluation's page, as SVG that suits light and dark pages."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_GREY = "#7d8590"  # readable on white and on near black
_MAIN, _SECOND = "#d9822b", "#8aa9bb"


def plot_extrapolation(space: Mapping[str, Any]) -> bytes:
    """FID against 1 / n, with the line to infinitely many pictures.

    Args:
        space: the report's entry of one feature space.
    """
    line = space["fid_extrapolated"]
    inverse = 1.0 / np.array(line["sizes"])
    figure, axes = _figure()
    axes.plot(inverse, line["distances"], "o", color=_MAIN, ms=4, label="FID of subsets")
    slope, _ = np.polyfit(inverse, line["distances"], 1)
    ends = np.array([0.0, inverse.max()])
    axes.plot(ends, line["value"] + slope * ends, color=_MAIN, lw=1.2, label="line through them")
    axes.axhline(
        space["fid_real_halves"]["mean"],
        color=_SECOND,
        lw=1.2,
        ls="--",
        label="halves of the real set",
    )
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=min(0.0, line["value"]))
    axes.set_xlabel("1 / number of generated pictures", color=_GREY)
    axes.set_ylabel("FID", color=_GREY)
    return _svg(figure, axes)


def plot_distances(distances: np.ndarray, held_out: np.ndarray, threshold: float) -> bytes:
    """Distances to the nearest training picture: generated pictures and those of strangers.

    Args:
        distances: [m] of generated pictures.
        held_out: [h] of real pictures of other patients.
        threshold: of the alarm.
    """
    figure, axes = _figure()
    edges = np.histogram_bin_edges(np.concatenate([distances, held_out]), bins=40)
    settings = {"bins": edges, "density": True, "histtype": "stepfilled"}
    axes.hist(held_out, color=_SECOND, alpha=0.6, label="other patients", **settings)
    axes.hist(distances, color=_MAIN, alpha=0.6, label="generated", **settings)
    axes.axvline(threshold, color=_GREY, lw=1.2, ls="--", label="alarm")
    axes.set_xlabel("distance to the nearest training picture", color=_GREY)
    axes.set_yticks([])
    return _svg(figure, axes)


def plot_parts(values: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> bytes:
    """A number for each part with its interval.

    Args:
        values: (part, {value, ci95}), drawn from the top.
        name: of the number.
    """
    figure, axes = _figure(height=0.7 + 0.24 * len(values))
    places = -np.arange(len(values))
    middle = np.array([entry["value"] for _, entry in values])
    ends = np.array([entry["ci95"] for _, entry in values])
    reach = np.abs(ends.T - middle)
    axes.errorbar(middle, places, xerr=reach, fmt="o", color=_MAIN, ms=4, lw=1.2)
    axes.set_yticks(places, [part for part, _ in values])
    axes.set_xlabel(name, color=_GREY)
    return _svg(figure, axes, legend=False)


def _figure(height: float = 2.6) -> tuple[Figure, Axes]:
    # A Figure of its own: pyplot would keep it, and choose a backend for the whole process.
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, axes: Axes, *, legend: bool = True) -> bytes:
    axes.tick_params(which="both", colors=_GREY, length=0, labelsize=9)
    axes.grid(color=_GREY, alpha=0.25, lw=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if legend:
        axes.legend(frameon=False, labelcolor=_GREY, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
