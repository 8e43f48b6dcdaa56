import re

import h5py
import numpy as np
import pytest
from block_cases import assert_equal, graphs, matrices, random_values, real_matrices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham.blocks import Blocks
from nextham.io import hdf5_matrix
from nextham.io.errors import FileError
from nextham.io.hdf5 import VERSION, read_blocks_h5, read_contents_h5, write_blocks_h5

PUBLISHED_BYTES_PER_EDGE = 4 * (5832 + 2 * 4 * 729 * 3 + 4 * 729 + 2 * 54 * 54 * 3 + 54 * 54)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def near(found):
    """The edges that a published sample has."""
    graph = found["H"].graph
    graph = graph.select(graph.distance() < 8)
    return {name: matrix.on(graph) for name, matrix in found.items()}


@SAME_FOLDER
@given(matrix=matrices())
def test_round_trip(tmp_path, matrix):
    write_blocks_h5(tmp_path / "m.h5", {"M": matrix})
    assert_equal(read_blocks_h5(tmp_path / "m.h5")["M"], matrix)


@SAME_FOLDER
@given(matrix=matrices(), seed=st.integers(0, 99), first=st.integers(0, 14), n=st.integers(0, 14))
def test_range_of_edges_in_small_pieces(tmp_path, matrix, seed, first, n):
    """H from H0, and what is read is a part of it."""
    noise = random_values(matrix.graph, matrix.n_spin, matrix.data.dtype.type, np.random.default_rng(seed))
    both = {"H0": matrix, "H": matrix + 1e-3 * noise}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_matrix, "_STEP", 50)
        write_blocks_h5(tmp_path / "m.h5", both)
        found = read_blocks_h5(tmp_path / "m.h5", ["H"], slice(first, first + n))
        assert list(found) == ["H"]
        assert_equal(found["H"], both["H"].select(np.arange(matrix.n_edges)[first : first + n]))
        assert_equal(read_blocks_h5(tmp_path / "m.h5", ["H0"])["H0"], matrix)


