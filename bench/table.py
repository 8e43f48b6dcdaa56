"""Command line: `python -m bench.table tensor_product [--device NAME]` prints the stored lines of an operation.

One row per case, direction, dtype, threads and competitor: the newest line of each, and the median speed-up at the end.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

from bench import record

__all__ = ["main", "markdown", "newest"]

GROUP = ("case", "direction", "impl", "dtype", "threads", "competitor")


def newest(op: str, device: str | None = None) -> list[record.Line]:
    """Returns the last line of each group, in the order of the file."""
    lines: dict[tuple, record.Line] = {}
    for path in sorted(record.RESULTS.glob(f"{device or '*'}/{op}.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            key = (line["device"], *(line[name] for name in GROUP))
            lines.pop(key, None)
            lines[key] = line
    return list(lines.values())


def markdown(lines: list[record.Line]) -> str:
    """Returns the lines as a table."""
    head = ["case", "direction", "dtype", "threads", "median", "GB/s", "GFLOP/s", "peak MB", "against", "its MB", "×"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        shares = (
            "–" if line[key] is None else f"{line[key]:.3g} ({line[key] / line[f'ceiling_{key}']:.0%})"
            for key in ("gb_per_s", "gflop_per_s")
        )
        times = f"{line['median_s'] * 1e3:.3g} ms"
        speedup = "–" if line["speedup"] is None else f"{line['speedup']:.1f}"
        names = (line["case"], line["direction"], line["dtype"], str(line["threads"]))
        rows.append(
            [
                *names,
                times,
                *shares,
                _mb(line["peak_mb"]),
                line["competitor"] or "–",
                _mb(line.get("competitor_peak_mb")),
                speedup,
            ]
        )
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    for direction in dict.fromkeys(line["direction"] for line in lines):
        found = [line["speedup"] for line in lines if line["direction"] == direction and line["speedup"] is not None]
        if found:
            text += (
                f"\n\n{direction}: median × {statistics.median(found):.1f}, from {min(found):.1f} to {max(found):.1f}"
            )
    return text


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("op", help="the operation, such as tensor_product")
    parser.add_argument("--device", help="only this device (a folder of bench/results)")
    arguments = parser.parse_args(argv)
    lines = newest(arguments.op, arguments.device)
    if not lines:
        parser.error(f"op: no stored line of {arguments.op!r}")
    print(markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
