"""Triton source of products whose weights are made from hidden features, w_ep = Σ_h t_eh W_hp, inside the kernels.

For paths of mode 'uvu' with one channel of y. The weights of two paths and 16 channels are one product on the tensor
cores, [rows, h] × [h, 32], and live in registers: neither the weights of an edge nor their gradients are ever in
memory. W comes from the caches, 4 h / rows bytes for each weight of a row, so tiles have the most rows that registers
allow.

Forward over a graph: a program is a node and 16 channels, and sums its edges. Backward: a program is a tile of rows and
goes through the channels, so that the gradients of y and of the hidden features are sums in its registers; over a graph
it reads x and the gradient by index, and leaves the gradient of x for each edge. The gradient of W is a product over
the rows of hidden features and of the weights' gradients, which are made again, in a part for each run of rows.
"""

from __future__ import annotations

import itertools

from nextham_kernels.ops.tensor_product.lanes import Term
from nextham_kernels.ops.tensor_product.pairs import grouped, sum_terms
from nextham_kernels.ops.tensor_product.pairs_backward import pull_pair, put
from nextham_kernels.ops.tensor_product.text import (
    Kernel,
    Sizes,
    Text,
    cost_of,
    edge_rows,
    over_edges,
    power_of_two,
    row_pointers,
    summed,
    tile_head,
    tile_rows,
)

__all__ = ["CHANNELS", "backward", "forward", "summed_weights"]

CHANNELS = 16
"""Channels of a tile, the least that tensor cores take."""
EDGES = 16
"""Rows of a tile over a graph, as most nodes have some tens of edges, and of backward kernels, which hold more."""
WARPS = 8
COEFFICIENTS = 220
"""Coefficients of a backward kernel: more spill."""
OTHERS = 12
"""Components of y whose gradient a backward kernel sums in registers."""
NUMBERS = 48
"""Components of x, y and results that a lane may hold."""
MATRICES = 8
"""Paths of a kernel of W's gradient: a sum [h, 16] of each, four registers of a thread with 64 hidden features."""


def _tile(components: int, rows: int) -> int:
    """Rows of a tile: fewer where so many components for each of its lanes would not stay in registers."""
    return rows if components <= NUMBERS else rows // 2


def _size(hidden: int) -> int:
    """Hidden features of a tile."""
    return max(16, power_of_two(hidden))


def _hidden_rows(text: Text, row: str, there: str, n_hidden: int) -> None:
    """Adds where the hidden features of a tile's rows begin, and which rows exist."""
    text.add(f"tr = hidden + {row} * {n_hidden}", f"there2 = {there}")


def forward(terms: list[Term], sizes: Sizes, hidden: int, taken: set[int], conv: bool) -> list[Kernel]:
    """Kernels of the result; over a graph (`conv`) they sum the edges of each node."""
    write = _conv_forward if conv else _forward
    return [
        write(f"radial_{'conv' if conv else 'forward'}_{i}", groups, sizes, hidden, taken)
        for i, groups in enumerate(grouped(terms, conv))
    ]


