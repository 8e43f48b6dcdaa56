"""Triton source of a product's paths whose pairs of channels have one weight each (all modes but mixes).

Forward: a lane is a (row, channel) of the result, folded into one index, so that any multiplicity fills the lanes; it
holds one channel of the operand (2l + 1 registers), the other operand's numbers come from the first-level cache, and
the result of a path stays in registers until it is written once. Backward: tiles [rows, channels], because the
gradient of an operand with one channel (the harmonics) is summed over the channels of a row.

A kernel takes paths until `FORWARD` or `BACKWARD` coefficients; so that its registers do not spill and its first
compilation takes seconds, a product is several kernels. One block of a result or gradient may belong to several: the
first writes it, the next ones add, one after the other.
"""

from __future__ import annotations

from nextham_kernels.ops.tensor_product.lanes import Term
from nextham_kernels.ops.tensor_product.text import (
    LANES,
    Kernel,
    Sizes,
    Text,
    cost_of,
    edge_rows,
    over_edges,
    row_pointers,
    summed,
    tile_head,
    tile_width,
)

__all__ = ["forward", "grouped", "sum_terms"]

FORWARD = 500
"""Coefficients of a forward kernel."""
SUMS = 48
"""Sums over the edges of a node that a kernel of the convolution holds, registers each."""


def forward(terms: list[Term], sizes: Sizes, taken: set[int], conv: bool) -> list[Kernel]:
    """Kernels of the result; `taken` are the blocks that are written already.

    Args:
        terms: the paths.
        sizes: of the rows.
        taken: blocks of the result that are written already; those of these paths are put into it.
        conv: rows are edges, summed by the nodes where they end.
    """
    write = _conv_forward if conv else _forward
    kernels = enumerate(grouped(terms, conv))
    return [write(f"{'conv' if conv else 'forward'}_{i}", kernel, sizes, taken) for i, kernel in kernels]


def grouped(terms: list[Term], conv: bool) -> list[list[list[Term]]]:
    """Returns for each kernel its groups of paths that lead to the same channels of a block."""
    groups: list[list[Term]] = []
    places: dict[tuple[int, int], int] = {}
    for term in terms:
        key = (term.block, term.lanes)
        if term.sums and key in places and cost_of([*groups[places[key]], term]) <= FORWARD:
            groups[places[key]].append(term)
            continue
        if term.sums:
            places[key] = len(groups)
        groups.append([term])
    groups.sort(key=lambda group: (group[0].lanes, group[0].lane, group[0].blocks[group[0].lane]))
    found: list[list[list[Term]]] = []
    for group in groups:
        fits = bool(found) and found[-1][0][0].lanes == group[0].lanes
        fits = fits and all(other[0].block != group[0].block for other in found[-1])
        fits = fits and cost_of([t for other in (*found[-1], group) for t in other]) <= FORWARD
        fits = fits and not (conv and sum(other[0].dims[2] for other in (*found[-1], group)) > SUMS)
        found[-1].append(group) if fits else found.append([group])
    return found


def _forward(name: str, groups: list[list[Term]], sizes: Sizes, taken: set[int]) -> Kernel:
    lanes = groups[0][0].lanes
    text = Text(name, "x, y, w, out, n, N: tl.constexpr", "N")
    text.add(
        "T = x.dtype.element_ty",
        "first_lane = tl.program_id(0).to(tl.int64) * N",
        f"start = first_lane // {lanes}",
        f"flat = (first_lane - start * {lanes}).to(tl.int32) + tl.arange(0, N)",
        f"c = flat % {lanes}",
        f"row = start + flat // {lanes}",
        "there = row < n",
        "inside = there",
    )
    row_pointers(text, sizes, x="row", y="row", w="row", out="row")
    for group in groups:
        term, add = group[0], group[0].block in taken
        taken.add(term.block)
        pointer = f"outr + ({term.start} + ({term.out_channel()}) * {term.dims[2]})"
        if not term.sums:
            text.operand(term, term.lane)
            with text.loop(f"s in range({term.steps})", term.steps > 1):
                mask = f"inside & {term.exists()}" if term.triangle else "inside"
                text.store(pointer, _value(text, term), mask, add)
            continue
        sums = sum_terms(text, group, None)
        text.store(pointer, sums, "inside", add)
    large = cost_of([t for group in groups for t in group]) > 400
    return Kernel(name, "\n".join(text.lines), 0, lanes, registers=255 if large else 0)


def _value(text: Text, term: Term) -> list[str]:
    weight = text.weight(term)
    return text.product(term, text.operand(term, 0), text.operand(term, 1), weight)


def sum_terms(text: Text, group: list[Term], sums: list[str] | None) -> list[str]:
    """Adds the terms of a block, step by step."""
    for term in group:
        if term.steps == 1 and sums is None:
            sums = _value(text, term)
            continue
        if sums is None:
            n = text.number()
            sums = [f"s{n}_{k}" for k in range(term.dims[2])]
            text.zeros(sums)
        text.operand(term, term.lane)
        with text.loop(f"s in range({term.steps})", term.steps > 1):
            values = _value(text, term)
            text.add(*(f"{s} = {s} + {v}" for s, v in zip(sums, values, strict=True)))
    return sums


def _conv_forward(name: str, groups: list[list[Term]], sizes: Sizes, taken: set[int]) -> Kernel:
    lanes = groups[0][0].lanes
    width = tile_width(lanes, 32)
    text = Text(name, "x, y, w, out, others, edges, starts, n, R: tl.constexpr, C: tl.constexpr")
    tile_head(text, lanes, width)
    text.add("node = tile")
    held = []
    for group in groups:
        number = text.number()
        held.append([f"s{number}_{k}" for k in range(group[0].dims[2])])
        text.zeros(held[-1])
    with text.loop(over_edges(text)):
        edge_rows(text, lanes)
        row_pointers(text, sizes, x="other", y="edge", w="edge")
        for group, sums in zip(groups, held, strict=True):
            sum_terms(text, group, sums)
    text.add(f"inside = channel < {lanes}")
    for group, sums in zip(groups, held, strict=True):
        term, add = group[0], group[0].block in taken
        taken.add(term.block)
        text.add(f"to = out + node * {sizes.dims[2]} + ({term.start} + channel * {term.dims[2]})")
        for k, s in enumerate(sums):
            more = f" + tl.load(to + {k}, mask=inside, other=0.0)" if add else ""
            text.add(f"tl.store(to + {k}, {summed(s, 0)}{more}, mask=inside)")
    return Kernel(name, "\n".join(text.lines), LANES // width, lanes, -(-lanes // width))
