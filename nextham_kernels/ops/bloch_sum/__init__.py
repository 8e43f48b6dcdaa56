"""Bloch sum: ragged blocks of a periodic matrix M(R) to dense matrices at k-points, many at a time.

    H_ab(k) = Σ_e exp(2πi k·v_e) M_e,ab        ∂H_ab/∂k_c = Σ_e i r_e,c exp(2πi k·v_e) M_e,ab,  r_e = v_e · cell

The sum runs over the edges e from the atom of row a to the atom of column b. k is in units of the reciprocal lattice
vectors; in ∂H/∂k it is Cartesian (1/Å, 2π included). v_e is the lattice vector R_e, or with `positions` the interatomic
vector R_e + x_dst − x_src; the two H(k) differ by the unitary diag exp(2πi k·x_a), so bands are the same.

Blocks are one after the other in the order of the edges, block e as [s, s', a, b] with the spins s, s' (one of each, or
two) outside; rows and columns of H(k) run over atoms and orbitals, with the spin index fastest. Blocks may be real or
complex; nothing is assumed about Hermiticity, and none is used: a file's M(R) and M(−R)† differ in their last digits.

The result is linear in the blocks: its derivative is the adjoint map (an op of its own), and any order exists. There is
no derivative with respect to k through autograd; `bloch_derivative` has it in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from nextham_kernels.checks import check_range, check_shapes, check_tensors
from nextham_kernels.ops.bloch_sum import cpu, reference
from nextham_kernels.ops.bloch_sum.block_by_block import apply, is_cheaper
from nextham_kernels.registration import define

__all__ = ["BlochLayout", "bloch_derivative", "bloch_layout", "bloch_project", "bloch_sum"]


def _fake(
    blocks: torch.Tensor, coefficient: torch.Tensor, edges: torch.Tensor, pairs: torch.Tensor, size: int, spins: int
) -> torch.Tensor:
    return blocks.new_empty(coefficient.shape[1], size, size, 2)


_op = define(
    "bloch_sum",
    "Tensor blocks, Tensor coefficient, Tensor edges, Tensor pairs, int size, int spins",
    reference.bloch_sum,
    cpu.forward,
    cpu.backward,
    _fake,
    gpu=("bloch_sum.cuda.forward", "bloch_sum.cuda.backward"),
)


@dataclass(frozen=True, eq=False)
class BlochLayout:
    """Where the blocks of a structure go; made once by `bloch_layout` and good for any matrix on the same edges.

    Args:
        edges: int64 [e, 6], sorted by row and column: first number of the block in `blocks`, which of `vectors`, first
            row and column in H(k), orbitals of the row and of the column.
        pairs: where a new pair of atoms begins in `edges`, int64 [p + 1].
        vectors: distinct v [r, 3], float64, in units of the lattice vectors.
        mirrored: whether the vectors r and −1 − r are opposite, so that their phases are conjugate.
        n_numbers: length of `blocks`.
        size: N, rows of H(k).
        spins: 1 or 2.
    """

    edges: torch.Tensor
    pairs: torch.Tensor
    vectors: torch.Tensor
    n_numbers: int
    size: int
    spins: int
    mirrored: bool = False

    def to(self, device: torch.device | str) -> BlochLayout:
        """Returns the layout on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, torch.Tensor)})


def bloch_layout(
    src: torch.Tensor,
    dst: torch.Tensor,
    R: torch.Tensor,
    orbitals: torch.Tensor,
    spins: int = 1,
    positions: torch.Tensor | None = None,
) -> BlochLayout:
    """Returns where blocks on the edges src → dst + R go.

    Args:
        src: atom of the rows [e], int64.
        dst: atom of the columns [e], int64.
        R: lattice vectors [e, 3], int64.
        orbitals: number of orbitals of each atom [n], int64, without spin.
        spins: 1, or 2 for blocks [2, 2, a, b].
        positions: fractional coordinates x [n, 3], float64: then v is the interatomic vector; None: v = R.

    Raises:
        ValueError: a wrong shape, an atom out of range, or another number of spins.
        TypeError: a wrong dtype or device.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> bloch_layout(zero, zero, torch.zeros(1, 3, dtype=torch.int64), torch.tensor([4]), spins=2).size
        8
    """
    check_tensors(integer={"src": src, "dst": dst, "R": R, "orbitals": orbitals})
    shapes = {"src": (src, "e"), "dst": (dst, "e"), "R": (R, "e 3"), "orbitals": (orbitals, "n")}
    n = check_shapes(**shapes, **({} if positions is None else {"positions": (positions, "n 3")}))["n"]
    check_range("src", src, n)
    check_range("dst", dst, n)
    if spins not in (1, 2):
        raise ValueError(f"spins: expected 1 or 2, got {spins}")
    if positions is None:
        vectors, which = torch.unique(R, dim=0, return_inverse=True)
    else:
        check_tensors(positions=positions)
        vectors, which = R + (positions[dst] - positions[src]), torch.arange(len(R), device=R.device)
    a, b = orbitals[src], orbitals[dst]
    numbers = spins**2 * a * b
    ends = spins * orbitals.cumsum(0)
    starts = ends - spins * orbitals
    edges = torch.stack([numbers.cumsum(0) - numbers, which, starts[src], starts[dst], a, b], dim=1)
    pair = src * n + dst
    order = torch.argsort(pair, stable=True)
    counts = torch.unique_consecutive(pair[order], return_counts=True)[1]
    pairs = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    size, total = int(ends[-1]) if n else 0, int(numbers.sum())
    vectors, mirrored = vectors.to(torch.float64), bool((vectors == -vectors.flip(0)).all())
    return BlochLayout(edges[order].contiguous(), pairs, vectors, total, size, spins, mirrored)


