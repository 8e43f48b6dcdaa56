import json

import ase.io
import h5py
import numpy as np
import pytest
import scipy.linalg
from block_cases import BASIS, assert_equal, graphs, random_values, real_matrices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.io.deeph import read_deeph, write_deeph
from nextham.io.errors import FileError

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
FILES = ("POSCAR", "info.json", "overlap.h5", "hamiltonian.h5")


def deeph_bands(folder, k):
    """H(k), S(k) as DeepH's page describes the files, and nothing of ours: all ↑ orbitals first, then all ↓."""
    info = json.loads((folder / "info.json").read_text())
    symbols = ase.io.read(folder / "POSCAR", format="vasp").get_chemical_symbols()
    widths = [sum(2 * l + 1 for l in info["elements_orbital_map"][s]) for s in symbols]
    start = np.concatenate([[0], np.cumsum(widths)])
    assert info["orbits_quantity"] == start[-1] and info["atoms_quantity"] == len(symbols)
    spins = 2 if info["spinful"] else 1
    dense = {}
    for name in ("hamiltonian.h5", "overlap.h5"):
        with h5py.File(folder / name) as file:
            pairs, shapes, cuts, entries = (
                file[x][:] for x in ("atom_pairs", "chunk_shapes", "chunk_boundaries", "entries")
            )
        total = np.zeros((spins, start[-1], spins, start[-1]), dtype=complex)
        for (*R, i, j), shape, first, last in zip(pairs, shapes, cuts[:-1], cuts[1:], strict=True):
            chunk = entries[first:last].reshape(shape)
            if len(chunk) == widths[i] and spins == 2:
                chunk = np.kron(np.eye(2), chunk)
            chunk = chunk.reshape(spins, widths[i], spins, widths[j])
            total[:, start[i] : start[i + 1], :, start[j] : start[j + 1]] += np.exp(2j * np.pi * np.dot(R, k)) * chunk
        dense[name] = total.reshape(spins * start[-1], -1)
    return scipy.linalg.eigh(dense["hamiltonian.h5"], dense["overlap.h5"], eigvals_only=True)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_bands_of_a_real_sample(tmp_path, n_spin):
    found = real_matrices()
    H = {4: found["H"], 2: found["H0"].channel(0).astype(complex), 1: found["H0"].channel(0)}[n_spin]
    if n_spin < 4:
        H = H.like(H.data.real.copy()).with_spin(n_spin)
    write_deeph(tmp_path, found["S"], H, fermi=6.93)
    info = json.loads((tmp_path / "info.json").read_text())
    assert info == {
        "atoms_quantity": 2,
        "orbits_quantity": 26,
        "orthogonal_basis": False,
        "spinful": n_spin > 1,
        "fermi_energy_eV": 6.93,
        "elements_orbital_map": {"Si": [0, 0, 1, 1, 2]},
    }
    k = [0.2, -0.1, 0.4]
    S = found["S"].spinless()
    H, S = (H.spinor(), S.spinor()) if n_spin > 1 else (H, S)
    ours = scipy.linalg.eigh(H.to_dense(k), S.to_dense(k), eigvals_only=True)
    np.testing.assert_allclose(deeph_bands(tmp_path, k), ours, atol=1e-8)


def test_layout(tmp_path):
    """The same pairs in both files, kinds of numbers, and components m = −l … l."""
    found = real_matrices()
    write_deeph(tmp_path, found["S"], found["H"])
    with h5py.File(tmp_path / "hamiltonian.h5") as h, h5py.File(tmp_path / "overlap.h5") as s:
        np.testing.assert_array_equal(h["atom_pairs"], s["atom_pairs"])
        assert h["atom_pairs"].shape == (274, 5) and h["atom_pairs"].dtype == np.int64
        assert s["entries"].dtype == np.float64 and h["entries"].dtype == np.complex128
        np.testing.assert_array_equal(h["chunk_shapes"][:], 2 * s["chunk_shapes"][:])
        np.testing.assert_array_equal(h["chunk_boundaries"][:], 4 * s["chunk_boundaries"][:])
        e = 7
        R, i, j = h["atom_pairs"][e, :3], *h["atom_pairs"][e, 3:]
        chunk = h["entries"][h["chunk_boundaries"][e] : h["chunk_boundaries"][e + 1]].reshape(26, 26)
    graph = found["H"].graph
    edge = int(np.flatnonzero((graph.src == i) & (graph.dst == j) & (graph.R == R).all(axis=1))[0])
    (uu, ud), (du, dd) = found["H"].block(edge)[:2], found["H"].block(edge)[2:]
    np.testing.assert_array_equal(chunk, np.block([[uu, ud], [du, dd]]))
    assert json.loads((tmp_path / "info.json").read_text())["fermi_energy_eV"] is None


