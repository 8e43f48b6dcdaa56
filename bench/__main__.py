"""Command line: `python -m bench <op> --case NAME --direction NAME --against NAME[,NAME]`.

Inputs and implementations are built first, untimed; then the results are compared; then all are timed in turn. An
operation is a file `bench_<op>.py` with

- CASES: name → size; DIRECTIONS: names; IMPLEMENTATIONS: name → function of a problem that returns, per direction, a
  function without arguments that returns named tensors; the first is the one measured by default;
- problem(case, dtype, device, arguments): the inputs; its `gflop(direction)` and `gbytes(direction)` count one run, or
  are None;
- add_arguments(parser) and label(case, arguments), for options of its own and what a line then calls the case.

`python -m bench --static` prints what the GPU kernels will do (`bench/static.py`).
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from bench import record, timing

__all__ = ["main", "max_rel_diff", "measure", "operations"]


def operations() -> list[str]:
    """Returns the names of all benchmarks: the files of this folder."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def max_rel_diff(result: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference of any tensor, in units of that tensor's largest element; NaN counts as infinite.

    Raises:
        ValueError: the tensors have other names or shapes.
    """
    if result.keys() != expected.keys():
        raise ValueError(f"results: names differ: {sorted(result.keys() ^ expected.keys())[:5]}")
    largest = 0.0
    for name, value in expected.items():
        if value.shape != result[name].shape:
            raise ValueError(f"results: {name}: shapes {tuple(result[name].shape)} and {tuple(value.shape)}")
        scale = value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
        difference = ((result[name] - value).abs().max() / scale).item()
        largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


def measure(op: str, arguments: argparse.Namespace) -> list[record.Line]:
    """Checks and times one implementation against others; returns one line per competitor (one line without any).

    Raises:
        ValueError: the results differ by more than the tolerance, or the input of the case is not there.
    """
    module = importlib.import_module(f"bench.bench_{op}")
    device, direction = torch.device(arguments.device), arguments.direction
    dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(arguments.threads)
    problem = module.problem(arguments.case, dtype, device, arguments)
    names = [arguments.impl, *arguments.against]
    ceilings = timing.ceilings(device)
    runs, results, peaks, clock = {}, {}, {}, timing.clock_of(device)
    if arguments.keep_memory:
        timing.keep_memory()
    for name in names:
        runs[name] = timing.Timed(module.IMPLEMENTATIONS[name](problem)[direction], clock)
        results[name], peaks[name] = timing.peak_memory(runs[name], device)
    differences = {name: max_rel_diff(results[names[0]], results[name]) for name in arguments.against}
    for name, difference in differences.items():
        if not difference <= arguments.tolerance:
            raise ValueError(f"{names[0]} and {name} differ by {difference:.3g}, more than {arguments.tolerance:g}")
    results.clear()
    seconds = timing.warm(runs, clock, arguments.repeats)
    times = {name: timing.quantiles(seconds[name]) for name in names}
    ours, gflop, gbytes = times[names[0]], problem.gflop(direction), problem.gbytes(direction)
    label = getattr(module, "label", lambda case, _: case)
    common = {
        "op": op,
        "case": label(arguments.case, arguments) + ("/kept" if arguments.keep_memory else ""),
        "direction": direction,
        "impl": arguments.impl,
        "device": record.device_name(device),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "median_s": ours.median,
        "q20_s": ours.q20,
        "q80_s": ours.q80,
        "gb_per_s": None if gbytes is None else gbytes / ours.median,
        "gflop_per_s": None if gflop is None else gflop / ours.median,
        "ceiling_gb_per_s": ceilings.gb_per_s,
        "ceiling_gflop_per_s": ceilings.gflop_per_s,
        "peak_mb": peaks[names[0]],
    }
    origin = {"versions": record.versions(device), "commit": record.commit()}
    return [
        {
            **common,
            "competitor": name,
            "competitor_median_s": None if name is None else times[name].median,
            "competitor_peak_mb": None if name is None else peaks[name],
            "speedup": None if name is None else times[name].median / ours.median,
            "max_rel_diff": None if name is None else differences[name],
            **origin,
        }
        for name in arguments.against or [None]
    ]


def parser_of(op: str, module: ModuleType) -> argparse.ArgumentParser:
    """Returns the parser of one benchmark."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {op}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"cases: {', '.join(module.CASES)}; implementations: {', '.join(module.IMPLEMENTATIONS)}",
    )
    parser.add_argument("--case", default=next(iter(module.CASES)), help="problem size")
    parser.add_argument("--direction", default=module.DIRECTIONS[0], help=", ".join(module.DIRECTIONS))
    parser.add_argument("--impl", default=next(iter(module.IMPLEMENTATIONS)), help="what is measured")
    parser.add_argument("--against", default="", help="competitors, separated by commas")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of every implementation")
    parser.add_argument("--repeats", type=int, help="timed rounds (default: 20 s of them, at least 5)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest max_rel_diff (default 1e-3)")
    parser.add_argument(
        "--keep-memory", action="store_true", help="freed memory stays in the process (Linux); the case is then …/kept"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON lines and nothing else")
    parser.add_argument("--no-save", action="store_true", help="do not append to results/<device>/<op>.jsonl")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    return parser


def parse(op: str, argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the options of one benchmark; a wrong one ends the program with a sentence and exit code 2."""
    module = importlib.import_module(f"bench.bench_{op}")
    parser = parser_of(op, module)
    arguments = parser.parse_args(argv)
    arguments.against = [name for name in arguments.against.split(",") if name]
    names = [("impl", arguments.impl), *(("against", name) for name in arguments.against)]
    known = {"case": module.CASES, "direction": module.DIRECTIONS, "impl": module.IMPLEMENTATIONS}
    for option, name in [("case", arguments.case), ("direction", arguments.direction), *names]:
        allowed = known.get(option, module.IMPLEMENTATIONS)
        if name not in allowed:
            parser.error(f"--{option}: expected one of {', '.join(allowed)}, got {name!r}")
    if arguments.threads < 1 or (arguments.repeats is not None and arguments.repeats < 1):
        parser.error("--threads, --repeats: expected at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA device")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--static"]:
        return importlib.import_module("bench.static").main(argv[1:])
    first = argparse.ArgumentParser(prog="python -m bench", description="Measures one operation.")
    first.add_argument("op", choices=operations(), help="the benchmark; `<op> --help` shows its options")
    op = first.parse_args(argv[:1]).op
    arguments = parse(op, argv[1:])
    try:
        lines = measure(op, arguments)
    except ValueError as error:
        print(f"python -m bench {op}: {error}", file=sys.stderr)
        return 1
    if not arguments.no_save:
        for line in lines:
            record.save(line)
    print("\n".join(json.dumps(line) for line in lines) if arguments.json else record.table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
