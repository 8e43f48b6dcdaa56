"""predict_delta: from the blocks of H⁽⁰⁾ to those of ΔH."""

import dataclasses

import harness
import numpy as np
import pytest
import torch

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.data import sample
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.model import Ensemble, NextHAMConfig, predict_delta

CONFIG = NextHAMConfig(
    hidden="6x0e+4x1o+2x1e+2x2e",
    l_max=2,
    n_layers=2,
    cutoff=5.0,
    tracegrad_forms=16,
    tracegrad_forms_last=16,
    tracegrad_widths=(8, 8),
    trace_widths=(8,),
    ranges=((0.0, 1.0), (1.0, 4.0)),
)


@pytest.fixture(scope="module")
def h0():
    folder = sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    return read_blocks(folder / "hrs0_nao.csr.xz", structure, Basis.published(structure.numbers))


def ensemble_of(**changes):
    torch.manual_seed(0)
    return Ensemble(dataclasses.replace(CONFIG, **changes)).double()


@pytest.mark.parametrize("target", ["uu", "scalar", "scalar+vector"])
def test_delta_of_a_real_sample(h0, target):
    ensemble = ensemble_of(target=target)
    delta = predict_delta(ensemble, h0)
    assert delta.graph is h0.graph and delta.n_spin == 4 and delta.data.dtype == np.complex128
    near, far = delta.within(0.0, 4.0), delta.within(4.0, 1e9)
    assert near.data.any() and not far.data.any() and far.n_edges > 0
    # the same by hand
    inner = h0.within(0.0, 5.0)
    with torch.no_grad():
        irreps = ensemble.irreps_of_blocks(torch.tensor(inner.padded()))
        edges = (torch.tensor(x) for x in (inner.graph.src, inner.graph.dst, inner.graph.vector()))
        blocks = ensemble.correction(ensemble(irreps, *edges).irreps)
    harness.assert_close(torch.tensor(predict_delta(ensemble, inner).padded()[:, 0]), mask(inner, blocks[:, 0]))
    if target == "uu":
        assert np.array_equal(near.padded()[:, 0], near.padded()[:, 3]) and not near.data.imag.any()


def mask(blocks, padded):
    """Zero where the elements have no orbital."""
    there = Blocks(blocks.graph, blocks.basis, np.ones(len(blocks.data)), 4).padded()[:, 0]
    return padded * torch.tensor(there)


def test_the_order_of_edges_does_not_matter(h0):
    ensemble = ensemble_of()
    order = np.random.default_rng(0).permutation(h0.n_edges)
    shuffled = predict_delta(ensemble, h0.select(order))
    expected = predict_delta(ensemble, h0).select(order)
    harness.assert_close(torch.tensor(shuffled.data), torch.tensor(expected.data), harness.DEEP)


def test_float32(h0):
    ensemble = ensemble_of()
    exact = predict_delta(ensemble, h0)
    single = predict_delta(ensemble.float(), h0)
    assert single.data.dtype == np.complex64
    harness.assert_close(torch.tensor(single.data), torch.tensor(exact.data.astype(np.complex64)), 1e-4)


def test_without_spin(h0):
    ensemble = ensemble_of(spinor=False, target="scalar")
    spinless = h0.channel(0).like(np.ascontiguousarray(h0.channel(0).data.real))
    delta = predict_delta(ensemble, spinless)
    assert delta.n_spin == 1 and delta.data.dtype == np.float64 and delta.data.any()
    with harness.raises(ValueError, "the matrix depends on spin"):
        predict_delta(ensemble, h0)


def test_spinless_matrix_for_networks_with_spin(h0):
    spinless = h0.channel(0).like(np.ascontiguousarray(h0.channel(0).data.real))
    ensemble = ensemble_of(target="scalar")
    delta = predict_delta(ensemble, spinless)
    expected = predict_delta(ensemble, spinless.spinor())
    harness.assert_close(torch.tensor(delta.data), torch.tensor(expected.data))


def test_nothing_is_recorded(h0):
    ensemble = ensemble_of()
    predict_delta(ensemble, h0)
    assert all(p.grad is None for p in ensemble.parameters())


def test_contract(h0):
    onsite = np.flatnonzero(h0.graph.onsite())
    keep = np.setdiff1d(np.arange(h0.n_edges), onsite[1:])
    with harness.raises(ValueError, "h0: atom 1 has no on-site block"):
        predict_delta(ensemble_of(), h0.select(keep))
    with harness.raises(ValueError, "does not fit into the padded layout (0, 1)"):
        predict_delta(ensemble_of(shells=(0, 1)), h0)
