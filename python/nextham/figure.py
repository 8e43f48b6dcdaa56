"""Figures that belong to no window and no global list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["empty_figure"]


def empty_figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of that many inches and its axes, one below the other with a common abscissa."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, 1, 1)]
    axes += [figure.add_subplot(rows, 1, row + 1, sharex=axes[0]) for row in range(1, rows)]
    return figure, axes
