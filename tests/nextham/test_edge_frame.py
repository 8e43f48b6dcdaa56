"""The edge-frame engine against the reference engine: the same network, to rounding."""

import dataclasses
import gc

import harness
import independent_network
import pytest
import torch
from test_model_network import config_of, golden_ensemble
from torch.profiler import ProfilerActivity, profile

from nextham.model import Ensemble
from nextham.model import ensemble as ensemble_module
from nextham.model.config import NextHAMConfig
from nextham.model.edge_geometry import EdgeGeometry

VARIANTS = {
    **{case: {} for case in independent_network.CASES},
    "floor": {"norm": "floor"},
    "no_residual": {"tracegrad_residual": 0.0},
    "one_range": {"ranges": ((0.0, 3.0),)},
    "empty_range": {"ranges": ((0.0, 0.5), (0.5, 0.6), (0.6, 3.2))},
}


def case_of(variant, dtype=torch.float64, seed=0):
    """An ensemble of some configuration with random weights and biases, and inputs."""
    case = variant if variant in independent_network.CASES else "spinor"
    _, inputs = golden_ensemble(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ensemble = Ensemble(dataclasses.replace(config_of(case), **VARIANTS[variant]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return ensemble.to(dtype), [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def both(ensemble, inputs, **options):
    results = []
    for engine in ("edge_frame", "reference"):
        ensemble.engine = engine
        results.append(ensemble(*inputs, **options))
    return results


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference(variant):
    ensemble, inputs = case_of(variant)
    with torch.no_grad():
        ours, reference = both(ensemble, inputs)
        short, _ = both(ensemble, inputs, with_trace=False)
    assert float(reference.irreps.abs().max()) > 1e-3
    harness.assert_close(ours.irreps, reference.irreps, harness.DEEP)
    harness.assert_close(ours.trace, reference.trace, harness.DEEP)
    assert short.trace is None
    harness.assert_close(short.irreps, reference.irreps, harness.DEEP)


def test_single_precision_is_as_exact_as_the_reference():
    """Over several draws of the weights: one alone may favour either by a factor of three."""
    errors = []
    for seed in range(5):
        ensemble, inputs = case_of("spinor", seed=seed)
        with torch.no_grad():
            _, exact = both(ensemble, inputs)
            results = both(ensemble.float(), [x.float() if x.is_floating_point() else x for x in inputs])
        errors.append([harness.relative_error(x.irreps.double(), exact.irreps) for x in results])
    ours, plain = torch.tensor(errors).sum(0).tolist()
    assert ours <= 2 * plain


@pytest.mark.parametrize("variant", ["spinor", "no_residual", "floor"])
def test_gradients_equal_the_reference(variant):
    ensemble, inputs = case_of(variant)
    grads = []
    for engine in ("edge_frame", "reference"):
        ensemble.engine = engine
        ensemble.zero_grad()
        prediction = ensemble(*inputs)
        weights = [harness.random(*x.shape, seed=i) for i, x in enumerate(prediction)]
        sum((w * x).sum() for w, x in zip(weights, prediction, strict=True)).backward()
        grads.append({name: p.grad for name, p in ensemble.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[1].items():
        harness.assert_close(grads[0][name], expected, harness.DEEP, name)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_change_nothing(chunk, monkeypatch):
    ensemble, inputs = case_of("spinor")
    with torch.no_grad():
        expected = ensemble(*inputs)
        monkeypatch.setattr(ensemble_module, "CHUNK", chunk)
        found = ensemble(*inputs)
    harness.assert_close(found.irreps, expected.irreps, harness.DEEP)
    harness.assert_close(found.trace, expected.trace, harness.DEEP)


def test_chunks_are_whole_atoms():
    ensemble, (_, src, dst, vector) = case_of("spinor")
    geometry = EdgeGeometry.of(src, dst, vector, ensemble.config, 30)
    assert geometry.chunks[0][0] == geometry.chunks[0][2] == 0
    assert geometry.chunks[-1][1] == len(src)
    for a, b, first, last in geometry.chunks:
        assert (geometry.dst[a:b].unique() == torch.arange(first, last)).all()
        assert b - a <= 30 or last - first == 1


def test_kept_geometries_change_nothing(monkeypatch):
    """Two structures, each with the geometry made once, against their graphs put together and sorted anew."""
    ensemble, (h0, src, dst, vector) = case_of("spinor")
    other = torch.randperm(len(src), generator=torch.Generator().manual_seed(1))
    inputs = [(h0, src, dst, vector), (-h0[other], src[other], dst[other], vector[other])]
    n_nodes = int(src.max()) + 1
    together = [torch.cat(x) for x in zip(*inputs, strict=True)]
    for index in together[1:3]:
        index[len(src) :] += n_nodes
    kept = [ensemble.geometry(*of_one[1:]) for of_one in inputs]
    assert kept[0].nbytes() > kept[0].wigner.nbytes + kept[0].radial.nbytes
    for chunk in (30, 2048):
        monkeypatch.setattr(ensemble_module, "CHUNK", chunk)
        with torch.no_grad():
            expected, found = ensemble(*together), ensemble.on_geometries(together[0], kept)
            alone, anew = ensemble.on_geometries(h0, kept[:1]), ensemble(*inputs[0])
        assert torch.equal(found.irreps, expected.irreps) and torch.equal(found.trace, expected.trace)
        assert torch.equal(alone.irreps, anew.irreps)


def test_order_of_edges_changes_nothing():
    ensemble, (h0, src, dst, vector) = case_of("spinor")
    order = torch.randperm(len(src), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ensemble(h0, src, dst, vector), ensemble(h0[order], src[order], dst[order], vector[order])
    harness.assert_close(found.irreps, expected.irreps[order], harness.DEEP)


def test_changed_weights_are_seen():
    """The folded weights are kept between calls, but not beyond a change of any parameter."""
    ensemble, inputs = case_of("spinor")
    with torch.no_grad():
        before = ensemble(*inputs).irreps
        kept = ensemble._folded
        assert torch.equal(ensemble(*inputs).irreps, before)
        assert ensemble._folded is kept
        ensemble.networks[1].layers[0].attention.heads.weight.mul_(1.5)
        after = ensemble(*inputs).irreps
        ensemble.engine = "reference"
        expected = ensemble(*inputs).irreps
    assert harness.relative_error(after, before) > 1e-3
    harness.assert_close(after, expected, harness.DEEP)


def test_contract():
    ensemble, (h0, src, dst, vector) = case_of("spinor")
    with harness.raises(ValueError, "engine: expected one of edge_frame, reference, got 'fast'"):
        ensemble.engine = "fast"
    with harness.raises(ValueError, "record: the engine edge_frame has no intermediates"):
        ensemble(h0, src, dst, vector, record=[])
    onsite = int(torch.nonzero((src == dst) & (vector.norm(dim=1) == 0))[0])
    kept = [i for i in range(len(src)) if i != onsite]
    with harness.raises(ValueError, "expected one on-site edge (r = 0) of node"):
        ensemble(h0[kept], src[kept], dst[kept], vector[kept])


def test_activation_memory():
    """What one network of the published size keeps for its backward pass: 50 kB per edge, 18 of them its input."""
    config = NextHAMConfig(ranges=((2.0, 4.0),))
    ensemble = Ensemble(config)

    def kept(n):
        # A chain of two atoms per cell: on-site edges first, then images of one bond, a quarter of them in range.
        src, dst = torch.arange(n) % 2, torch.arange(n) % 2
        vector = torch.linspace(0.0, 7.9, n)[:, None] * torch.tensor([0.6, 0.0, 0.8])
        vector[:2] = 0.0
        h0 = torch.randn(n, config.block_dim)
        ensemble(h0, src, dst, vector)  # makes what is made once
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
            prediction = ensemble(h0, src, dst, vector)
            gc.collect()
        left = sum(event.self_cpu_memory_usage for event in watch.key_averages())
        return left - sum(x.untyped_storage().nbytes() for x in prediction)

    assert 30e3 < (kept(80) - kept(40)) / 40 < 55e3


def test_folding_follows_the_weights():
    """Folded weights are kept between calls, until a parameter is changed in place or its module is replaced."""
    ensemble, inputs = case_of("spinor")
    first = ensemble.networks[0].layers[0]
    with torch.no_grad():
        before = ensemble(*inputs).irreps
        first.norm_edge.weight *= 1.5
        changed, plain = both(ensemble, inputs)
        harness.assert_close(changed.irreps, plain.irreps, harness.DEEP)
        assert harness.relative_error(changed.irreps, before) > 1e-3
        ensemble.engine = "edge_frame"
        other, _ = case_of("spinor", seed=1)
        first.rise = other.networks[0].layers[0].rise
        replaced, plain = both(ensemble, inputs)
        harness.assert_close(replaced.irreps, plain.irreps, harness.DEEP)
        assert harness.relative_error(replaced.irreps, changed.irreps) > 1e-3


def test_no_edges():
    ensemble, inputs = case_of("spinor")
    ours, plain = both(ensemble, [x[:0] for x in inputs])
    assert ours.irreps.shape == plain.irreps.shape == inputs[0][:0].shape
    assert ours.trace.shape == plain.trace.shape
