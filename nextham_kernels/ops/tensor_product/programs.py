"""Which GPU kernels make up a product, and the module of their source."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from types import ModuleType

from nextham_kernels.generated import module_of
from nextham_kernels.ops.tensor_product import mixes, pairs, pairs_backward, radials
from nextham_kernels.ops.tensor_product.lanes import Term, terms
from nextham_kernels.ops.tensor_product.reference import Product, product_of
from nextham_kernels.ops.tensor_product.text import Kernel, Sizes

__all__ = [
    "HEAD",
    "Program",
    "backward",
    "conv_fuses",
    "forward",
    "fused_terms",
    "linear_fuses",
    "radial_backward",
    "radial_forward",
    "radial_fuses",
]

HEAD = "import triton\nimport triton.language as tl\n"


@dataclass(frozen=True)
class Program:
    """The kernels of one direction, in their order.

    Args:
        kernels: each with its grid.
        module: where they are.
        covers: whether every number of the result, or of the gradient of x and of y, is written by lanes.
        lanes: whether any lane writes the gradient of x, and of y.
        parts: how many parts of the gradients of x and y are sums over lanes.
    """

    kernels: tuple[Kernel, ...]
    module: ModuleType
    covers: tuple[bool, ...]
    lanes: tuple[bool, bool] = (False, False)
    parts: tuple[int, int] = (0, 0)


def _module(kernels: list[Kernel]) -> ModuleType:
    return module_of("tensor_product", "\n".join([HEAD.rstrip(), *(kernel.text for kernel in kernels)]) + "\n")


@functools.cache
def _terms(word: str, linear_word: str) -> tuple[Term, ...]:
    return tuple(fused_terms(word, linear_word) if linear_word else terms(product_of(word)))


@functools.cache
def _sizes(word: str, linear_word: str, shared: bool) -> Sizes:
    product = product_of(word)
    if not linear_word:
        return Sizes(product.dims, product.n_weights, shared, product.n_weights, shared)
    linear = product_of(linear_word)
    return Sizes((*product.dims[:2], linear.dims[2]), product.n_weights, shared, linear.n_weights, True)


def _split(found: tuple[Term, ...]) -> tuple[list[Term], list[Term]]:
    return [t for t in found if not t.outputs], [t for t in found if t.outputs]


def _blocks(product: Product, operand: int) -> set[int]:
    irreps = (product.irreps_1, product.irreps_2, product.irreps_out)[operand]
    return {i for i, block in enumerate(irreps) if block.dim}


@functools.cache
def forward(word: str, shared: bool, conv: bool = False, linear_word: str = "") -> Program:
    """The kernels of the result.

    Args:
        word: of the product.
        shared: whether all rows share its weights.
        conv: rows are edges, summed by nodes.
        linear_word: of the linear map that follows, if there is one.
    """
    taken: set[int] = set()
    single, mixing = _split(_terms(word, linear_word))
    sizes = _sizes(word, linear_word, shared)
    kernels = [*pairs.forward(single, sizes, taken, conv), *mixes.forward(mixing, sizes, taken)]
    covers = taken == _blocks(product_of(linear_word or word), 2)
    return Program(tuple(kernels), _module(kernels), (covers,))


@functools.cache
def backward(word: str, shared: bool, needs: tuple[bool, ...], conv: bool = False, linear_word: str = "") -> Program:
    """The kernels of the gradients of x, y, weights and, of a product with a linear map, of that map's weights."""
    taken: set[tuple[int, int]] = set()
    parts = [0, 0]
    single, mixing = _split(_terms(word, linear_word))
    sizes, product = _sizes(word, linear_word, shared), product_of(word)
    wanted = needs if linear_word else (*needs, needs[2])
    kernels = pairs_backward.backward(single, sizes, wanted, taken, parts, conv)
    kernels += mixes.backward(mixing, sizes, wanted, taken, parts)
    if wanted[2]:
        kernels += pairs_backward.summed_weights(single, sizes)
    if wanted[3]:
        kernels += mixes.summed_weights(mixing, sizes)
    by_lanes = [{block for operand, block in taken if operand == i} for i in (0, 1)]
    covers = tuple(by_lanes[i] == _blocks(product, i) for i in (0, 1))
    return Program(tuple(kernels), _module(kernels), covers, tuple(map(bool, by_lanes)), tuple(parts))


@functools.cache
def radial_forward(word: str, hidden: int, conv: bool) -> Program:
    """The kernels of the result of a product whose weights are made from `hidden` features; `conv` as in `forward`."""
    taken: set[int] = set()
    kernels = radials.forward(list(_terms(word, "")), _sizes(word, "", False), hidden, taken, conv)
    return Program(tuple(kernels), _module(kernels), (taken == _blocks(product_of(word), 2),))


@functools.cache
def radial_backward(word: str, hidden: int, needs: tuple[bool, ...], conv: bool) -> Program:
    """The kernels of the gradients of x, y, hidden features and the matrix; `covers` is of x alone."""
    taken: set[tuple[int, int]] = set()
    found, sizes = list(_terms(word, "")), _sizes(word, "", False)
    kernels = radials.backward(found, sizes, hidden, needs, taken, conv)
    if needs[3]:
        kernels += radials.summed_weights(found, sizes, hidden, conv)
    covers = {block for _, block in taken} == _blocks(product_of(word), 0)
    return Program(tuple(kernels), _module(kernels), (covers,))


@functools.cache
def radial_fuses(word: str, hidden: int) -> bool:
    """Whether weights are made from hidden features inside the kernels: as `conv_fuses`, and at most 128 features."""
    return conv_fuses(word) and hidden <= 128


@functools.cache
def conv_fuses(word: str) -> bool:
    """Whether the convolution of a product is one sweep: modes 'uvu' with one channel of y."""
    return all(t.mode == "uvu" and t.steps == 1 for t in _terms(word, ""))


@functools.cache
def linear_fuses(word: str, linear_word: str, shared: bool) -> bool:
    """Whether a product and the linear map behind it are one kernel.

    Its pairs must have channels of their own, each block of the product goes to one block of the map, and weights to
    some block: the others' gradient is zero.
    """
    product, linear = product_of(word), product_of(linear_word)
    found = [path.i_1 for path in linear.paths]
    alone = len(set(found)) == len(found) and all(p.mode == "uvw" for p in linear.paths)
    reached = {path.i_1 for path in linear.paths if linear.irreps_out[path.i_out].mul}
    own = all(not t.outputs and t.pair() == t.out_channel() and t.block in reached for t in _terms(word, ""))
    return alone and own and not (shared and product.n_weights)


def fused_terms(word: str, linear_word: str) -> list[Term]:
    """The product's paths as mixes: the pairs' products, times their weights, times the linear map's matrix."""
    linear = product_of(linear_word)
    starts = [place.start for place in linear.irreps_out.slices()]
    paths = {path.i_1: (path, place) for path, place in zip(linear.paths, linear.weight_slices, strict=True)}
    found = []
    for term in terms(product_of(word)):
        if term.block not in paths:
            continue
        path, place = paths[term.block]
        scale = path.coefficient / term.dims[2] ** 0.5  # wigner_3j(l, 0, l)_k0k
        entries = tuple((i, j, k, scale * value) for i, j, k, value in term.entries)
        outputs = linear.irreps_out[path.i_out].mul
        if outputs:
            block = {"block": path.i_out, "start": starts[path.i_out], "outputs": outputs}
            found.append(replace(term, mix=place.start, entries=entries, **block))
    return found
