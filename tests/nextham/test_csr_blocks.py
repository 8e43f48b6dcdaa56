"""Blocks on edges to sparse-matrix files and back."""

import json
import tracemalloc

import csr_cases as cases
import numpy as np
import pytest

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.data import sample
from nextham.graph import neighbour_graph
from nextham.io import csr
from nextham.io.csr import SparseMatrices, read_blocks, read_csr, write_blocks, write_csr
from nextham.io.errors import FileError
from nextham.io.stru import read_stru
from nextham.structure import Structure
from nextham.units import RYDBERG
from nextham_kernels.loading import reference_only

BASIS = Basis.published([8, 14])


@pytest.fixture(scope="module")
def silicon():
    """Structure, H and S of the bundled sample."""
    folder = sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    return (
        structure,
        read_blocks(folder / "hrs1_nao.csr.xz", structure, BASIS),
        read_blocks(folder / "srs1_nao.csr.xz", structure, BASIS),
    )


def random_blocks(n_spin, structure=cases.CRYSTAL, cutoff=4.5, seed=0, dtype=np.float64) -> Blocks:
    graph = neighbour_graph(structure, cutoff)
    blocks = Blocks.zeros(graph, BASIS, n_spin, np.complex128 if n_spin == 4 else dtype)
    rng = np.random.default_rng(seed)
    blocks.data[:] = rng.normal(size=len(blocks.data))
    if n_spin == 4:
        blocks.data += 1j * rng.normal(size=len(blocks.data))
    return blocks.symmetrised()


def close(a: Blocks, b: Blocks, tolerance: float) -> bool:
    return a.n_edges == b.n_edges and np.abs((a.on(b.graph) - b).data).max() <= tolerance


def test_a_real_matrix_is_in_electronvolt_and_hermitian(silicon):
    _, hamiltonian, overlap = silicon
    assert (hamiltonian.n_spin, hamiltonian.data.dtype) == (4, np.complex128)
    raw = read_csr(sample("Si-1") / "hrs1_nao.csr.xz")
    home = [tuple(r) for r in raw.R.tolist()].index((0, 0, 0))
    onsite = hamiltonian.block(int(np.flatnonzero(hamiltonian.graph.onsite())[0]))
    assert onsite[0, 0, 0] == pytest.approx(raw.matrices[home][0, 0] * RYDBERG, rel=1e-14)
    assert hamiltonian.hermitian_error() < 1e-6 and overlap.hermitian_error() < 1e-7
    # The occupied bands at Γ end near the Fermi level that ABACUS printed: eight electrons, spin counted.
    from scipy.linalg import eigh

    energies = eigh(hamiltonian.to_dense([0, 0, 0]), overlap.to_dense([0, 0, 0]), eigvals_only=True)
    fermi = json.loads((sample("Si-1") / "info.json").read_text())["efermi_eV"]
    assert energies[7] < fermi + 0.1 < energies[8] + 0.2


@pytest.mark.parametrize("n_spin", [1, 4])
@pytest.mark.parametrize("form", ["text", "text-3.11", "binary", "npz"])
def test_blocks_come_back(tmp_path, n_spin, form):
    blocks = random_blocks(n_spin)
    write_blocks(tmp_path / "a", blocks, format=form, digits=16, threshold=0.0)
    found = read_blocks(tmp_path / "a", cases.CRYSTAL, BASIS, unit="Ry")
    assert found.n_spin == n_spin
    assert close(found, blocks, 1e-14)


def test_the_pair_of_collinear_spin(tmp_path):
    blocks = random_blocks(2)
    paths = [tmp_path / "hrs1", tmp_path / "hrs2"]
    write_blocks(paths, blocks, format="text-3.11", digits=16)
    assert b" 2 # number of spin directions\n 2 # spin index\n" in paths[1].read_bytes()
    found = read_blocks(paths, cases.CRYSTAL, BASIS)
    assert found.n_spin == 2 and close(found, blocks, 1e-14)
    # A pair of atoms that only the second file has is in the result too.
    down = blocks.channel(1)
    write_blocks(paths[0], blocks.channel(0).within(0, 3))
    write_blocks(paths[1], down, digits=16)
    both = read_blocks(paths, cases.CRYSTAL, BASIS)
    assert close(both.channel(1), down, 1e-14)
    assert both.channel(0).within(3, 9).data.max() == 0
    with pytest.raises(ValueError, match="path: expected 2 for n_spin 2, got 1"):
        write_blocks(paths[0], blocks)
    with pytest.raises(ValueError, match="path: expected 1 for n_spin 1, got 2"):
        write_blocks(paths, down)


