import numpy as np
import pytest
import scipy.linalg

from nextham.basis import Basis, order_permutation
from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.structure import Structure

K = np.array([0.12, -0.31, 0.27])


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    cell = np.array([[3.9, 0.1, 0.0], [0.3, 4.2, -0.2], [0.5, 0.4, 3.1]])
    return neighbour_graph(Structure(cell, rng.uniform(0, 1, (3, 3)) @ cell, [31, 14, 1]), 4.0)


BASIS = Basis.published([31, 14, 1])


def random_blocks(graph, n_spin=4, dtype=np.complex128, seed=0, hermitian=True):
    rng = np.random.default_rng(seed)
    blocks = Blocks.zeros(graph, BASIS, n_spin, dtype)
    blocks.data[:] = rng.standard_normal(len(blocks.data))
    if np.iscomplexobj(blocks.data):
        blocks.data += 1j * rng.standard_normal(len(blocks.data))
    return blocks.symmetrised() if hermitian else blocks


def dense_by_loops(blocks, k):
    """H(k) written as its definition, atom by atom."""
    start = blocks.basis.offsets(blocks.graph.structure.numbers)
    spins = 2 if blocks.n_spin == 4 else 1
    dense = np.zeros((spins * start[-1],) * 2, dtype=complex)
    for e in range(blocks.n_edges):
        i, j, R = blocks.graph.src[e], blocks.graph.dst[e], blocks.graph.R[e]
        for s, block in enumerate(blocks.block(e)):
            rows = np.arange(start[i], start[i + 1]) * spins + s // 2
            columns = np.arange(start[j], start[j + 1]) * spins + s % 2
            dense[np.ix_(rows, columns)] += np.exp(2j * np.pi * (k @ R)) * block
    return dense


@pytest.mark.parametrize(("n_spin", "dtype"), [(1, np.float64), (1, np.complex64), (4, np.complex128)])
def test_to_dense_is_the_definition(graph, n_spin, dtype):
    blocks = random_blocks(graph, n_spin, dtype)
    dense = blocks.to_dense(np.stack([K, 0 * K]))
    np.testing.assert_allclose(dense[0], dense_by_loops(blocks, K), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dense[1], blocks.to_dense([0, 0, 0]), rtol=0, atol=0)
    np.testing.assert_allclose(dense[0], dense[0].conj().T, atol=1e-5)
    np.testing.assert_allclose(blocks.to_dense(K + np.array([1, 0, -2])), dense[0], atol=1e-5)


@pytest.mark.parametrize("order", ["abacus", "deeph", "e3nn"])
@pytest.mark.parametrize("n_spin", [1, 4])
def test_sparse_round_trip(graph, order, n_spin):
    blocks = random_blocks(graph, n_spin, np.complex128 if n_spin == 4 else np.float64)
    R, matrices = blocks.to_sparse(order)
    again = Blocks.from_sparse(graph.structure, BASIS, R, matrices, n_spin, order)
    assert again.n_edges == blocks.n_edges
    np.testing.assert_array_equal(again.on(graph).data, blocks.data)


def test_sparse_rows_are_in_abacus_order(graph):
    """One element traced by hand: Ga d shell (2nd), m = −1, spin down; Si p shell (1st), m = 0, spin up."""
    blocks = random_blocks(graph)
    R, matrices = blocks.to_sparse("abacus")
    e = int(np.flatnonzero((graph.src == 0) & (graph.dst == 1))[0])
    ga_row = 2 * (2 + 6 + 5 + 2) + 1  # 2s 2p 1d, then the third component of the second d shell; spin down
    si_column = 2 * (25 + 2)  # all of Ga, 2s of Si, first component
    matrix = matrices[int(np.flatnonzero((R == graph.R[e]).all(axis=1))[0])]
    value = blocks.block(e)[2, 2 + 6 + 5 + 1, 2 + 1]  # ↓↑, m = −1 is e3nn's second component of d, m = 0 second of p
    assert matrix[ga_row, si_column] == -value


