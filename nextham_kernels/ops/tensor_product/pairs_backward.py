"""Triton source of the derivatives of a product's paths whose pairs of channels have one weight each.

Tiles [rows, channels]: a lane holds one channel of one operand and its gradient in registers. The gradient of an
operand with one channel (the harmonics) is a sum over the channels of a row; each kernel leaves its own part of it, and
the parts are added up in their order. Weights that all rows share get their gradient likewise, in a part for each run
of rows.
"""

from __future__ import annotations

from nextham_kernels.ops.tensor_product.lanes import Term, other_view
from nextham_kernels.ops.tensor_product.text import (
    LANES,
    Kernel,
    Sizes,
    Text,
    cost_of,
    edge_rows,
    over_edges,
    row_pointers,
    split_program,
    summed,
    tile_head,
    tile_rows,
    tile_width,
)

__all__ = ["backward", "pull_pair", "put", "reduce_lanes", "summed_weights"]

BACKWARD = 260
"""Coefficients of a kernel: each stands for three times the arithmetic of one forward."""

View = tuple[Term, bool, bool, bool]


def _views(terms: list[Term], needs: tuple[bool, ...], sizes: Sizes) -> list[View]:
    """Terms as the backward kernels see them, each with what it gives: its lanes' operand, the other, the weights."""
    found = []
    for term in terms:
        own, other = needs[term.lane], needs[1 - term.lane]
        weights = needs[2] and term.weight >= 0 and not (sizes.shared and term.steps > 1)
        if term.steps == 1:
            found.append((term, own, other, weights))
        else:
            found.append((term, own, False, weights))
            found.append((other_view(term), other, False, False))
    return [view for view in found if any(view[1:])]


def backward(
    terms: list[Term],
    sizes: Sizes,
    needs: tuple[bool, ...],
    taken: set[tuple[int, int]],
    parts: list[int],
    conv: bool,
) -> list[Kernel]:
    """Kernels of the gradients, but of weights that rows share and steps use: those are `summed_weights`.

    Args:
        terms: the paths.
        sizes: of the rows.
        needs: which of the gradients of x, y and the weights are wanted.
        taken: (operand, block) whose gradients are written already; those of these paths are put into it.
        parts: how many parts of the gradients of x and y there are already.
        conv: rows are edges, x and its gradient nodes.
    """
    found: list[list[View]] = []
    for view in sorted(_views(terms, needs, sizes), key=_order):
        fits = bool(found) and _order(found[-1][0])[:2] == _order(view)[:2]
        fits = fits and cost_of([t for t, *_ in (*found[-1], view)]) <= BACKWARD
        fits = fits and not (conv and found[-1][0][0].blocks[0] != view[0].blocks[0])
        found[-1].append(view) if fits else found.append([view])
    kernels = []
    for i, members in enumerate(found):
        name = f"{'conv_' if conv else ''}backward_{i}"
        kernel = _backward(name, members, sizes, taken, parts[1 - members[0][0].lane], conv)
        if kernel.other >= 0:
            parts[kernel.other] += kernel.parts
        kernels.append(kernel)
    return kernels


def _order(view: View) -> tuple[int, int, int]:
    return view[0].lane, view[0].lanes, _lane_block(view[0])


def _lane_block(term: Term) -> int:
    return term.blocks[term.lane]


