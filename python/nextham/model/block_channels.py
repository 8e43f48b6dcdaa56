"""Which irreps of blocks are read or made: those between orbitals that exist and that hidden features can reach.

The published padded layout has 81 shell pairs; silicon's orbitals fill 25 of them, and the target `uu` reads only real
parts. All others are left out of what edges carry and of the weights that act on it (DESIGN E4, E6).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham.basis import published_slots
from nextham.model.config import NextHAMConfig
from nextham_kernels.ops.blocks_irreps import block_irreps

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["BlockChannels", "input_channels", "output_channels", "shell_slots"]

Shells = tuple[int, ...]


class BlockChannels(NamedTuple):
    """Some irreps of padded blocks, sorted by l, even parity first, each once with its multiplicity."""

    irreps: str
    kept: dict[o3.Irrep, torch.Tensor]  # which of the channels that a block has of an irrep [u]
    column: torch.Tensor  # of each component of the padded layout in the row, or −1 [d]
    width: int  # of a row

    def components(self) -> torch.Tensor:
        """Returns the component of the padded layout of each column [width]."""
        there = torch.nonzero(self.column >= 0)[:, 0]
        return there[self.column[there].argsort()]

    def places(self, config: NextHAMConfig, rows: Shells, columns: Shells) -> torch.Tensor:
        """Returns the columns of a block between two elements' shells, as `blocks_to_irreps` takes them."""
        return self.column[_own_components(rows, columns, config.shells, config.spinor)]


@functools.cache
def shell_slots(shells: Shells, padded: Shells) -> tuple[int, ...]:
    """Returns the padded shell that each shell of an element takes."""
    starts = [sum(2 * l + 1 for l in padded[:s]) for s in range(len(padded))]
    slots, first, found = published_slots(shells, padded).tolist(), 0, []
    for l in shells:
        found.append(starts.index(slots[first]))
        first += 2 * l + 1
    return tuple(found)


def _pair_starts(rows: Shells, columns: Shells, spinor: bool) -> list[list[int]]:
    """First component of each shell pair within a part; last, the number of all, as [[...], ..., [all]]."""
    start, out = 0, []
    for l1 in rows:
        out.append([])
        for l2 in columns:
            out[-1].append(start)
            start += (4 if spinor else 1) * (2 * l1 + 1) * (2 * l2 + 1)
    return [*out, [start]]


@functools.cache
def _own_components(rows: Shells, columns: Shells, padded: Shells, spinor: bool) -> torch.Tensor:
    """The padded component of each component of a block between two elements."""
    starts, n_parts = _pair_starts(padded, padded, spinor), 2 if spinor else 1
    pieces = []
    for part in range(n_parts):
        for l1, row in zip(rows, shell_slots(rows, padded), strict=True):
            for l2, column in zip(columns, shell_slots(columns, padded), strict=True):
                size = (4 if spinor else 1) * (2 * l1 + 1) * (2 * l2 + 1)
                pieces.append(part * starts[-1][0] + starts[row][column] + torch.arange(size))
    return torch.cat(pieces)


def _channels(config: NextHAMConfig) -> Iterator[tuple[int, tuple[int, int], bool]]:
    """Part, shell pair, and whether it belongs to the spin vector, of each irrep of a padded block."""
    n = len(config.shells)
    for part in range(2 if config.spinor else 1):
        for row in range(n):
            for column in range(n):
                l1, l2 = config.shells[row], config.shells[column]
                n_scalars = min(l1, l2) * 2 + 1
                n_all = len(block_irreps((l1,), config.spinor, (l2,))) // (2 if config.spinor else 1)
                yield from ((part, (row, column), k >= n_scalars) for k in range(n_all))


def _subset(
    config: NextHAMConfig, elements: Iterable[tuple[Shells, Shells]], wanted: Sequence[tuple[int, bool]]
) -> BlockChannels:
    pairs = {
        (row, column)
        for rows, columns in elements
        for row in shell_slots(rows, config.shells)
        for column in shell_slots(columns, config.shells)
    }
    reachable = {ir for _, ir in config.hidden_irreps}
    seen: dict[o3.Irrep, int] = {}
    found: dict[o3.Irrep, list[tuple[int, slice]]] = {}
    irreps = config.block_irreps
    for (_, ir), place, (part, pair, vector) in zip(irreps, irreps.slices(), _channels(config), strict=True):
        number = seen.get(ir, 0)
        seen[ir] = number + 1
        if ir in reachable and pair in pairs and (part, vector) in wanted:
            found.setdefault(ir, []).append((number, place))
    ordered = sorted(found, key=lambda ir: (ir.l, -ir.p))
    places = torch.cat([torch.arange(s.start, s.stop) for ir in ordered for _, s in found[ir]])
    column = torch.full((irreps.dim,), -1)
    column[places] = torch.arange(len(places))
    kept = {ir: torch.tensor([number for number, _ in found[ir]]) for ir in ordered}
    return BlockChannels("+".join(f"{len(found[ir])}x{ir}" for ir in ordered), kept, column, len(places))


EVERYTHING = ((0, False), (0, True), (1, False), (1, True))


@functools.cache
def input_channels(config: NextHAMConfig, elements: frozenset[tuple[Shells, Shells]] | None = None) -> BlockChannels:
    """Returns what the networks read of H⁽⁰⁾ between the given pairs of elements' shells, by default any."""
    return _subset(config, elements or {(config.shells, config.shells)}, EVERYTHING)


@functools.cache
def output_channels(config: NextHAMConfig, elements: frozenset[tuple[Shells, Shells]]) -> BlockChannels:
    """Returns what the configured target reads of the networks' output."""
    wanted = {
        "uu": ((0, False), (0, True)),
        "scalar": ((0, False),),
        "scalar+vector": ((0, False), (1, True)),
    }[config.target]
    return _subset(config, elements, wanted)
