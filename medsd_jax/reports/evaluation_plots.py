"""The plots of an evaluation's page."""

from collections.abc import Sequence

import numpy as np

from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.evaluation import Distances
from medsd_jax.reports.plots import GREY, MAIN, SECOND, new_plot, to_svg


def plot_extrapolation(space: Distances) -> bytes:
    """FID against 1 / n, with the line to infinitely many images.

    Args:
        space: in one feature space.
    """
    line = space.fid_extrapolated
    inverse = 1.0 / np.array(line.sizes)
    figure, axes = new_plot()
    axes.plot(inverse, line.distances, "o", color=MAIN, ms=4, label="FID of subsets")
    slope, _ = np.polyfit(inverse, line.distances, 1)
    ends = np.array([0.0, inverse.max()])
    axes.plot(ends, line.value + slope * ends, color=MAIN, lw=1.2, label="line through them")
    axes.axhline(
        space.fid_real_halves.mean,
        color=SECOND,
        lw=1.2,
        ls="--",
        label="halves of the real set",
    )
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=min(0.0, line.value))
    return to_svg(figure, x="1 / number of generated images", y="FID")


def plot_distances(distances: np.ndarray, held_out: np.ndarray, threshold: float) -> bytes:
    """Distances to the nearest training image: generated images and those of other patients.

    Args:
        distances: [m] of generated images.
        held_out: [h] of real images of other patients.
        threshold: of the alarm.
    """
    figure, axes = new_plot()
    edges = np.histogram_bin_edges(np.concatenate([distances, held_out]), bins=40)
    settings = {"bins": edges, "density": True, "histtype": "stepfilled"}
    axes.hist(held_out, color=SECOND, alpha=0.6, label="other patients", **settings)
    axes.hist(distances, color=MAIN, alpha=0.6, label="generated", **settings)
    axes.axvline(threshold, color=GREY, lw=1.2, ls="--", label="alarm")
    axes.set_yticks([])
    return to_svg(figure, x="distance to the nearest training image")


def plot_estimates(values: Sequence[tuple[str, Estimate]], name: str) -> bytes:
    """A number for each subgroup with its interval.

    Args:
        values: (subgroup, value), drawn from the top.
        name: of the number.
    """
    figure, axes = new_plot(height=0.7 + 0.24 * len(values))
    places = -np.arange(len(values))
    middle = np.array([entry.value for _, entry in values])
    ends = np.array([entry.ci95 or (entry.value, entry.value) for _, entry in values])
    reach = np.abs(ends.T - middle)
    axes.errorbar(middle, places, xerr=reach, fmt="o", color=MAIN, ms=4, lw=1.2)
    axes.set_yticks(places, [subgroup for subgroup, _ in values])
    return to_svg(figure, x=name, legend=False)


def plot_histogram(values: np.ndarray, least: float, name: str) -> bytes:
    """How often each value occurs among images, and the threshold.

    Args:
        values: [n].
        least: the threshold.
        name: of the values.
    """
    figure, axes = new_plot()
    middle, reach = (values.min() + values.max()) / 2, max(np.ptp(values), 1e-3) / 2
    ends = (middle - reach, middle + reach)  # equal values leave no room for 40 bins
    axes.hist(values, bins=40, range=ends, color=MAIN, alpha=0.8, label="images")
    axes.axvline(least, color=GREY, lw=1.2, ls="--", label="threshold of the mean")
    axes.set_yticks([])
    return to_svg(figure, x=name)
