"""The loss against the published numbers, against its definition by loops, and its derivatives."""

import json
import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation
from nextham.blocks import Blocks
from nextham.compact_target import CompactTarget
from nextham.graph import Graph, neighbour_graph
from nextham.io.csr import read_blocks
from nextham.kspace import bands_at, eigenvectors_at
from nextham.loss_target import Target, low_bands
from nextham.losses import LossSettings, gauge_mu, hamiltonian_loss, project, total_loss
from nextham.metrics import gauge_mae
from nextham.structure import Structure
from nextham.units import PUBLISHED_RYDBERG, RYDBERG

SAMPLES = {"gaas": "GaAs-1", "si": "Si-1"}


class Reference:
    """One structure of the published outputs: graph of its own few edges, real matrices, prediction."""

    def __init__(self, shared, name):
        self.arrays = np.load(shared / "reference" / f"{name}.npz")
        self.numbers = json.loads((shared / "reference" / f"{name}.json").read_text())
        a, folder = self.arrays, shared / "data" / "abacus" / SAMPLES[name]
        structure, _ = Structure(a["cell"], a["positions"], a["numbers"]).wrapped()
        basis = Basis.published(a["numbers"])
        self.graph = Graph(structure, a["edge_src"], a["edge_dst"], a["R"])
        np.testing.assert_allclose(self.graph.vector(), a["edge_vec"], atol=1e-12)
        h0, ht, self.full_overlap = (
            read_blocks(folder / f"{kind}_nao.csr.xz", structure, basis) for kind in ("hrs0", "hrs1", "srs1")
        )
        h0, self.full_ht = (h * (PUBLISHED_RYDBERG / RYDBERG) for h in (h0, ht))
        self.h0, self.ht, self.overlap = (m.on(self.graph) for m in (h0, self.full_ht, self.full_overlap))
        # Published slots of an atom are in DeepH's order; ours are in e3nn's.
        self.index, self.sign = order_permutation(PUBLISHED_SHELLS_PADDED, "deeph")

    def delta(self):
        """Predicted ΔH [e, 4, 27, 27], e3nn order: Re ↑↑ in ↑↑ and ↓↓."""
        uu = np.empty_like(self.arrays["delta_pred"])
        uu[:, self.index[:, None], self.index] = self.arrays["delta_pred"] * np.outer(self.sign, self.sign)
        zero = np.zeros_like(uu)
        return np.stack([uu, zero, zero, uu], axis=1)

    @cached_property
    def targets(self):
        """The target with the published eigenvectors, and with our own."""
        n_low = self.numbers["band_cut_index"]
        published = self.arrays["eigenvectors_padded"].astype(np.complex128)
        published = published.reshape(len(published), -1, 2, 27)
        vectors = np.empty_like(published)
        vectors[..., self.index] = published * self.sign
        low = np.arange(len(vectors)) < n_low
        k = self.arrays["kpt"][None]
        own = eigenvectors_at(self.full_ht, self.full_overlap, k)[1]
        target = Target.from_blocks(self.ht - self.h0, self.overlap, k, own, low[None])
        return replace(target, vectors=torch.from_numpy(vectors)[None]), target


@pytest.fixture(scope="module", params=list(SAMPLES))
def published(request, shared):
    return Reference(shared, request.param)


@pytest.mark.shared
@pytest.mark.parametrize("mode", ["mae", "mse"])
@pytest.mark.parametrize("own_vectors", [False, True])
def test_published_losses(published, mode, own_vectors):
    """Measured agreement: 3e-8 relative with L1, 1.4e-7 with squares (the published eigenvectors are complex64)."""
    target = published.targets[own_vectors]
    delta, trace = torch.from_numpy(published.delta()), torch.from_numpy(published.arrays["edge_trace"])
    loss = total_loss(delta, trace, target, LossSettings(squares=mode == "mse", padded_slots=True))
    expected = published.numbers[mode]
    for name, value in (
        ("mu", loss.mu),
        ("loss_h", loss.hamiltonian),
        ("loss_trace", loss.trace),
        ("total", loss.total),
    ):
        assert float(value) == pytest.approx(expected[name], rel=1e-6), name
    # The default leaves padded slots out, which in these predictions are not zero.
    ours = total_loss(delta, trace, target, LossSettings(squares=mode == "mse"))
    assert float(ours.hamiltonian) < 0.99 * expected["loss_h"]
    assert float(ours.mu) == float(loss.mu) and float(ours.trace) == float(loss.trace)


