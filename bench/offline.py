"""Compiles the Triton kernels without a GPU: the launches that real calls of the ops make, for any GPU's instructions.

The network and the benchmarks of single ops run on the CPU; every call of an op that has a Triton kernel is made again
with tensors on the device `meta`, and what it would launch is compiled. That needs triton as it is imported without
`TRITON_INTERPRET`, hence a process of its own, which `compiled_kernels` starts. Such a call fails where a kernel's
Python reads a tensor on the host, which a GPU would have to wait for.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nextham_kernels.ahead import another_gpu
from nextham_kernels.loading import gpu_ops

__all__ = [
    "OF_OTHERS",
    "SHARED_MEMORY",
    "Call",
    "Kernel",
    "Recorder",
    "check_launch",
    "compiled_kernels",
    "network_calls",
    "op_calls",
    "other_calls",
    "with_rows",
]

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Compute capability → the most shared memory of a block, bytes (CUDA C++ Programming Guide)."""

OF_OTHERS = ("rotation.kernel.edge_wigner_backward",)
"""Functions without kernels of their own: this one launches those of `edge_wigner`, between torch's products."""

MOST_ROWS = 10**7
"""Rows with which launches are checked, beside none: some 10 kB each fill the memory of an H200."""

SEVERAL = ("csr_text", "edge_product", "h0", "model", "network")
"""Benchmarks of files, and of what is made of several ops."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel as the compiler made it.

    Args:
        function: whose call launches it, such as `gate.kernel.forward`.
        name: the Triton function.
        signature: types of its arguments, and values of those that are constants.
        capability: compute capability, times ten.
        warps: warps of a block.
        registers: of a thread.
        spills: bytes of a thread's local memory.
        shared: bytes of shared memory of a block.
        narrow: program indices that are not widened to 64 bit before anything else happens to them.
    """

    function: str
    name: str
    signature: str
    capability: int
    warps: int
    registers: int
    spills: int
    shared: int
    narrow: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an op.

    Args:
        op: its name, such as `nextham::gate` or `aten::mm`.
        args: its arguments, tensors on the device `meta`.
        result: what it gave, the same.
        view: whether the result is memory of an argument.
    """

    op: str
    args: tuple
    result: object
    view: bool


class Recorder(TorchDispatchMode):
    """Notes every call of an op inside it, below autograd: `with Recorder() as calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __enter__(self) -> list[Call]:
        """Starts, and returns the list."""
        super().__enter__()
        return self.calls

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Runs the op and notes it."""
        result = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.calls.append(Call(func._schema.name, _on_meta(args), _on_meta(result), view))
        return result


def _on_meta(value: object, known: dict[tuple, torch.Tensor] | None = None) -> object:
    """The same on the device `meta`; what is one tensor stays one."""
    known = {} if known is None else known
    if isinstance(value, torch.Tensor):
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return known.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), made)
    if isinstance(value, (list, tuple)):
        return type(value)(_on_meta(x, known) for x in value)
    return value


def compiled_kernels(capabilities: Sequence[int], functions: str = "", doubles: bool = True) -> list[Kernel]:
    """Compiles every launch of the recorded calls in a process of its own.

    Args:
        capabilities: compute capabilities, times ten.
        functions: only those whose name contains this.
        doubles: in double precision as well, which takes twice as long.

    Raises:
        RuntimeError: something does not compile; the compiler's words are in the sentence.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[1]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (root, root / "python", os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "bench.offline", functions, str(int(doubles)), *map(str, capabilities)]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"kernels: they do not compile:\n{run.stderr[-4000:]}")
    return [Kernel(**line) for line in map(json.loads, run.stdout.splitlines())]


def _compile(calls: Sequence[Call], capabilities: Sequence[int], functions: str) -> Iterator[Kernel]:
    from triton.runtime.jit import JITFunction

    from nextham_kernels.loading import gpu_kernel
    from nextham_kernels.registration import GPU_KERNELS

    launches, seen, name, capability, launch_only = [], set(), "", 0, False
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        check_launch(grid, args)
        # Sizes that are divisible by 16 or equal to one make kernels of their own, which do not differ enough to count.
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        constants = {param.name for param in self.params if param.is_constexpr} | (kwargs.keys() - {*self.arg_names})
        key = (
            name,
            self.fn,
            capability,
            *((k, v if k in constants else getattr(v, "dtype", type(v))) for k, v in sorted(named.items())),
        )
        if key not in seen and not launch_only:
            seen.add(key)
            launches.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    for call in calls:
        name = GPU_KERNELS.get(call.op, "")
        if ".kernel." not in name or functions not in name:
            continue
        for capability in capabilities:
            with another_gpu(divmod(capability, 10)):
                given = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in call.args]  # as `registration`
                launch_only = False
                gpu_kernel(name)(*given)
                launch_only = True
                for rows in (0, MOST_ROWS):
                    gpu_kernel(name)(*with_rows(given, rows))
            for function, kernel in launches:
                yield _described(name, function, capability, kernel)
            launches.clear()


def check_launch(grid: tuple[int, ...], args: Sequence[object]) -> None:
    """Fails where a GPU could not make a launch, or where a kernel would read something else than it thinks."""
    assert all(size < limit for size, limit in zip(grid, (2**31, 65536, 65536), strict=False)), f"grid: {grid}"
    # Triton's launcher multiplies in 32 bits, and does nothing where it gets no positive number.
    assert math.prod(grid) < 2**31, f"grid: {grid}"
    tensors = [(i, x) for i, x in enumerate(args) if isinstance(x, torch.Tensor)]
    for i, x in tensors:
        assert x.is_contiguous(), f"argument {i}: strides {x.stride()}"
        assert x.device == tensors[0][1].device, f"argument {i}: on {x.device}, not {tensors[0][1].device}"


def with_rows(args: Sequence[object], n: int) -> list[object]:
    """Arguments with n rows where the first has some tens: features, indices and flags, but no vectors of weights."""

    def scaled(x: object) -> object:
        if not isinstance(x, torch.Tensor) or x.ndim == 0 or len(x) != len(args[0]):
            return x
        weights = x.ndim == 1 and x.is_floating_point() and x is not args[0]
        return x if weights else x.new_empty(n, *x.shape[1:])

    return [scaled(x) for x in args] if args[0].ndim and len(args[0]) >= 30 else list(args)


def _described(name: str, function: str, capability: int, kernel: object) -> Kernel:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", used)}
    ttir, source = kernel.asm["ttir"], kernel.src
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
    words = (f"{arg}={constants[arg]}" if arg in constants else kind for arg, kind in source.signature.items())
    indices = re.findall(r"(%\w+) = tt.get_program_id", ttir)
    uses = [line for index in indices for line in ttir.splitlines() if re.search(rf"{index}\b", line)]
    narrow = sum("arith.extsi" not in line and "get_program_id" not in line for line in uses)
    return Kernel(
        name,
        function,
        ", ".join(words),
        capability,
        kernel.metadata.num_warps,
        numbers["REG"],
        numbers["STACK"] + numbers.get("LOCAL", 0),
        kernel.metadata.shared,
        narrow,
    )


@functools.cache
def network_calls(training: bool, case: str = "si2", dtype: torch.dtype = torch.float32) -> tuple[Call, ...]:
    """Returns the calls of the ensemble on strained silicon: inference, or a training step."""
    module = importlib.import_module("bench.bench_model")
    problem = module.problem(case, dtype, torch.device("cpu"), _options("model", ["--networks", "4"]))
    run = module.IMPLEMENTATIONS["edge_frame"](problem)["train" if training else "forward"]
    with gpu_ops():
        run()  # what is folded once is not part of a step
        with Recorder() as calls:
            run()
    return tuple(calls)


def _options(op: str, options: Sequence[str] = ()) -> object:
    return importlib.import_module("bench.__main__").parse(op, list(options))


def op_calls(dtypes: Sequence[torch.dtype]) -> Iterator[Call]:
    """Yields the calls of the benchmarks of single ops on their first case."""
    main = importlib.import_module("bench.__main__")
    for op in main.operations():
        if op in SEVERAL:
            continue
        module = importlib.import_module(f"bench.bench_{op}")
        for dtype, direction in itertools.product(dtypes, module.DIRECTIONS):
            arguments = _options(op, ["--direction", direction])
            problem = module.problem(arguments.case, dtype, torch.device("cpu"), arguments)
            run = next(iter(module.IMPLEMENTATIONS.values()))(problem)[direction]
            with Recorder() as calls:
                run()
            yield from calls


def other_calls(dtypes: Sequence[torch.dtype]) -> Iterator[Call]:
    """Yields calls of the ops that neither the network nor the first case of a benchmark reaches."""
    from nextham_kernels.ops.gram import gram_apply
    from nextham_kernels.ops.spherical_harmonics import solid_harmonics
    from nextham_kernels.ops.tensor_product import product
    from nextham_kernels.ops.tensor_product.linear import tensor_product_linear

    times = product("32x0e+16x1o", "1x0e+1x1o", "32x0e+16x0e+32x1o", [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)])
    line = product(times.irreps_out, "1x0e", "24x0e", [(0, 0, 0, "uvw", True), (1, 0, 0, "uvw", True)])
    for dtype in dtypes:

        def leaf(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(*shape, dtype=dtype, requires_grad=True)

        with Recorder() as calls:
            given = leaf(40, times.dims[0]), leaf(40, times.dims[1]), leaf(40, times.n_weights), leaf(line.n_weights)
            tensor_product_linear(*given, times, line).sum().backward()
            solid_harmonics(leaf(40, 3), 5).sum().backward()
            x = leaf(40, 3 * 8 + 5 * 4)
            gram_apply(leaf(40, 36 + 10), x, "8x1o+4x2e").sum().backward()
        yield from calls


if __name__ == "__main__":
    kinds = (torch.float32, torch.float64)[: 1 + int(sys.argv[2])]
    networks = itertools.product((False, True), ("si2",), kinds)
    every = [*(call for given in networks for call in network_calls(*given)), *op_calls(kinds), *other_calls(kinds)]
    for kernel in _compile(every, [int(word) for word in sys.argv[3:]], sys.argv[1]):
        print(json.dumps(dataclasses.asdict(kernel)), flush=True)
