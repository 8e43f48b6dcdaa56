"""The stages of `python -m bench.gpu_suite`: each checks or times one thing and returns what it found.

What a stage has found so far it notes (`Suite.note`), so that a stage which is stopped leaves it behind.
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench import bench_h0, bench_model, timing, watch
from bench.__main__ import operations, parse
from bench.offline import SEVERAL
from nextham.h0 import build_pieces
from nextham_kernels.loading import compiled, loaded, missing

__all__ = ["STAGES", "Result", "Stage", "Suite"]

ROOT = Path(__file__).resolve().parents[1]
Result = dict[str, object]


@dataclass
class Suite:
    """How it runs.

    Args:
        device: where.
        tiny: the interpreter's sizes.
        deadline: when the stage should be done, `time.monotonic()`.
        partial: file of what is found so far.
    """

    device: torch.device
    tiny: bool
    deadline: float
    partial: Path | None = None

    def note(self, found: Result) -> None:
        """Writes what is found so far."""
        if self.partial is not None:
            scratch = self.partial.with_suffix(".new")
            scratch.write_text(json.dumps(found, default=str), encoding="utf-8")
            os.replace(scratch, self.partial)

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
        try:
            packages[name] = getattr(importlib.import_module(name), "__version__", "there") if there else None
        except Exception as error:  # installed, and does not work
            packages[name] = f"{type(error).__name__}: {error}"[:300]
    return {"built": built, "kernels": served, "packages": packages, "missing": missing()}


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
    """Every GPU kernel against its reference in double: those of the network, then those of single ops' benchmarks.

    A kernel that raises is replaced by its reference, and the others go on. One that hangs, or after which the device
    can no longer be used, is the `running` one of what was noted.
    """
    kernels: dict[str, watch.Check] = {}
    errors: dict[str, str] = {}

    def found(running: str | None = None) -> Result:
        listed = {name: dataclasses.asdict(c) | {"right": c.right(TOLERANCE)} for name, c in sorted(kernels.items())}
        wrong = [name for name, c in listed.items() if not c["right"]]
        return {"kernels": listed, "wrong": wrong, "errors": errors, **({"running": running} if running else {})}

    def run(name: str, work: Callable[[], object]) -> None:
        try:
            watch.checked(work, kernels, lambda kernel: suite.note(found(kernel)))
        except watch.LostDevice:
            raise
        except Exception:  # one op must not cost the others
            errors[name] = traceback.format_exc()[-2000:]
        suite.note(found())
        suite.free()

    def network(direction: str) -> None:
        bench_model.edge_frame(suite.problem("si12"))[direction]()

    for direction in ("forward", "train"):
        run(f"network {direction}", lambda direction=direction: network(direction))
    for op in operations():
        module = importlib.import_module(f"bench.bench_{op}")
        if op in (*SEVERAL, "loss", "train") or (suite.tiny and op == "grid"):  # too many points for the interpreter
            continue
        for direction in module.DIRECTIONS:
            if time.monotonic() > suite.deadline:
                errors[f"{op} {direction}"] = "left out: no time left"
                continue

            def one(module: object = module, direction: str = direction, op: str = op) -> None:
                options = ["--direction", direction]
                options += ["--rows", "5"] if suite.tiny and "rows" in vars(parse(op, [])) else []
                arguments = parse(op, options)
                problem = module.problem(arguments.case, torch.float32, suite.device, arguments)
                next(iter(module.IMPLEMENTATIONS.values()))(problem)[direction]()

            if not suite.tiny or op in ("tensor_product_radial",):  # tests run the others in the interpreter
                run(f"{op} {direction}", one)
    return found()


def tests(suite: Suite) -> Result:
    """The tests of the GPU kernels, on the GPU."""
    if suite.tiny:
        return {"left out": "the interpreter runs them in the test suite"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "triton", "-k", "gpu_kernel", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"passed": run.returncode == 0, "last words": run.stdout[-2000:]}


def ops(suite: Suite) -> Result:
    """Time of every op in inference and in a training step, with bytes and flops as they count them."""
    found: Result = {}
    for direction, copies in (("forward", 10), ("train", 2)):
        problem = suite.problem("si50", 1 if suite.tiny else copies)
        run = bench_model.edge_frame(problem)[direction]
        for _ in range(0 if suite.tiny else 2):
            run()
        timings = watch.Timed(suite.device, torch_too=direction == "forward").run(run)
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
        suite.note(found)
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
        suite.note(found | {direction: line})
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
        suite.note(found)
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
    """Tensor products of 50,000 rows beside e3nn, cuEquivariance and OpenEquivariance, or the reason why not."""
    module = importlib.import_module("bench.bench_tensor_product")
    milliseconds: dict[str, float] = {}
    found: Result = {"ms": milliseconds, "missing": {}, "errors": {}}
    for case in ("nequip-lips",) if suite.tiny else ("mace-medium", "nequip-lips", "sevennet-l3i5", "nextham"):
        for direction in ("forward", "both", "second"):
            rows = 3 if suite.tiny else 50_000
            options = parse("tensor_product", ["--rows", str(rows), "--direction", direction])
            problem = module.problem(case, torch.float32, suite.device, options)
            for name in ("kernel", "e3nn", "cuequivariance", "openequivariance"):
                line = f"{case} {direction} {name}"
                if time.monotonic() > suite.deadline:
                    found["errors"][line] = "left out: no time left"
                    continue
                try:
                    run = module.IMPLEMENTATIONS[name](problem)[direction]
                    milliseconds[line] = 1e3 * suite.seconds(run, 3)
                except module.NotInstalled as error:
                    found["missing"][name] = str(error)
                except Exception as error:  # one library must not cost the others
                    found["errors"][line] = f"{type(error).__name__}: {error}"[:500]
                suite.note(found)
            del problem
            suite.free()
    return found


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
        suite.note(found)
        copies *= 2
        del problem
        suite.free()
        if suite.tiny:
            break
    return found


TOLERANCE = 3e-6
"""Relative error of a kernel in single precision beyond twice the reference's own."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        run: what it does.
        seconds: it is stopped after so many.
    """

    run: Callable[[Suite], Result]
    seconds: float


def h0(suite: Suite) -> Result:
    """H of step zero of silicon, on the grid in double and in single precision: its error, and atoms per second."""
    if suite.tiny:
        return {"left out": "the interpreter runs it in the test suite"}
    files, energy = bench_h0.gaussian(), 200.0
    small, large = (bench_h0.silicon(*bench_h0.CASES[name]) for name in ("si2", "si512"))
    expected = build_pieces(small, files, energy_cutoff=energy).hamiltonian().data
    found: Result = {"atoms": large.n_atoms}
    for name, dtype in (("double", torch.float64), ("single", torch.float32)):
        settings = {"energy_cutoff": energy, "device": suite.device, "dtype": dtype}
        error = np.abs(build_pieces(small, files, **settings).hamiltonian().data - expected).max()
        seconds = suite.seconds(functools.partial(build_pieces, large, files, **settings), 3)
        found[name] = {"error_meV": 1e3 * float(error), "atoms_per_s": large.n_atoms / seconds}
    return found


STAGES = {
    "build": Stage(build, 200),
    "ceilings": Stage(ceilings, 40),
    "check": Stage(check, 150),
    "network": Stage(network, 90),
    "graph": Stage(graph, 50),
    "ops": Stage(ops, 60),
    "h0": Stage(h0, 40),
    "products": Stage(products, 80),
    "largest": Stage(largest, 40),
    "tests": Stage(tests, 240),
}
"""Whether kernels are right comes first, then the figures that tell most."""
