"""H of step zero written group by group: equal to the whole one, however the atoms are cut into groups."""

import pickle
import signal
import subprocess
import sys
import weakref

import harness
import numpy as np
import pytest
from test_build_h0 import STRUCTURE, write

from nextham.h0 import AtomicFiles, build_h0, stream_h0, streaming
from nextham.h0.regions import groups_of, neighbour_counts
from nextham.io.errors import FileError
from nextham.io.hdf5 import read_blocks_h5, read_contents_h5, write_blocks_h5
from nextham.io.hdf5_pieces import PieceWriter, open_pieces
from nextham.structure import Structure

RNG = np.random.default_rng(0)
SIX = Structure(np.diag([9.0, 8.0, 7.0]), RNG.random((6, 3)) * [9, 8, 7], [14, 1, 14, 1, 1, 14])
STRUCTURES = {
    "a cell smaller than the orbitals": STRUCTURE,
    "atoms outside their cell": Structure(SIX.cell, SIX.positions + np.array([4, -30, 11]), SIX.numbers),
    "a molecule": Structure(SIX.cell, SIX.positions[:4] * 1.3 - 3, SIX.numbers[:4], (False, False, False)),
    "a chain": Structure(SIX.cell, SIX.positions[:4], SIX.numbers[:4], (False, True, False)),
    "hydrogen far from silicon": Structure(np.eye(3) * 40, [[1, 1, 1], [20, 20, 20]], [1, 14]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("files"))


def least(structure, files, path):
    """The smallest budget: pieces of single atoms."""
    with pytest.raises(ValueError, match="expected at least") as caught:
        stream_h0(structure, files, path, memory_budget=1000)
    return int(str(caught.value).split()[4])


@pytest.mark.parametrize("times", [1, 3, 1000])
@pytest.mark.parametrize("name", STRUCTURES)
def test_equal_to_the_whole(name, times, files, tmp_path):
    structure, path, steps = STRUCTURES[name], tmp_path / "h.h5", []
    budget = times * least(structure, files, path)
    stream_h0(structure, files, path, memory_budget=budget, progress=lambda *at: steps.append(at))
    found = read_blocks_h5(path)
    for matrix, expected in zip((found["H0"], found["S"]), build_h0(structure, files), strict=True):
        assert matrix.n_edges == expected.n_edges and matrix.data.dtype == expected.data.dtype
        np.testing.assert_allclose(matrix.on(expected.graph).data, expected.data, rtol=0, atol=1e-11)
        np.testing.assert_array_equal(matrix.graph.structure.positions, expected.graph.structure.positions)
    assert steps[-1] == (structure.n_atoms, structure.n_atoms) and steps == sorted(steps)
    with open_pieces(path) as reader:
        # Where one silicon atom fits, so may two of hydrogen.
        fewest, most = {1: (structure.n_atoms - 1, structure.n_atoms), 1000: (1, 1)}.get(times, (1, structure.n_atoms))
        assert fewest <= reader.n_pieces <= most
    assert not (tmp_path / "h.h5.part").exists()


def test_without_spin_orbit_coupling(files, tmp_path):
    scalar = write(tmp_path, spin_orbit=False)
    mixed = AtomicFiles(files.orbitals, {1: scalar.pseudopotentials[1], 14: files.pseudopotentials[14]})
    path = tmp_path / "h.h5"
    for basis, n_spin in ((scalar, 1), (mixed, 4)):
        stream_h0(SIX, basis, path, memory_budget=least(SIX, basis, path))
        h0, _ = build_h0(SIX, basis)
        assert h0.n_spin == n_spin
        np.testing.assert_allclose(read_blocks_h5(path)["H0"].on(h0.graph).data, h0.data, rtol=0, atol=1e-11)


def test_single_precision(files, tmp_path):
    budget = least(SIX, files, tmp_path / "h.h5")
    for precision in ("double", "single"):
        stream_h0(SIX, files, tmp_path / f"{precision}.h5", memory_budget=budget, precision=precision)
    found = read_blocks_h5(tmp_path / "single.h5")
    for name, expected in read_blocks_h5(tmp_path / "double.h5").items():
        dtype = np.complex64 if name == "H0" else np.float32
        assert found[name].data.dtype == dtype
        np.testing.assert_array_equal(found[name].data, expected.data.astype(dtype))
    with harness.raises(ValueError, "precision: expected 'single', 'double' or None, got 'half'"):
        stream_h0(SIX, files, tmp_path / "half.h5", memory_budget=budget, precision="half")
    assert not list(tmp_path.glob("half*"))


def test_one_piece_exists_at_a_time(files, tmp_path, monkeypatch):
    pieces, append, alive = [], PieceWriter.append, []

    def watched(self, matrices):
        pieces.append(weakref.ref(matrices["H0"].data))
        append(self, matrices)

    monkeypatch.setattr(PieceWriter, "append", watched)
    count = lambda *_: alive.append(sum(piece() is not None for piece in pieces))  # noqa: E731
    path = tmp_path / "h.h5"
    stream_h0(SIX, files, path, memory_budget=least(SIX, files, path), progress=count)
    assert len(pieces) > 3 and len(alive) > len(pieces) and not any(alive)


class Stopped(Exception):
    pass


def stop(done, total):
    if done >= 5:  # behind the grid of the only group, 0.8 of it, and a piece
        raise Stopped


def test_a_run_that_is_interrupted_goes_on(files, tmp_path):
    path, part = tmp_path / "h.h5", tmp_path / "h.h5.part"
    budget = least(SIX, files, path)

    with pytest.raises(Stopped):
        stream_h0(SIX, files, path, memory_budget=budget, progress=stop)
    assert part.exists() and not path.exists()
    with pytest.raises(FileError, match="is incomplete: the run that wrote it did not come to its end"):
        read_blocks_h5(part)
    steps = []
    stream_h0(SIX, files, path, memory_budget=budget, progress=lambda *at: steps.append(at))
    assert steps[0][0] >= 1 and not part.exists()
    resumed = read_blocks_h5(path)
    stream_h0(SIX, files, tmp_path / "other.h5", memory_budget=budget)
    for name, expected in read_blocks_h5(tmp_path / "other.h5").items():
        np.testing.assert_array_equal(resumed[name].data, expected.data)
    assert read_contents_h5(path).n_edges == {"H0": resumed["H0"].n_edges, "S": resumed["S"].n_edges}


KILLED = """
import os, pickle, signal, sys
from nextham.h0 import stream_h0
from nextham.io import hdf5_pieces

def append(dataset, at, values, whole=hdf5_pieces._append, calls=[]):
    calls.append(dataset.name)
    if calls.count("/matrices/H0/half/uu_re") == 3:  # of the third piece half of a plane is there
        whole(dataset, at, values[: len(values) // 2])
        dataset.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(dataset, at, values)

hdf5_pieces._append = append
with open(sys.argv[1], "rb") as arguments:
    stream_h0(**pickle.load(arguments))
"""


def test_a_run_that_is_killed_goes_on(files, tmp_path):
    path, part, other = tmp_path / "h.h5", tmp_path / "h.h5.part", tmp_path / "other.h5"
    settings = {"structure": SIX, "basis": files, "memory_budget": least(SIX, files, path)}
    (tmp_path / "arguments").write_bytes(pickle.dumps({**settings, "path": path}))
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "arguments"], timeout=120)
    assert ended.returncode == -signal.SIGKILL and part.exists() and not path.exists()
    with pytest.raises(FileError, match=r"h\.h5\.part: "):
        read_blocks_h5(part)
    steps = []
    stream_h0(path=path, **settings, progress=lambda *at: steps.append(at))
    assert steps[0][0] >= 2 and not list(tmp_path.glob("h.h5.*"))
    stream_h0(path=other, **settings)
    found = read_blocks_h5(path)
    for name, expected in read_blocks_h5(other).items():  # the grid's sums begin elsewhere: equal but for rounding
        for columns in ("src", "dst", "R"):
            np.testing.assert_array_equal(getattr(found[name].graph, columns), getattr(expected.graph, columns))
        np.testing.assert_allclose(found[name].data, expected.data, rtol=0, atol=1e-12)


