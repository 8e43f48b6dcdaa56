"""Triton source of a product's paths that mix channels, z_w = Σ_q W_qw t_q over the pairs q of channels.

The products t of a tile [rows, pairs] are made in registers, once, and multiplied by the matrix W at once. Where rows
share W, all components of t are joined to one matrix [rows × components, pairs] for the tensor cores; one lane of a
thread, so that components up to l = 7 stay in registers. Where rows have their own W, it is a sum over the middle axis
of [rows, pairs, outputs], each weight read once. Backward: ∂/∂t = Σ_w W_qw g_w in the same way, then as for single
pairs. The loop over a path's pairs has a bound that the compiler does not know, which keeps the loads of one path from
being moved before those of another.

A path may have a weight of each pair too (`Term.weight`): so a product followed by a linear map is one kernel.
"""

from __future__ import annotations

from nextham_kernels.ops.tensor_product.lanes import Term, other_view
from nextham_kernels.ops.tensor_product.pairs_backward import pull_pair, put, reduce_lanes
from nextham_kernels.ops.tensor_product.text import (
    Kernel,
    Sizes,
    Text,
    joined_text,
    power_of_two,
    row_pointers,
    split_program,
    tile_rows,
    tile_width,
)

__all__ = ["backward", "forward", "summed_weights"]

PAIRS = 16
"""Pairs of a tile on tensor cores, the least that they take."""
STACK = 128
"""Rows × components of a tile on tensor cores, and at most 16 rows: one lane for each of 128 or 256 threads."""
SUMS = 8192
"""Numbers of z that a program holds on tensor cores: 32 or 64 for each thread."""
NUMBERS = 1024
"""Weights of a tile where rows have their own: eight for each thread."""
COEFFICIENTS = 300
"""Coefficients of a kernel."""
OTHERS = 12
"""Numbers of the other operand whose gradient a kernel sums in registers, beside the operands of the tensor cores."""
ARGUMENTS = "once, n, R: tl.constexpr, C: tl.constexpr, P: tl.constexpr"