def bloch_sum(blocks: torch.Tensor, layout: BlochLayout, kpoints: torch.Tensor) -> torch.Tensor:
    """Returns H(k); the formula and the order of rows are on the op's page.

    Args:
        blocks: all blocks one after the other [d], float32, float64, complex64 or complex128.
        layout: where they go.
        kpoints: [q, 3], float64, in units of the reciprocal lattice vectors.

    Returns:
        [q, N, N], complex64 or complex128.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype or device.

    Example:
        >>> import torch
        >>> zero, R = torch.zeros(3, dtype=torch.int64), torch.tensor([[-1, 0, 0], [0, 0, 0], [1, 0, 0]])
        >>> layout = bloch_layout(zero, zero, R, torch.tensor([1]))
        >>> kpoints = torch.tensor([[0.0, 0, 0], [0.5, 0, 0]], dtype=torch.float64)
        >>> bloch_sum(torch.tensor([-1.0, 0.0, -1.0]), layout, kpoints).real.flatten()  # −2 cos 2πk
        tensor([-2.,  2.])
    """
    _check(blocks, layout, kpoints)
    return _run(blocks, layout, _phases(layout, kpoints))


def bloch_derivative(
    blocks: torch.Tensor, layout: BlochLayout, kpoints: torch.Tensor, cell: torch.Tensor
) -> torch.Tensor:
    """Returns ∂H(k)/∂k_c for the Cartesian c = x, y, z.

    Args:
        blocks: as for `bloch_sum`.
        layout: where they go; with `positions`, r_e is the interatomic vector.
        kpoints: [q, 3], float64, in units of the reciprocal lattice vectors.
        cell: lattice vectors as rows [3, 3], float64, Å.

    Returns:
        [q, 3, N, N], complex, in units of the blocks times Å.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype or device.
    """
    _check(blocks, layout, kpoints)
    check_shapes(cell=(cell, "3 3"))
    check_tensors(kpoints=kpoints, cell=cell)
    phases, r = _phases(layout, kpoints), layout.vectors @ cell
    coefficient = (1j * phases[:, :, None] * r[:, None, :]).flatten(1)  # [r, (q, c)]
    return _run(blocks, layout, coefficient).unflatten(0, (len(kpoints), 3))


def bloch_project(
    blocks: torch.Tensor,
    layout: BlochLayout,
    kpoints: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns U†(k) H(k) V(k).

    In a large cell, where the blocks hold at most half as many numbers as H(k), it is applied block by block and never
    formed; with 137 edges per atom below 8 Å that is from some 270 atoms on.

    Args:
        blocks: as for `bloch_sum`.
        layout: where they go.
        kpoints: [q, 3], float64.
        left: U [q, N, s], complex of the blocks' precision.
        right: V [q, N, t]; by default U.

    Returns:
        [q, s, t], complex. Derivatives of any order with respect to blocks, left and right.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype or device.
    """
    _check(blocks, layout, kpoints)
    right = left if right is None else right
    check_tensors(complex_=True, left=left, right=right)
    n = layout.size
    check_shapes(kpoints=(kpoints, "q 3"), left=(left, f"q {n} s"), right=(right, f"q {n} t"))
    phases = _phases(layout, kpoints)
    if is_cheaper(layout):
        return left.mH @ apply(blocks, layout, phases, right)
    return left.mH @ (_run(blocks, layout, phases) @ right)


def _check(blocks: torch.Tensor, layout: BlochLayout, kpoints: torch.Tensor) -> None:
    if not isinstance(blocks, torch.Tensor):
        raise TypeError(f"blocks: expected a torch.Tensor, got {type(blocks).__name__}")
    check_tensors(complex_=blocks.is_complex(), blocks=blocks, integer={"layout": layout.edges})
    check_tensors(kpoints=kpoints, layout=layout.vectors)
    check_shapes(blocks=(blocks, f"{layout.n_numbers}"), kpoints=(kpoints, "q 3"))


def _phases(layout: BlochLayout, kpoints: torch.Tensor) -> torch.Tensor:
    """exp(2πi k·v) [r, q], complex128; of opposite vectors conjugate to the last bit, which the kernel makes use of."""
    n = len(layout.vectors)
    angle = 2 * torch.pi * (layout.vectors[: (n + 1) // 2 if layout.mirrored else n] @ kpoints.detach().T)
    phases = torch.complex(angle.cos(), angle.sin())  # a fifth of the time of torch.polar
    return torch.cat([phases, phases[: n // 2].flip(0).conj()]) if layout.mirrored else phases


def _run(blocks: torch.Tensor, layout: BlochLayout, coefficient: torch.Tensor) -> torch.Tensor:
    """Σ_e coefficient[v_e, p] M_e [p, N, N]; blocks and coefficients as pairs of real numbers."""
    numbers = torch.view_as_real(blocks) if blocks.is_complex() else blocks[:, None]
    pairs = torch.view_as_real(coefficient).to(numbers.dtype)
    return torch.view_as_complex(_op(numbers, pairs, layout.edges, layout.pairs, layout.size, layout.spins))