@pytest.mark.shared
def test_published_projections(published):
    target, _ = published.targets
    error = torch.from_numpy(published.delta()) - target.delta
    (projected,) = project(error, target)
    for name, matrix in (("P_err", projected.low), ("PQ_err", projected.coupling)):
        expected = published.arrays[name]
        assert np.abs(matrix.numpy() - expected).max() < 3e-7 * np.abs(expected).max(), name


@pytest.mark.shared
def test_published_gauge_mae(published):
    prediction = published.h0 + Blocks.from_padded(published.graph, published.h0.basis, published.delta()).astype(
        np.complex128
    )
    for name, hamiltonian in (("pred", prediction), ("H0", published.h0)):
        report = gauge_mae(hamiltonian, published.ht, published.overlap)
        assert report.mae_meV == pytest.approx(1e3 * published.numbers[f"gauge_mae_{name}_eV"], rel=1e-8)


@pytest.mark.shared
def test_published_low_bands(published):
    gamma = bands_at(published.full_ht, published.full_overlap, np.zeros((1, 3)))[0]
    assert low_bands(gamma, published.numbers["efermi_eV"]) == published.numbers["band_cut_index"]
    levels = bands_at(published.full_ht, published.full_overlap, published.arrays["kpt"][None])[0]
    np.testing.assert_allclose(levels, published.arrays["eigenvalues"], atol=1e-5)


# --- without reference data: a small basis, several k-points, any set of low bands


BASIS = Basis({14: (0, 1), 1: (0,)})
SHELLS = (0, 0, 1)


def small(n_spin, n_k=2, seed=0):
    """A target of random Hermitian matrices, and a prediction and trace head that fit it."""
    rng = np.random.default_rng(seed)
    structure = Structure(np.diag([2.6, 2.9, 3.1]), [[0.1, 0.2, 0.3], [1.3, 1.5, 1.4], [0.2, 1.4, 0.1]], [14, 1, 1])
    graph = neighbour_graph(structure, 3.0)
    dtype = np.complex128 if n_spin == 4 else np.float64

    def matrix(scale):
        blocks = Blocks.zeros(graph, BASIS, n_spin, dtype)
        parts = scale * rng.standard_normal((2, len(blocks.data)))
        blocks.data[:] = parts[0] + 1j * parts[1] if n_spin == 4 else parts[0]
        return blocks.symmetrised()

    delta, hamiltonian = matrix(0.1), matrix(1.0)
    overlap = Blocks.zeros(graph, BASIS, 1)
    for e in np.flatnonzero(graph.onsite()):
        overlap.block(e)[0] = np.eye(overlap.block(e).shape[1])
    overlap = overlap + Blocks(graph, BASIS, 0.004 * rng.standard_normal(len(overlap.data)), 1).symmetrised()
    kpoints = rng.uniform(-0.5, 0.5, (n_k, 3))
    epsilon, vectors = eigenvectors_at(hamiltonian, overlap, kpoints)
    low = np.stack([np.arange(epsilon.shape[1]) % (3 + q) == q for q in range(n_k)])
    target = Target.from_blocks(delta, overlap, kpoints, vectors, low, SHELLS)
    prediction = torch.from_numpy(matrix(0.1).padded(SHELLS) + 0.01 * rng.standard_normal(target.delta.shape))
    trace = torch.from_numpy(rng.standard_normal((graph.n_edges, 9)))
    return delta, overlap, (kpoints, low, vectors), target, prediction, trace