def test_single_precision_is_written_as_it_is(tmp_path):
    blocks = random_blocks(1, dtype=np.float32)
    write_blocks(tmp_path / "a", blocks, letter="S", digits=8)
    assert close(read_blocks(tmp_path / "a", cases.CRYSTAL, BASIS).astype(np.float32), blocks, 0)


def test_it_is_what_scipy_would_write(tmp_path, monkeypatch, silicon):
    _, hamiltonian, _ = silicon
    vectors, matrices = hamiltonian.to_sparse()
    small = [m.multiply(abs(m) / RYDBERG > 1e-10).tocsr() for m in matrices]
    for m in small:
        m.eliminate_zeros()
    whole = SparseMatrices(52, vectors, [m / RYDBERG for m in small], "H")
    write_csr(tmp_path / "whole", whole)
    for group in (1, 3000, 1 << 20):  # one atom at a time, some, all
        monkeypatch.setattr(csr, "_GROUP", group)
        write_blocks(tmp_path / "groups", hamiltonian)
        assert (tmp_path / "groups").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_predicted_file_has_the_lattice_vectors_of_the_overlap(tmp_path, silicon):
    structure, hamiltonian, _ = silicon
    wanted = read_csr(sample("Si-1") / "srs1_nao.csr.xz").R
    near = hamiltonian.within(0, 4)
    write_blocks(tmp_path / "hr.csr", near, R=wanted)
    found = read_csr(tmp_path / "hr.csr")
    assert np.array_equal(found.R, wanted) and min(m.nnz for m in found.matrices) == 0
    # PyATB goes line by line: one line for each list, none after nnz = 0.
    by_line = cases.tokens((tmp_path / "hr.csr").read_bytes())
    assert list(by_line) == [tuple(R) for R in wanted.tolist()]
    assert all(
        np.array_equal(by_line[tuple(R)], m.toarray()) for R, m in zip(wanted.tolist(), found.matrices, strict=True)
    )
    assert close(read_blocks(tmp_path / "hr.csr", structure, BASIS).on(near.graph), near, 1e-6)
    with pytest.raises(
        ValueError, match=r"R: the blocks have the lattice vector \(-3, 0, 0\), which is not in the list"
    ):
        write_blocks(tmp_path / "hr.csr", hamiltonian, R=wanted[1:])


def test_elements_below_the_threshold_are_left_out(tmp_path):
    blocks = random_blocks(1)
    write_blocks(tmp_path / "a", blocks, letter="S", threshold=0.5, digits=16)
    found = read_blocks(tmp_path / "a", cases.CRYSTAL, BASIS, unit="1").on(blocks.graph).data
    assert np.array_equal(found, np.where(np.abs(blocks.data) > 0.5, blocks.data, 0))


def test_nothing_at_all(tmp_path):
    empty = Blocks.zeros(neighbour_graph(cases.CRYSTAL, 1e-3).select(np.arange(0)), BASIS, 1)
    write_blocks(tmp_path / "a", empty)
    assert read_csr(tmp_path / "a").R.shape == (0, 3)
    write_blocks(tmp_path / "a", empty, R=np.zeros((1, 3)))
    assert read_blocks(tmp_path / "a", cases.CRYSTAL, BASIS).n_edges == 0


