"""The prediction from file to file: equal to the one in memory."""

import harness
import numpy as np
import pytest
import torch
from test_streaming import BASIS, ensemble_of, structure_of

from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.io.errors import FileError
from nextham.io.hdf5 import read_blocks_h5, write_blocks_h5
from nextham.io.hdf5_pieces import PieceWriter, open_pieces
from nextham.model import predict_delta, predict_file
from nextham.model.scratch import KeptRows, ScratchRows


def half_of(graph):
    R = graph.R
    forward = (R[:, 0] > 0) | ((R[:, 0] == 0) & ((R[:, 1] > 0) | ((R[:, 1] == 0) & (R[:, 2] >= 0))))
    return np.flatnonzero((graph.src < graph.dst) | ((graph.src == graph.dst) & forward))


def make(path, n_spin=4, numbers=(14, 6, 1, 14, 1), cell=6.0, pieces=3, reach=5.0):
    """A file in pieces, of edges beyond the cutoff too, and what it holds."""
    graph = neighbour_graph(structure_of(numbers, cell), reach)
    empty, rng = Blocks.zeros(graph, BASIS, n_spin), np.random.default_rng(1)
    data = rng.standard_normal(len(empty.data)) + (1j * rng.standard_normal(len(empty.data)) if n_spin == 4 else 0)
    h0, overlap = (Blocks(graph, BASIS, x, n).symmetrised() for x, n in ((data, n_spin), (data.real, n_spin)))
    overlap = Blocks(graph, BASIS, overlap.data, n_spin).channel(0)
    half = half_of(graph)
    with PieceWriter(path, graph.structure, BASIS, None) as writer:
        for some in np.array_split(half[np.argsort(graph.src[half], kind="stable")], pieces):
            part = h0.select(some)
            writer.append({"H0": part, "S": Blocks(part.graph, BASIS, overlap.select(some).data, 1)})
        writer.finish()
    return h0, overlap


@pytest.mark.parametrize(
    ("changes", "n_spin", "numbers", "cell"),
    [
        ({}, 4, (14, 6, 1, 14, 1), 6.0),
        ({"target": "scalar"}, 1, (14, 6, 1, 14, 1), 6.0),
        ({"spinor": False, "target": "scalar"}, 1, (14, 6, 1, 14, 1), 6.0),
        ({"reads": "elements", "target": "scalar+vector"}, 4, (14, 6), 3.1),
        ({"ranges": ((0.0, 0.1), (0.1, 0.2), (0.2, 3.0))}, 4, (1, 14, 6), 20.0),
    ],
)
def test_equal_to_the_prediction_in_memory(changes, n_spin, numbers, cell, tmp_path):
    ensemble = ensemble_of(**changes)
    h0, overlap = make(tmp_path / "h0.h5", n_spin, numbers, cell)
    delta = predict_delta(ensemble, h0)
    n_spin = max(h0.n_spin, delta.n_spin)
    predicted = h0.with_spin(n_spin) + delta.with_spin(n_spin)
    steps = []
    error = predict_file(ensemble, tmp_path / "h0.h5", tmp_path / "h.h5", progress=lambda *at: steps.append(at))
    found = read_blocks_h5(tmp_path / "h.h5")
    assert list(found) == ["H", "H0", "S"] and found["H"].n_spin == n_spin
    for name, expected in (("H", predicted.symmetrised()), ("H0", h0), ("S", overlap)):
        close(found[name].on(h0.graph), expected)
    assert found["H"].hermitian_error() < 1e-12 and abs(error - predicted.hermitian_error()) < 1e-9
    assert steps[-1][0] == steps[-1][1] == len(steps)


def close(found, expected):
    harness.assert_close(torch.tensor(found.data), torch.tensor(expected.data), harness.DEEP)


def test_the_budget_changes_nothing(tmp_path):
    ensemble = ensemble_of()
    make(tmp_path / "h0.h5")
    with pytest.raises(ValueError, match="memory_budget: expected at least") as caught:
        predict_file(ensemble, tmp_path / "h0.h5", tmp_path / "h.h5", 1000)
    least = int(str(caught.value).split()[4])
    found = []
    for budget in (least, 7 * least, None):
        predict_file(ensemble, tmp_path / "h0.h5", tmp_path / "h.h5", budget)
        found.append(read_blocks_h5(tmp_path / "h.h5")["H"])
        with open_pieces(tmp_path / "h.h5") as reader:  # what is written can be read in pieces again
            assert reader.n_pieces > 3 if budget == least else reader.n_pieces >= 3
    for other in found[:2]:
        close(other.on(found[2].graph), found[2])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["h.h5", "h0.h5"]


