"""From H⁽⁰⁾ to ΔH with an ensemble."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.model.ensemble import Ensemble
from nextham.model.reading import what_is_read
from nextham.model.streaming import stream_delta

__all__ = ["predict_delta"]


def predict_delta(
    ensemble: Ensemble,
    h0: Blocks,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Blocks:
    """Predicts ΔH, so that Ĥ = H⁽⁰⁾ + ΔH.

    The networks see the edges below the cutoff; ΔH is zero beyond the largest range. The computation runs in the dtype
    and on the device of the ensemble (`ensemble.double()` for float64).

    Args:
        ensemble: the networks.
        h0: H⁽⁰⁾, eV, with an on-site block for every atom.
        memory_budget: bytes that the computation may take beside the ensemble, H⁽⁰⁾ and ΔH; by default as many as are
            quickest. Results are equal to rounding for any budget. The least is three rows of features for each edge
            (4.7 kB, published sizes in single precision), the output of one network, and the work on one atom's edges.
        progress: called with (done, total) pieces of work.

    Returns:
        ΔH on the graph of `h0`, eV: n_spin 4 (complex) from networks with spin, n_spin 1 (real) from those without.

    Raises:
        ValueError: an atom without on-site block, orbitals that do not fit the network's layout, a matrix with spin
            for networks without, a budget that is too small, or one for the engine `reference`, which follows none.
    """
    config = ensemble.config
    if not config.spinor:
        h0 = h0.spinless()
        if np.iscomplexobj(h0.data):
            raise ValueError("h0: expected a real matrix for networks without spin, got a complex one")
    present = np.unique(h0.graph.src[h0.graph.onsite()])
    absent = np.setdiff1d(np.arange(h0.graph.structure.n_atoms), present)
    if len(absent):
        raise ValueError(f"h0: atom {absent[0]} has no on-site block")
    h0 = what_is_read(h0, config)
    if ensemble.engine == "edge_frame":
        return stream_delta(ensemble, h0, memory_budget, progress)
    if memory_budget is not None:
        raise ValueError("memory_budget: the engine reference keeps everything, set engine = 'edge_frame'")
    near = h0.within(0.0, config.cutoff)
    near, graph = near.spinor() if config.spinor else near, near.graph
    src, dst = (torch.as_tensor(index, device=ensemble.device) for index in (graph.src, graph.dst))
    vector = torch.as_tensor(graph.vector()).to(ensemble.device, ensemble.dtype)
    kind = ensemble.dtype.to_complex() if config.spinor else ensemble.dtype
    with torch.no_grad():
        padded = torch.as_tensor(near.padded(config.shells)).to(ensemble.device, kind)
        irreps = ensemble.irreps_of_blocks(padded)
        delta = ensemble.correction(ensemble(irreps, src, dst, vector, with_trace=False).irreps)
    return Blocks.from_padded(graph, h0.basis, delta.cpu().numpy(), config.shells).on(h0.graph)