def test_what_cannot_be_continued_is_refused(files, tmp_path, monkeypatch):
    path, part = tmp_path / "h.h5", tmp_path / "h.h5.part"
    budget = least(SIX, files, path)
    part.write_bytes(b"\x89HDF\r\n\x1a\n cut short")
    with pytest.raises(FileError, match=r"h\.h5\.part: is damaged, remove it to begin anew"):
        stream_h0(SIX, files, path, memory_budget=budget)
    part.unlink()

    moved = Structure(SIX.cell, SIX.positions + 0.1, SIX.numbers)  # an unfinished file of another structure
    with pytest.raises(Stopped):
        stream_h0(moved, files, path, memory_budget=budget, progress=stop)
    written = part.read_bytes()
    with pytest.raises(FileError, match=r"h\.h5\.part: is another run's .* remove it to begin anew"):
        stream_h0(SIX, files, path, memory_budget=budget)
    monkeypatch.setattr(streaming, "__version__", "0.0.1")
    with pytest.raises(FileError, match=r"is another run's \(.* or version of this program\)"):
        stream_h0(moved, files, path, memory_budget=budget)
    assert part.read_bytes() == written and not path.exists()


def test_pieces_are_read_alone(files, tmp_path):
    path = tmp_path / "h.h5"
    stream_h0(SIX, files, path, memory_budget=2 * least(SIX, files, path))
    whole = read_blocks_h5(path)
    with open_pieces(path) as reader:
        assert reader.names == ["H0", "S"] and reader.n_edges == whole["S"].n_edges
        for piece in range(reader.n_pieces):
            graph = reader.graph(piece)
            for name, matrix in whole.items():
                for edges in (slice(0, 3), slice(3, None)):
                    found = reader.read(name, piece, graph, edges)
                    np.testing.assert_array_equal(found.data, matrix.on(found.graph).data)
    plain = tmp_path / "plain.h5"
    write_blocks_h5(plain, whole)
    with pytest.raises(FileError, match="was not written piece by piece"), open_pieces(plain):
        pass