def by_definition(delta, overlap, bands, prediction, settings):
    """μ and loss_H by dense matrices over real orbitals and sums of numbers."""
    graph = delta.graph
    error = Blocks.from_padded(graph, BASIS, prediction.numpy(), SHELLS) - delta.astype(prediction.numpy().dtype)
    s = overlap.with_spin(delta.n_spin)
    count = len(error.data)
    above = settings.real * np.vdot(s.data, error.data).real / count
    below = settings.real * np.vdot(s.data, s.data).real / count
    kpoints, chosen, vectors = bands
    parts = []
    for k, low, c in zip(kpoints, chosen, vectors, strict=True):
        between = c.conj().T @ error.to_dense(k) @ c
        parts.append((between[np.ix_(low, low)], between[np.ix_(~low, ~low)], between[np.ix_(low, ~low)]))
        for weight, matrix in ((settings.low, parts[-1][0]), (settings.rest, parts[-1][1])):
            above += weight * np.trace(matrix).real / len(matrix) ** 2 / len(kpoints)
            below += weight / len(matrix) / len(kpoints)
    mu = above / below
    power = 2 if settings.squares else 1
    real = (error.data - mu * s.data).real if not settings.imaginary else (error.data - mu * s.data)
    loss = settings.real * sum(abs(x.real) ** power + abs(x.imag) ** power for x in real) / count
    for matrices in parts:
        weights = (settings.low, settings.rest, settings.coupling)
        for weight, matrix, shifted in zip(weights, matrices, (True, True, False), strict=True):
            matrix = matrix - mu * np.eye(len(matrix)) if shifted else matrix
            total = sum(abs(x.real) ** power + abs(x.imag) ** power for x in matrix.reshape(-1))
            loss += weight * total / matrix.size / len(kpoints)
    return mu, loss


@pytest.mark.parametrize("n_spin", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(),
        LossSettings(low=0.3, rest=0.2, coupling=0.1, squares=True),
        LossSettings(low=0.2, rest=0.1, coupling=0.3, imaginary=True),
    ],
)
def test_loss_is_the_definition(n_spin, settings):
    delta, overlap, bands, target, prediction, trace = small(n_spin)
    mu, loss_h = by_definition(delta, overlap, bands, prediction, settings)
    loss = total_loss(prediction, trace, target, settings)
    assert float(loss.mu) == pytest.approx(mu, rel=1e-10)
    assert float(loss.hamiltonian) == pytest.approx(loss_h, rel=1e-10)
    assert float(loss.total) == pytest.approx(loss_h, rel=1e-10)  # by the balance of the two terms
    assert set(loss.terms) == {"real", "low", "rest", "coupling"}


def test_trace_is_the_definition():
    """Label and mask of every pair of shells, written as sums over slots."""
    delta, overlap, _, target, prediction, trace = small(4)
    mu = float(total_loss(prediction, trace, target).mu)
    wide = np.abs(delta.padded(SHELLS) + mu * overlap.spinor().padded(SHELLS)) ** 2
    starts = [0, 1, 2, 5]
    total, count = 0.0, 0
    for e in range(delta.n_edges):
        label, ones = np.empty(9), np.empty(9)
        real = target.exists[target.src[e]][:, None] & target.exists[target.dst[e]]
        for p in range(9):
            a, b = (slice(starts[i], starts[i + 1]) for i in divmod(p, 3))
            label[p], ones[p] = wide[e, :, a, b].sum(), 4 * float(real[a, b].sum())
        label = (label - label.mean()) / math.sqrt(label.var() + 1e-5)
        for p in range(9):
            if ones[p] != ones.mean():
                total += abs(float(trace[e, p]) - label[p])
                count += 1
    assert float(total_loss(prediction, trace, target).trace) == pytest.approx(total / count, rel=1e-10)


def test_gauge_invariance():
    """A prediction that is off by μS alone costs nothing in loss_H."""
    *_, target, _, trace = small(4)
    loss = total_loss(target.delta + 0.37 * target.overlap, trace, target)
    assert float(loss.mu) == pytest.approx(0.37, abs=1e-9)
    assert float(loss.hamiltonian) < 1e-9


def test_mu_minimises_the_squares():
    """μ is where the squared loss is smallest; its coupling term does not depend on μ."""
    *_, target, prediction, _ = small(4, seed=3)
    settings = LossSettings(low=0.2, rest=0.3, coupling=0.1, squares=True, imaginary=True)

    def at(shift):
        error = prediction - target.delta
        projected = project(error, target)
        mu = gauge_mu(error, projected, target, settings) + shift
        return float(sum(hamiltonian_loss(error, projected, mu, target, settings).values()))

    assert at(0.0) < min(at(1e-3), at(-1e-3))
    assert at(1e-3) == pytest.approx(at(-1e-3), rel=1e-9)  # a parabola around its vertex