def _forward(name: str, groups: list[list[Term]], sizes: Sizes, hidden: int, taken: set[int]) -> Kernel:
    lanes = groups[0][0].lanes
    text = Text(name, "x, y, hidden, m, out, once, n, R: tl.constexpr, C: tl.constexpr, P: tl.constexpr")
    tile_head(text, lanes, CHANNELS)
    text.add("first = chunk * C")
    tile_rows(text, lanes)
    text.add("row2 = tile * R + tl.arange(0, R)[:, None]")
    _hidden_rows(text, "row2", "row2 < n", hidden)
    row_pointers(text, sizes, x="row", y="row", out="row")
    for i in range(0, len(groups), 2):
        with text.scope():  # operands that stay for all paths would not stay in registers
            text.make([t for group in groups[i : i + 2] for t in group], hidden, sizes.n_weights)
            for group in groups[i : i + 2]:
                term, add = group[0], group[0].block in taken
                taken.add(term.block)
                text.store(f"outr + ({term.start} + c * {term.dims[2]})", sum_terms(text, group, None), "inside", add)
    rows = _tile(max(sum(t.dims) for group in groups for t in group), 32)
    chunks = -(-lanes // CHANNELS)
    return Kernel(name, "\n".join(text.lines), rows, lanes, chunks, pairs=CHANNELS, warps=WARPS)


def _conv_forward(name: str, groups: list[list[Term]], sizes: Sizes, hidden: int, taken: set[int]) -> Kernel:
    lanes = groups[0][0].lanes
    text = Text(
        name,
        "x, y, hidden, m, out, others, edges, starts, once, n, R: tl.constexpr, C: tl.constexpr, P: tl.constexpr",
    )
    tile_head(text, lanes, CHANNELS)
    text.add("node = tile", "first = chunk * C")
    held = []
    for group in groups:
        number = text.number()
        held.append([f"s{number}_{k}" for k in range(group[0].dims[2])])
        text.zeros(held[-1])
    with text.loop(over_edges(text)):
        edge_rows(text, lanes)
        text.add(
            "at2 = position + tl.arange(0, R)[:, None]",
            "edge2 = tl.load(edges + at2, mask=at2 < end, other=0)",
        )
        _hidden_rows(text, "edge2", "at2 < end", hidden)
        row_pointers(text, sizes, x="other", y="edge")
        for i in range(0, len(groups), 2):
            with text.scope():
                text.make([t for group in groups[i : i + 2] for t in group], hidden, sizes.n_weights)
                for group, sums in zip(groups[i : i + 2], held[i : i + 2], strict=True):
                    sum_terms(text, group, sums)
    text.add(f"inside = channel < {lanes}")
    for group, sums in zip(groups, held, strict=True):
        term, add = group[0], group[0].block in taken
        taken.add(term.block)
        text.add(f"to = out + node * {sizes.dims[2]} + ({term.start} + channel * {term.dims[2]})")
        for k, s in enumerate(sums):
            more = f" + tl.load(to + {k}, mask=inside, other=0.0)" if add else ""
            text.add(f"tl.store(to + {k}, {summed(s, 0)}{more}, mask=inside)")
    chunks = -(-lanes // CHANNELS)
    return Kernel(name, "\n".join(text.lines), EDGES, lanes, chunks, pairs=CHANNELS, warps=WARPS)


def _groups(terms: list[Term], limit: int) -> list[list[Term]]:
    """Terms of equally many lanes and few blocks of y, those of one block of x together."""
    found: list[list[Term]] = []
    sizes = {t.blocks[1]: t.dims[1] for t in terms}
    places = dict(zip(sorted(sizes), itertools.accumulate(sizes[b] for b in sorted(sizes)), strict=True))
    for term in sorted(terms, key=lambda t: (t.lanes, places[t.blocks[1]] // OTHERS, t.blocks[0])):
        members = [*found[-1], term] if found else [term]
        fits = len(members) > 1 and members[0].lanes == term.lanes and len(members) <= limit
        fits = fits and cost_of(members) <= COEFFICIENTS
        fits = fits and sum({t.blocks[1]: t.dims[1] for t in members}.values()) <= OTHERS
        found[-1].append(term) if fits else found.append([term])
    return found


def _rows_of(text: Text, sizes: Sizes, hidden: int, conv: bool, tile: str = "tile") -> None:
    """Adds the rows of a tile, their hidden features and where they read."""
    text.add(
        f"row = {tile} * R + slot // C",
        "there = row < n",
        f"row2 = {tile} * R + tl.arange(0, R)[:, None]",
    )
    if conv:
        text.add("to_g = tl.load(rows + row, mask=there, other=0)", "to_x = tl.load(cols + row, mask=there, other=0)")
    _hidden_rows(text, "row2", "row2 < n", hidden)
    row_pointers(text, sizes, x="to_x" if conv else "row", y="row", g="to_g" if conv else "row")


def backward(
    terms: list[Term], sizes: Sizes, hidden: int, needs: tuple[bool, ...], taken: set[tuple[int, int]], conv: bool
) -> list[Kernel]:
    """Kernels of the gradients of x, y and the hidden features (`needs`); those of y and hidden are added to zeros."""
    if not any(needs[:3]):
        return []
    return [
        _backward(f"radial_backward_{i}", members, sizes, hidden, needs, taken, conv)
        for i, members in enumerate(_groups(terms, len(terms)))
    ]


def _backward(
    name: str,
    members: list[Term],
    sizes: Sizes,
    hidden: int,
    needs: tuple[bool, ...],
    taken: set[tuple[int, int]],
    conv: bool,
) -> Kernel:
    lanes = members[0].lanes
    text = Text(
        name,
        "g, x, y, hidden, m, gx, gy, gt, rows, cols, once, n, R: tl.constexpr, C: tl.constexpr, P: tl.constexpr",
    )
    text.make(members, hidden, sizes.n_weights)
    text.add("T = x.dtype.element_ty", "tile = tl.program_id(0).to(tl.int64)", "slot = tl.arange(0, R * C)")
    _rows_of(text, sizes, hidden, conv)
    sums_y = {t.blocks[1]: [f"gb{t.blocks[1]}_{j}" for j in range(t.dims[1])] for t in members if needs[1]}
    for names in sums_y.values():
        text.zeros(names)
    weighted = any(t.weight >= 0 for t in members)
    if needs[2] and weighted:
        text.add(
            f"h = tl.arange(0, {_size(hidden)})",
            f"of_t = tl.zeros((R, {_size(hidden)}), dtype=T)",
        )
    with text.loop(f"c0 in range(0, {lanes} * once, C)"):
        text.add("first = c0", "channel = c0 + tl.arange(0, C)", "c = c0 + slot % C", f"inside = there & (c < {lanes})")
        pulled: dict[int, str] = {}
        for at in range(0, len(members), 2):
            with text.scope():  # operands that stay for all paths would not stay in registers
                text.make(members[at : at + 2], hidden, sizes.n_weights)
                for i, term in enumerate(members[at : at + 2], at):
                    block = term.blocks[0]
                    own = [f"ga{block}_{j}" for j in range(term.dims[0])] if needs[0] else None
                    if own and (i == 0 or members[i - 1].blocks[0] != block):
                        text.zeros(own)
                    a, b, g = text.operand(term, 0), text.operand(term, 1), text.result(term)
                    weight, weights = text.weight(term), needs[2] and term.weight >= 0
                    of_weight = pull_pair(text, term, a, b, g, weight, own, sums_y.get(term.blocks[1]), weights)
                    if weights:
                        pulled[term.path] = of_weight
                        n, joined = _joined(text, term, pulled)
                        if n:
                            text.add(
                                f"mt = tl.load(m + h[None, :] * {sizes.n_weights} + from{n}[:, None], "
                                f"mask=(h[None, :] < {hidden}) & real{n}[:, None], other=0.0)",
                                f"of_t = tl.dot({joined}, mt, of_t, input_precision=P, out_dtype=T)",
                            )
                    if own and (i + 1 == len(members) or members[i + 1].blocks[0] != block):
                        put(text, 0, term.starts[0], own, sizes, (0, block), taken)
    if sums_y:
        text.add("row1 = tile * R + tl.arange(0, R)", f"to = gy + row1 * {sizes.dims[1]}")
    for block, names in sums_y.items():
        start = next(t.starts[1] for t in members if t.blocks[1] == block)
        for j, value in enumerate(names):
            place = f"to + {start + j}"
            text.add(f"total = {summed(value, 1)} + tl.load({place}, mask=row1 < n, other=0.0)")
            text.add(f"tl.store({place}, total, mask=row1 < n)")
    if needs[2] and weighted:
        text.add(
            f"to2 = gt + row2 * {hidden} + h[None, :]",
            f"real = (row2 < n) & (h[None, :] < {hidden})",
            "tl.store(to2, of_t + tl.load(to2, mask=real, other=0.0), mask=real)",
        )
    return Kernel(name, "\n".join(text.lines), EDGES, lanes, pairs=CHANNELS, warps=WARPS, stages=1, registers=255)


def _joined(text: Text, term: Term, pulled: dict[int, str]) -> tuple[int, str]:
    """The gradients of the weights of a path and its partner as a matrix [R, 2 C], once both are there; else 0.

    Gathered, they keep the lanes' layout: else they would be made in that of the tensor cores' operands, in which
    threads hold lanes several times over.
    """
    if term is not text.couples[term.path][-1]:
        return 0, ""
    n, couple = text.couple(term)
    names = [pulled[t.path] for t in couple]
    if len(names) == 1:
        text.add(f"none = tl.zeros_like({names[0]})")
        names.append("none")
    text.add(f"joined{n} = tl.reshape(tl.join({names[0]}, {names[1]}), (R * C * 2,))")
    if ("places",) not in text.known:
        text.known["places",] = []
        text.add(
            "q = tl.arange(0, R * C * 2)",
            "places = (q // (2 * C) * C + q % C) * 2 + q // C % 2",
        )
    return n, f"tl.reshape(tl.gather(joined{n}, places, 0), (R, 2 * C))"


def summed_weights(terms: list[Term], sizes: Sizes, hidden: int, conv: bool) -> list[Kernel]:
    """Kernels of the gradient of W."""
    found = []
    for i, members in enumerate(_groups([t for t in terms if t.weight >= 0], MATRICES)):
        name, lanes = f"radial_weights_{i}", members[0].lanes
        text = Text(
            name,
            "g, x, y, hidden, m, gm, rows, cols, per, once, n, R: tl.constexpr, C: tl.constexpr, P: tl.constexpr",
        )
        size = _size(hidden)
        tile_head(text, lanes, CHANNELS)
        text.make(members, hidden, sizes.n_weights)
        text.add("first = chunk * C")
        text.add(*(f"of_m{t.path} = tl.zeros(({size}, 2 * C), dtype=T)" for t in members[::2]))
        with text.loop("step in range(0, per)"):
            _rows_of(text, sizes, hidden, conv, "(tile * per + step)")
            text.add(
                f"inside = there & (c < {lanes})",
                f"h = tl.arange(0, {size})",
                f"t = tl.load(tr + h[None, :], mask=there2 & (h[None, :] < {hidden}), other=0.0)",
                "by_hidden = tl.trans(t)",
            )
            pulled: dict[int, str] = {}
            for at in range(0, len(members), 2):
                with text.scope():
                    for term in members[at : at + 2]:
                        a, b, g = text.operand(term, 0), text.operand(term, 1), text.result(term)
                        pulled[term.path] = pull_pair(text, term, a, b, g, "", None, None, True)
                        n, joined = _joined(text, term, pulled)
                    total = f"of_m{members[at].path}"
                    text.add(f"{total} = tl.dot(by_hidden, {joined}, {total}, input_precision=P, out_dtype=T)")
        text.add(f"h2 = tl.arange(0, {size})[:, None]")
        text.add(f"to = gm + tile * {hidden * sizes.n_weights} + h2 * {sizes.n_weights}")
        for term in members[::2]:
            n, _ = text.couple(term)
            text.add(f"tl.store(to + from{n}[None, :], of_m{term.path}, mask=(h2 < {hidden}) & real{n}[None, :])")
        chunks = -(-lanes // CHANNELS)
        rows = _tile(max(sum(t.dims) for t in members), 32)
        source = "\n".join(text.lines)
        found.append(Kernel(name, source, rows, lanes, chunks, weights=True, pairs=CHANNELS, warps=WARPS, stages=1))
    return found
