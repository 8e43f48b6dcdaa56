"""Command line: `python -m bench.third_party mace|nequip` accelerates a real MACE or NequIP model and compares.

It builds the model by the package's own classes (mace-torch, nequip: install one of them beside nextham-kernels), with
random weights, on a random box of 64 atoms of four elements; prints which modules `nextham_kernels.accelerate`
replaces; compares energy, forces and the weights' gradients of a loss on both with those of the model as it was; and
times both in turn. Each direction appends a line to `results/<device>/third_party.jsonl`.
"""

import argparse
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

import nextham_kernels
from bench import record, timing
from bench.__main__ import max_rel_diff

__all__ = ["MODELS", "main"]

N_ELEMENTS, CUTOFF = 4, 4.5

Tensors = dict[str, torch.Tensor]
Energy = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


def box(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns positions [n, 3] in Å, kinds [n] and edges [2, e] of a displaced cubic lattice of 2.2 Å."""
    generator = torch.Generator().manual_seed(17)
    positions = torch.cartesian_prod(*[torch.arange(4, dtype=torch.float64)] * 3) * 2.2
    positions = positions + 0.3 * torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    near = (torch.cdist(positions, positions) < CUTOFF).fill_diagonal_(False)
    kinds = torch.randint(N_ELEMENTS, (len(positions),), generator=generator)
    return positions.to(dtype), kinds, near.nonzero().T.contiguous()


def mace(kinds: torch.Tensor, edges: torch.Tensor, dtype: torch.dtype) -> tuple[torch.nn.Module, Energy, str]:
    """MACE's `ScaleShiftMACE`, 128x0e+128x1o, two interactions, l ≤ 3, correlation 3."""
    from e3nn import o3
    from mace.modules.blocks import RealAgnosticInteractionBlock, RealAgnosticResidualInteractionBlock
    from mace.modules.models import ScaleShiftMACE

    model = ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticInteractionBlock,
        num_interactions=2,
        num_elements=N_ELEMENTS,
        hidden_irreps=o3.Irreps("128x0e+128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(N_ELEMENTS),
        avg_num_neighbors=20.0,
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    shifts = torch.zeros(edges.shape[1], 3, dtype=dtype)

    def energy(model: torch.nn.Module, positions: torch.Tensor) -> torch.Tensor:
        given = {
            "positions": positions,
            "node_attrs": torch.nn.functional.one_hot(kinds, N_ELEMENTS).to(dtype),
            "edge_index": edges,
            "shifts": shifts,
            "unit_shifts": shifts,
            "cell": torch.zeros(3, 3, dtype=dtype),
            "batch": torch.zeros_like(kinds),
            "ptr": torch.tensor([0, len(kinds)]),
            "head": torch.zeros(1, dtype=torch.int64),
        }
        return model(given, training=True, compute_force=False)["energy"].sum()

    return model, energy, "mace-torch"


def nequip(kinds: torch.Tensor, edges: torch.Tensor, dtype: torch.dtype) -> tuple[torch.nn.Module, Energy, str]:
    """NequIP's `NequIPGNNModel`, three layers of 32 channels of both parities, l ≤ 2."""
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    model = NequIPGNNModel(
        seed=1,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=CUTOFF,
        type_names=["H", "C", "N", "O"],
        num_layers=3,
        l_max=2,
        parity=True,
        num_features=32,
        avg_num_neighbors=20.0,
        do_derivatives=False,
    )

    def energy(model: torch.nn.Module, positions: torch.Tensor) -> torch.Tensor:
        return model({"pos": positions, "atom_types": kinds, "edge_index": edges})["total_energy"].sum()

    return model, energy, "nequip"


MODELS = {"mace": mace, "nequip": nequip}


def results(model: torch.nn.Module, energy: Energy, positions: torch.Tensor, train: bool) -> Tensors:
    """Energy and forces, or the gradients of a loss on both."""
    leaf = positions.clone().requires_grad_()
    found = energy(model, leaf)
    (gradient,) = torch.autograd.grad(found, leaf, create_graph=train)
    if not train:
        return {"energy": found.detach(), "forces": -gradient}
    loss = found.square() / len(leaf) ** 2 + gradient.square().mean()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, grads, strict=True) if g is not None and g.any()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.third_party", description=__doc__.split("\n\n")[1])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--no-save", action="store_true", help="append no lines")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # those of the packages, on import
    torch.set_num_threads(arguments.threads)
    dtype, device = getattr(torch, arguments.dtype), torch.device("cpu")
    torch.set_default_dtype(dtype)  # which MACE and NequIP read
    torch.manual_seed(0)
    positions, kinds, edges = box(dtype)
    make = MODELS[arguments.model]
    theirs, energy, package = make(kinds, edges, dtype)
    theirs, ours = theirs.to(dtype), make(kinds, edges, dtype)[0].to(dtype)  # with torch 2.6 some cannot be copied
    ours.load_state_dict(theirs.state_dict())
    print(nextham_kernels.accelerate(ours))
    ceilings = timing.ceilings(device)
    for direction in ("forces", "train"):
        models = {"accelerated": ours, "original": theirs}
        runs = {
            name: lambda model=model, train=direction == "train": results(model, energy, positions, train)
            for name, model in models.items()
        }
        measured = {name: timing.peak_memory(run, device) for name, run in runs.items()}
        found, expected = (measured[name][0] for name in models)
        for name in found.keys() & {"energy", "forces"}:
            print(f"  {name}: relative difference {max_rel_diff({name: found[name]}, {name: expected[name]}):.2g}")
        difference = max_rel_diff(found, expected)
        seconds = timing.interleaved(runs, timing.clock_of(device), arguments.repeats)
        times = {name: timing.quantiles(each) for name, each in seconds.items()}
        speedup = times["original"].median / times["accelerated"].median
        print(f"{arguments.model} {direction}: {speedup:.2f} times as fast, largest difference {difference:.2g}")
        line = dict.fromkeys(record.KEYS) | {
            "op": "third_party",
            "case": f"{arguments.model}-{edges.shape[1]}",
            "direction": direction,
            "impl": "accelerated",
            "device": record.device_name(device),
            "dtype": arguments.dtype,
            "threads": arguments.threads,
            **{f"{name}_s": value for name, value in times["accelerated"]._asdict().items()},
            "ceiling_gb_per_s": ceilings.gb_per_s,
            "ceiling_gflop_per_s": ceilings.gflop_per_s,
            "peak_mb": measured["accelerated"][1],
            "competitor": "original",
            "competitor_median_s": times["original"].median,
            "competitor_peak_mb": measured["original"][1],
            "speedup": speedup,
            "max_rel_diff": difference,
            "versions": record.versions(device) | {package: importlib.metadata.version(package)},
            "commit": record.commit(),
        }
        if not arguments.no_save:
            record.save(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
