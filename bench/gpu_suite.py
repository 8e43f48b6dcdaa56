"""Everything that a GPU has to show, in one command and at most eight minutes: `python -m bench.gpu_suite`.

Builds what is missing, checks every GPU kernel against its reference in double on the sizes of real runs, and times:
the whole network beside the published formulation, replay of a CUDA graph for a small system, every op as a fraction
of the copy bandwidth and of the matrix rate of the same run, tensor products beside e3nn, cuEquivariance and
OpenEquivariance, the largest system in memory; last, the tests of the kernels. Each stage is a process of its own with
a time limit: one that fails, hangs or loses the device costs neither the others nor what it had found until then. A
kernel that fails in the check is replaced by its reference in what follows. The results, written after every stage, are
`results/<device>/gpu_suite.json` and a table on the screen; the exit code is 1 if a kernel is wrong or fails.

`--interpreter` runs the whole of it without a GPU, by Triton's interpreter on tiny sizes: its times mean nothing.
`--sanitize` runs the tests of the GPU kernels under compute-sanitizer (memcheck, then racecheck) instead.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import record, watch
from bench.gpu_stages import ROOT, STAGES, Result, Suite
from nextham_kernels.loading import use_interpreter

__all__ = ["isolated", "main", "run_stage"]

HIDDEN = ("seconds", "error", "traceback", "errors", "missing", "replaced")
RESTARTS = 6
"""How often the check begins again without a kernel that took the device with it."""


def run_stage(name: str, suite: Suite, replaced: Sequence[str] = ()) -> Result:
    """Runs one stage in this process; an error is a finding too."""
    start = time.perf_counter()
    try:
        interpreter = use_interpreter() if suite.device.type == "cpu" else contextlib.nullcontext()
        with interpreter, watch.replaced(replaced):
            result = STAGES[name].run(suite)
    except watch.LostDevice as error:
        result = {"error": str(error), "running": error.kernel}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-3000:]}
    return {"seconds": round(time.perf_counter() - start, 2), **result}


def command(name: str, interpreter: bool, limit: float, replaced: Sequence[str], output: Path) -> list[str]:
    """Returns the command line of a stage of its own."""
    options = ["--interpreter"] if interpreter else []
    options += ["--minutes", str(limit / 60), "--replaced", ",".join(replaced), "--output", str(output)]
    return [sys.executable, "-m", "bench.gpu_suite", "--stage", name, *options]


def isolated(name: str, interpreter: bool, limit: float, replaced: Sequence[str] = ()) -> Result:
    """Runs one stage in a process of its own, and returns what it found until it ended or was stopped."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "found.json", Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command(name, interpreter, limit, replaced, output),
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # A process that waits for a device that hangs cannot be killed at once.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        try:
            result = json.loads(output.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            result = {}
        if code == 0:
            return result
        words = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        ended = f"stopped after {limit:.0f} s" if code is None else f"ended with exit code {code}"
        return {
            "seconds": round(time.perf_counter() - start, 2),
            "error": f"the process {ended}",
            "traceback": words,
            **result,
        }


def checked_kernels(interpreter: bool, deadline: float) -> Result:
    """The stage `check`, begun again without each kernel with which its process ended."""
    lost: dict[str, Result] = {}
    whole: Result = {}
    for _ in range(RESTARTS):
        limit = min(STAGES["check"].seconds, deadline - time.monotonic())
        if limit <= 0:
            break
        result = isolated("check", interpreter, limit, list(lost))
        kernels = whole.get("kernels", {}) | result.get("kernels", {}) | lost
        whole = whole | result | {"kernels": kernels, "errors": whole.get("errors", {}) | result.get("errors", {})}
        running = result.get("running")
        if running is None or running in lost:
            break
        failed = f"{result.get('error', 'the process ended')}: {result.get('traceback', '')[-500:]}"
        lost[running] = {"error": float("inf"), "own": 0.0, "calls": 1, "failed": failed, "right": False}
        whole["kernels"] = kernels | lost
    whole["wrong"] = [name for name, c in whole.get("kernels", {}).items() if not c["right"]]
    return whole


def table(results: dict[str, Result]) -> str:
    """Returns the results as text: one line for each number that matters."""
    lines = []
    for stage, result in results.items():
        lines.append(f"{stage}: {result.get('seconds', 0)} s" + "".join(f", {k}" for k in result if k == "left out"))
        if "error" in result:
            lines.append(f"  failed: {result['error'][:300]}")
        lines += [f"  {name}: {why.strip().splitlines()[-1][:200]}" for name, why in result.get("errors", {}).items()]
        lines += [f"  missing: {why[:200]}" for why in result.get("missing", {}).values()]
    for op, kind in results.get("build", {}).get("kernels", {}).items():
        lines += [f"  {op} runs its reference"] if kind == "reference" else []
    best = results.get("ceilings", {})
    lines += [f"  {name}: {value:.4g}" for name, value in best.items() if name.endswith("per_s")]
    for name, c in results.get("check", {}).get("kernels", {}).items():
        verdict = "right" if c["right"] else "FAILED" if c["failed"] else "WRONG"
        why = f": {c['failed'][:200]}" if c["failed"] else ""
        lines.append(f"  {verdict}: {name}, error {c['error']:.2g}, the reference's own {c['own']:.2g}{why}")
    for direction, found in results.get("ops", {}).items():
        if not isinstance(found, dict):
            continue
        lines.append(f"  {direction}, {found['edges']} edges")
        for name, op in list(found["ops"].items())[:30]:
            share = op["gb_per_s"] / best["gb_per_s"] if "gb_per_s" in best else float("nan")
            matrix = op["tflop_per_s"] / best["tf32_tflop_per_s"] if "tf32_tflop_per_s" in best else float("nan")
            lines.append(f"    {name:56} {op['calls']:5} {op['ms']:9.3f} ms {share:6.1%} copy {matrix:6.1%} tf32")
    for stage in ("network", "graph", "h0", "products", "tests", "largest"):
        if stage in results:
            shown = {k: v for k, v in results[stage].items() if k not in HIDDEN}
            lines.append(f"  {stage}: {json.dumps(shown)[:2500]}")
    return "\n".join(lines)


def sanitize() -> int:
    """Runs the tests of the GPU kernels under compute-sanitizer; returns the exit code."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "triton", "-k", "gpu_kernel", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or reads beyond a tensor stay in its cache
    codes = []
    for tool in ("memcheck", "racecheck"):
        print(f"compute-sanitizer --tool {tool}", flush=True)
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "3", *tests]
        codes.append(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    return max(codes)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpreter", action="store_true", help="without a GPU: tiny sizes, Triton's interpreter")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer over the tests instead")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=[], help="stages")
    parser.add_argument("--minutes", type=float, default=7.5, help="when the last stage is stopped (default 7.5)")
    parser.add_argument("--output", type=Path, help="file of the results")
    parser.add_argument("--here", action="store_true", help="all stages in this process (for a debugger)")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)  # one stage: what `isolated` runs
    parser.add_argument("--replaced", default="", help=argparse.SUPPRESS)  # kernels that run as references
    arguments = parser.parse_args(argv)
    if not arguments.interpreter and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device (--interpreter runs without one)")
    if arguments.sanitize:
        return sanitize()
    if arguments.interpreter:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, here or in the stages' processes
    device = torch.device("cpu" if arguments.interpreter else "cuda")
    deadline = time.monotonic() + 60 * arguments.minutes
    if arguments.stage:
        # It has found something to say a little before it is stopped.
        suite = Suite(device, arguments.interpreter, deadline - 10, arguments.output)
        replaced = [name for name in arguments.replaced.split(",") if name]
        suite.note(run_stage(arguments.stage, suite, replaced))
        return 0
    name = record.device_name(device)
    path = arguments.output or record.RESULTS / name / "gpu_suite.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    whole = {"device": name, "interpreter": arguments.interpreter, "commit": record.commit(), "stages": results}
    failed: list[str] = []
    for stage in [stage for stage in STAGES if not arguments.only or stage in arguments.only]:
        limit = min(STAGES[stage].seconds, deadline - time.monotonic())
        if limit <= 0:
            results[stage] = {"left out": "no time left"}
        elif arguments.here:
            results[stage] = run_stage(stage, Suite(device, arguments.interpreter, time.monotonic() + limit), failed)
        elif stage == "check":
            results[stage] = checked_kernels(arguments.interpreter, deadline)
        else:
            results[stage] = isolated(stage, arguments.interpreter, limit, failed)
        if stage == "check":
            failed = [kernel for kernel, c in results[stage].get("kernels", {}).items() if c["failed"]]
        elif failed and "left out" not in results[stage]:
            results[stage]["replaced"] = failed
        path.write_text(json.dumps(whole, indent=1, default=str) + "\n", encoding="utf-8")
        print(f"{stage}: {results[stage].get('error', 'done')} ({results[stage].get('seconds', 0)} s)", flush=True)
    print(table(results))
    print(f"written to {path}")
    return 1 if results.get("check", {}).get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main())
