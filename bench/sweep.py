"""Command line: `python -m bench.sweep tensor_product --threads 2 --rows 1000,20000 --against e3nn` measures a list.

Every case in every direction, dtype and number of rows (`--case`, `--direction`, `--dtype`, `--rows`, each a list
separated by commas; all by default), the case outermost so that what an implementation generates serves all of them.
A run that needs more memory than the machine has free is named and skipped. With `--seconds` no run starts later than
that; lines of this commit that are stored already are not measured again, so calling it again goes on.
"""

import argparse
import importlib
import itertools
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import record
from bench.__main__ import measure, operations, parse
from bench.table import grid, newest

__all__ = ["main"]

SHARE = 0.8
"""Of the memory that the system calls available, what a run may use."""


def available() -> int:
    """Returns the bytes that the system calls available (Linux)."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def allow(n_bytes: int) -> None:
    """Lets the process allocate so much more memory than it has."""
    own = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert own is not None
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (int(own.group(1)) * 1024 + n_bytes, hard))


def todo(arguments: argparse.Namespace, rest: list[str]) -> Iterator[tuple[str, argparse.Namespace]]:
    """Yields a title and the options of each run that has no line of this commit."""
    commit = record.commit()
    stored = {
        (line["case"], line["direction"], line["dtype"], line["threads"], line["competitor"])
        for line in newest(arguments.op)
        if line["commit"] == commit
    }
    module = importlib.import_module(f"bench.bench_{arguments.op}")
    cases = arguments.case or list(module.CASES)
    rows = arguments.rows or [None]
    for case, n, dtype, direction in itertools.product(
        cases, rows, arguments.dtype, arguments.direction or module.DIRECTIONS
    ):
        options = ["--case", case, "--direction", direction, "--dtype", dtype, *rest]
        options += [] if n is None else ["--rows", n]
        given = parse(arguments.op, options)
        label = getattr(module, "label", lambda case, _: case)(case, given)
        names = given.against or [None]
        if not all((label, direction, dtype, given.threads, name) in stored for name in names):
            yield f"{label} {direction} {dtype}", given


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="other options are those of `python -m bench OP`",
    )
    parser.add_argument("op", choices=operations(), help="the benchmark")
    for name in ("case", "direction", "rows"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help="a list; by default all")
    parser.add_argument("--dtype", type=lambda text: text.split(","), default=["float32", "float64"], help="a list")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run later than this")
    arguments, rest = parser.parse_known_args(argv)
    start, left = time.monotonic(), 0
    for title, given in todo(arguments, rest):
        if time.monotonic() - start > arguments.seconds:
            left += 1
            continue
        memory = int(SHARE * available())
        allow(memory)
        try:
            lines = measure(arguments.op, given)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            print(f"{title}: skipped, more than {memory / 1e9:.1f} GB", flush=True)
            continue
        for line in lines:
            if not given.no_save:
                record.save(line)
            against = f" × {line['competitor']}" if line["competitor"] else ""
            print(f"{title}: {line['median_s'] * 1e3:.3g} ms, {line['speedup'] or 1:.2f}{against}", flush=True)
    print(f"{left} runs left; the same command goes on" if left else grid(newest(arguments.op)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
