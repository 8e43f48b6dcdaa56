"""What the networks read in place of H⁽⁰⁾ where they are to do without it: elements and geometry alone."""

from __future__ import annotations

import numpy as np

from nextham.blocks import Blocks
from nextham.model.config import NextHAMConfig

__all__ = ["elements_only", "what_is_read"]


def what_is_read(h0: Blocks, config: NextHAMConfig) -> Blocks:
    """Returns the matrix that networks of this configuration read, given H⁽⁰⁾."""
    return h0 if config.reads == "h0" else elements_only(h0)


def elements_only(h0: Blocks) -> Blocks:
    """Returns a matrix on the graph of H⁽⁰⁾ that tells the elements, and nothing else.

    On site, the n-th shell of an element Z has cos(π n Z / 119) on its diagonal, both spins alike (n from 1, Z up to
    118): no two elements have the same numbers, and rotations leave them alone. Between atoms it is zero.

    Args:
        h0: H⁽⁰⁾, with or without spin.
    """
    blocks = h0.like(np.zeros_like(h0.data))
    onsite = np.flatnonzero(h0.graph.onsite())
    elements = h0.graph.structure.numbers[h0.graph.src[onsite]]
    for z in np.unique(elements):
        shells = h0.basis[int(z)]
        code = np.cos(np.pi * np.arange(1, len(shells) + 1) * int(z) / 119)
        diagonal = np.diag(np.repeat(code, [2 * l + 1 for l in shells]))
        edges, n_spin = onsite[elements == z], h0.n_spin
        values = np.zeros((len(edges), n_spin, *diagonal.shape), dtype=h0.data.dtype)
        values[:, 0] = values[:, -1] = diagonal
        blocks.put(edges, values)
    return blocks
