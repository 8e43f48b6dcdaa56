"""Command line: `python -m bench.h0_scaling [FILE]`.

Draws time and memory per atom of H of step zero against the number of atoms, from the newest lines of `bench h0
--direction h0` for each size, and prints the exponents of the power laws that fit them best: once for runs in memory
that the process kept (`--keep-memory`), once for runs in fresh memory. It also prints what vacuum costs (`slab64-…`).
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench import record

__all__ = ["exponent", "main", "sizes"]

SMALLEST = 64


def sizes(lines: Sequence[record.Line], pattern: str) -> dict[int, record.Line]:
    """Returns the newest line of direction h0 for each number that a case has in place of the pattern's group."""
    found = {}
    for line in lines:
        match = re.fullmatch(pattern, line["case"])
        if match and line["direction"] == "h0" and line["impl"] == "kernels" and line["competitor"] is None:
            found[int(match[1])] = line
    return dict(sorted(found.items()))


def exponent(found: dict[int, record.Line], key: str) -> float:
    """Returns p of value ~ atoms^p, by least squares of the logarithms from 64 atoms on."""
    atoms = [n for n in found if n >= SMALLEST]
    return float(np.polyfit(np.log(atoms), np.log([found[n][key] for n in atoms]), 1)[0])


def plot(curves: dict[str, dict[int, record.Line]], path: Path) -> None:
    """Draws time and memory per atom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for i, (name, found) in enumerate(curves.items()):
        for axes, key, factor in ((time, "median_s", 1e3), (memory, "peak_mb", 1.0)):
            power = exponent(found, key)
            label = f"{name}: exponent {power:.2f}"
            axes.plot(list(found), [factor * x[key] / n for n, x in found.items()], "os"[i] + "-", label=label)
    time.set(xscale="log", xlabel="silicon atoms", ylabel="time per atom, ms", ylim=(0, None))
    memory.set(xscale="log", xlabel="silicon atoms", ylabel="peak memory per atom, MB", ylim=(0, None))
    for axes in (time, memory):
        axes.legend(fontsize=8)
    figure.suptitle("H of step zero and S, two threads", fontsize=10)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.h0_scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="picture to write (.png, .svg, .pdf)")
    parser.add_argument("--device", default=record.device_name(torch.device("cpu")), help="folder of results/")
    arguments = parser.parse_args(argv)
    path = Path(__file__).parent / "results" / arguments.device / "h0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    patterns = {"memory kept": r"si(\d+)/files/kept", "fresh memory": r"si(\d+)/files"}
    curves = {name: sizes(lines, pattern) for name, pattern in patterns.items()}
    curves = {
        name: {n: line for n, line in found.items() if n >= SMALLEST}
        for name, found in curves.items()
        if sum(n >= SMALLEST for n in found) > 1
    }
    for name, found in curves.items():
        for n, line in found.items():
            print(f"{name}: {n} atoms, {1e3 * line['median_s'] / n:.2f} ms and {line['peak_mb'] / n:.2f} MB per atom")
        print(f"{name}: exponents {exponent(found, 'median_s'):.3f} (time), {exponent(found, 'peak_mb'):.3f} (memory)")
    for height, line in sizes(lines, r"slab64-(\d+)/files").items():
        print(f"64 atoms, {height} Å of vacuum: {line['median_s']:.3f} s, {line['peak_mb']:.0f} MB")
    if arguments.file is not None:
        plot(curves, arguments.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