@SAME_FOLDER
@given(a=graphs(), data=st.data())
def test_matrices_on_different_edges(tmp_path, a, data):
    rng = np.random.default_rng(0)
    b = a.select(np.array(data.draw(st.permutations(range(a.n_edges)))[: a.n_edges // 2], dtype=int))
    both = {"H": random_values(a, 4, np.complex128, rng), "S": random_values(b, 1, np.float32, rng)}
    write_blocks_h5(tmp_path / "m.h5", both)
    found = read_blocks_h5(tmp_path / "m.h5")
    assert list(found) == ["H", "S"]
    for name in both:
        assert_equal(found[name], both[name])


def test_real_sample_is_small_and_exact(tmp_path):
    """A twentieth of the published file at least; float32 is the published precision."""
    sample = near(real_matrices())
    for precision, dtype, at_least in (("single", np.complex64, 90), ("double", np.complex128, 45)):
        write_blocks_h5(tmp_path / "m.h5", sample, precision=precision)
        found = read_blocks_h5(tmp_path / "m.h5")
        for name, matrix in sample.items():
            assert_equal(found[name], matrix.astype(dtype))
        size = (tmp_path / "m.h5").stat().st_size / sample["H"].n_edges
        assert PUBLISHED_BYTES_PER_EDGE / size > at_least


@pytest.mark.shared
def test_shared_sample_is_small(shared, tmp_path):
    sample = near(real_matrices(shared / "data" / "abacus" / "GaAs-1"))
    for precision, at_least in (("single", 45), ("double", 20)):
        write_blocks_h5(tmp_path / "m.h5", sample, precision=precision)
        size = (tmp_path / "m.h5").stat().st_size / sample["H"].n_edges
        assert PUBLISHED_BYTES_PER_EDGE / size > at_least


def test_largest_basis_is_small_enough(tmp_path):
    """4s2p2d1f for all atoms, and every number of H0, ΔH and S random: no structure helps but that of physics."""
    from nextham.basis import Basis
    from nextham.graph import neighbour_graph
    from nextham.structure import Structure

    graph = neighbour_graph(Structure(3 * np.eye(3), np.zeros((1, 3)), [22]), 5.0)
    rng = np.random.default_rng(0)
    real = Blocks.zeros(graph, Basis.published([22]), 1)
    blocks = {}
    for name in ("scalar", "x", "y", "z", "delta", "S"):
        part = real.like(rng.standard_normal(len(real.data)))
        adjoint = part.adjoint().on(graph)
        blocks[name] = part + adjoint if name in ("scalar", "delta", "S") else part - adjoint
    h0 = blocks["scalar"].spinor()
    for _, _, edges, block in h0.groups():  # h·1 + i (x σx + y σy + z σz): Hermitian and invariant in time reversal
        x, y, z = (blocks[s].data[blocks[s].index(edges)][:, 0] for s in "xyz")
        block += np.stack([1j * z, 1j * x + y, 1j * x - y, -1j * z], axis=1)
        h0.put(edges, block)
    h = h0 + blocks["delta"].spinor() * 1e-2
    write_blocks_h5(tmp_path / "m.h5", {"H0": h0, "H": h, "S": blocks["S"]}, precision="single")
    assert PUBLISHED_BYTES_PER_EDGE / ((tmp_path / "m.h5").stat().st_size / graph.n_edges) > 20


def test_layout_can_be_read_without_us(tmp_path):
    """As the module's page describes it."""
    sample = real_matrices()
    write_blocks_h5(tmp_path / "m.h5", sample, precision="double")
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["matrices/S"].attrs["unit"] == b"1" and file["matrices/H"].attrs["unit"] == b"eV"
        assert file["matrices/H"].attrs["relative_to"] == b"H0"
        assert file["matrices/S"].attrs["hermitian"] and not file["matrices/H"].attrs["hermitian"]  # by 4e-19 eV
        assert set(file["matrices/S/half"]) == {"uu_re"}
        assert file["graphs/0/R"][0].tolist() == sample["H0"].graph.R[0].tolist()
        block = file["matrices/H0/half/uu_re"][: 13 * 13].reshape(13, 13)
        np.testing.assert_array_equal(block, sample["H0"].block(0)[0].real)


def test_contents(tmp_path):
    sample = real_matrices()
    metadata = {"name": "Si größer", "efermi_eV": 6.93, "band_cut": 19, "kpoints": np.eye(3), "converged": True}
    write_blocks_h5(tmp_path / "m.h5", sample, metadata, precision="single")
    contents = read_contents_h5(tmp_path / "m.h5")
    assert contents.structure.formula() == "Si2" and contents.basis.label(14) == "2s2p1d"
    assert contents.n_edges == {"H0": 274, "H": 274, "S": 174}
    assert contents.n_spin == dict.fromkeys(contents.n_edges, 4)
    assert contents.dtype == dict.fromkeys(contents.n_edges, "complex64")
    np.testing.assert_array_equal(contents.metadata.pop("kpoints"), np.eye(3))
    assert contents.metadata == {key: metadata[key] for key in ("name", "efermi_eV", "band_cut", "converged")}


@pytest.fixture
def small(tmp_path):
    """A file of few edges, and what it holds."""
    sample = {name: matrix.within(0, 3.0) for name, matrix in real_matrices().items()}
    path = tmp_path / "small.h5"
    write_blocks_h5(path, sample, {"name": "Si-1", "kpoints": np.eye(3)}, precision="single")
    return path, {name: matrix.astype(np.complex64) for name, matrix in sample.items()}


def read_all(path):
    return read_blocks_h5(path), read_contents_h5(path)


def test_no_damage_goes_unseen(small):
    """Any changed byte gives an error or changes nothing; a hundred and fifty of them, all over the file."""
    path, sample = small
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for place in np.linspace(0, len(content) - 1, 150).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found, contents = read_all(path)
        except FileError as error:
            assert "\n" not in str(error)
            errors += 1
            continue
        for name in sample:
            assert_equal(found[name], sample[name])
        assert contents.metadata["name"] == "Si-1"
    assert errors > 100


def test_cut_short(small):
    path, _ = small
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(FileError, match=r"no HDF5 file|damaged or cut short"):
            read_all(path)


def test_other_files(small, tmp_path):
    path, _ = small
    (tmp_path / "text.h5").write_text("STEP: 0\n")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with h5py.File(path, "a") as file:
        file.attrs["version"] = VERSION + 1
    for name, sentence in (
        ("text.h5", "no HDF5 file"),
        ("other.h5", "not one of block matrices"),
        ("absent.h5", "cannot be read: No such file"),
        ("small.h5", f"its format is version {VERSION + 1}, this program reads up to {VERSION}"),
    ):
        for read in (read_blocks_h5, read_contents_h5):
            with pytest.raises(FileError, match=sentence) as caught:
                read(tmp_path / name)
            assert caught.value.path == str(tmp_path / name)


def test_unknown_name_and_range(small):
    path, _ = small
    with pytest.raises(FileError, match="no matrix T, only H0, H, S"):
        read_blocks_h5(path, ["T"])
    with pytest.raises(ValueError, match="contiguous range"):
        read_blocks_h5(path, edges=slice(0, 4, 2))


def test_what_cannot_be_written(tmp_path):
    sample = real_matrices()
    moved = sample["S"].supercell(1, 1, 2)
    broken = sample["S"].like(np.where(np.arange(len(sample["S"].data)) == 5, np.nan, sample["S"].data))
    twice = sample["S"].select(np.array([0, 0]))
    for wrong, sentence in (
        ({}, "at least one matrix"),
        ({"H/0": sample["H"]}, "names like H0"),
        ({"H": sample["H"], "S": moved}, "same structure and basis for all, S has another"),
        ({"S": broken}, "S: 1 numbers are not finite"),
        ({"S": twice}, "occurs twice"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            write_blocks_h5(tmp_path / "m.h5", wrong)
    with pytest.raises(ValueError, match="precision"):
        write_blocks_h5(tmp_path / "m.h5", sample, precision="half")
    with pytest.raises(FileError, match="cannot be written"):
        write_blocks_h5(tmp_path / "absent" / "m.h5", sample)
    assert not list(tmp_path.iterdir())


def test_an_old_file_survives_a_failure(small):
    path, sample = small
    with pytest.raises(ValueError, match="occurs twice"):
        write_blocks_h5(path, {"S": sample["S"].select(np.array([0, 0]))})
    assert_equal(read_blocks_h5(path)["S"], sample["S"])
    assert [p.name for p in path.parent.iterdir()] == ["small.h5"]