@SETTINGS
@given(graph=graphs(), spin=st.sampled_from([1, 2, 4]), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_round_trip(tmp_path, graph, spin, seed, share):
    """Any order of atoms and edges, S on other edges than H; what one of them lacks is zero."""
    rng = np.random.default_rng(seed)
    H = random_values(graph, spin, np.complex128 if spin == 4 else np.float32, rng)
    some = graph.select(rng.uniform(size=graph.n_edges) < share)
    S = random_values(some, 1, np.float64, rng)
    write_deeph(tmp_path, S, H, fermi=-1.5)
    found = read_deeph(tmp_path)
    target = graph.sorted_by_R()[0]
    basis = Basis({z: BASIS[z] for z in graph.structure.species()})  # a folder says nothing of other elements
    for matrix, expected in ((found.hamiltonian, H if spin == 1 else H.spinor()), (found.overlap, S)):
        assert_equal(matrix, Blocks(target, basis, expected.on(target).data, expected.n_spin))
    assert found.fermi == -1.5


def test_atoms_outside_the_cell(tmp_path):
    """R counts from the positions of POSCAR: moving an atom by a lattice vector moves R of its pairs."""
    found = real_matrices()
    write_deeph(tmp_path, found["S"], found["H"])
    expected = read_deeph(tmp_path)
    shifts = np.array([[1, 0, -2], [0, 3, 0]])
    atoms = ase.io.read(tmp_path / "POSCAR", format="vasp")
    atoms.positions += shifts @ atoms.cell.array
    ase.io.write(tmp_path / "POSCAR", atoms, format="vasp", direct=True)
    for name in ("hamiltonian.h5", "overlap.h5"):
        with h5py.File(tmp_path / name, "a") as file:
            pairs = file["atom_pairs"][:]
            file["atom_pairs"][:, :3] = pairs[:, :3] + shifts[pairs[:, 3]] - shifts[pairs[:, 4]]
    moved = read_deeph(tmp_path)
    np.testing.assert_array_equal(moved.hamiltonian.graph.R, expected.hamiltonian.graph.R)
    np.testing.assert_allclose(moved.hamiltonian.graph.vector(), expected.hamiltonian.graph.vector(), atol=1e-9)


def test_one_matrix_alone_and_overlap_with_spin(tmp_path):
    found = real_matrices()
    write_deeph(tmp_path / "s", found["S"])
    alone = read_deeph(tmp_path / "s")
    assert alone.hamiltonian is None and alone.overlap.n_spin == 1
    write_deeph(tmp_path / "h", found["S"], found["S"])
    (tmp_path / "h" / "hamiltonian.h5").replace(tmp_path / "h" / "overlap.h5")
    both = read_deeph(tmp_path / "h")
    assert both.hamiltonian is None
    np.testing.assert_array_equal(both.overlap.data, alone.overlap.data)


@pytest.fixture
def folder(tmp_path):
    found = real_matrices()
    near = {name: found[name].within(0, 3.0) for name in ("S", "H")}
    write_deeph(tmp_path, near["S"], near["H"])
    return tmp_path


def replace(path, **datasets):
    with h5py.File(path, "a") as file:
        for name, value in datasets.items():
            del file[name]
            if value is not None:
                file[name] = value


def test_files_that_do_not_fit(folder):
    content = {name: (folder / name).read_bytes() for name in FILES}
    info = json.loads(content["info.json"])
    with h5py.File(folder / "hamiltonian.h5") as file:
        pairs, entries, shapes, cuts = (
            file[x][:] for x in ("atom_pairs", "entries", "chunk_shapes", "chunk_boundaries")
        )
    twice, beyond, nan, shifted = pairs.copy(), pairs.copy(), entries.copy(), cuts.copy()
    twice[1], beyond[2, 4], nan[9], shifted[3] = twice[0], 2, np.nan, shifted[3] + 1

    def write_info(**changes):
        changed = {k: v for k, v in (info | changes).items() if v is not ...}
        (folder / "info.json").write_text(json.dumps(changed))

    hamiltonian = folder / "hamiltonian.h5"
    for name, spoil, sentence in (
        ("info.json", lambda: (folder / "info.json").write_text("{"), "is not JSON"),
        ("info.json", lambda: write_info(spinful=...), "there is no spinful"),
        ("info.json", lambda: write_info(split_hkb=True), "H is split"),
        ("info.json", lambda: write_info(atoms_quantity=3), "atoms_quantity is 3, but the structure has 2"),
        ("info.json", lambda: write_info(orbits_quantity=52), "orbits_quantity is 52, but the structure has 26"),
        ("info.json", lambda: write_info(fermi_energy_eV="high"), "expected a number or null"),
        ("info.json", lambda: write_info(elements_orbital_map={"Q": [0]}), "expected an element, got 'Q'"),
        ("info.json", lambda: write_info(elements_orbital_map={"C": [0, 1]}), "has no Si, but POSCAR has"),
        ("info.json", lambda: write_info(elements_orbital_map=[]), "elements_orbital_map"),
        ("POSCAR", lambda: (folder / "POSCAR").write_text("1\n2\n"), "cannot read it"),
        ("POSCAR", lambda: (folder / "POSCAR").unlink(), "No such file"),
        ("hamiltonian.h5", lambda: write_info(spinful=False), "chunk_shapes"),
        ("hamiltonian.h5", lambda: hamiltonian.write_bytes(b"no"), "no HDF5 file with atom_pairs"),
        ("hamiltonian.h5", lambda: hamiltonian.write_bytes(content["hamiltonian.h5"][:900]), "or damaged"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, entries=None), "no HDF5 file with"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, entries=entries[:-1]), "data: expected shape"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, entries=nan), "expected finite"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, entries=np.array(b"x")), "expected finite"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, atom_pairs=twice), "occurs twice"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, atom_pairs=beyond), r"expected atom indices 0\.\.\.1, got 2"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, atom_pairs=pairs[:, :4]), r"expected integers \[e, 5\]"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, chunk_shapes=shapes[:-1]), "chunk_shapes"),
        ("hamiltonian.h5", lambda: replace(hamiltonian, chunk_boundaries=shifted), "chunk_boundaries"),
    ):
        for other in FILES:
            (folder / other).write_bytes(content[other])
        spoil()
        with pytest.raises(FileError, match=sentence) as caught:
            read_deeph(folder)
        assert caught.value.path == str(folder / name)
    for name in FILES[:2]:
        (folder / name).write_bytes(content[name])
    for name in FILES[2:]:
        (folder / name).unlink()
    with pytest.raises(FileError, match=r"neither overlap.h5 nor hamiltonian.h5"):
        read_deeph(folder)


def test_overlap_that_depends_on_spin(folder):
    (folder / "hamiltonian.h5").replace(folder / "overlap.h5")
    with pytest.raises(FileError, match="depends on spin"):
        read_deeph(folder)


def test_what_cannot_be_written(tmp_path):
    found = real_matrices()
    with pytest.raises(ValueError, match="depends on spin"):
        write_deeph(tmp_path, found["H"])
    with pytest.raises(ValueError, match="structure and basis of the overlap"):
        write_deeph(tmp_path, found["S"], found["H"].supercell(1, 1, 2))
    with pytest.raises(ValueError, match="hamiltonian: expected real numbers"):
        write_deeph(tmp_path, found["S"], found["H"].channel(0))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_deeph(tmp_path / "file", found["S"])
