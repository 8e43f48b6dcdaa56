"""predict_delta in pieces: equal to the plain engine for elements with different orbitals, whatever the budget."""

import dataclasses

import harness
import numpy as np
import pytest
import torch
from test_model_predict import CONFIG

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.model import Ensemble, predict_delta
from nextham.model.block_channels import input_channels, output_channels
from nextham.model.ensemble import CHUNK
from nextham.model.streaming import needs_of
from nextham.structure import Structure

SHELLS = (0, 0, 1, 1, 2)
BASIS = Basis({1: (0,), 6: (0, 0, 1), 14: SHELLS})
SMALL = dataclasses.replace(CONFIG, shells=SHELLS, cutoff=4.0, ranges=((0.0, 1.0), (1.0, 3.5)))


def structure_of(numbers, cell=6.0):
    rng = np.random.default_rng(0)
    return Structure(cell * np.eye(3), cell * rng.random((len(numbers), 3)), numbers)


def hamiltonian(numbers=(14, 6, 1, 14, 1), n_spin=4, cell=6.0):
    graph = neighbour_graph(structure_of(numbers, cell), SMALL.cutoff)
    empty = Blocks.zeros(graph, BASIS, n_spin)
    rng = np.random.default_rng(1)
    data = rng.standard_normal(len(empty.data))
    return empty.like(data + 1j * rng.standard_normal(len(data)) if n_spin == 4 else data)


def ensemble_of(**changes):
    torch.manual_seed(0)
    ensemble = Ensemble(dataclasses.replace(SMALL, **changes)).double()
    with torch.no_grad():
        for p in ensemble.parameters():  # biases too
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype)
    return ensemble


def close(found, expected):
    harness.assert_close(torch.tensor(found.data), torch.tensor(expected.data), harness.DEEP)


def plain(ensemble, h0):
    ensemble.engine = "reference"
    result = predict_delta(ensemble, h0)
    ensemble.engine = "edge_frame"
    return result


@pytest.mark.parametrize("target", ["uu", "scalar", "scalar+vector"])
@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_equals_the_plain_engine(target, n_spin):
    ensemble, h0 = ensemble_of(target=target), hamiltonian(n_spin=n_spin)
    expected = plain(ensemble, h0)
    assert np.abs(expected.data).max() > 1e-3
    close(predict_delta(ensemble, h0), expected)


def test_without_spin():
    ensemble, h0 = ensemble_of(spinor=False, target="scalar"), hamiltonian(n_spin=1)
    found = predict_delta(ensemble, h0)
    assert found.n_spin == 1 and found.data.dtype == np.float64 and found.data.any()
    close(found, plain(ensemble, h0))


def needs(ensemble, h0):
    elements = frozenset((BASIS[a], BASIS[b]) for a in (1, 6, 14) for b in (1, 6, 14))
    channels = (input_channels(ensemble.config, elements), output_channels(ensemble.config, elements))
    return needs_of(ensemble, h0, *channels)


@pytest.mark.parametrize("extra", [0, 13, 10_000])
def test_the_budget_changes_nothing(extra):
    ensemble, h0 = ensemble_of(), hamiltonian()
    need, steps = needs(ensemble, h0), []
    budget = need.kept + need.per_edge * (need.largest + extra)
    found = predict_delta(ensemble, h0, budget, lambda done, total: steps.append((done, total)))
    close(found, predict_delta(ensemble, h0))
    assert steps[-1][0] == steps[-1][1]
    pieces = -(-h0.n_edges // min(need.largest + extra, CHUNK))
    assert steps[-1][1] == 2 * pieces * len(ensemble.networks)


def test_a_budget_that_is_too_small():
    ensemble, h0 = ensemble_of(), hamiltonian()
    need = needs(ensemble, h0)
    least = need.kept + need.per_edge * need.largest
    with harness.raises(ValueError, f"memory_budget: expected at least {least} bytes for these edges, got {least - 1}"):
        predict_delta(ensemble, h0, least - 1)
    ensemble.engine = "reference"
    with harness.raises(ValueError, "memory_budget: the engine reference keeps everything"):
        predict_delta(ensemble, h0, 10**9)


@pytest.mark.parametrize("numbers", [(14,), (6, 14)])
def test_atoms_that_see_nothing_but_themselves(numbers):
    ensemble, h0 = ensemble_of(), hamiltonian(numbers, cell=40.0)
    assert h0.n_edges == len(numbers)
    close(predict_delta(ensemble, h0), plain(ensemble, h0))


def test_a_range_without_edges():
    ensemble, h0 = ensemble_of(ranges=((0.0, 0.1), (0.1, 0.2), (0.2, 3.0))), hamiltonian()
    close(predict_delta(ensemble, h0), plain(ensemble, h0))


def test_nothing_random_is_drawn():
    ensemble, h0 = ensemble_of(), hamiltonian((6, 1))
    before = torch.get_rng_state()
    first, second = predict_delta(ensemble, h0), predict_delta(ensemble, h0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first.data, second.data)


def test_no_edges():
    h0 = hamiltonian((14,), cell=40.0)
    nothing = h0.select(np.zeros(0, dtype=np.int64))
    with harness.raises(ValueError, "h0: atom 0 has no on-site block"):
        predict_delta(ensemble_of(), nothing)


def test_channels_are_those_of_the_orbitals_and_the_target():
    s, p = (0,), (1,)
    config = dataclasses.replace(SMALL, shells=(0, 1), hidden="4x0e+2x1o+2x1e+2x2e")
    # s-s: L = 0 and its J = 1; real and imaginary
    assert input_channels(config, frozenset({(s, s)})).irreps == "2x0e+2x1e"
    assert output_channels(config, frozenset({(s, s)})).irreps == "1x0e+1x1e"
    assert output_channels(dataclasses.replace(config, target="scalar"), frozenset({(s, s)})).irreps == "1x0e"
    # s-p: L = 1 and its J = 0, 1, 2, all odd: hidden features reach 1o alone
    assert output_channels(config, frozenset({(s, p)})).irreps == "2x1o"
    both = input_channels(config)
    assert both.column[both.components()].tolist() == list(range(both.width))
