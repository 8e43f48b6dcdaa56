"""Everything that a GPU has to show, in one command and at most eight minutes: `python -m bench.gpu_suite`.

Builds what is missing, checks every GPU kernel against its reference in double on the sizes of real runs, and times:
every op as a fraction of the copy bandwidth and of the matrix rate of the same run, the whole network beside the
published formulation, replay of a CUDA graph for a small system, tensor products beside other libraries, the largest
system in memory. A stage that fails is reported and the others go on; what does not fit into the time is left out.
The results are `results/<device>/gpu_suite.json` and a table on the screen; the exit code is 1 if a kernel is wrong.

`--interpreter` runs the whole of it without a GPU, by Triton's interpreter on tiny sizes: its times mean nothing.
`--sanitize` runs the tests of the GPU kernels under compute-sanitizer (memcheck, then racecheck) instead.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import bench_model, record, timing
from bench.__main__ import parse
from bench.watch import Timed, checked
from nextham_kernels.loading import compiled, loaded, use_interpreter

__all__ = ["STAGES", "Suite", "main"]

ROOT = Path(__file__).resolve().parents[1]
Result = dict[str, object]


@dataclass
class Suite:
    """How it runs.

    Args:
        device: where.
        tiny: the interpreter's sizes.
        deadline: no stage starts later, `time.monotonic()`.
    """

    device: torch.device
    tiny: bool
    deadline: float

    def problem(self, case: str, copies: int = 1) -> bench_model.Problem:
        """The network's input on the device, as many disconnected copies of a structure as wanted."""
        case, networks = ("tiny", 1) if self.tiny else (case, 4)
        one = bench_model.problem(case, torch.float32, self.device, parse("model", ["--networks", str(networks)]))
        if self.tiny:  # the interpreter runs 100,000 times slower
            kept = (one.vector.norm(dim=1) < 2.5).nonzero()[:, 0]
            one = dataclasses.replace(one, **{k: getattr(one, k)[kept] for k in ("h0", "vector", "src", "dst")})
        first = torch.arange(copies, device=self.device)[:, None] * (int(one.src.max()) + 1)
        return dataclasses.replace(
            one,
            h0=one.h0.repeat(copies, 1),
            vector=one.vector.repeat(copies, 1),
            src=(first + one.src).flatten(),
            dst=(first + one.dst).flatten(),
        )

    def seconds(self, run: Callable[[], object], repeats: int = 5) -> float:
        """The median time of one run, after a warm-up."""
        if self.tiny:
            return timing.WallClock().measure(run)
        run()
        clock = timing.clock_of(self.device)
        return timing.quantiles([clock.measure(run) for _ in range(repeats)]).median

    def free(self) -> None:
        """Gives memory back."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def build(suite: Suite) -> Result:
    """The compiled library, the kernels of each op, what takes part."""
    try:
        compiled()
        built = "was there"
    except RuntimeError:
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, check=True)
        built = "now"
    served = {op: devices.get(suite.device.type, "reference") for op, devices in loaded().items()}
    packages = {}
    for name in ("torch", "triton", "cupy", "cuequivariance_torch", "openequivariance"):
        there = importlib.util.find_spec(name) is not None
        packages[name] = getattr(importlib.import_module(name), "__version__", "there") if there else None
    return {"built": built, "kernels": served, "packages": packages}


def ceilings(suite: Suite) -> Result:
    """Copy bandwidth, and the rate of a large product of random matrices in every precision."""
    n = 256 if suite.tiny else 8192
    source = torch.randn(n * n * (1 if suite.tiny else 16), device=suite.device)
    target = torch.empty_like(source)
    copy = suite.seconds(lambda: target.copy_(source))
    found: Result = {"gb_per_s": 2 * source.nbytes / copy / 1e9}
    a, b = torch.randn(n, n, device=suite.device), torch.randn(n, n, device=suite.device)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, tf32, dtype in (("fp32", False, None), ("tf32", True, None), ("bf16", False, torch.bfloat16)):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            x, y = (a, b) if dtype is None else (a.to(dtype), b.to(dtype))
            found[f"{name}_tflop_per_s"] = 2 * n**3 / suite.seconds(lambda x=x, y=y: x @ y) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def check(suite: Suite) -> Result:
    """Every GPU kernel of inference and training against its reference in double."""
    runs = bench_model.edge_frame(suite.problem("si12"))
    checks = checked(lambda: (runs["forward"](), runs["train"]()))
    found = {name: dataclasses.asdict(c) | {"right": c.right(3e-6)} for name, c in checks.items()}
    return {"kernels": found, "wrong": [name for name, c in found.items() if not c["right"]]}


def tests(suite: Suite) -> Result:
    """The tests of the GPU kernels, on the GPU."""
    if suite.tiny:
        return {"left out": "the interpreter runs them in the test suite"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "triton", "-k", "gpu_kernel", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    return {"passed": run.returncode == 0, "last words": run.stdout[-2000:]}


def ops(suite: Suite) -> Result:
    """Time of every op in inference and in a training step, with bytes and flops as they count them."""
    found: Result = {}
    for direction, copies in (("forward", 10), ("train", 2)):
        problem = suite.problem("si50", 1 if suite.tiny else copies)
        run = bench_model.edge_frame(problem)[direction]
        for _ in range(0 if suite.tiny else 2):
            run()
        timings = Timed(suite.device, torch_too=direction == "forward").run(run)
        found[direction] = {
            "edges": len(problem.h0),
            "ops": {
                name: {
                    "calls": t.calls,
                    "ms": 1e3 * t.seconds,
                    "gb_per_s": t.cost.bytes / t.seconds / 1e9,
                    "tflop_per_s": (t.cost.flops + t.cost.matrix_flops) / t.seconds / 1e12,
                }
                for name, t in timings.items()
            },
        }
        del problem, run, timings
        suite.free()
    return found


def network(suite: Suite) -> Result:
    """Edges per second of the ensemble of four, inference and training, and of the published formulation."""
    found: Result = {}
    for direction, copies, published in (("forward", 20, 1), ("train", 4, 1)):
        ours = suite.problem("si50", 1 if suite.tiny else copies)
        run = bench_model.edge_frame(ours)[direction]
        before = torch.cuda.memory_allocated() if suite.device.type == "cuda" else 0
        seconds = suite.seconds(run)
        line = {"edges": len(ours.h0), "edges_per_s": len(ours.h0) / seconds}
        if suite.device.type == "cuda":
            line["kb_per_edge"] = (torch.cuda.max_memory_allocated() - before) / len(ours.h0) / 1e3
        del ours, run
        suite.free()
        theirs = suite.problem("si12" if direction == "train" else "si50", published)
        other = bench_model.published(theirs)[direction]
        line["published_edges"] = len(theirs.h0)
        line["published_edges_per_s"] = len(theirs.h0) / suite.seconds(other, 3)
        line["times_published"] = line["edges_per_s"] / line["published_edges_per_s"]
        found[direction] = line
        del theirs, other
        suite.free()
    return found


def graph(suite: Suite) -> Result:
    """Inference on a crystal of two atoms: calls one by one, and as a replayed CUDA graph."""
    problem = suite.problem("si2")
    ensemble = bench_model.ensemble_of(problem)
    geometry = ensemble.geometry(problem.src, problem.dst, problem.vector)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return ensemble.on_geometries(problem.h0, [geometry], with_trace=False).irreps

    expected, seconds = run(), suite.seconds(run)
    found: Result = {"edges": len(problem.h0), "eager_ms": 1e3 * seconds}
    if suite.device.type != "cuda":
        return found
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = run()
    result.fill_(torch.nan)
    captured.replay()
    torch.cuda.synchronize()
    found["graph_ms"] = 1e3 * suite.seconds(captured.replay, 20)
    found["same_bits"] = torch.equal(result, expected)
    return found


def products(suite: Suite) -> Result:
    """Tensor products of 50,000 rows beside the libraries that are installed."""
    module, found = importlib.import_module("bench.bench_tensor_product"), {}
    for case in ("nequip-lips",) if suite.tiny else ("mace-medium", "nequip-lips", "sevennet-l3i5", "nextham"):
        for direction in ("forward", "both", "second"):
            rows = 3 if suite.tiny else 50_000
            options = parse("tensor_product", ["--rows", str(rows), "--direction", direction])
            problem = module.problem(case, torch.float32, suite.device, options)
            for name in ("kernel", "e3nn", "cuequivariance", "openequivariance"):
                with contextlib.suppress(ValueError, KeyError):  # is not installed, or not compared with
                    seconds = suite.seconds(module.IMPLEMENTATIONS[name](problem)[direction], 3)
                    found[f"{case} {direction} {name}"] = 1e3 * seconds
            del problem
            suite.free()
    return {"ms": found}


def largest(suite: Suite) -> Result:
    """The largest system whose inference fits into memory: doubled until it does not, or until time is up."""
    copies, found = 1 if suite.tiny else 20, {}
    while time.monotonic() < suite.deadline:
        try:
            problem = suite.problem("si50", copies)
            start = time.perf_counter()
            bench_model.edge_frame(problem)["forward"]()
        except torch.OutOfMemoryError:
            break
        found = {"edges": len(problem.h0), "atoms": int(problem.src.max()) + 1}
        found["seconds"] = time.perf_counter() - start
        if suite.device.type == "cuda":
            found["gb"] = torch.cuda.max_memory_allocated() / 1e9
        copies *= 2
        del problem
        suite.free()
        if suite.tiny:
            break
    return found


STAGES = (build, ceilings, check, ops, network, graph, products, tests, largest)
"""The most telling first."""


def run_stages(suite: Suite, only: Sequence[str]) -> Iterator[tuple[str, Result]]:
    """Yields what each stage found; an error is a finding too."""
    for stage in STAGES:
        name = stage.__name__
        if only and name not in only:
            continue
        if time.monotonic() > suite.deadline:
            yield name, {"left out": "no time left"}
            continue
        start = time.perf_counter()
        try:
            result = stage(suite)
        except Exception as error:  # one stage must not cost the others
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-3000:]}
        suite.free()
        yield name, {"seconds": round(time.perf_counter() - start, 2), **result}


def table(results: dict[str, Result]) -> str:
    """Returns the results as text: one line for each number that matters."""
    lines = []
    for stage, result in results.items():
        lines.append(f"{stage}: {result.get('seconds', 0)} s" + "".join(f", {k}" for k in result if k == "left out"))
        if "error" in result:
            lines.append(f"  failed: {result['error'][:300]}")
    for op, kind in results.get("build", {}).get("kernels", {}).items():
        lines += [f"  {op} has no GPU kernel"] if kind == "reference" else []
    best = results.get("ceilings", {})
    lines += [f"  {name}: {value:.4g}" for name, value in best.items() if name.endswith("per_s")]
    for name, c in results.get("check", {}).get("kernels", {}).items():
        verdict = "right" if c["right"] else "WRONG"
        lines.append(f"  {verdict}: {name}, error {c['error']:.2g}, the reference's own {c['own']:.2g}")
    for direction, found in results.get("ops", {}).items():
        if not isinstance(found, dict):
            continue
        lines.append(f"  {direction}, {found['edges']} edges")
        for name, op in list(found["ops"].items())[:30]:
            share = op["gb_per_s"] / best["gb_per_s"] if "gb_per_s" in best else float("nan")
            matrix = op["tflop_per_s"] / best["tf32_tflop_per_s"] if "tf32_tflop_per_s" in best else float("nan")
            lines.append(f"    {name:56} {op['calls']:5} {op['ms']:9.3f} ms {share:6.1%} copy {matrix:6.1%} tf32")
    for stage in ("network", "graph", "products", "tests", "largest"):
        if stage in results:
            shown = {k: v for k, v in results[stage].items() if k not in ("seconds", "error", "traceback")}
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
    parser.add_argument("--only", nargs="+", choices=[s.__name__ for s in STAGES], default=[], help="stages")
    parser.add_argument("--minutes", type=float, default=7.0, help="no stage starts later (default 7)")
    parser.add_argument("--output", type=Path, help="file of the results")
    arguments = parser.parse_args(argv)
    if not arguments.interpreter and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device (--interpreter runs without one)")
    if arguments.sanitize:
        return sanitize()
    device = torch.device("cpu" if arguments.interpreter else "cuda")
    suite = Suite(device, arguments.interpreter, time.monotonic() + 60 * arguments.minutes)
    name = record.device_name(device)
    results: dict[str, Result] = {}
    with use_interpreter() if arguments.interpreter else contextlib.nullcontext():
        for stage, result in run_stages(suite, arguments.only):
            results[stage] = result
            print(f"{stage}: {result.get('error', 'done')} ({result.get('seconds', 0)} s)", flush=True)
    whole = {"device": name, "interpreter": arguments.interpreter, "commit": record.commit(), "stages": results}
    path = arguments.output or record.RESULTS / name / "gpu_suite.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    print(f"written to {path}")
    return 1 if results.get("check", {}).get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main())