@pytest.mark.parametrize("n_spin", [1, 4])
def test_gradcheck(n_spin):
    """The trace loss through μ; the constants of loss_H are checked below."""
    *_, target, prediction, trace = small(n_spin, n_k=1)
    settings = LossSettings(low=0.2, rest=0.1, coupling=0.3)
    which = torch.randperm(prediction.numel(), generator=torch.Generator().manual_seed(0))[:12]

    def value(x):
        moved = prediction.flatten().index_add(0, which, x.to(prediction.dtype)).reshape(prediction.shape)
        loss = total_loss(moved, trace, target, settings)
        return loss.trace, loss.mu

    x = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (x,))


def test_constants_pass_no_gradient():
    *_, target, prediction, trace = small(4)
    prediction, trace = prediction.requires_grad_(), trace.requires_grad_()
    settings = LossSettings(low=0.2, rest=0.1, coupling=0.3)
    loss = total_loss(prediction, trace, target, settings)
    total = torch.autograd.grad(loss.total, (prediction, trace), retain_graph=True)
    of_h = torch.autograd.grad(loss.hamiltonian, prediction, retain_graph=True)[0]
    of_t = torch.autograd.grad(loss.trace, (prediction, trace), retain_graph=True)
    balance = float((loss.hamiltonian / loss.trace).detach())
    torch.testing.assert_close(total[0], 0.8 * of_h + 0.2 * balance * of_t[0])
    torch.testing.assert_close(total[1], 0.2 * balance * of_t[1])
    assert of_t[0].abs().max() > 0  # through μ
    # loss_H with a constant μ: the real-space sum has the gradient of its signs alone.
    real = torch.autograd.grad(loss.terms["real"], prediction)[0].real
    expected = (
        settings.real
        / target.n_elements
        * (prediction.detach() - target.delta - loss.mu.detach() * target.overlap).real.sign()
    )
    torch.testing.assert_close(real, expected * target.mask())


def test_perfect_prediction_is_finite():
    *_, target, _, trace = small(1)
    delta = target.delta.clone().requires_grad_()
    loss = total_loss(delta, trace, target)
    loss.total.backward()
    assert torch.isfinite(delta.grad).all() and float(loss.hamiltonian.detach()) == 0.0


def test_without_kpoints_only_real_space():
    *_, target, prediction, trace = small(4)
    alone = replace(target, kpoints=target.kpoints[:0], vectors=target.vectors[:0], low=target.low[:0])
    loss = total_loss(prediction, trace, alone, LossSettings(low=0, rest=0, coupling=0))
    again = total_loss(prediction, trace, target, LossSettings(low=0, rest=0, coupling=0))
    assert float(loss.total) == float(again.total) and float(loss.terms["low"]) == 0.0


def test_single_precision():
    *_, target, prediction, trace = small(4)
    loss = total_loss(prediction, trace, target)
    half = total_loss(prediction.to(torch.complex64), trace.float(), target.to("cpu", torch.float32))
    assert half.total.dtype == torch.float32
    assert float(half.total) == pytest.approx(float(loss.total), rel=1e-5)