def _outputs(term: Term, shared: bool) -> int:
    """Outputs of a tile."""
    if shared:
        return max(16, min(64, SUMS // STACK, power_of_two(term.outputs)))
    return min(32, power_of_two(term.outputs))


def _tile(terms: list[Term], shared: bool, outputs: int) -> tuple[int, int, int]:
    """Rows and pairs of a tile, and warps."""
    if shared:
        rows = min(16, STACK // max(power_of_two(t.dims[2]) for t in terms))
        return rows, PAIRS, rows * PAIRS // 32
    pairs = min(PAIRS, max(tile_width(t.lanes, PAIRS) for t in terms))
    return max(1, NUMBERS // (pairs * outputs)), pairs, 4


def forward(terms: list[Term], sizes: Sizes, taken: set[int]) -> list[Kernel]:
    """Kernels of the result; `taken` are the blocks that are written already."""
    found: list[list[Term]] = []
    for term in sorted(terms, key=lambda term: term.block):
        fits = bool(found) and found[-1][0].block == term.block
        fits = fits and sum(len(t.entries) for t in (*found[-1], term)) <= COEFFICIENTS
        found[-1].append(term) if fits else found.append([term])
    return [_forward(f"mix_{i}", members, sizes, taken) for i, members in enumerate(found)]


def _forward(name: str, members: list[Term], sizes: Sizes, taken: set[int]) -> Kernel:
    first = members[0]
    shared = sizes.shared_mix and all(t.mix >= 0 for t in members)
    o, dim = _outputs(first, shared), first.dims[2]
    rows, pairs, warps = _tile(members, shared, o)
    programs = -(-first.outputs // o)
    text = Text(name, f"x, y, w, m, out, {ARGUMENTS}")
    text.add(
        "T = x.dtype.element_ty",
        *split_program(part=programs),
        "slot = tl.arange(0, R * C)",
        "row = tile * R + slot // C",
        "there = row < n",
        "row2 = tile * R + tl.arange(0, R)[:, None]",
        "there2 = row2 < n",
        f"output = part * {o} + tl.arange(0, {o})",
    )
    row_pointers(text, sizes, x="row", y="row", w="row", m="row2", out="row2")
    text.add(*(["mr = m + row2 * 0"] if sizes.shared_mix and not shared else []))
    if shared:
        sums = ["z"]
        text.add(f"z = tl.zeros((R * {power_of_two(dim)}, {o}), dtype=T)")
    else:
        sums = [f"z{k}" for k in range(dim)]
        text.add(*(f"{z} = tl.zeros((R, {o}), dtype=T)" for z in sums))
    for term in members:
        with text.scope(), text.loop(f"s in range({term.steps})", term.steps > 1):
            with text.loop(f"c0 in range(0, {term.lanes} * once, C)"):
                text.add("channel = c0 + tl.arange(0, C)", "c = c0 + slot % C", f"inside = there & (c < {term.lanes})")
                t = text.product(term, text.operand(term, 0), text.operand(term, 1), text.weight(term))
                if shared:
                    _matrix(text, term, "output[None, :]", "[:, None]", f"output[None, :] < {term.outputs}")
                    text.add(f"z = tl.dot({_stacked(text, t)}, matrix, z, input_precision=P, out_dtype=T)")
                    continue
                text.add(*(f"{v} = tl.reshape({v}, (R, C))" for v in t))
                if term.mix < 0:
                    text.add(*(f"{z} = {z} + tl.sum({v}, axis=1)[:, None]" for z, v in zip(sums, t, strict=True)))
                else:
                    _row_matrix(text, term)
                    sum_ = "tl.sum({}[:, :, None] * matrix, axis=1)"
                    text.add(*(f"{z} = {z} + {sum_.format(v)}" for z, v in zip(sums, t, strict=True)))
    add = first.block in taken
    if shared:
        to, mask = _stacked_rows(text, first, "out", sizes.dims[2])
        text.add(f"to = {to}")
        text.add(*([f"z = z + tl.load(to, mask={mask}, other=0.0)"] if add else []))
        text.add(f"tl.store(to, z, mask={mask})")
    else:
        text.shape = f"R, {o}"
        pointer = f"outr + ({first.start} + output[None, :] * {dim})"
        text.store(pointer, sums, f"there2 & (output[None, :] < {first.outputs})", add)
    taken.add(first.block)
    return Kernel(name, "\n".join(text.lines), rows, 0, programs, pairs=pairs, warps=warps)


def _stacked(text: Text, names: list[str]) -> str:
    """The components of lanes [rows, pairs] as one matrix [rows × components, pairs]."""
    size = power_of_two(len(names))
    if size > len(names):
        text.add(f"none = tl.zeros_like({names[0]})")
    joined = joined_text([*names, *["none"] * (size - len(names))])
    return f"tl.reshape(tl.permute(tl.reshape({joined}, (R, C, {size})), (0, 2, 1)), (R * {size}, C))"


def _unstacked(text: Text, name: str, dim: int, size: int) -> list[str]:
    """Components of lanes from a matrix [rows × components, pairs]."""
    text.add(f"{name} = tl.reshape(tl.permute(tl.reshape({name}, (R, {size}, C)), (0, 2, 1)), (R * C, {size}))")

    def halves(part: str, size: int) -> list[str]:
        if size == 1:
            text.add(f"{part} = tl.reshape({part}, (R * C,))")
            return [part]
        text.add(f"{part}e, {part}o = tl.split(tl.reshape({part}, (R * C, {size // 2}, 2)))")
        even, odd = halves(f"{part}e", size // 2), halves(f"{part}o", size // 2)
        return [v for pair in zip(even, odd, strict=True) for v in pair]

    return halves(name, size)[:dim]


def _stacked_rows(text: Text, term: Term, tensor: str, d: int, least: int = 1) -> tuple[str, str]:
    """Where the numbers [rows × components, outputs] of a block of the result lie, and which exist."""
    dim = term.dims[2]
    size = max(least, power_of_two(dim))
    key = ("stack", size)
    if key not in text.known:
        text.add(
            f"h{size} = tl.arange(0, R * {size})[:, None]",
            f"r{size} = tile * R + h{size} // {size}",
            f"l{size} = h{size} % {size}",
        )
        text.known[key] = []
    place = f"{tensor} + r{size} * {d} + ({term.start} + output[None, :] * {dim} + l{size})"
    return place, f"(r{size} < n) & (l{size} < {dim}) & (output[None, :] < {term.outputs})"


def _matrix(text: Text, term: Term, output: str, axis: str, exists: str) -> None:
    """Adds the load of shared weights [pairs, outputs], or [outputs, pairs] with the channels on the last axis."""
    c = f"channel{axis}"
    mask = f"({c} < {term.lanes}) & ({exists})"
    mask += f" & {term.exists(c)}" if term.triangle else ""
    place = f"m + ({term.mix} + {term.pair(c)} * {term.outputs} + {output})"
    text.add(f"matrix = tl.load({place}, mask={mask}, other=0.0)")


def _row_matrix(text: Text, term: Term) -> None:
    """Adds the load of each row's own weights [rows, pairs, outputs]."""
    c = "channel[None, :, None]"
    exists = f" & {term.exists(c)}" if term.triangle else ""
    text.add(
        "o3 = output[None, None, :]",
        f"mask3 = there2[:, :, None] & ({c} < {term.lanes}) & (o3 < {term.outputs}){exists}",
        f"place3 = {term.mix} + {term.pair(c)} * {term.outputs} + o3",
        "matrix = tl.load(mr[:, :, None] + place3, mask=mask3, other=0.0)",
    )


View = tuple[Term, bool, bool, bool, bool]


def _views(terms: list[Term], needs: tuple[bool, ...], sizes: Sizes) -> list[View]:
    """Terms with what they give: their lanes' operand, the other, weights of pairs, weights of the mix of each row."""
    found: list[View] = []
    for term in terms:
        own, other = needs[term.lane], needs[1 - term.lane]
        weights = needs[2] and term.weight >= 0
        mix = needs[3] and term.mix >= 0 and not sizes.shared_mix
        if term.steps == 1:
            found.append((term, own, other, weights, mix))
        else:
            found.append((term, own, False, weights, mix))
            found.append((other_view(term), other, False, False, False))
    return [view for view in found if any(view[1:])]


def backward(
    terms: list[Term], sizes: Sizes, needs: tuple[bool, ...], taken: set[tuple[int, int]], parts: list[int]
) -> list[Kernel]:
    """Kernels of the gradients, but of shared weights of the mix: those are `summed_weights`.

    Args:
        terms: the paths.
        sizes: of the rows.
        needs: which of the gradients of x, y, weights of pairs and weights of the mix are wanted.
        taken: (operand, block) whose gradients are written already; those of these paths are put into it.
        parts: how many parts of the gradients of x and y there are already.
    """

    def order(view: View) -> tuple:
        term = view[0]
        return term.lane, term.lanes, term.blocks[term.lane], power_of_two(term.dims[2])

    found: list[list[View]] = []
    for view in sorted(_views(terms, needs, sizes), key=order):
        fits = bool(found) and order(found[-1][0])[:2] == order(view)[:2]
        fits = fits and sum(len(t.entries) for t, *_ in (*found[-1], view)) <= COEFFICIENTS // 2
        fits = fits and _others([*found[-1], view]) <= OTHERS
        fits = fits and len({power_of_two(t.dims[2]) for t, *_ in (*found[-1], view)}) == 1
        found[-1].append(view) if fits else found.append([view])
    kernels = []
    for i, members in enumerate(found):
        kernel = _backward(f"mix_backward_{i}", members, sizes, taken, parts[1 - members[0][0].lane])
        if kernel.other >= 0:
            parts[kernel.other] += kernel.parts
        kernels.append(kernel)
    return kernels


def _others(members: list[View]) -> int:
    """Numbers of the other operand that a kernel sums the gradient of."""
    return sum({t.blocks[1 - t.lane]: t.dims[1 - t.lane] for t, *_ in members}.values())


def _backward(name: str, members: list[View], sizes: Sizes, taken: set, part: int) -> Kernel:
    first = members[0][0]
    lane, lanes = first.lane, first.lanes
    shared = sizes.shared_mix and all(t.mix >= 0 for t, *_ in members)
    outputs = max(_outputs(t, shared) for t, *_ in members)
    outputs = min(16, outputs) if shared else outputs
    rows, pairs, warps = _tile([t for t, *_ in members], shared, outputs)
    chunks = -(-lanes // pairs)
    text = Text(name, f"g, x, y, w, m, gx, gy, gw, gm, part, {ARGUMENTS}")
    text.add(
        "T = x.dtype.element_ty",
        *split_program(chunk=chunks),
        "slot = tl.arange(0, R * C)",
        "channel = chunk * C + tl.arange(0, C)",
        "c = chunk * C + slot % C",
        "row2 = tile * R + tl.arange(0, R)[:, None]",
        "there2 = row2 < n",
    )
    tile_rows(text, lanes)
    row_pointers(text, sizes, x="row", y="row", w="row", m="row2", g="row2")
    text.add(*(["mr = m + row2 * 0"] if sizes.shared_mix and not shared else []))
    reduced = {t.blocks[1 - lane]: t for t, _, other, *_ in members if other and not t.paired}
    paired = {t.blocks[1 - lane]: t for t, _, other, *_ in members if other and t.paired}
    sums_b = {b: [f"gb{b}_{j}" for j in range(t.dims[1 - lane])] for b, t in {**reduced, **paired}.items()}
    for names in sums_b.values():
        text.zeros(names)
    sums_a: dict[int, list[str]] = {}
    for i, (term, own, other, weights, mix) in enumerate(members):
        block = term.blocks[lane]
        if own and block not in sums_a:
            sums_a[block] = [f"ga{block}_{i}" for i in range(term.dims[lane])]
            text.zeros(sums_a[block])
        text.operand(term, lane)
        with text.loop(f"s in range({term.steps} * once)"):
            of_b = sums_b[term.blocks[1 - lane]] if other else None
            _pull(text, term, sums_a[block] if own else None, of_b, weights, mix, sizes, outputs, shared)
        if own and (i + 1 == len(members) or members[i + 1][0].blocks[lane] != block):
            put(text, lane, term.starts[lane], sums_a[block], sizes, (lane, block), taken)
    for b, term in paired.items():
        put(text, 1 - lane, term.starts[1 - lane], sums_b[b], sizes, (1 - lane, b), taken)
    if reduced:
        reduce_lanes(text, {b: sums_b[b] for b in reduced}, reduced, sizes.dims[1 - lane], part, 1 - lane)
    other = 1 - lane if reduced else -1
    parts = chunks * bool(reduced)
    return Kernel(name, "\n".join(text.lines), rows, lanes, chunks, other, parts, pairs=pairs, warps=warps)


def _pull(
    text: Text,
    term: Term,
    own: list[str] | None,
    other: list[str] | None,
    weights: bool,
    mix: bool,
    sizes: Sizes,
    outputs: int,
    shared: bool,
) -> None:
    """Adds what a term gives to the gradients."""
    a, b, weight = text.operand(term, term.lane), text.operand(term, 1 - term.lane), text.weight(term)
    n, exists = text.number(), term.exists()
    several = term.outputs > outputs
    loop = f"o0 in range(0, {term.outputs} * once, {outputs})"
    first = f"output = {'o0' if several else '0'} + tl.arange(0, {outputs})"
    if shared:
        # Two components at least: unstacked by a split, they leave the tensor cores' layout, in which a scalar's
        # gradient would be four numbers for each thread, and with it all that it meets.
        size = max(2, power_of_two(term.dims[2]))
        text.add(f"f{n} = tl.zeros((R * {size}, C), dtype=T)")
        with text.loop(loop, several):
            text.add(first)
            place, there = _stacked_rows(text, term, "g", sizes.dims[2], 2)
            text.add(f"grad = tl.load({place}, mask={there}, other=0.0)")
            _matrix(text, term, "output[:, None]", "[None, :]", f"output[:, None] < {term.outputs}")
            text.add(f"f{n} = tl.dot(grad, matrix, f{n}, input_precision=P, out_dtype=T)")
        of_t = _unstacked(text, f"f{n}", term.dims[2], size)
    else:
        t = text.product(term, *((a, b) if term.lane == 0 else (b, a)), weight) if mix else []
        of_t = [f"f{n}_{k}" for k in range(term.dims[2])]
        text.add(*(f"{f} = tl.zeros((R, C), dtype=T)" for f in of_t))
        text.add(*(f"{v} = tl.reshape({v}, (R, C))" for v in t))
        with text.loop(loop, several):
            text.add(first, f"gp = gr + ({term.start} + output[None, :] * {term.dims[2]})")
            there = f"there2 & (output[None, :] < {term.outputs})"
            g = [f"g{n}_{k}" for k in range(term.dims[2])]
            text.add(*(f"{v} = tl.load(gp + {k}, mask={there}, other=0.0)" for k, v in enumerate(g)))
            if term.mix < 0:
                text.add(*(f"{f} = {f} + tl.sum({v}, axis=1)[:, None]" for f, v in zip(of_t, g, strict=True)))
            else:
                _row_matrix(text, term)
                for f, v in zip(of_t, g, strict=True):
                    text.add(f"{f} = {f} + tl.sum(matrix * {v}[:, None, :], axis=2)")
            if mix:
                outer = " + ".join(f"{p}[:, :, None] * {v}[:, None, :]" for p, v in zip(t, g, strict=True))
                text.add(f"to = gm + (row2 * {sizes.n_mix})[:, :, None] + place3")
                text.add(f"tl.store(to, {outer}, mask=mask3)")
        text.add(*(f"{f} = tl.reshape({f}, (R * C,))" for f in of_t))
    if not (own or other or weights):
        return
    of_weight = pull_pair(text, term, a, b, of_t, weight, own, other, weights)
    if weights:
        place = f"gw + row * {sizes.n_weights} + ({term.weight} + {term.pair()})"
        text.add(f"tl.store({place}, {of_weight}, mask={f'inside & {exists}' if exists else 'inside'})")


def summed_weights(terms: list[Term], sizes: Sizes) -> list[Kernel]:
    """Kernels of the gradient of a mix that all rows share: a product over the rows, on the tensor cores."""
    found = []
    for term in terms:
        if term.mix < 0 or not sizes.shared_mix:
            continue
        name = f"mix_weights_{term.path}_{term.block}"
        o = _outputs(term, True)
        rows, pairs, warps = _tile([term], True, o)
        chunks, outputs = -(-term.lanes // PAIRS), -(-term.outputs // o)
        programs = chunks * outputs * term.steps
        text = Text(name, f"g, x, y, w, gm, per, {ARGUMENTS}")
        text.add(
            "T = x.dtype.element_ty",
            *split_program(chunk=chunks, part=outputs, s=term.steps),
            "slot = tl.arange(0, R * C)",
            "channel = chunk * C + tl.arange(0, C)",
            "c = chunk * C + slot % C",
            f"output = part * {o} + tl.arange(0, {o})",
            f"total = tl.zeros((C, {o}), dtype=T)",
            "run = tile",
        )
        with text.loop("step in range(0, per)"):
            text.add("tile = run * per + step")
            tile_rows(text, term.lanes)
            row_pointers(text, sizes, x="row", y="row", w="row")
            t = text.product(term, text.operand(term, 0), text.operand(term, 1), text.weight(term))
            place, there = _stacked_rows(text, term, "g", sizes.dims[2])
            text.add(f"grad = tl.load({place}, mask={there}, other=0.0)")
            text.add(f"lanes = {_stacked(text, t)}")
            text.add("total = tl.dot(tl.trans(lanes), grad, total, input_precision=P, out_dtype=T)")
        c = "channel[:, None]"
        mask = f"({c} < {term.lanes}) & (output[None, :] < {term.outputs})"
        mask += f" & {term.exists(c)}" if term.triangle else ""
        place = f"{term.mix} + {term.pair(c)} * {term.outputs} + output[None, :]"
        text.add(f"tl.store(gm + run * {sizes.n_mix} + ({place}), total, mask={mask})")
        text_ = "\n".join(text.lines)
        found.append(Kernel(name, text_, rows, term.lanes, programs, weights=True, pairs=pairs, warps=warps))
    return found
