"""Source text of Triton kernels, line by line: what the generators of products share.

Lanes are flat: row and channel folded into one index, also where they are a tile [R, C] that is reshaped for a sum.
(Triton's layouts of two axes would put rows on neighbouring threads wherever components keep channels apart.) The words
`c` (channel of the lane), `there` (its row exists) and `inside` (row and channel exist) mean the same in all kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from nextham_kernels.ops.tensor_product.lanes import Term

__all__ = [
    "LANES",
    "Kernel",
    "Sizes",
    "Text",
    "cost_of",
    "edge_rows",
    "joined_text",
    "over_edges",
    "power_of_two",
    "row_pointers",
    "split_program",
    "summed",
    "tile_head",
    "tile_rows",
    "tile_width",
]

LANES = 128
"""Lanes of a program, one for each thread of four warps."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a row.

    Args:
        dims: of x, y and the result.
        n_weights: weights of pairs.
        shared: whether all rows share them.
        n_mix: weights of mixes.
        shared_mix: whether all rows share them.
    """

    dims: tuple[int, int, int]
    n_weights: int
    shared: bool
    n_mix: int
    shared_mix: bool


@dataclass(frozen=True)
class Kernel:
    """One kernel and its grid.

    Args:
        name: in the module.
        text: its source.
        rows: rows of a program; 0: lanes are flat, `LANES` of a program.
        lanes: channels of a row.
        programs: programs for each tile of rows.
        other: the operand whose gradient is summed over lanes into a part of its own, or −1; how many parts.
        parts: see other.
        weights: whether each program leaves its part of the gradient of shared weights.
        pairs: pairs of a tile of a mix, else 0.
        warps: of a program.
        stages: steps of a loop whose loads are under way together, in shared memory.
        registers: what a thread may take, where the assembler would rather spill some bytes than take more; 0: its
            choice.
    """

    name: str
    text: str
    rows: int
    lanes: int
    programs: int = 1
    other: int = -1
    parts: int = 0
    weights: bool = False
    pairs: int = 0
    warps: int = 4
    stages: int = 3
    registers: int = 0

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return self.pairs or LANES // self.rows


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def tile_width(lanes: int, most: int = 128) -> int:
    """Channels of a tile: the power of two from 8 to `most` that idles the fewest lanes, or the largest such."""
    widths = [2**i for i in range(3, most.bit_length())]
    return min(power_of_two(lanes), min(widths, key=lambda width: (-(-lanes // width) * width, -width)))


class Text:
    """The text of one kernel."""

    def __init__(self, name: str, arguments: str, shape: str = "R * C") -> None:
        self.lines = ["", "", '@triton.jit(do_not_specialize=["n", "per", "once"])', f"def {name}({arguments}):"]
        self.depth, self.counter = 1, 0
        self.known: dict[tuple, list[str]] = {}
        self.inside = "inside"  # where lanes exist
        self.shape = shape  # of a tensor of lanes
        self.hidden = self.n_weights = 0  # features at `tr` of which the matrix `m` makes the weights of a row
        self.couples: dict[int, list[Term]] = {}  # path → the paths whose weights are made together

    def add(self, *lines: str) -> None:
        """Adds lines at the present depth."""
        self.lines += ["    " * self.depth + line for line in lines]

    @contextlib.contextmanager
    def loop(self, header: str, when: bool = True) -> Iterator[None]:
        """What is added inside is the body of a loop; what it loads is unknown after it."""
        if not when:
            yield
            return
        self.add(f"for {header}:")
        self.depth += 1
        with self.scope():
            yield
        self.depth -= 1

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """What is loaded inside is unknown after it."""
        known = dict(self.known)
        yield
        self.known = known

    def number(self) -> int:
        """A number for names that are used once."""
        self.counter += 1
        return self.counter

    def zeros(self, names: list[str]) -> None:
        """Sets sums to zero."""
        self.add(*(f"{name} = tl.zeros(({self.shape},), dtype=T)" for name in names))

    def load(self, key: tuple, rows: str, start: int, channel: str, dim: int, exists: str = "") -> list[str]:
        """Components of a channel of a block, loaded once."""
        key = (*key, channel)
        if key not in self.known:
            n = self.number()
            mask = self.inside if "c" in channel else "there"
            mask = f"{mask} & {exists}" if exists else mask
            self.add(f"b{n} = {rows} + ({start} + {channel} * {dim})")
            self.known[key] = [f"v{n}_{i}" for i in range(dim)]
            self.add(*(f"{v} = tl.load(b{n} + {i}, mask={mask}, other=0.0)" for i, v in enumerate(self.known[key])))
        return self.known[key]

    def operand(self, term: Term, operand: int) -> list[str]:
        """Components of x or y."""
        key = ("xy"[operand], term.blocks[operand])
        return self.load(key, f"{key[0]}r", term.starts[operand], term.channel(operand), term.dims[operand])

    def result(self, term: Term) -> list[str]:
        """Components of the result's gradient, where each pair has a channel of the result."""
        channel = term.out_channel()
        channel = channel if channel in ("c", "s", "0") else f"({channel})"
        return self.load(("g", term.block), "gr", term.start, channel, term.dims[2], term.exists())

    def weight(self, term: Term) -> str:
        """The weights of the pairs; empty without."""
        if term.weight < 0:
            return ""
        key = ("w", term.path, term.pair())
        if key not in self.known and self.hidden:
            self._make_weights(term)
        if key not in self.known:
            name, exists = f"w{self.number()}", term.exists()
            mask = f"inside & {exists}" if exists else "inside"
            self.add(f"{name} = tl.load(wr + ({term.weight} + {term.pair()}), mask={mask}, other=0.0)")
            self.known[key] = [name]
        return self.known[key][0]

    def make(self, terms: list[Term], hidden: int, n_weights: int) -> None:
        """From here on weights are products of hidden features and a matrix, those of two paths together."""
        self.hidden, self.n_weights = hidden, n_weights
        weighted = [t for t in terms if t.weight >= 0]
        for i, term in enumerate(weighted):
            self.couples[term.path] = weighted[i - i % 2 : i - i % 2 + 2]

    def couple(self, term: Term) -> tuple[int, list[Term]]:
        """Adds where the weights of a path and its partner are, `from<n>`, and which exist, `real<n>`: [2 C]."""
        n, couple = self.number(), self.couples[term.path]
        starts = [t.weight for t in couple]
        of_path = f"tl.where(turn{n} < C, {starts[0]}, {starts[1]})" if len(couple) > 1 else str(starts[0])
        alone = "" if len(couple) > 1 else f" & (turn{n} < C)"
        self.add(
            f"turn{n} = tl.arange(0, 2 * C)",
            f"real{n} = (first + turn{n} % C < {term.lanes}){alone}",
            f"from{n} = {of_path} + first + turn{n} % C",
        )
        return n, couple

    def _make_weights(self, term: Term) -> None:
        """Adds a product on the tensor cores: the weights of two paths beside each other.

        Gathered, they leave the tensor cores' layout, in which threads would hold lanes several times over.
        """
        n, couple = self.couple(term)
        self.add(f"w{n} = tl.zeros((R, 2 * C), dtype=T)")
        # In steps, or the compiler keeps the operands of all features in registers.
        with self.loop(f"h0 in range(0, {self.hidden} * once, 16)"):
            self.add(
                "hk = h0 + tl.arange(0, 16)",
                f"tk = tl.load(tr + hk[None, :], mask=there2 & (hk[None, :] < {self.hidden}), other=0.0)",
                f"mk = tl.load(m + from{n}[None, :] + hk[:, None] * {self.n_weights}, "
                f"mask=(hk[:, None] < {self.hidden}) & real{n}[None, :], other=0.0)",
                f"w{n} = tl.dot(tk, mk, w{n}, input_precision=P, out_dtype=T)",
            )
        self.add(f"w{n} = tl.reshape(w{n}, (R * C * 2,))")
        for i in range(len(couple)):
            self.add(f"w{n}_{i} = tl.gather(w{n}, slot // C * (2 * C) + slot % C + {i} * C, 0)")
        for i, t in enumerate(couple):
            self.known["w", t.path, t.pair()] = [f"w{n}_{i}"]

    def product(self, term: Term, x: list[str], y: list[str], weight: str = "") -> list[str]:
        """Σ_ij C_ijk x_i y_j of one pair of channels, times its weight."""
        n, begun = self.number(), set()
        by_pair: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for i, j, k, value in term.entries:
            by_pair.setdefault((j, i), []).append((k, value))
        for (j, i), entries in sorted(by_pair.items()):
            self.add(f"p{n} = {x[i]} * {y[j]}")
            for k, value in entries:
                so_far = f"t{n}_{k} + " if k in begun else ""
                self.add(f"t{n}_{k} = {so_far}{value!r} * p{n}")
                begun.add(k)
        names = [f"t{n}_{k}" for k in range(term.dims[2])]
        if weight:
            self.add(*(f"{name} = {name} * {weight}" for name in names))
        return names

    def store(self, pointer: str, names: list[str], mask: str, add: bool = False) -> None:
        """Writes the components of channels whose first ones are at `pointer`, in the order of memory.

        Lanes hold one channel each; joined, the components lie beside each other, and Triton exchanges them so that
        neighbouring lanes write neighbouring numbers.
        """
        n, dim = self.number(), len(names)
        value = names[0]
        if dim > 1:
            size, index = power_of_two(dim), "[:, None]" if "," not in self.shape else "[:, :, None]"
            key = ("k", size)
            if key not in self.known:
                self.add(f"k{size} = tl.arange(0, {size}){index.replace(':', 'None').replace('None]', ':]')}")
                self.known[key] = [f"k{size}"]
            if size > dim:
                self.add(f"o{n} = tl.zeros_like({names[0]})")
            joined = joined_text([*names, *[f"o{n}"] * (size - dim)])
            self.add(f"j{n} = tl.reshape({joined}, ({self.shape}, {size}))")
            pointer, value = f"({pointer}){index} + k{size}", f"j{n}"
            mask = f"({mask}){index} & (k{size} < {dim})"
        self.add(f"q{n} = {pointer}")
        if add:
            self.add(f"{value} = {value} + tl.load(q{n}, mask={mask}, other=0.0)")
        self.add(f"tl.store(q{n}, {value}, mask={mask})")


