"""One benchmark as one JSON line: its keys, where it came from, where it is kept."""

import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path

import torch

from nextham_kernels.loading import loaded

__all__ = ["KEYS", "commit", "device_name", "save", "table", "versions"]

KEYS = (
    "op case direction impl device dtype threads median_s q20_s q80_s gb_per_s gflop_per_s ceiling_gb_per_s "
    "ceiling_gflop_per_s peak_mb competitor competitor_median_s competitor_peak_mb speedup max_rel_diff versions commit"
).split()

RESULTS = Path(__file__).parent / "results"

Line = dict[str, object]


def device_name(device: torch.device) -> str:
    """Returns the model of the processor or GPU, as a word."""
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
        model = found.group(1) if found else platform.processor() or platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def versions(device: torch.device) -> dict[str, str]:
    """Returns the versions of what takes part, and the operations that have a kernel on the device."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "e3nn", "numpy", "nextham-kernels")}
    served = (op for op, kernels in loaded().items() if kernels.get(device.type, "reference") != "reference")
    return {"python": platform.python_version(), **packages, "kernels": " ".join(sorted(served))}


def commit() -> str | None:
    """Returns the commit of the checkout, with `+` behind it where files differ from it; None outside a checkout.

    Results do not count: a line does not change what the next one measures.
    """
    found = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return None if found is None else found + "+" * bool(changed)


def _git(*arguments: str) -> str | None:
    """The output of git; None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def save(line: Line) -> Path:
    """Appends a line to `results/<device>/<op>.jsonl` and returns that file."""
    path = RESULTS / str(line["device"]) / f"{line['op']}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return path


def table(lines: list[Line]) -> str:
    """Returns the lines as a table for the screen."""
    head = ["case", "direction", "impl", "median", "20 %", "80 %", "GB/s", "GFLOP/s", "peak MB", "against", "×", "diff"]
    rows = [
        [
            str(line["case"]),
            str(line["direction"]),
            str(line["impl"]),
            *(_seconds(line[key]) for key in ("median_s", "q20_s", "q80_s")),
            _share(line["gb_per_s"], line["ceiling_gb_per_s"]),
            _share(line["gflop_per_s"], line["ceiling_gflop_per_s"]),
            _number(line["peak_mb"]),
            str(line["competitor"] or "–"),
            _number(line["speedup"]),
            _number(line["max_rel_diff"]),
        ]
        for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows])


def _number(value: object) -> str:
    return "–" if value is None else f"{value:.3g}"


def _seconds(value: object) -> str:
    scale, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{value * scale:.3g} {unit}"


def _share(value: object, ceiling: object) -> str:
    return "–" if value is None else f"{value:.3g} ({value / ceiling:.0%})"
