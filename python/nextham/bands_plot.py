"""Pictures of bands and errors, drawn without matplotlib's global state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from nextham.bands import BandStructure
from nextham.figure import empty_figure
from nextham.metrics import GaugeReport

__all__ = ["STYLES", "plot_bands", "plot_error_against_distance"]

STYLES: Mapping[str, Mapping[str, object]] = {
    "dft": {"color": "black", "linewidth": 1.1, "linestyle": "-", "zorder": 2},
    "prediction": {"color": "#d62728", "linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 3},
    "h0": {"color": "0.65", "linewidth": 0.8, "linestyle": "-", "zorder": 1},
}
"""The field's own: DFT black, prediction dashed red; H⁽⁰⁾ thin grey."""

_DOWN = {"linestyle": ":"}


def plot_bands(
    bands: Sequence[BandStructure],
    labels: Sequence[str],
    path: str | os.PathLike[str],
    styles: Sequence[str] = ("dft", "prediction", "h0"),
    window: tuple[float, float] = (-10.0, 10.0),
    title: str = "",
) -> None:
    """Draws one or several band structures over each other, E − E_F (eV) against the path, 300 dots per inch.

    Each is moved by its own Fermi level. The kind of file follows from the ending of `path`. Spin down is dotted.

    Args:
        bands: on the same path, each with its Fermi level.
        labels: one for each, for the legend.
        path: file to write, such as `bands.png`.
        styles: one of `STYLES` for each.
        window: energies to show, eV.
        title: above the picture.

    Raises:
        ValueError: nothing to draw, different paths, a missing Fermi level, or too few labels or styles.
    """
    if not bands or len(labels) != len(bands) or len(styles) < len(bands):
        raise ValueError(
            f"bands, labels, styles: expected one label and one style for each of {len(bands)} (at least 1)"
        )
    unknown = [style for style in styles if style not in STYLES]
    if unknown:
        raise ValueError(f"styles: expected {', '.join(STYLES)}, got {unknown[0]!r}")
    first = bands[0].path
    for one, label in zip(bands, labels, strict=True):
        same = len(one.path.kpoints) == len(first.kpoints)
        if not same or not np.allclose(one.path.kpoints, first.kpoints, rtol=0, atol=1e-6):
            raise ValueError(f"bands: {label!r} is on another path than {labels[0]!r}")
        if one.efermi is None:
            raise ValueError(f"bands: {label!r} has no Fermi level")
    figure, (axes,) = empty_figure(5.6, 4.6)
    for one, label, style in zip(bands, labels, styles, strict=False):
        for spin, levels in enumerate(one.channels() - one.efermi):
            look = {**STYLES[style], **(_DOWN if spin else {})}
            name = label if len(one.channels()) == 1 else f"{label}, spin {'down' if spin else 'up'}"
            if len(first.kpoints) == 1:  # a ladder
                look = {**look, "marker": "_", "markersize": 120, "linestyle": "none"}
            for piece in first.pieces():
                lines = axes.plot(first.distance[piece], levels[piece], **look)
                lines[0].set_label(name if piece.start == 0 else "_")
    ticks = first.ticks()
    axes.set_xticks([x for x, _ in ticks], [label.replace("G", "Γ") for _, label in ticks])
    for x, _ in ticks:
        axes.axvline(x, color="0.8", linewidth=0.6, zorder=0)
    axes.axhline(0, color="0.5", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
    ends = (first.distance[0], first.distance[-1]) if len(first.kpoints) > 1 else (-1, 1)
    axes.set(xlim=ends, ylim=window, ylabel="E − E$_F$ (eV)", title=title)
    figure.legend(
        loc="outside lower center",
        ncols=min(3, len(axes.get_legend_handles_labels()[1])),
        frameon=False,
        fontsize="small",
    )
    figure.savefig(path, dpi=300)


def plot_error_against_distance(
    reports: Sequence[GaugeReport], labels: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws the gauge MAE (meV, logarithmic) of each distance range, one line for each report.

    Raises:
        ValueError: nothing to draw, or not one label for each.
    """
    if not reports or len(labels) != len(reports):
        raise ValueError(f"reports, labels: expected one label for each of {len(reports)} reports (at least 1)")
    figure, (axes,) = empty_figure(4.6, 3.4)
    for report, label in zip(reports, labels, strict=True):
        names = list(report.by_distance)
        axes.plot(names, [report.by_distance[name].mae_meV for name in names], marker="o", label=label)
    axes.set(yscale="log", xlabel="distance", ylabel="gauge MAE (meV)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=300)