def test_orders_are_exact_inverses(graph):
    blocks = random_blocks(graph)
    for order in ("abacus", "deeph"):
        there = blocks.reordered(order, inverse=False)
        assert np.abs(there.data - blocks.data).max() > 0.1
        np.testing.assert_array_equal(there.reordered(order, inverse=True).data, blocks.data)
        index, sign = order_permutation(BASIS[31], order)
        e = int(np.flatnonzero(graph.onsite() & (graph.src == 0))[0])
        np.testing.assert_array_equal(
            there.block(e)[1], sign[:, None] * blocks.block(e)[1][np.ix_(index, index)] * sign
        )


def test_padded_round_trip(graph):
    blocks = random_blocks(graph)
    wide = blocks.padded(order="deeph")
    assert wide.shape == (graph.n_edges, 4, 27, 27)
    np.testing.assert_array_equal(Blocks.from_padded(graph, BASIS, wide, order="deeph").data, blocks.data)
    assert np.count_nonzero(wide) == np.count_nonzero(blocks.data)


def test_hermitian(graph):
    blocks = random_blocks(graph, hermitian=False)
    assert blocks.hermitian_error() > 1
    assert blocks.symmetrised().hermitian_error() == 0
    alone = random_blocks(graph).select(~graph.onsite()).select(np.arange(3))
    assert alone.hermitian_error() == np.abs(alone.data).max()
    assert alone.symmetrised().n_edges == 6
    np.testing.assert_allclose(blocks.adjoint().on(graph).to_dense(K), blocks.to_dense(K).conj().T, atol=1e-12)


def test_spin(graph):
    real = random_blocks(graph, 1, np.float64)
    spinor = real.spinor()
    assert (spinor.n_spin, spinor.data.dtype) == (4, np.complex128)
    np.testing.assert_allclose(spinor.to_dense(K), np.kron(real.to_dense(K), np.eye(2)), atol=1e-13)
    back = spinor.spinless()
    assert back.data.dtype == np.float64
    np.testing.assert_array_equal(back.data, real.data)
    with pytest.raises(ValueError, match="depends on spin"):
        random_blocks(graph).spinless()
    with pytest.raises(ValueError, match="cannot turn 4"):
        spinor.with_spin(1)
    two = Blocks.collinear(real, real * 2)
    np.testing.assert_array_equal(two.channel(1).data, 2 * real.data)
    with pytest.raises(ValueError, match="two matrices"):
        two.to_dense(K)
    with pytest.raises(ValueError, match="depends on spin"):
        two.spinless()
    assert two.with_spin(4).channel(3).data.real.tolist() == (2 * real.data).tolist()


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_add_spinless(graph, n_spin):
    dtype = np.complex128 if n_spin == 4 else np.float64
    matrix = random_blocks(graph, n_spin, dtype)
    some = random_blocks(graph.select(np.arange(graph.n_edges)[::-3]), 1, np.float64, seed=1, hermitian=False)
    expected = matrix + some.with_spin(n_spin).on(graph) if n_spin > 1 else matrix + some.on(graph)
    matrix.add_spinless(some)
    np.testing.assert_allclose(matrix.data, expected.data, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="other: expected a matrix with n_spin 1 of the same basis, real if this one"):
        random_blocks(graph, 1, np.float64).add_spinless(random_blocks(graph, 1))
    with pytest.raises(ValueError, match="other: has 1 edges that this matrix lacks"):
        matrix.select(np.arange(1, graph.n_edges)).add_spinless(
            random_blocks(graph.select([0]), 1, np.float64, 0, False)
        )


def test_put_of_edges_in_a_row_is_that_of_any_edges(graph):
    silicon = neighbour_graph(Structure(graph.structure.cell, graph.structure.positions, [14] * 3), 4.0)
    blocks = Blocks(silicon, BASIS, np.random.default_rng(0).standard_normal(silicon.n_edges * 4 * 169), 4)
    edges = np.arange(3, 20)
    for order in (edges, edges[::-1]):
        copy = Blocks.zeros(silicon, BASIS, 4)
        copy.put(order, blocks.data[blocks.index(order)])
        np.testing.assert_array_equal(copy.data, blocks.select(edges).on(silicon).data)