def joined_text(names: list[str]) -> str:
    """Joins so that the last axes, flattened, are in the order of the names."""
    if len(names) == 1:
        return names[0]
    return f"tl.join({joined_text(names[0::2])}, {joined_text(names[1::2])})"


def row_pointers(text: Text, sizes: Sizes, **rows: str) -> None:
    """Where the rows begin: name → the word of its row number."""
    d = sizes.dims
    widths = {"x": d[0], "y": d[1], "g": d[2], "out": d[2], "w": sizes.n_weights, "m": sizes.n_mix}
    for name, row in rows.items():
        if (name == "w" and sizes.shared) or (name == "m" and sizes.shared_mix):
            text.add(f"{name}r = {name}")
        else:
            text.add(f"{name}r = {name} + {row} * {widths[name]}")


def over_edges(text: Text) -> str:
    """Adds the rows of a tile of a node's edges; returns the header of their loop."""
    text.add("begin = tl.load(starts + node)", "end = tl.load(starts + node + 1)")
    return "position in range(begin, end, R)"


def edge_rows(text: Text, lanes: int) -> None:
    """Adds the numbers of a tile's edges and of the nodes at their other ends."""
    text.add(
        "at = position + slot // C",
        "there = at < end",
        "edge = tl.load(edges + at, mask=there, other=0)",
        "other = tl.load(others + at, mask=there, other=0)",
        f"inside = there & (c < {lanes})",
    )


