"""What the GPU kernels of H of step zero will do, without a GPU: the second part of `python -m bench --static`.

The ops' calls are noted while H of step zero of 64 silicon atoms (Gaussian functions with published radii, the grid of
published silicon, 200 Ry) is made on the CPU, with a GPU's bricks; what the kernels count of themselves
(`<function>_cost`) is divided by the atoms. A call takes the longest of its bytes, flops and matrix flops over what a
GPU sustains. Not in it: launches, the lists of neighbours that the CPU makes, the copies of lists and results between
CPU and GPU, and torch's sort of the pairs.
"""

from __future__ import annotations

import functools
from unittest import mock

import torch

from bench import bench_h0
from bench.offline import Call, Recorder
from bench.static import RATES, Rates, cost_of
from nextham.h0 import build_pieces, local
from nextham_kernels.cost import Cost

__all__ = ["DOUBLE_RATES", "prediction", "table"]

# Data sheets (SXM), times the same fractions as `static.RATES`: double precision, plain and by tensor cores.
DOUBLE_RATES = {
    "A100": Rates(RATES["A100"].bytes, 0.8 * 9.7e12, 0.8 * 19.5e12),
    "H100": Rates(RATES["H100"].bytes, 0.8 * 34e12, 0.8 * 67e12),
    "H200": Rates(RATES["H200"].bytes, 0.8 * 34e12, 0.8 * 67e12),
}


@functools.cache
def _calls(case: str) -> tuple[list[Call], int]:
    """The calls of ops with kernels, and the number of atoms."""
    structure = bench_h0.silicon(*bench_h0.CASES[case])
    with mock.patch.object(local, "BRICK", local.BRICK_ON_GPU), Recorder() as calls:
        build_pieces(structure, bench_h0.gaussian(), energy_cutoff=200.0, memory_budget=1 << 40)
    return [call for call in calls if call.op.startswith("nextham::")], structure.n_atoms


def _in_single(call: Call) -> Call:
    """The same call with the grid's numbers in single precision."""
    if call.op.removeprefix("nextham::") not in ("superposition", "xc_potential", "grid_integrals"):
        return call
    rounded = (x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in call.args)
    return Call(call.op, tuple(rounded), call.result, call.view)


def prediction(single: bool, case: str = "si64") -> dict[str, tuple[Cost, dict[str, float]]]:
    """Returns what every op costs per atom, and its seconds on each GPU."""
    calls, n_atoms = _calls(case)
    shares: dict[str, tuple[Cost, dict[str, float]]] = {}
    for call in map(_in_single, calls) if single else calls:
        name, cost = cost_of(call)
        on_double = next(x.dtype for x in call.args if isinstance(x, torch.Tensor)) == torch.float64
        before, seconds = shares.get(name, (Cost(0), dict.fromkeys(RATES, 0.0)))
        for gpu, rates in (DOUBLE_RATES if on_double else RATES).items():
            longest = max(cost.bytes / rates.bytes, cost.flops / rates.flops, cost.matrix_flops / rates.matrix_flops)
            seconds[gpu] += longest / n_atoms
        shares[name] = (before + Cost(*(x / n_atoms for x in cost)), seconds)
    return shares


def table(shares: dict[str, tuple[Cost, dict[str, float]]]) -> str:
    """Returns one line per op and the sum."""
    times = "".join(f"{gpu + ' µs':>9}" for gpu in RATES)
    lines = [f"{'op, per atom of silicon':56} {'MB':>8} {'Mflop':>8} {'tc Mflop':>8}{times}"]
    whole = dict.fromkeys(RATES, 0.0)
    for name, (cost, seconds) in shares.items():
        numbers = "".join(f"{x / 1e6:9.2f}" for x in cost)
        lines.append(f"{name:56}{numbers}" + "".join(f"{1e6 * t:9.2f}" for t in seconds.values()))
        whole = {gpu: t + seconds[gpu] for gpu, t in whole.items()}
    lines += [f"{gpu}: {1e6 * t:.1f} µs per atom, {1 / t:,.0f} atoms/s" for gpu, t in whole.items()]
    return "\n".join(lines)
