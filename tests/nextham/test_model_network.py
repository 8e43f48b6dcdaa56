"""The network against an independent formulation (`independent_network.py`), and its promises."""

import dataclasses

import harness
import independent_network
import numpy as np
import pytest
import torch

from nextham.model import Ensemble, NextHAMConfig, published_places, published_tensors
from nextham.model.network import Geometry

GOLDEN = np.load(independent_network.FILE)


def config_of(case):
    return NextHAMConfig(**independent_network.CASES[case])


def golden_ensemble(case):
    """Our ensemble with the golden weights, and its inputs."""
    ensemble = Ensemble(config_of(case), engine="reference").double()
    with torch.no_grad():
        for number, network in enumerate(ensemble.networks):
            ours = dict(network.named_parameters())
            for name, place in published_places(ensemble.config).items():
                target = ours[place.name][place.entries]
                target.copy_(independent_network.weight(f"{number}:{name}", tuple(target.shape)))
    inputs = [torch.tensor(GOLDEN[f"{case}/{name}"]) for name in ("h0", "src", "dst", "vector")]
    inputs[0] = inputs[0].double()
    return ensemble, inputs


@pytest.mark.parametrize("case", independent_network.CASES)
def test_golden(case):
    ensemble, inputs = golden_ensemble(case)
    record = []
    with torch.no_grad():
        prediction = ensemble(*inputs, record=record)
    outputs = []
    for number, seen in enumerate(record):
        prefix = f"{case}/{number}/"
        names = [name.removeprefix(prefix) for name in GOLDEN.files if name.startswith(prefix)]
        assert len(names) >= 3 * ensemble.config.n_layers + 1
        for name in set(names) - {"trace", "gradients", "parameters"}:
            harness.assert_close(seen[name], torch.tensor(GOLDEN[prefix + name]), harness.DEEP, f"{prefix}{name}")
        outputs.append(torch.tensor(GOLDEN[prefix + "output"]))
    harness.assert_close(prediction.irreps, sum(outputs), harness.DEEP)
    heads = [torch.tensor(GOLDEN[f"{case}/{number}/trace"]) for number in range(len(record))]
    harness.assert_close(prediction.trace, sum(heads), harness.DEEP)


def test_golden_numbers_see_every_parameter():
    """Changing any one parameter by a per cent changes the golden outputs a hundred times more than is allowed."""
    ensemble, (h0, *edges) = golden_ensemble("spinor")
    network, geometry = ensemble.networks[1], Geometry.of(*edges, ensemble.config)
    with torch.no_grad():
        before, unseen = network(h0, geometry), []
        for i, (name, parameter) in enumerate(network.named_parameters()):
            kept = parameter.clone()
            parameter += 0.01 * harness.random(*parameter.shape, seed=i)
            after = network(h0, geometry)
            parameter.copy_(kept)
            if all(harness.relative_error(a, b) < 100 * harness.DEEP for a, b in zip(after, before, strict=True)):
                unseen.append(name)
    assert unseen == []


def test_without_trace_head():
    ensemble, inputs = golden_ensemble("spinor")
    with torch.no_grad():
        full, short = ensemble(*inputs), ensemble(*inputs, with_trace=False)
    assert short.trace is None
    assert torch.equal(full.irreps, short.irreps)


@pytest.mark.parametrize("case", independent_network.CASES)
def test_gradients_of_every_parameter(case):
    """Through the TraceGrad update too, whose scale counts as a constant."""
    ensemble, (h0, *edges) = golden_ensemble(case)
    geometry = Geometry.of(*edges, ensemble.config)
    for network in ensemble.networks:
        independent_network.loss(*network(h0, geometry)).backward()
    found = published_tensors(ensemble, gradients=True)
    for number in range(len(ensemble.networks)):
        expected = GOLDEN[f"{case}/{number}/gradients"]
        for name, (norm, inner) in zip(GOLDEN[f"{case}/{number}/parameters"], expected, strict=True):
            gradient = found.pop(f"{number}:{name}")
            here = independent_network.measures(f"{number}:{name}", gradient)
            assert here == pytest.approx((norm, inner), rel=harness.DEEP, abs=harness.DEEP * norm), name
    assert not found