def split_program(**counts: int) -> list[str]:
    """Lines that give the number of the program in each of these, the first running fastest, and its tile of rows."""
    lines, rest = ["tile = tl.program_id(0).to(tl.int64)"], 1
    for name, count in counts.items():
        lines.append(
            f"{name} = (tile{f' // {rest}' if rest > 1 else ''} % {count}).to(tl.int32)" if count > 1 else f"{name} = 0"
        )
        rest *= count
    return [*lines, f"tile = tile // {rest}"] if rest > 1 else lines


def tile_head(text: Text, lanes: int, width: int) -> None:
    """Adds what a program works on: its tile of rows and its channels."""
    text.add(
        "T = x.dtype.element_ty",
        *split_program(chunk=-(-lanes // width)),
        "slot = tl.arange(0, R * C)",
        "channel = chunk * C + tl.arange(0, C)",
        "c = chunk * C + slot % C",
    )


def tile_rows(text: Text, lanes: int, tile: str = "tile") -> None:
    """Adds the rows of a tile."""
    text.add(f"row = {tile} * R + slot // C", "there = row < n", f"inside = there & (c < {lanes})")


def summed(name: str, axis: int) -> str:
    """The sum of a tensor of lanes over the rows (axis 0) or channels (axis 1) of a tile."""
    return f"tl.sum(tl.reshape({name}, (R, C)), axis={axis})"


def cost_of(terms: list[Term]) -> int:
    """A measure of a kernel's size: coefficients and components."""
    return sum(len(t.entries) + sum(t.dims) for t in terms)