def test_a_run_that_was_interrupted_keeps_its_networks(tmp_path):
    ensemble, outputs = ensemble_of(), tmp_path / "other.h5.networks"
    make(tmp_path / "h0.h5")
    steps = []
    predict_file(ensemble, tmp_path / "h0.h5", tmp_path / "h.h5", progress=lambda *at: steps.append(at))
    expected = read_blocks_h5(tmp_path / "h.h5")["H"]
    runs = []

    def run(last, networks=ensemble):
        """Stops after so many steps."""
        runs.append([])

        def stop(at, total):
            runs[-1].append(at)
            if at == last:
                raise InterruptedError

        predict_file(networks, tmp_path / "h0.h5", tmp_path / "other.h5", progress=stop)

    for last in (len(steps) // 2, len(steps) - 1):
        with pytest.raises(InterruptedError):
            run(last)
        assert outputs.exists() and not (tmp_path / "other.h5").exists()
    assert (tmp_path / "other.h5.part").exists()
    changed = ensemble_of()
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    with pytest.raises(FileError, match=r"other\.h5\.networks: is another run's \(structure, H of step zero, model"):
        run(None, changed)
    assert not runs.pop()
    run(None)
    to_write, of_network = len(runs[2]), runs[1][0] - 1
    assert len(ensemble.networks) == 2 and len(steps) == 2 * of_network + to_write
    assert [done[0] for done in runs] == [1, 1 + of_network, 1 + 2 * of_network]
    np.testing.assert_array_equal(read_blocks_h5(tmp_path / "other.h5")["H"].data, expected.data)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["h.h5", "h0.h5", "other.h5"]


def test_what_cannot_be_predicted(tmp_path):
    ensemble = ensemble_of()
    h0, overlap = make(tmp_path / "h0.h5")
    write_blocks_h5(tmp_path / "plain.h5", {"H0": h0, "S": overlap})
    with pytest.raises(FileError, match="was not written piece by piece"):
        predict_file(ensemble, tmp_path / "plain.h5", tmp_path / "h.h5")
    ensemble.engine = "reference"
    with harness.raises(ValueError, "engine: the engine reference keeps everything"):
        predict_file(ensemble, tmp_path / "h0.h5", tmp_path / "h.h5")
    with harness.raises(ValueError, "the matrix depends on spin"):
        predict_file(ensemble_of(spinor=False, target="scalar"), tmp_path / "h0.h5", tmp_path / "h.h5")
    assert not (tmp_path / "h.h5.networks").exists()
    part = h0.select(np.flatnonzero(h0.graph.src < h0.graph.dst))
    with PieceWriter(tmp_path / "lonely.h5", h0.graph.structure, BASIS, None) as writer:
        writer.append({"H0": part, "S": Blocks(part.graph, BASIS, part.channel(0).data, 1)})
        writer.finish()
    with harness.raises(ValueError, "h0: atom 0 has no on-site block"):
        predict_file(ensemble_of(), tmp_path / "lonely.h5", tmp_path / "h.h5")
    assert not (tmp_path / "h.h5").exists()


def test_scratch_rows(tmp_path):
    with ScratchRows(tmp_path, 10, 3, torch.float64) as rows:
        rows.write(np.array([1, 2, 7]), torch.arange(9.0, dtype=torch.float64).reshape(3, 3))
        assert rows.read(slice(1, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert rows.read(np.array([9, 7, 0])).tolist() == [[0, 0, 0], [6, 7, 8], [0, 0, 0]]
        assert rows.read(slice(4, 4)).shape == (0, 3)
        rows.write(slice(8, 10), torch.ones(2, 3, dtype=torch.float64))
        assert rows.read(np.array([8, 9])).sum() == 6
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="cannot keep intermediate results"):
        ScratchRows(tmp_path / "nowhere", 10, 3, torch.float64)


def test_kept_rows(tmp_path):
    path, settings = tmp_path / "rows", (10, 3, torch.float64)
    with KeptRows(path, *settings, "a" * 32) as rows:
        rows.write(slice(0, 10), torch.ones(10, 3, dtype=torch.float64))
    assert not path.exists()
    path.write_bytes(bytes(1000))  # of a run that was killed before its first stage was done
    with KeptRows(path, *settings, "a" * 32) as rows:
        rows.write(slice(3, 5), torch.ones(2, 3, dtype=torch.float64))
        rows.advance()
    for key, n in (("b" * 32, 10), ("a" * 32, 11)):
        with pytest.raises(FileError, match="rows: is another run's"):
            KeptRows(path, n, 3, torch.float64, key)
    with KeptRows(path, *settings, "a" * 32) as rows:
        assert rows.done == 1 and rows.read(slice(2, 6)).sum(1).tolist() == [0, 3, 3, 0]
        rows.advance()
        assert rows.read(slice(9, 10)).sum() == 0
        rows.remove()
    assert not path.exists()
