"""Block matrices for tests of files: random ones of any kind, and the real ones of a sample."""

from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.data import sample
from nextham.graph import Graph
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.structure import Structure

BASIS = Basis({1: (0, 0, 1), 14: (0, 0, 1, 1, 2), 31: (0, 1, 2, 3)})
DTYPES = (np.float32, np.float64, np.complex64, np.complex128)


@cache
def real_matrices(folder: Path | None = None) -> dict[str, Blocks]:
    """H0, H and S of an ABACUS run, by default of the bundled sample."""
    folder = folder or sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    basis = Basis.published(structure.species())
    files = {"H0": "hrs0_nao.csr.xz", "H": "hrs1_nao.csr.xz", "S": "srs1_nao.csr.xz"}
    return {name: read_blocks(folder / file, structure, basis) for name, file in files.items()}


def random_values(graph: Graph, n_spin: int, dtype: type, rng: np.random.Generator) -> Blocks:
    """Normal numbers on a graph, without any symmetry."""
    blocks = Blocks.zeros(graph, BASIS, n_spin, dtype)
    blocks.data[:] = rng.standard_normal(len(blocks.data))
    if np.iscomplexobj(blocks.data):
        blocks.data += (1j * rng.standard_normal(len(blocks.data))).astype(dtype)
    return blocks


@st.composite
def graphs(draw, min_edges: int = 0) -> Graph:
    """Distinct edges in any order, with and without their partners, of one to four atoms inside a skew cell."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 4))
    cell = np.diag([4.0, 5.0, 6.0]) + rng.uniform(-1, 1, (3, 3))
    numbers = draw(st.lists(st.sampled_from([1, 14, 31]), min_size=n, max_size=n))
    structure = Structure(cell, rng.uniform(0, 1, (n, 3)) @ cell, numbers)
    atom, step = st.integers(0, n - 1), st.integers(-2, 2)
    edges = draw(st.lists(st.tuples(atom, atom, step, step, step), min_size=min_edges, max_size=12, unique=True))
    if draw(st.booleans()):
        edges = list(dict.fromkeys(x for i, j, a, b, c in edges for x in ((i, j, a, b, c), (j, i, -a, -b, -c))))
    table = np.array(edges, dtype=np.int64).reshape(-1, 5)
    return Graph(structure.wrapped()[0], table[:, 0], table[:, 1], table[:, 2:])


@st.composite
def matrices(draw, n_spins: tuple[int, ...] = (1, 2, 4), dtypes: tuple[type, ...] = DTYPES, min_edges: int = 0):
    """Blocks with random values: of any symmetry, some planes zero, Hermitian exactly, nearly or not at all."""
    graph = draw(graphs(min_edges))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = random_values(graph, draw(st.sampled_from(n_spins)), draw(st.sampled_from(dtypes)), rng)
    kind = draw(st.sampled_from(["any", "hermitian", "nearly hermitian", "sparse"]))
    if "hermitian" in kind:
        blocks = blocks.symmetrised().on(graph)
    if kind == "nearly hermitian":
        blocks.data[:] *= 1 + rng.integers(0, 2, len(blocks.data)) * np.finfo(blocks.data.dtype).eps
    if kind == "sparse":
        blocks.data[rng.uniform(size=len(blocks.data)) < 0.9] = 0
    return blocks


def assert_equal(a: Blocks, b: Blocks) -> None:
    """The same atoms, edges in the same order, basis, spin, precision and numbers."""
    for name in ("cell", "positions", "numbers", "pbc"):
        np.testing.assert_array_equal(getattr(a.graph.structure, name), getattr(b.graph.structure, name))
    for name in ("src", "dst", "R"):
        np.testing.assert_array_equal(getattr(a.graph, name), getattr(b.graph, name))
    assert (a.basis, a.n_spin, a.data.dtype) == (b.basis, b.n_spin, b.data.dtype)
    np.testing.assert_array_equal(a.data, b.data)
