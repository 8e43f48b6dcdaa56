"""Command line: `python -m bench.picture [--device NAME] [-o docs/speed.png]` draws the stored speed-ups as bars.

Above the network against the published formulation, below tensor products of 1,000 and 20,000 rows against e3nn, in
float32: the newest lines.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench import record, table
from bench.cases import TENSOR_PRODUCT

__all__ = ["draw", "main"]

COLORS = {"forward": "#3b6ea5", "both": "#d08b3c", "train": "#d08b3c"}


def draw(network: list[record.Line], products: list[record.Line], rows: Sequence[int] = (1000, 20000)) -> Figure:
    """Returns the picture of both lists of lines (`bench.table.newest`)."""
    bars = list({_name(line): {str(line["direction"]): float(line["speedup"])} for line in network}.items())
    cases: dict[str, dict[int, dict[str, float]]] = {case: {} for case in TENSOR_PRODUCT}  # in their order
    for line in products:
        case, _, count = str(line["case"]).rpartition("-")
        if int(count) in rows and line["dtype"] == "float32" and line["direction"] in COLORS:
            of_rows = cases.setdefault(case, {}).setdefault(int(count), {})
            of_rows[str(line["direction"])] = float(line["speedup"])
    cases = {case: found for case, found in cases.items() if found}
    figure = Figure(figsize=(10, 1.6 + 0.28 * len(bars) + 0.34 * len(cases)), layout="constrained")
    grid = figure.add_gridspec(2, len(rows), height_ratios=[len(bars) + 1, 1.3 * len(cases) + 1])
    _bars(figure.add_subplot(grid[0, 0]), bars, "The network against the published formulation")
    for column, n in enumerate(rows):
        axes = figure.add_subplot(grid[1, column])
        _bars(
            axes,
            [(case, found.get(n, {})) for case, found in cases.items()],
            f"Tensor products of {n:,} rows against e3nn",
        )
        if column:
            axes.set_yticklabels([])
        axes.set_xlabel("times as fast")
    legend = figure.add_subplot(grid[0, -1])
    legend.set_axis_off()
    handles = [Patch(color=COLORS[key]) for key in ("forward", "both")]
    legend.legend(handles, ["forward", "forward + gradients"], loc="center", frameon=False)
    legend.set_title("float32, CPU, two threads, both in the same run", fontsize=10)
    return figure


def _name(line: record.Line) -> str:
    """What a line of the network says, such as `inference, 12 Si atoms, 4 networks`."""
    case, *rest = str(line["case"]).removesuffix("/kept").split("/")
    words = [{"forward": "inference", "train": "training step"}[str(line["direction"])], f"{case[2:]} Si atoms"]
    return ", ".join([*words, *(word.replace("-", " ") for word in rest)])


def _bars(axes: Axes, groups: list[tuple[str, dict[str, float]]], title: str) -> None:
    """Draws a group of bars for each name, first name on top."""
    for place, (_, values) in enumerate(groups):
        height = 0.8 / max(len(values), 1)
        for index, (direction, value) in enumerate(sorted(values.items(), reverse=True)):
            y = place - 0.4 + height * (index + 0.5)
            axes.barh(y, value, height, color=COLORS[direction])
            axes.text(value, y, f" {value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(groups)), [name for name, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__)
    parser.add_argument("--device", default="intel-r-xeon-r-processor", help="a folder of bench/results")
    parser.add_argument("--threads", type=int, default=2, help="threads of the lines")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/speed.png"))
    arguments = parser.parse_args(argv)
    found = {
        op: [
            line
            for line in table.newest(op, arguments.device)
            if line["competitor"] == competitor and line["threads"] == arguments.threads and line["speedup"]
        ]
        for op, competitor in (("model", "published"), ("tensor_product", "e3nn"))
    }
    if missing := [op for op, lines in found.items() if not lines]:
        parser.error(f"device: no stored line of {', '.join(missing)} for {arguments.device!r}")
    draw(found["model"], found["tensor_product"]).savefig(arguments.output, dpi=110)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