def test_pieces_that_cannot_be_written(files, tmp_path):
    _, overlap = build_h0(SIX, files)
    half = overlap.select(overlap.graph.src < overlap.graph.dst)
    half.data[3] = np.nan
    with PieceWriter(tmp_path / "s.h5", SIX, overlap.basis, "key") as writer:
        with harness.raises(ValueError, "matrices: expected one of each edge and its reverse"):
            writer.append({"S": overlap})
        with harness.raises(ValueError, "S: 1 numbers are not finite"):
            writer.append({"S": half})


def test_bad_input(files, tmp_path):
    path = tmp_path / "h.h5"
    close = Structure(SIX.cell, [[0, 0, 0], [0.05, 0, 0]], [1, 14])
    with harness.raises(ValueError, "structure: atoms 0 and 1 are at the same place (0.050 Å apart)"):
        stream_h0(close, files, path)
    with harness.raises(ValueError, "orbitals: none for C"):
        stream_h0(Structure(SIX.cell, [[0, 0, 0]], [6]), files, path)
    with harness.raises(ValueError, "structure: expected at least one atom"):
        stream_h0(Structure(SIX.cell, np.zeros((0, 3)), []), files, path)


def test_groups():
    structure, weight = Structure(np.diag([40.0, 10, 10]), RNG.random((200, 3)) * [40, 10, 10], [1] * 200), np.ones(200)
    groups = groups_of(structure, np.arange(200), weight, 30)
    assert np.array_equal(np.sort(np.concatenate(groups)), np.arange(200))
    assert len(groups) == 7 and max(map(len, groups)) <= 30
    for group in groups:
        assert np.ptp(structure.positions[group], axis=0).max() < 11


def test_neighbour_counts():
    reach = np.full(6, 3.0)
    found = neighbour_counts(SIX, reach, np.array([0, 2, 5]), 2.0)
    shifts = np.array(list(np.ndindex(5, 5, 5))) - 2
    images = (SIX.positions[[0, 2, 5]][:, None] + shifts @ SIX.cell).reshape(-1, 3)
    distance = np.linalg.norm(SIX.positions[:, None] - images, axis=2)
    np.testing.assert_array_equal(found, (distance <= 5.0).sum(axis=1))
