"""What the GPU kernels will do, without a GPU: `python -m bench --static`.

Registers, spills and shared memory are the compiler's, of every launch that the ensemble and the benchmarks of single
ops make. Bytes and flops are what the kernels count of themselves (`<function>_cost`), those of torch's own operations
are counted here (a product 2·m·n·k, anything else reads its inputs and writes its result). They are counted on silicon
cells of two and of four atoms with all four networks; the difference is what one more edge costs, in which the weights
do not occur. A call takes the longest of its bytes, flops and matrix flops over the rates below; an edge takes the sum
over all calls. Not in it: launches (their number is printed), and a cache that holds what the next kernel reads.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import record
from bench.offline import SHARED_MEMORY, Call, Kernel, compiled_kernels, network_calls
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.loading import gpu_kernel
from nextham_kernels.registration import GPU_KERNELS

__all__ = ["RATES", "Rates", "cost_of", "main", "prediction", "save"]


@dataclass(frozen=True)
class Rates:
    """What a GPU sustains, per second.

    Args:
        bytes: of its memory.
        flops: fp32, by plain arithmetic.
        matrix_flops: tf32, by tensor cores.
    """

    bytes: float
    flops: float
    matrix_flops: float


# Data sheets (SXM, dense), times what an H100 and an H200 were seen to reach: 0.9 of the bandwidth in a copy, 0.8 of
# the rate of tensor cores in a large product of random bf16 numbers; 0.8 is taken for plain arithmetic too.
RATES = {
    "A100": Rates(0.9 * 2.04e12, 0.8 * 19.5e12, 0.8 * 156e12),
    "H100": Rates(0.9 * 3.35e12, 0.8 * 67e12, 0.8 * 494e12),
    "H200": Rates(0.9 * 4.8e12, 0.8 * 67e12, 0.8 * 494e12),
}

_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_WRITES = ("aten::new_zeros", "aten::new_full", "aten::zeros_like", "aten::fill_", "aten::zero_", "aten::arange")
_NOTHING = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::_unsafe_view")


def cost_of(call: Call) -> tuple[str, Cost] | None:
    """Returns who serves a call, and its cost; None for what moves nothing (views, empty tensors)."""
    name = GPU_KERNELS.get(call.op)
    if name is not None:
        return name, gpu_kernel(f"{name}_cost")(*call.args)
    inputs, results = _tensors(call.args), _tensors(call.result)
    if call.view or not results or call.op in _NOTHING:
        return None
    size = nbytes(*results)
    if call.op in _WRITES:
        moved = size
    elif call.op in ("aten::index", "aten::index_select", "aten::copy_"):  # what is not gathered is not read
        moved = 2 * size
    elif call.op in ("aten::index_add_", "aten::index_put_"):
        moved = 3 * nbytes(inputs[-1])
    else:
        moved = nbytes(*inputs) + size
    flops = max(t.numel() for t in (*inputs, *results))
    if call.op in _PRODUCTS:
        flops = 2 * results[0].numel() * inputs[-1].shape[-2]
    on_tensor_cores = call.op in _PRODUCTS and torch.get_float32_matmul_precision() != "highest"
    cost = Cost(moved, 0, flops) if on_tensor_cores else Cost(moved, flops)
    return f"{call.op} ({'torch' if call.op.startswith('aten') else 'reference: no count'})", cost


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, (list, tuple)) else []


@dataclass
class Share:
    """What one op takes of an edge, all its calls together.

    Args:
        calls: their number in one pass.
        cost: per edge.
        seconds: GPU → per edge.
    """

    calls: int
    cost: Cost
    seconds: dict[str, float]


def prediction(training: bool) -> dict[str, Share]:
    """Returns what every op takes of one more edge, the longest first."""
    small, large = (network_calls(training, case) for case in ("si2", "si4"))
    if [c.op for c in small] != [c.op for c in large]:
        raise RuntimeError("prediction: expected the same calls for both structures")
    n_small, n_large = (max(t.shape[0] for call in calls for t in _rows(call)) for calls in (small, large))
    shares: dict[str, Share] = {}
    for a, b in zip(small, large, strict=True):
        first, second = cost_of(a), cost_of(b)
        if second is None:
            continue
        cost = Cost(*((y - x) / (n_large - n_small) for x, y in zip(first[1], second[1], strict=True)))
        share = shares.setdefault(second[0], Share(0, Cost(0), dict.fromkeys(RATES, 0.0)))
        share.calls += 1
        share.cost += cost
        for gpu, rates in RATES.items():
            share.seconds[gpu] += max(
                cost.bytes / rates.bytes, cost.flops / rates.flops, cost.matrix_flops / rates.matrix_flops
            )
    return dict(sorted(shares.items(), key=lambda item: -item[1].seconds["H200"]))


def _rows(call: Call) -> list[torch.Tensor]:
    """The rows that an op of ours gives."""
    return _tensors(call.result) if call.op == "nextham::edge_wigner" else []


def kernel_table(kernels: Sequence[Kernel]) -> str:
    """Returns one line per compiled kernel."""
    head = f"{'function':44} {'kernel':26} {'target':>6} {'warps':>5} {'regs':>5} {'spills':>6} {'shared kB':>9}"
    lines = [
        f"{k.function:44} {k.name:26} {k.capability:6} {k.warps:5} {k.registers:5} {k.spills:6} {k.shared / 1024:9.1f}"
        for k in kernels
    ]
    return "\n".join([head, *lines])


def prediction_table(shares: dict[str, Share]) -> str:
    """Returns one line per op and the sum."""
    head = f"{'op':56} {'calls':>5} {'kB':>8} {'kflop':>8} {'tc kflop':>8}" + "".join(
        f"{gpu + ' ns':>9}" for gpu in RATES
    )
    whole = Share(0, Cost(0), dict.fromkeys(RATES, 0.0))
    lines = [head]
    for name, share in [*shares.items(), ("sum", whole)]:
        kb, kflop, matrix = (x / 1e3 for x in share.cost)
        times = "".join(f"{1e9 * share.seconds[gpu]:9.2f}" for gpu in RATES)
        lines.append(f"{name:56} {share.calls:5} {kb:8.2f} {kflop:8.1f} {matrix:8.1f}{times}")
        if share is not whole:
            whole.calls += share.calls
            whole.cost += share.cost
            for gpu in RATES:
                whole.seconds[gpu] += share.seconds[gpu]
    lines += [f"{gpu}: {1 / whole.seconds[gpu]:,.0f} edges/s, all four networks" for gpu in RATES]
    return "\n".join(lines)


def save(kernels: Sequence[Kernel]) -> Path:
    """Writes predictions per edge, all networks, and the compiled kernels, to two files; returns their folder."""
    folder = record.RESULTS / "static"
    folder.mkdir(exist_ok=True)
    lines, before = [], torch.get_float32_matmul_precision()
    for precision, training in itertools.product(("highest", "high", "medium"), (False, True)):
        torch.set_float32_matmul_precision(precision)
        shares = prediction(training)
        seconds = {gpu: sum(share.seconds[gpu] for share in shares.values()) for gpu in RATES}
        lines.append(
            {
                "direction": "train" if training else "forward",
                "precision": precision,
                "edges_per_s": {gpu: round(1 / s) for gpu, s in seconds.items()},
                "per_edge": sum((share.cost for share in shares.values()), Cost(0))._asdict(),
                "calls": sum(share.calls for share in shares.values()),
                "ns_on_h200": {name: round(1e9 * share.seconds["H200"], 3) for name, share in shares.items()},
                "commit": record.commit(),
            }
        )
    torch.set_float32_matmul_precision(before)
    rows = {"predictions": lines, "kernels": [dataclasses.asdict(k) | {"commit": record.commit()} for k in kernels]}
    for name, found in rows.items():
        if found:
            text = "".join(json.dumps(line) + "\n" for line in found)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench --static", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target",
        type=int,
        nargs="*",
        choices=sorted(SHARED_MEMORY),
        default=sorted(SHARED_MEMORY),
        help="none: no compiling",
    )
    parser.add_argument("--single", action="store_true", help="compile float32 alone, which takes half as long")
    parser.add_argument("--save", action="store_true", help="keep it in results/static, predictions of every precision")
    parser.add_argument("--functions", default="", help="compile only kernels whose function's name contains this")
    parser.add_argument(
        "--precision",
        choices=["highest", "high", "medium"],
        default="highest",
        help="of the products in the prediction (torch.set_float32_matmul_precision)",
    )
    arguments = parser.parse_args(argv)
    kernels = compiled_kernels(arguments.target, arguments.functions, not arguments.single) if arguments.target else []
    print(kernel_table(kernels))
    if arguments.save:
        print(f"written to {save(kernels)}")
    bad = [k for k in kernels if k.spills or k.narrow or k.shared > SHARED_MEMORY[k.capability]]
    for rates, name in zip(RATES.values(), RATES, strict=True):
        print(
            f"\n{name}: {rates.bytes / 1e12:.2f} TB/s, {rates.flops / 1e12:.1f} Tflop/s fp32, "
            f"{rates.matrix_flops / 1e12:.0f} Tflop/s tf32",
            end="",
        )
    torch.set_float32_matmul_precision(arguments.precision)
    for training in (False, True):
        print(f"\n\n{'a training step' if training else 'inference'}, per edge of silicon, float32")
        print(prediction_table(prediction(training)))
    static_h0 = importlib.import_module("bench.static_h0")
    for single in (False, True):
        print(f"\n\nH of step zero, per atom of silicon, {'single precision on the grid' if single else 'double'}")
        print(static_h0.table(static_h0.prediction(single)))
    for kernel in bad:
        print(
            f"{kernel.function} {kernel.name} for {kernel.capability}: spills, too much shared memory or 32-bit offsets"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