def _backward(name: str, members: list[View], sizes: Sizes, taken: set, part: int, conv: bool) -> Kernel:
    first = members[0][0]
    lane, lanes = first.lane, first.lanes
    width = tile_width(lanes)
    chunks, rows = -(-lanes // width), LANES // width
    # Sums over steps, or over the rows of a program, must exist before the loops.
    reduced = {t.blocks[1 - lane]: t for t, _, other, _ in members if other and not t.paired}
    shared = [t for t, _, _, weights in members if weights and sizes.shared]
    text = Text(
        name,
        "g, x, y, w, gx, gy, gw, part, others, edges, starts, per, n, R: tl.constexpr, C: tl.constexpr",
    )
    tile_head(text, lanes, width)
    sums_w = {t.path: f"gw{t.path}" for t in shared}
    text.zeros(list(sums_w.values()))
    blocks = list(dict.fromkeys(_lane_block(t) for t, own, _, _ in members if own))
    sums_a = {b: [f"ga{b}_{i}" for i in range(_dim(members, b, lane))] for b in blocks}
    if conv:
        for names in sums_a.values():
            text.zeros(names)
        text.add("node = tile")
        row_pointers(text, sizes, x="node")
        text.add(f"real = c < {lanes}")
        text.inside = "real"
        for t, *_ in members:
            text.operand(t, 0)
        text.inside = "inside"
        header = over_edges(text)
    elif shared:
        header = "step in range(0, per)"
    with text.loop(header if conv or shared else "", conv or bool(shared)):
        if conv:
            edge_rows(text, lanes)
            row_pointers(text, sizes, y="edge", w="edge", g="other")
            text.add("row = edge")
        else:
            tile_rows(text, lanes, "(tile * per + step)" if shared else "tile")
            row_pointers(text, sizes, x="row", y="row", w="row", g="row")
        sums_b = {b: [f"gb{b}_{j}" for j in range(t.dims[1 - lane])] for b, t in reduced.items()}
        for names in sums_b.values():
            text.zeros(names)
        paired = list(dict.fromkeys(t.blocks[1 - lane] for t, _, other, _ in members if other and t.paired))
        sums_p = {b: [f"gp{b}_{j}" for j in range(_dim(members, b, 1 - lane))] for b in paired}
        for names in sums_p.values():
            text.zeros(names)
        for i, (term, own, other, weights) in enumerate(members):
            block = _lane_block(term)
            opens = i == 0 or _lane_block(members[i - 1][0]) != block
            closes = i + 1 == len(members) or _lane_block(members[i + 1][0]) != block
            if block in sums_a and opens and not conv:
                text.zeros(sums_a[block])
            sums_other = (sums_p if term.paired else sums_b).get(term.blocks[1 - lane]) if other else None
            _pull(text, term, sums_a[block] if own else None, sums_other, weights, sums_w.get(term.path), sizes)
            if block in sums_a and closes and not conv:
                put(text, lane, term.starts[lane], sums_a[block], sizes, (lane, block), taken)
        for b, names in sums_p.items():
            start = next(t.starts[1 - lane] for t, *_ in members if t.blocks[1 - lane] == b)
            put(text, 1 - lane, start, names, sizes, (1 - lane, b), taken)
        if reduced:
            tile = "(tile * per + step)" if shared else "tile"
            reduce_lanes(text, sums_b, reduced, sizes.dims[1 - lane], part, 1 - lane, tile, conv)
    if conv:
        text.add(f"inside = channel < {lanes}")
        for b, names in sums_a.items():
            start = next(t.starts[0] for t, *_ in members if t.blocks[0] == b)
            text.add(f"to = gx + node * {sizes.dims[0]} + ({start} + channel * {len(names)})")
            for i, s in enumerate(names):
                more = f" + tl.load(to + {i}, mask=inside, other=0.0)" if (0, b) in taken else ""
                text.add(f"tl.store(to + {i}, {summed(s, 0)}{more}, mask=inside)")
            taken.add((0, b))
    if shared:
        text.add(f"inside = channel < {lanes}", f"to = gw + tile * {sizes.n_weights}")
        for t in shared:
            place = f"to + ({t.weight} + {t.pair('channel')})"
            text.add(f"tl.store({place}, {summed(sums_w[t.path], 0)}, mask=inside)")
    other = 1 - lane if reduced else -1
    return Kernel(name, "\n".join(text.lines), rows, lanes, chunks, other, chunks * bool(reduced), bool(shared))


def _dim(members: list[tuple], block: int, operand: int) -> int:
    return next(t.dims[operand] for t, *_ in members if t.blocks[operand] == block)


def _pull(
    text: Text,
    term: Term,
    own: list[str] | None,
    other: list[str] | None,
    weights: bool,
    sum_w: str | None,
    sizes: Sizes,
) -> None:
    """Adds what a term gives to the gradients."""
    lane = term.lane
    text.operand(term, lane)
    if term.out_channel() == "c":
        text.result(term)
    with text.loop(f"s in range({term.steps})", term.steps > 1):
        a, b, g = text.operand(term, lane), text.operand(term, 1 - lane), text.result(term)
        weight = text.weight(term)
        of_weight = pull_pair(text, term, a, b, g, weight, own, other, weights)
        if weights and sum_w:
            text.add(f"{sum_w} = {sum_w} + {of_weight}")
        elif weights:
            exists = f"inside & {term.exists()}" if term.triangle else "inside"
            place = f"gw + row * {sizes.n_weights} + ({term.weight} + {term.pair()})"
            text.add(f"tl.store({place}, {of_weight}, mask={exists})")


def pull_pair(
    text: Text,
    term: Term,
    a: list[str],
    b: list[str],
    g: list[str],
    weight: str,
    own: list[str] | None,
    other: list[str] | None,
    weights: bool,
) -> str:
    """Derivatives of one pair of channels; returns the name of that by its weight.

    With d_ij = Σ_k C_ijk g_k: ∂/∂a_i = w Σ_j d_ij b_j, ∂/∂b_j = w Σ_i d_ij a_i, ∂/∂w = Σ_ij d_ij a_i b_j.
    """
    n, lane = text.number(), term.lane
    rows: dict[int, dict[int, list[tuple[int, float]]]] = {}
    for i, j, k, value in term.entries:
        i, j = (i, j) if lane == 0 else (j, i)
        rows.setdefault(i, {}).setdefault(j, []).append((k, value))
    begun = False
    for i, columns in sorted(rows.items()):
        if other and weight:
            text.add(f"aw{n} = {a[i]} * {weight}")
        for m, (j, entries) in enumerate(sorted(columns.items())):
            text.add(f"d{n} = " + " + ".join(f"{value!r} * {g[k]}" for k, value in entries))
            if own or weights:
                text.add(f"h{n} = d{n} * {b[j]}" if m == 0 else f"h{n} = h{n} + d{n} * {b[j]}")
            if other:
                text.add(f"{other[j]} = {other[j]} + d{n} * {f'aw{n}' if weight else a[i]}")
        if own:
            text.add(f"{own[i]} = {own[i]} + {f'{weight} * ' if weight else ''}h{n}")
        if weights:
            text.add(f"u{n} = u{n} + {a[i]} * h{n}" if begun else f"u{n} = {a[i]} * h{n}")
            begun = True
    return f"u{n}"


def put(text: Text, operand: int, start: int, names: list[str], sizes: Sizes, key: tuple[int, int], taken: set) -> None:
    """Writes the gradient of a block whose channels are lanes."""
    pointer = f"{('gx', 'gy')[operand]} + row * {sizes.dims[operand]} + ({start} + c * {len(names)})"
    text.store(pointer, names, "inside", key in taken)
    taken.add(key)


def reduce_lanes(
    text: Text,
    sums: dict[int, list[str]],
    terms: dict[int, Term],
    d: int,
    part: int,
    operand: int,
    tile: str = "tile",
    conv: bool = False,
) -> None:
    """Writes sums over lanes, and zeros for the operand's other blocks, into the part of this kernel and chunk."""
    if conv:
        text.add(
            "at1 = position + tl.arange(0, R)", "real1 = at1 < end", "row1 = tl.load(edges + at1, mask=real1, other=0)"
        )
    else:
        text.add(f"row1 = {tile} * R + tl.arange(0, R)", "real1 = row1 < n")
    text.add(f"to = part + (row1 + n.to(tl.int64) * ({part} + chunk)) * {d}", "nothing = tl.zeros((R,), dtype=T)")
    written = set()
    for block, names in sums.items():
        start = terms[block].starts[operand]
        for j, name in enumerate(names):
            text.add(f"tl.store(to + {start + j}, {summed(name, 1)}, mask=real1)")
            written.add(start + j)
    missing = [j for j in range(d) if j not in written]
    text.add(*(f"tl.store(to + {j}, nothing, mask=real1)" for j in missing))


def summed_weights(terms: list[Term], sizes: Sizes) -> list[Kernel]:
    """Kernels of the gradient of weights that all rows share, of paths with steps: a step is a program."""
    found = []
    for term in terms:
        if term.weight < 0 or term.steps == 1 or not sizes.shared:
            continue
        name, width = f"weights_{term.path}", tile_width(term.lanes)
        chunks = -(-term.lanes // width)
        text = Text(name, "g, x, y, gw, per, n, R: tl.constexpr, C: tl.constexpr")
        text.add(
            "T = x.dtype.element_ty",
            *split_program(chunk=chunks, s=term.steps),
            "slot = tl.arange(0, R * C)",
            "channel = chunk * C + tl.arange(0, C)",
            "c = chunk * C + slot % C",
        )
        text.zeros(["total"])
        with text.loop("step in range(0, per)"):
            tile_rows(text, term.lanes, "(tile * per + step)")
            row_pointers(text, sizes, x="row", y="row", g="row")
            a, b, g = text.operand(term, term.lane), text.operand(term, 1 - term.lane), text.result(term)
            text.add(f"total = total + {pull_pair(text, term, a, b, g, '', None, None, True)}")
        exists = f" & {term.exists('channel')}" if term.triangle else ""
        place = f"gw + tile * {sizes.n_weights} + ({term.weight} + {term.pair('channel')})"
        text.add(f"tl.store({place}, {summed('total', 0)}, mask=(channel < {term.lanes}){exists})")
        found.append(Kernel(name, "\n".join(text.lines), LANES // width, term.lanes, chunks * term.steps, weights=True))
    return found
