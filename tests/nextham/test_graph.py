import itertools

import numpy as np
import pytest

from nextham.graph import Graph, neighbour_graph
from nextham.structure import Structure

CELL = np.array([[3.9, 0.1, 0.0], [0.3, 4.2, -0.2], [0.5, 0.4, 3.1]])


def random_structure(n_atoms=3, seed=0, pbc=(True, True, True)):
    rng = np.random.default_rng(seed)
    return Structure(CELL, rng.uniform(-1, 2, (n_atoms, 3)) @ CELL, rng.choice([6, 14, 31], n_atoms), pbc)


def every_pair(structure, cutoff, reach=4):
    """All (R, i, j) within the cutoff by a loop over everything."""
    p, found = structure.positions, []
    for R in itertools.product(range(-reach, reach + 1), repeat=3):
        if any(r and not periodic for r, periodic in zip(R, structure.pbc, strict=True)):
            continue
        for i, j in itertools.product(range(structure.n_atoms), repeat=2):
            if np.linalg.norm(p[j] + np.array(R) @ structure.cell - p[i]) < cutoff:
                found.append((*R, i, j))
    return sorted(found)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_neighbours_are_all_pairs(pbc):
    structure = random_structure(pbc=pbc)
    graph = neighbour_graph(structure, 5.0)
    assert np.column_stack([graph.R, graph.src, graph.dst]).tolist() == [
        list(x) for x in every_pair(structure.wrapped()[0], 5.0)
    ]
    assert graph.onsite().sum() == 3
    assert not graph.vector()[graph.onsite()].any()
    assert (graph.distance() < 5.0).all()


def test_reverse_and_find():
    graph = neighbour_graph(random_structure(), 5.0)
    back = graph.reverse()
    np.testing.assert_array_equal(back[back], np.arange(graph.n_edges))
    np.testing.assert_allclose(graph.vector()[back], -graph.vector(), atol=1e-13)
    order = np.random.default_rng(1).permutation(graph.n_edges)
    np.testing.assert_array_equal(graph.find(graph.select(order)), order)
    assert (graph.select(order[:4]).find(graph) >= 0).sum() == 4
    assert graph.select(order[:0]).find(graph).tolist() == [-1] * graph.n_edges


def test_union():
    graph = neighbour_graph(random_structure(), 5.0)
    chosen = np.random.default_rng(1).permutation(graph.n_edges)
    first, second = graph.select(chosen[: graph.n_edges // 2]), graph.select(chosen[graph.n_edges // 3 :])
    for one, other in ((first, second), (second, first), (graph, first), (first, graph)):
        found = one.union(other)
        for name in ("src", "dst", "R"):
            np.testing.assert_array_equal(getattr(found, name), getattr(graph, name))


def test_supercell_is_the_graph_of_the_supercell():
    structure, _ = random_structure().wrapped()
    large = neighbour_graph(structure, 5.0).supercell(2, 1, 3).sorted_by_R()[0]
    direct = neighbour_graph(structure.supercell(2, 1, 3), 5.0)
    for name in ("R", "src", "dst"):
        np.testing.assert_array_equal(getattr(large, name), getattr(direct, name))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "cutoff"), [("gaas", 4.4), ("si", 4.6)])
def test_published_order(shared, name, cutoff):
    reference = np.load(shared / "reference" / f"{name}.npz")
    graph = neighbour_graph(Structure(reference["cell"], reference["positions"], reference["numbers"]), cutoff)
    np.testing.assert_array_equal(graph.R, reference["R"])
    np.testing.assert_array_equal(graph.src, reference["edge_src"])
    np.testing.assert_array_equal(graph.dst, reference["edge_dst"])
    np.testing.assert_allclose(graph.vector(), reference["edge_vec"], atol=1e-12)


def test_bad_input_says_what_is_wrong():
    structure = random_structure()
    with pytest.raises(ValueError, match="positive length"):
        neighbour_graph(structure, 0.0)
    with pytest.raises(ValueError, match="expected src"):
        Graph(structure, np.zeros(2), np.zeros(2), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"dst: expected atom indices 0\.\.\.2, got 3"):
        Graph(structure, [0], [3], [[0, 0, 0]])
    twice = Graph(structure, [0, 0], [1, 1], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="occurs twice"):
        twice.find(twice)