def test_gauge_shift_moves_every_eigenvalue(graph):
    overlap = random_blocks(graph, 1, np.float64, seed=1) * 1e-3
    overlap.data[overlap.offsets[:-1][graph.onsite()]] += 0  # keep the array shared, then add the identity
    for e in np.flatnonzero(graph.onsite()):
        overlap.block(e)[0] += np.eye(overlap.shape_of[e, 0])
    H = random_blocks(graph)
    before = scipy.linalg.eigvalsh(H.to_dense(K), overlap.spinor().to_dense(K))
    after = scipy.linalg.eigvalsh(H.shift_gauge(overlap, 0.75).to_dense(K), overlap.spinor().to_dense(K))
    np.testing.assert_allclose(after, before + 0.75, atol=1e-10)


def test_arithmetic_and_selection(graph):
    one, two = random_blocks(graph, seed=1), random_blocks(graph, seed=2)
    np.testing.assert_allclose((one - two * 0.5).to_dense(K), one.to_dense(K) - 0.5 * two.to_dense(K), atol=1e-12)
    near = one.within(0.0, 2.0)
    assert (near.graph.distance() < 2.0).all()
    np.testing.assert_array_equal((near.on(graph) + one.within(2.0, 9.0).on(graph)).data, one.data)
    with pytest.raises(ValueError, match="same graph"):
        one + near
    assert one.astype(np.complex64).data.dtype == np.complex64
    with pytest.raises(ValueError, match="imaginary part"):
        one.astype(np.float64)


def test_supercell_folds_the_bands(graph):
    H, overlap = random_blocks(graph), random_blocks(graph, 1, np.float64, seed=3) * 1e-3
    for e in np.flatnonzero(graph.onsite()):
        overlap.block(e)[0] += np.eye(overlap.shape_of[e, 0])
    overlap = overlap.spinor()
    small = [scipy.linalg.eigvalsh(H.to_dense([0, 0, x]), overlap.to_dense([0, 0, x])) for x in (0.1, 0.6)]
    large = scipy.linalg.eigvalsh(
        H.supercell(1, 1, 2).to_dense([0, 0, 0.2]), overlap.supercell(1, 1, 2).to_dense([0, 0, 0.2])
    )
    np.testing.assert_allclose(large, np.sort(np.concatenate(small)), atol=1e-10)


def test_groups_cover_every_block_once(graph):
    blocks, copy = random_blocks(graph), Blocks.zeros(graph, BASIS, 4, np.complex128)
    for z_src, z_dst, edges, values in blocks.groups():
        assert set(graph.structure.numbers[graph.src[edges]]) == {z_src}
        assert set(graph.structure.numbers[graph.dst[edges]]) == {z_dst}
        copy.put(edges, values)
    np.testing.assert_array_equal(copy.data, blocks.data)


def test_no_edges(graph):
    empty = random_blocks(graph).select(np.arange(0))
    assert empty.hermitian_error() == 0
    assert not empty.to_dense(K).any()
    assert empty.to_sparse()[0].shape == (0, 3)
    assert empty.symmetrised().n_edges == 0


def test_bad_input_says_what_is_wrong(graph):
    blocks = random_blocks(graph)
    with pytest.raises(ValueError, match="n_spin: expected 1, 2 or 4"):
        Blocks(graph, BASIS, blocks.data, 3)
    with pytest.raises(ValueError, match="data: expected shape"):
        Blocks(graph, BASIS, blocks.data[:-1], 4)
    with pytest.raises(TypeError, match="int64"):
        Blocks(graph, BASIS, np.zeros(len(blocks.data), dtype=np.int64), 4)
    with pytest.raises(ValueError, match=r"k: expected shape"):
        blocks.to_dense([0.0, 0.0])
    R, matrices = blocks.to_sparse()
    with pytest.raises(ValueError, match="expected 43 x 43"):
        Blocks.from_sparse(graph.structure, BASIS, R, matrices, 1)
    with pytest.raises(ValueError, match="distinct lattice vectors"):
        Blocks.from_sparse(graph.structure, BASIS, R[:1].repeat(2, axis=0), matrices[:2], 4)
    with pytest.raises(ValueError, match="same atoms"):
        blocks.on(neighbour_graph(graph.structure.supercell(2, 1, 1), 3.0))
