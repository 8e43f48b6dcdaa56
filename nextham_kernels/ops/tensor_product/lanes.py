"""The paths of a product as the GPU kernels see them: from the channels of one operand, the lanes.

The other operand's channels are the steps of a loop, or, where pairs have one number (paired), the lane's own. A path
with one step and its lanes gives every derivative in one sweep; one with more steps is seen from both operands, and
each view gives the gradient of its lanes' operand without a sum over lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.ops.tensor_product.plan import ZERO
from nextham_kernels.ops.tensor_product.reference import Path, Product

__all__ = ["Term", "other_view", "terms"]


@dataclass(frozen=True)
class Term:
    """One path from one operand.

    Args:
        path: its number.
        mode: its mode.
        lane: the operand whose channels are lanes, 0 for x and 1 for y.
        blocks: the blocks of x and y.
        muls: their multiplicities.
        starts: where the blocks begin in x and y.
        dims: components of x, y and the result.
        weight: where weights of single pairs begin, -1 without.
        mix: where the matrix [pairs, outputs] begins, -1 without.
        outputs: channels of a mix, else 0.
        block: block of the result.
        start: where it begins.
        entries: (i, j, k, c C_ijk).
    """

    path: int
    mode: str
    lane: int
    blocks: tuple[int, int]
    muls: tuple[int, int]
    starts: tuple[int, int]
    dims: tuple[int, int, int]
    weight: int
    mix: int
    outputs: int
    block: int
    start: int
    entries: tuple[tuple[int, int, int, float], ...]

    @property
    def paired(self) -> bool:
        """Whether both channels of a pair are the lane's."""
        return self.mode in ("uuu", "uuw")

    @property
    def triangle(self) -> bool:
        """Whether only pairs u < v exist."""
        return "<" in self.mode

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.muls[self.lane]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return 1 if self.paired else self.muls[1 - self.lane]

    @property
    def sums(self) -> bool:
        """Whether the result's channel is the lane, so that it sums the steps."""
        return self.mode in ("uuu", ("uvu", "uvv")[self.lane])

    def channel(self, operand: int, c: str = "c", s: str = "s") -> str:
        """The channel of an operand, given the words of lane and step."""
        if self.paired or operand == self.lane:
            return c
        return "0" if self.steps == 1 else s

    def pair(self, c: str = "c", s: str = "s") -> str:
        """The number of a pair."""
        u, v, n = self.channel(0, c, s), self.channel(1, c, s), self.muls[1]
        if self.paired:
            return c
        if self.triangle:
            return f"({u} * (2 * {n} - {u} - 1) // 2 + {v} - {u} - 1)"
        return c if self.steps == 1 and (n == 1 or self.lane == 1) else f"({u} * {n} + {v})"

    def out_channel(self, c: str = "c", s: str = "s") -> str:
        """The result's channel of a pair; there is none of a mix."""
        if self.mode in ("uvu", "uuu"):
            return self.channel(0, c, s)
        return self.channel(1, c, s) if self.mode == "uvv" else self.pair(c, s)

    def exists(self, c: str = "c", s: str = "s") -> str:
        """Where not all pairs exist, what says whether one does."""
        return f"({self.channel(0, c, s)} < {self.channel(1, c, s)})" if self.triangle else ""


def terms(product: Product) -> list[Term]:
    """Returns the product's paths, each from the operand that its forward kernel takes for lanes."""
    starts = [[place.start for place in irreps.slices()] for irreps in (product.irreps_1, product.irreps_2)]
    found = []
    for n, path in enumerate(product.paths):
        u, v = product.irreps_1[path.i_1].mul, product.irreps_2[path.i_2].mul
        out = product.irreps_out[path.i_out]
        if 0 in (*product.shape(path), u, v, out.mul):
            continue
        mixes = path.mode.endswith("w")
        place = product.weight_slices[n].start if path.has_weight else -1
        found.append(
            Term(
                path=n,
                mode=path.mode,
                lane=_lane(path.mode, u, v),
                blocks=(path.i_1, path.i_2),
                muls=(u, v),
                starts=(starts[0][path.i_1], starts[1][path.i_2]),
                dims=(product.irreps_1[path.i_1].ir.dim, product.irreps_2[path.i_2].ir.dim, out.ir.dim),
                weight=-1 if mixes else place,
                mix=place if mixes else -1,
                outputs=out.mul if mixes else 0,
                block=path.i_out,
                start=product.irreps_out.slices()[path.i_out].start,
                entries=_entries(product, path),
            )
        )
    return found


def other_view(term: Term) -> Term:
    """Returns the same path from the other operand."""
    return replace(term, lane=1 - term.lane)


def _lane(mode: str, u: int, v: int) -> int:
    if mode in ("uvw", "uvuv"):
        return int(v > u)
    return int(mode in ("uvv", "uvu<v", "u<vw"))


def _entries(product: Product, path: Path) -> tuple[tuple[int, int, int, float], ...]:
    degrees = product.irreps_1[path.i_1].ir.l, product.irreps_2[path.i_2].ir.l, product.irreps_out[path.i_out].ir.l
    c = wigner_3j(*degrees).numpy()
    places = np.argwhere(np.abs(c) > ZERO)
    return tuple((int(i), int(j), int(k), float(path.coefficient * c[i, j, k])) for i, j, k in places)
