"""The look of all plots on report pages: SVG that suits light and dark pages."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#7d8590"  # readable on white and on near black
MAIN, SECOND = "#d9822b", "#8aa9bb"


def new_plot(height: float = 2.6) -> tuple[Figure, Axes]:
    """An empty plot; height in inches."""
    # A Figure of its own: pyplot would keep it, and choose a backend for the whole process.
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def to_svg(figure: Figure, *, x: str, y: str = "", legend: bool = True) -> bytes:
    """Name the axes, dress the plot and draw it.

    Args:
        figure: from `new_plot`, drawn on.
        x: name of the horizontal axis.
        y: name of the vertical one.
        legend: whether the lines are named.
    """
    (axes,) = figure.axes
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.tick_params(which="both", colors=GREY, length=0, labelsize=9)
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if legend:
        axes.legend(frameon=False, labelcolor=GREY, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
