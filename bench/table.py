"""Command line: `python -m bench.table tensor_product [--device NAME]` prints the stored lines of an operation.

One row per case, direction, dtype, threads and competitor: the newest line of each, and the median speed-up at the end.
With `--grid` the speed-ups alone, one row per case, as the README shows them.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

from bench import record

__all__ = ["grid", "main", "markdown", "newest"]

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


def grid(lines: list[record.Line], competitor: str = "e3nn") -> str:
    """Returns the speed-ups over one competitor: a row per case, a column per rows, dtype and direction."""
    found: dict[str, dict[tuple, record.Line]] = {}
    for line in lines:
        case, _, rows = str(line["case"]).rpartition("-")
        if line["competitor"] == competitor and rows.isdigit():
            found.setdefault(case, {})[int(rows), line["dtype"], line["direction"]] = line
    columns = sorted({column for row in found.values() for column in row})
    table = [["case", *(f"{rows} {dtype} {direction}" for rows, dtype, direction in columns)]]
    table += [["---"] * len(table[0])]
    for case, row in found.items():
        table.append([f"`{case}`", *(f"{row[c]['speedup']:.1f}" if c in row else "–" for c in columns)])
    for name, of in (("median", statistics.median), ("least", min)):
        table.append([name, *(f"{of(row[c]['speedup'] for row in found.values() if c in row):.2f}" for c in columns)])
    more = [
        f"{case} {column}: {line['peak_mb']:.0f} MB, {competitor} {line['competitor_peak_mb']:.0f} MB"
        for case, row in found.items()
        for column, line in row.items()
        if line["peak_mb"] > (line.get("competitor_peak_mb") or float("inf"))
    ]
    memory = "\n".join(more) if more else f"memory: never above that of {competitor}"
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + f"\n\n{memory}"


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("op", help="the operation, such as tensor_product")
    parser.add_argument("--device", help="only this device (a folder of bench/results)")
    parser.add_argument("--grid", action="store_true", help="only speed-ups over e3nn, one row per case")
    arguments = parser.parse_args(argv)
    lines = newest(arguments.op, arguments.device)
    if not lines:
        parser.error(f"op: no stored line of {arguments.op!r}")
    print(grid(lines) if arguments.grid else markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