def test_units(tmp_path):
    blocks = random_blocks(1)
    write_blocks(tmp_path / "H", blocks, digits=16)
    write_blocks(tmp_path / "S", blocks, letter="S", digits=16)
    write_blocks(tmp_path / "eV", blocks, unit="eV", digits=16)
    write_blocks(tmp_path / "binary", blocks, format="binary")
    read = {
        name: read_blocks(tmp_path / name, cases.CRYSTAL, BASIS, unit=unit)
        for name, unit in (("H", None), ("S", None), ("eV", "eV"), ("binary", "Ry"))
    }
    assert all(close(found, blocks, 1e-14) for found in read.values())
    assert read_csr(tmp_path / "S").matrices[0].max() == pytest.approx(
        read_csr(tmp_path / "H").matrices[0].max() * RYDBERG, rel=1e-14
    )
    with pytest.raises(ValueError, match="the file does not say that it is H or S"):
        read_blocks(tmp_path / "binary", cases.CRYSTAL, BASIS)
    with pytest.raises(ValueError, match="unit: expected one of Ry, eV, 1, got 'Hartree'"):
        read_blocks(tmp_path / "H", cases.CRYSTAL, BASIS, unit="Hartree")
    with pytest.raises(ValueError, match="unit: S has none, expected '1', got 'Ry'"):
        write_blocks(tmp_path / "S", blocks, letter="S", unit="Ry")
    with pytest.raises(FileError, match=r"S: holds S\(R\), but a Hamiltonian is expected"):
        read_blocks(tmp_path / "S", cases.CRYSTAL, BASIS, unit="Ry")
    with pytest.raises(FileError, match=r"H: holds H\(R\), but an overlap S is expected"):
        read_blocks(tmp_path / "H", cases.CRYSTAL, BASIS, unit="1")


def test_the_matrix_of_another_crystal_is_refused(tmp_path):
    blocks = random_blocks(1)
    write_blocks(tmp_path / "a", blocks)
    other = Structure(cases.CRYSTAL.cell, cases.CRYSTAL.positions, [14, 14])
    larger = Basis({8: (0, 0, 1, 1, 2), 14: (0, 0, 1, 1, 2, 2)})
    with pytest.raises(FileError, match=r"has matrices of 26 rows, but SiO with .* has 31 orbitals, 62 with spin"):
        read_blocks(tmp_path / "a", cases.CRYSTAL, larger)
    write_blocks(tmp_path / "a", blocks, format="text-3.11")
    moved = Structure(cases.CRYSTAL.cell, np.add(cases.CRYSTAL.positions, [[0, 0, 0], [0, 0, 0.1]]), [14, 8])
    strained = Structure(cases.CRYSTAL.cell * 1.01, cases.CRYSTAL.positions * 1.01, [14, 8])
    outside = Structure(cases.CRYSTAL.cell, np.add(cases.CRYSTAL.positions, [[0, 0, 0], [3, 0, -5]]), [14, 8])
    for structure, sentence in (
        (other, "is of SiO in this order of atoms, the structure is Si2"),
        (moved, "is of positions other than the structure's"),
        (strained, "is of a cell other than the structure's"),
    ):
        with pytest.raises(FileError, match=sentence):
            read_blocks(tmp_path / "a", structure, BASIS)
    assert close(read_blocks(tmp_path / "a", outside, BASIS), blocks, 1e-6)  # ABACUS wraps, and so do we
    (tmp_path / "a").write_bytes(cases.new_text(read_csr(tmp_path / "a"), note="gamma-only folded matrix"))
    with pytest.raises(FileError, match="is a gamma-only folded matrix, without lattice vectors"):
        read_blocks(tmp_path / "a", cases.CRYSTAL, BASIS)


@pytest.mark.skipif(reference_only(), reason="the reference of number_text makes a Python object of every number")
def test_memory_of_writing_does_not_grow_with_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(csr, "_GROUP", 1 << 14)

    def peak(n):
        blocks = random_blocks(1).supercell(n, 2, 2)
        tracemalloc.start()
        write_blocks(tmp_path / "a", blocks)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, blocks.data.nbytes

    small, large = peak(4), peak(16)
    assert large[1] == 4 * small[1]
    # The column indices of one lattice vector wait in a spool, a tenth of the numbers; the rest is one group.
    assert large[0] - small[0] < 0.5 * (large[1] - small[1])