def test_order_of_edges_and_atoms_does_not_matter():
    ensemble, (h0, src, dst, vector) = golden_ensemble("spinor")
    order = torch.randperm(len(src), generator=torch.Generator().manual_seed(0))
    label = torch.tensor([2, 0, 1])
    with torch.no_grad():
        here = ensemble(h0, src, dst, vector)
        there = ensemble(h0[order], label[src[order]], label[dst[order]], vector[order])
    harness.assert_close(there.irreps, here.irreps[order], harness.DEEP)
    harness.assert_close(there.trace, here.trace[order], harness.DEEP)


def test_output_is_zero_outside_the_ranges():
    ensemble, inputs = golden_ensemble("spinor")
    with torch.no_grad():
        irreps = ensemble(*inputs).irreps
    distance = inputs[3].norm(dim=1)
    assert bool((distance >= 3.0).any())
    assert bool(((irreps != 0).any(1) == (distance < 3.0)).all())


def test_decay():
    config = config_of("spinor")
    ensemble, inputs = golden_ensemble("spinor")
    flat = Ensemble(dataclasses.replace(config, decay=0.0)).double()
    flat.load_state_dict(ensemble.state_dict())
    with torch.no_grad():
        harness.assert_close(
            ensemble(*inputs).irreps, flat(*inputs).irreps * torch.exp(-0.2 * inputs[3].norm(dim=1))[:, None]
        )


def test_float32_is_close():
    ensemble, inputs = golden_ensemble("spinor")
    with torch.no_grad():
        exact = ensemble(*inputs).irreps
        single = ensemble.float()(*(x.float() if x.is_floating_point() else x for x in inputs)).irreps
    assert single.dtype == torch.float32
    harness.assert_close(single.double(), exact, 1e-4)


def test_published_sizes():
    """One network of the published configuration has 10,024 thousand parameters that are read."""
    config = NextHAMConfig.published_v1()
    assert config.block_irreps.dim == 5832
    network = Ensemble(dataclasses.replace(config, ranges=((0.0, 6.0),))).networks[0]
    assert sum(p.numel() for p in network.parameters()) == 10_023_953


def test_later_published_variant_runs():
    config = dataclasses.replace(
        NextHAMConfig.published_v2(), ranges=((0.0, 3.0),), n_layers=2, tracegrad_forms=16, tracegrad_forms_last=16
    )
    ensemble = Ensemble(config)
    src = torch.tensor([0, 1, 0, 1])
    vector = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0.5, 1.0, 1.5], [-0.5, -1.0, -1.5]])
    h0 = harness.random(4, 5832).float()
    with torch.no_grad():
        prediction = ensemble(h0, src, torch.tensor([0, 1, 1, 0]), vector)
    assert bool(torch.isfinite(prediction.irreps).all()) and float(prediction.irreps.abs().max()) > 0


def test_no_edges():
    ensemble, (h0, src, dst, vector) = golden_ensemble("spinless")
    prediction = ensemble(h0[:0], src[:0], dst[:0], vector[:0])
    assert prediction.irreps.shape == (0, h0.shape[1]) and prediction.trace.shape == (0, 16)


def test_contract():
    ensemble, (h0, src, dst, vector) = golden_ensemble("spinless")
    onsite = int(torch.nonzero(vector.norm(dim=1) == 0)[0, 0])
    rest = torch.arange(len(src)) != onsite
    with harness.raises(ValueError, "expected one on-site edge (r = 0) of node 0, got 0"):
        ensemble(h0[rest], src[rest], dst[rest], vector[rest])
    with harness.raises(ValueError, "expected edges below the cutoff 3.2 Å, got"):
        ensemble(h0, src, dst, 2 * vector)
    with harness.raises(ValueError, f"h0: expected shape [e, {h0.shape[1]}] with e = {len(src)}, got"):
        ensemble(h0[:, 1:], src, dst, vector)
    with harness.raises(TypeError, "vector: expected dtype float64 as h0, got float32"):
        ensemble(h0, src, dst, vector.float())
    with harness.raises(TypeError, "weights: expected dtype float32 as h0, got float64"):
        ensemble(h0.float(), src, dst, vector.float())
    with harness.raises(TypeError, "src: expected dtype int64, got int32"):
        ensemble(h0, src.int(), dst, vector)
    with harness.raises(ValueError, "expected one on-site edge (r = 0) of node 3, got 0"):
        Geometry.of(
            torch.cat([src, torch.tensor([3])]),
            torch.cat([dst, torch.tensor([0])]),
            torch.cat([vector, torch.ones(1, 3)]),
            ensemble.config,
        )