@pytest.mark.parametrize("n_spin", [1, 4])
@pytest.mark.parametrize("squares", [False, True])
def test_compact_is_the_padded_loss(n_spin, squares):
    """Value, terms and gradients; also with edges that have no prediction, and published sums over empty slots."""
    delta, overlap, (kpoints, low, vectors), target, prediction, trace = small(n_spin)
    near = np.flatnonzero(delta.graph.distance() < 2.5)
    assert 0 < len(near) < delta.graph.n_edges
    absent = np.setdiff1d(np.arange(delta.graph.n_edges), near)
    prediction[absent] = 0
    compact = CompactTarget.from_blocks(delta, overlap, near, SHELLS).with_bands(kpoints, vectors, low)
    everywhere = CompactTarget.from_blocks(delta, overlap, None, SHELLS).with_bands(kpoints, vectors, low)
    for padded_slots in (False, True):
        settings = LossSettings(0.2, 0.1, 0.3, squares=squares, padded_slots=padded_slots)
        x = prediction.clone().requires_grad_()
        padded = total_loss(x, trace, target, settings)
        grad = torch.autograd.grad(padded.total, x)[0]
        y = prediction.flatten(2).clone().requires_grad_()
        ours = total_loss(y, trace, everywhere, settings)
        for name in ("total", "hamiltonian", "trace", "mu"):
            torch.testing.assert_close(getattr(ours, name), getattr(padded, name), rtol=1e-11, atol=0)
        torch.testing.assert_close(torch.stack(list(ours.terms.values())), torch.stack(list(padded.terms.values())))
        torch.testing.assert_close(torch.autograd.grad(ours.total, y)[0].reshape(grad.shape), grad)
        part = total_loss(prediction[near].flatten(2), trace[near], compact, settings)
        torch.testing.assert_close(part.hamiltonian, padded.hamiltonian, rtol=1e-11, atol=0)
        torch.testing.assert_close(part.mu, padded.mu, rtol=1e-11, atol=0)


def test_compact_takes_one_block_for_both_spins():
    delta, overlap, (kpoints, low, vectors), target, prediction, trace = small(4)
    compact = CompactTarget.from_blocks(delta, overlap, None, SHELLS).with_bands(kpoints, vectors, low)
    block = prediction[:, 0].real.contiguous()
    wide = torch.stack([block, 0 * block, 0 * block, block], dim=1).to(prediction.dtype)
    settings = LossSettings(0.2, 0.1, 0.3, padded_slots=True)
    ours, padded = total_loss(block.flatten(1), trace, compact, settings), total_loss(wide, trace, target, settings)
    torch.testing.assert_close(ours.total, padded.total, rtol=1e-11, atol=0)
    single = total_loss(block.flatten(1).float(), trace.float(), compact.to("cpu", torch.float32), settings)
    assert single.total.dtype == torch.float32
    assert float(single.total) == pytest.approx(float(ours.total), rel=1e-5)
    assert compact.nbytes() > 8 * compact.delta.numel()
    with pytest.raises(ValueError, match=r"^delta: expected shape"):
        total_loss(block.flatten(1)[:-1], trace, compact)


@pytest.mark.shared
def test_compact_published_losses(published):
    """The compact form gives the published numbers too, sums over empty slots included."""
    target, _ = published.targets
    delta, overlap = published.ht - published.h0, published.overlap
    vectors = eigenvectors_at(published.full_ht, published.full_overlap, published.arrays["kpt"][None])[1]
    low = target.low.numpy()
    compact = CompactTarget.from_blocks(delta, overlap).with_bands(published.arrays["kpt"][None], vectors, low)
    trace = torch.from_numpy(published.arrays["edge_trace"])
    prediction = torch.from_numpy(published.delta()[:, 0]).flatten(1)
    for mode in ("mae", "mse"):
        loss = total_loss(prediction, trace, compact, LossSettings(squares=mode == "mse", padded_slots=True))
        expected = published.numbers[mode]
        assert float(loss.total) == pytest.approx(expected["total"], rel=1e-6)
        assert float(loss.mu) == pytest.approx(expected["mu"], rel=1e-6)


def test_bad_arguments_are_named():
    *_, target, prediction, trace = small(4)
    with pytest.raises(ValueError, match=r"^delta: expected shape"):
        total_loss(prediction[:, :1], trace, target)
    with pytest.raises(ValueError, match=r"^trace: expected shape"):
        total_loss(prediction, trace[:, :3], target)
    with pytest.raises(ValueError, match=r"^settings: "):
        LossSettings(low=0.7, rest=0.4)
    for name, value in (("dst", target.dst[1:]), ("low", target.low[:1]), ("delta", target.delta[:, :2])):
        with pytest.raises(ValueError, match=rf"^{name}: expected shape"):
            replace(target, **{name: value})
    with pytest.raises(ValueError, match=r"^gamma_levels: "):
        low_bands(np.array([-3.0, -2.0, -1.0, 0.0]), 0.0)
    assert low_bands(np.array([-3.0, -2.0, 9.9, 10.0, 11.0]), 0.0) == 2
