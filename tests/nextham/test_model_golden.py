"""The published network with prescribed weights on real structures: our numbers against its own (../shared/reference).

The arrays there are float32 or come from a code with float32 constants; measured agreement is 4e-8 to 1.3e-7.
"""

import importlib.util

import harness
import numpy as np
import pytest
import torch

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.model import Ensemble, published_places
from nextham.units import PUBLISHED_RYDBERG, RYDBERG

pytestmark = pytest.mark.shared
STRUCTURES = {"gaas": "GaAs-1", "si": "Si-1"}


@pytest.fixture(scope="module")
def ensemble(shared):
    """The published ensemble with the prescribed weights, float64."""
    spec = importlib.util.spec_from_file_location("reference_weights", shared / "reference" / "weights.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    ensemble = Ensemble(engine="reference").double()
    with torch.no_grad():
        for number, network in enumerate(ensemble.networks):
            ours = dict(network.named_parameters())
            for name, place in published_places(ensemble.config).items():
                ours[place.name][place.entries].copy_(torch.tensor(reference.weight(name, number)))
    return ensemble


@pytest.fixture(scope="module", params=STRUCTURES)
def run(request, shared, ensemble):
    """Golden arrays, the prediction, and the intermediates of network 2."""
    golden = np.load(shared / "reference" / f"{request.param}.npz")
    h0 = torch.tensor(golden["H0_ds"]).double()
    edges = (torch.tensor(golden[name]) for name in ("edge_src", "edge_dst", "edge_vec"))
    record = []
    with torch.no_grad():
        prediction = ensemble(h0, *edges, record=record)
        delta = ensemble.correction(prediction.irreps)
    return golden, prediction, delta, record[2]


def close(golden, name, actual):
    harness.assert_close(actual.double(), torch.tensor(golden[name]).double(), harness.GOLDEN, name)


@pytest.mark.parametrize("layer", range(4))
def test_layers(run, layer):
    golden, _, _, record = run
    seen = 0
    for theirs, ours in (
        (f"range2/block{layer}/node", f"layer{layer}/node"),
        (f"range2/block{layer}/edge", f"layer{layer}/edge"),
        (f"range2/tracegrad{layer}/invariants", f"tracegrad{layer}/invariants"),
        (f"range2/tracegrad{layer}/gradient", f"tracegrad{layer}/gradient"),
    ):
        if theirs in golden and ours in record:
            close(golden, theirs, record[ours])
            seen += 1
    assert seen == (4 if layer < 3 else 1)


def test_last_gradient(run, ensemble):
    """The published code computes it in the last layer too, where nothing reads it."""
    golden, _, _, record = run
    scalars = record["layer3/edge"][:, : ensemble.config.n_scalars]
    close(golden, "range2/tracegrad3/gradient", ensemble.networks[2].tracegrad[3](scalars)[1].detach())


def test_output(run):
    golden, _, _, record = run
    there = torch.tensor(golden["edge_ham_range2"]).double()
    # components that Re ↑↑ does not read are stored as zero
    read = (there != 0).any(0)
    harness.assert_close(record["output"][:, read], there[:, read], harness.GOLDEN)


def test_delta(run):
    golden, _, delta, _ = run
    index, sign = order_permutation(PUBLISHED_SHELLS_PADDED, "deeph")
    signs = torch.tensor(sign[:, None] * sign)
    for spin in (0, 3):
        close(golden, "delta_pred", delta[:, spin].real[:, index][:, :, index] * signs)
    assert not delta[:, 1:3].any() and not delta.imag.any()


def test_trace(run):
    golden, prediction, _, _ = run
    close(golden, "edge_trace", prediction.trace)


@pytest.mark.parametrize("name", STRUCTURES)
def test_irreps_of_h0(shared, ensemble, name):
    """From the ABACUS files, with the Rydberg of the published code."""
    golden = np.load(shared / "reference" / f"{name}.npz")
    folder = shared / "data" / "abacus" / STRUCTURES[name]
    structure = read_stru(folder / "STRU").structure
    blocks = read_blocks(folder / "hrs0_nao.csr.xz", structure, Basis.published(structure.numbers))
    blocks = blocks.within(0.0, 4.4 if name == "gaas" else 4.6)
    graph, order = blocks.graph.sorted_by_R()
    assert np.array_equal(graph.src, golden["edge_src"]) and np.array_equal(graph.dst, golden["edge_dst"])
    assert np.array_equal(graph.R, golden["R"])
    # the Bohr of the reference is CODATA's, that of ABACUS is 4e-7 shorter
    assert np.allclose(graph.vector(), golden["edge_vec"], rtol=1e-6, atol=1e-6)
    padded = torch.tensor(blocks.padded()[order]) * (PUBLISHED_RYDBERG / RYDBERG)
    close(golden, "H0_ds", ensemble.irreps_of_blocks(padded))
