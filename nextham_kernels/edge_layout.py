"""The edge frame: features seen along their edge, as dense blocks per |m|.

Let D(e) be the rotation that takes edge e to e3nn's polar axis (y). In that frame the spherical harmonics of the edge
have one component, m = 0, equal to √(2l+1). A path (l₁, l₂, l₃) then couples component m with m if l₁+l₂+l₃ is even and
with −m if it is odd, with one number per |m|. Give each irrep the sign σ = p·(−1)^l. The path is odd exactly when
σ₁ ≠ σ₃, so after swapping +m and −m in the irreps with σ = −1,

    x̃_{+m} = x_{−m},  x̃_{−m} = −x_{+m}   (σ = −1, m > 0),

every path couples m with m, and +m and −m share every coefficient and every weight. The feature vector of an edge is
written as a row of blocks, each [n, c], channels in the order of the irreps:

    block (0, +): channels of the irreps with σ = +1, n = 1
    block (0, −): channels of the irreps with σ = −1, n = 1
    block m ≥ 1:  channels of all irreps with l ≥ m, n = 2: +m, then −m

Source: DESIGN E1; the reduction of SO(3) to SO(2) products is Passaro and Zitnick (2023); the treatment of parity is
ours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of, wigner_3j

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["Block", "Channels", "EdgeLayout", "edge_coefficient", "edge_layout", "edge_rotation"]


@dataclass(frozen=True)
class Channels:
    """The channels of one irreps block inside one block of the row.

    Args:
        irrep: index of the block in the irreps (`irreps[irrep]` is its mul and ir).
        start: first column inside the block.
        stop: one past the last.
    """

    irrep: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """One block [n, c] of the row.

    Args:
        m: |m|.
        sigma: +1 or −1 for m = 0, 0 otherwise.
        start: first number of the block in the row.
        n: components, 1 or 2.
        c: channels.
        channels: which irreps sit where.
    """

    m: int
    sigma: int
    start: int
    n: int
    c: int
    channels: tuple[Channels, ...]

    def columns(self, component: int) -> slice:
        """Returns where the channels of component 0 (+m) or 1 (−m) lie in the row."""
        return slice(self.start + component * self.c, self.start + (component + 1) * self.c)


@dataclass(frozen=True)
class EdgeLayout:
    """How irreps are laid out in the row of an edge (see the module's page).

    Args:
        irreps: e3nn's irreps of the features.
        blocks: the blocks, in the order of the row.
        index: for each number of the row its place in e3nn's flat axis, int64 [d].
        sign: the sign that comes with it, float64 [d].
    """

    irreps: o3.Irreps
    blocks: tuple[Block, ...]
    index: torch.Tensor
    sign: torch.Tensor

    def find(self, m: int, sigma: int) -> Block | None:
        """Returns the block of |m| and σ, or None where the irreps have none."""
        return next((b for b in self.blocks if (b.m, b.sigma) == (m, sigma)), None)

    @functools.cached_property
    def scalars(self) -> torch.Tensor:
        """The columns of the row that hold 0e, int64, in the order of the irreps."""
        block = self.find(0, 1)
        channels = () if block is None else block.channels
        places = [torch.arange(c.start, c.stop) for c in channels if self.irreps[c.irrep].ir.is_scalar()]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *places])

    def to_row(self, x: torch.Tensor) -> torch.Tensor:
        """Returns rows [e, d] of features [e, d] that are already rotated into the edge frame."""
        return x[:, self.index.to(x.device)] * self.sign.to(x)

    def from_row(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the features [e, d], still in the edge frame, of rows [e, d]; the inverse of `to_row`."""
        return torch.empty_like(row).index_copy(1, self.index.to(row.device), row * self.sign.to(row))


def sigma_of(l: int, p: int) -> int:
    """Returns σ = p·(−1)^l."""
    return p * (-1) ** l


@functools.cache
def edge_layout(irreps: IrrepsLike) -> EdgeLayout:
    """Returns the edge layout of irreps.

    Blocks without channels are left out, so `0e` alone has one block and F (DESIGN §3) has six.
    """
    irreps = irreps_of(irreps)
    m_max = max((ir.l for _, ir in irreps), default=0)
    blocks: list[Block] = []
    index, sign, position = [], [], 0
    for m, sigma in [(0, 1), (0, -1), *((m, 0) for m in range(1, m_max + 1))]:
        channels, columns, signs, c = [], [], [], 0
        for b, ((mul, ir), part) in enumerate(zip(irreps, irreps.slices(), strict=True)):
            own = sigma_of(ir.l, ir.p)
            if mul == 0 or ir.l < m or sigma not in (0, own):
                continue
            plus = torch.arange(mul) * ir.dim + part.start + ir.l + m
            minus = plus - 2 * m
            one = torch.ones(mul, dtype=torch.float64)
            swapped = own == -1 and m > 0
            pair = [(minus, one), (plus, -one)] if swapped else [(plus, one), (minus, one)]
            columns.append(torch.stack([place for place, _ in pair][: 1 if m == 0 else 2]))
            signs.append(torch.stack([s for _, s in pair][: 1 if m == 0 else 2]))
            channels.append(Channels(b, c, c + mul))
            c += mul
        if channels:
            n = 1 if m == 0 else 2
            blocks.append(Block(m, sigma, position, n, c, tuple(channels)))
            index.append(torch.cat(columns, dim=1).flatten())
            sign.append(torch.cat(signs, dim=1).flatten())
            position += n * c
    empty = torch.empty(0)
    return EdgeLayout(irreps, tuple(blocks), torch.cat([empty.long(), *index]), torch.cat([empty.double(), *sign]))


def edge_coefficient(l1: int, p1: int, l2: int, l3: int, m: int) -> float:
    """Returns c with x̃₃ = c·x̃₁ for components of |m| of a path with an edge's harmonic of degree l₂.

    c = √(2l₃+1)·√(2l₂+1)·wigner_3j(l₁, l₂, l₃)_{m, 0, ±m}, with the sign of the swap; the harmonic has parity (−1)^l₂
    and component normalisation, the path e3nn's component normalisation.

    Args:
        l1: degree of the features.
        p1: their parity.
        l2: degree of the harmonic.
        l3: degree of the product.
        m: |m| ≤ min(l₁, l₃).

    Raises:
        ValueError: m out of range, or degrees that do not couple.
    """
    if not 0 <= m <= min(l1, l3):
        raise ValueError(f"m: expected 0 <= m <= {min(l1, l3)}, got {m}")
    c = wigner_3j(l1, l2, l3) * ((2 * l3 + 1) * (2 * l2 + 1)) ** 0.5
    if (l1 + l2 + l3) % 2 == 0:
        return float(c[l1 + m, l2, l3 + m])
    if m == 0:
        return 0.0
    # Odd: the input's +m gives the output's −m. From σ = +1 the output is the swapped one, from σ = −1 the input is.
    mixed = float(c[l1 + m, l2, l3 - m])
    return mixed if sigma_of(l1, p1) == 1 else -mixed


def edge_rotation(vector: torch.Tensor) -> torch.Tensor:
    """Returns the proper rotation that takes each edge to +z (e3nn's polar axis): Q r = |r| e_z.

    For r_z ≥ 0, with n = r/|r|: Q = 1 + K + K²/(1 + n_z), K the cross product with n × e_z; for r_z < 0 the edge is
    first turned by π about x. So no direction is singular. Which rotation about the edge comes with it is arbitrary (it
    jumps at r_z = 0): only what does not depend on it is meaningful, and every equivariant result does not.

    Args:
        vector: [e, 3], cartesian (x, y, z).

    Returns:
        [e, 3, 3], acting on cartesian columns; the unit matrix where the vector is zero. Differentiable there too (the
        derivative is zero).
    """
    # The unit vector e_z stands in for a zero-length edge before the norm, so that no NaN reaches a gradient.
    pole = vector.new_tensor([0.0, 0.0, 1.0])
    directed = torch.where(vector.detach().norm(dim=1, keepdim=True) > 0, vector, pole)
    n = directed / directed.norm(dim=1, keepdim=True)
    flip = torch.where(n[:, 2:] < 0, -1.0, 1.0) * vector.new_tensor([0.0, 1.0, 1.0]) + vector.new_tensor(
        [1.0, 0.0, 0.0]
    )
    x, y, z = (n * flip).unbind(dim=1)
    zero = torch.zeros_like(x)
    # n × e_z = (y, −x, 0)
    cross = torch.stack([zero, zero, -x, zero, zero, -y, x, y, zero], dim=1).reshape(-1, 3, 3)
    turn = torch.eye(3, dtype=vector.dtype, device=vector.device) + cross + cross @ cross / (1 + z)[:, None, None]
    return turn * flip[:, None, :]
