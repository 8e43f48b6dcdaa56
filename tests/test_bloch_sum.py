"""bloch_sum against a loop over edges, and its derivatives against finite differences."""

import harness
import numpy as np
import pytest
import torch

from nextham_kernels.ops.bloch_sum import (
    _phases,
    bloch_derivative,
    bloch_layout,
    bloch_project,
    bloch_sum,
    cpu,
    is_cheaper,
    reference,
)

CASES = {
    # orbitals of the atoms, edges, spins, k-points
    "one orbital": ([1], 3, 1, 2),
    "ragged": ([3, 1, 5], 17, 1, 3),
    "spinor": ([2, 5, 0, 7], 40, 2, 5),
    "many k-points": ([13, 9], 19, 1, 37),
    "production": ([13, 13], 60, 2, 9),
    "both ways": ([13, 3, 0, 9], 30, 2, 6),
    "both ways, one number": ([2, 1], 9, 1, 11),
}
CELL = torch.tensor([[2.0, 0.1, 0.0], [0.3, 2.5, 0.2], [0.0, -0.4, 3.0]], dtype=torch.float64)
REAL = [torch.float32, torch.float64]


def graph(case):
    orbitals, n_edges, spins, n_points = CASES[case]
    generator = torch.Generator().manual_seed(3)
    src, dst = torch.randint(len(orbitals), (2, n_edges), generator=generator)
    R = torch.randint(-2, 3, (n_edges, 3), generator=generator)
    if case.startswith("both ways"):  # all vectors with their opposites, not always between the same atoms; some twice
        back, forth = torch.cat([src[:-3], dst[-3:]]), torch.cat([dst[:-3], src[-3:]])
        src, dst = torch.cat([src, back, src[:4]]), torch.cat([dst, forth, dst[:4]])
        R = torch.cat([R, -R, R[:4]])
    return (src, dst, R, torch.tensor(orbitals), spins), harness.random(n_points, 3, seed=5)


def inputs(case, dtype=torch.complex128, positions=False):
    (src, dst, R, orbitals, spins), kpoints = graph(case)
    layout = bloch_layout(src, dst, R, orbitals, spins, harness.random(len(orbitals), 3, seed=9) if positions else None)
    real = harness.random(layout.n_numbers, 2)
    blocks = torch.view_as_complex(real) if dtype.is_complex else real[:, 0].clone()
    return blocks.to(dtype), layout, kpoints


def definition(case, blocks, positions=None):
    """Σ_e exp(2πi k·v) M_e, one edge, one k-point, one element at a time."""
    (src, dst, R, orbitals, spins), kpoints = graph(case)
    first = (spins * (orbitals.cumsum(0) - orbitals)).tolist()
    size, at = spins * int(orbitals.sum()), 0
    dense = np.zeros((len(kpoints), size, size), dtype=complex)
    for i, j, vector in zip(src, dst, R, strict=True):
        shape = (spins, spins, int(orbitals[i]), int(orbitals[j]))
        block = blocks[at : at + int(np.prod(shape))].reshape(shape).numpy()
        at += block.size
        v = vector.double() if positions is None else vector + positions[j] - positions[i]
        for q, k in enumerate(kpoints):
            for s, t, a, b in np.ndindex(shape):
                phase = np.exp(2j * np.pi * float(k @ v))
                dense[q, first[i] + a * spins + s, first[j] + b * spins + t] += phase * block[s, t, a, b]
    return torch.from_numpy(dense)


def arguments(case, dtype=torch.complex128):
    """What the registered op takes."""
    blocks, layout, kpoints = inputs(case, dtype)
    numbers = torch.view_as_real(blocks) if dtype.is_complex else blocks[:, None]
    phases = torch.view_as_real(_phases(layout, kpoints)).to(numbers.dtype)
    return numbers, phases, layout.edges, layout.pairs, layout.size, layout.spins


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("case", ["one orbital", "ragged", "spinor"])
def test_reference_is_the_definition(case, dtype):
    blocks, _, _ = inputs(case, dtype)
    found = torch.view_as_complex(reference.bloch_sum(*arguments(case, dtype)))
    harness.assert_close(found, definition(case, blocks))


def test_interatomic_phases():
    """The same matrix up to diag exp(2πi k·x), and the definition with v = R + x_dst − x_src."""
    blocks, layout, kpoints = inputs("spinor", positions=True)
    orbitals, positions = graph("spinor")[0][3], harness.random(4, 3, seed=9)
    between = bloch_sum(blocks, layout, kpoints)
    harness.assert_close(between, definition("spinor", blocks, positions))
    x = positions.repeat_interleave(2 * orbitals, dim=0)
    unitary = torch.exp(2j * torch.pi * (kpoints @ x.T))
    plain = bloch_sum(*inputs("spinor"))
    harness.assert_close(between, unitary.conj()[:, :, None] * plain * unitary[:, None, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype):
    harness.assert_as_exact_as_reference(torch.ops.nextham.bloch_sum, reference.bloch_sum, arguments(case, dtype))
    assert bloch_sum(*inputs(case, dtype)).is_complex()


def test_every_number_is_written(monkeypatch):
    """The kernel gets memory that holds anything, and pairs or whole rows of atoms may have no edge."""
    monkeypatch.setattr(cpu, "empty", lambda like, shape: like.new_full(shape, torch.nan))
    atoms = torch.tensor([1, 1, 3])
    layout = bloch_layout(atoms, atoms.flip(0), torch.zeros(3, 3, dtype=torch.int64), torch.tensor([2, 3, 4, 1, 5]), 2)
    dense = bloch_sum(torch.ones(layout.n_numbers), layout, torch.zeros(3, 3, dtype=torch.float64))
    expected = torch.zeros(15, 15)
    for row, column in ((slice(2, 5), slice(9, 10)), (slice(2, 5), slice(2, 5)), (slice(9, 10), slice(2, 5))):
        expected[row, column] = 1
    assert torch.equal(dense.real, expected.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(3, -1, -1))
    assert not dense.imag.any()


def test_opposite_vectors_have_conjugate_phases():
    """To the last bit, so that the kernel takes their edges two at a time."""
    _, layout, kpoints = inputs("both ways")
    found = _phases(layout, kpoints)
    assert layout.mirrored and torch.equal(found, found.flip(0).conj())
    assert not inputs("production")[1].mirrored


@pytest.mark.parametrize("dtype", REAL)
def test_instruction_sets_agree(instruction_set, dtype):
    tolerance = 50 * torch.finfo(dtype).eps
    for case in CASES:
        blocks, *rest = arguments(case, dtype)
        plain = reference.bloch_sum(blocks, *rest)
        harness.assert_close(torch.ops.nextham.bloch_sum(blocks, *rest), plain, tolerance)
        harness.assert_same_gradients(
            lambda blocks, rest=rest: torch.ops.nextham.bloch_sum(blocks, *rest),
            lambda blocks, rest=rest: reference.bloch_sum(blocks, *rest),
            {"blocks": blocks},
            tolerance,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("case", CASES)
def test_backward(case, dtype):
    """Re⟨G, H(x)⟩ = Re⟨Hᵀ(G), x⟩: the adjoint of a linear map is its gradient."""
    blocks, layout, kpoints = inputs(case, dtype)
    dense = bloch_sum(leaf := harness.leaf(blocks), layout, kpoints)
    above = torch.view_as_complex(harness.random(*dense.shape, 2, seed=7))
    (grad,) = torch.autograd.grad(dense, leaf, above)
    harness.assert_close((grad.conj() * blocks).sum().real, (above.conj() * dense).sum().real)
    numbers, *rest = arguments(case, dtype)
    harness.assert_same_gradients(
        lambda blocks: torch.ops.nextham.bloch_sum(blocks, *rest),
        lambda blocks: reference.bloch_sum(blocks, *rest),
        {"blocks": numbers},
    )


def test_many_phases_are_summed_in_groups():
    """More k-points than one group of the adjoint holds, blocks that are no multiple of a vector."""
    numbers, _, edges, pairs, size, spins = arguments("spinor")
    phases = harness.random(125, 700, 2)
    harness.assert_same_gradients(
        lambda blocks: torch.ops.nextham.bloch_sum(blocks, phases, edges, pairs, size, spins),
        lambda blocks: reference.bloch_sum(blocks, phases, edges, pairs, size, spins),
        {"blocks": numbers},
    )


def test_double_backward():
    blocks, layout, kpoints = inputs("ragged", torch.float64)
    unit = torch.eye(len(blocks), dtype=torch.float64)
    matrix = torch.stack([bloch_sum(x, layout, kpoints) for x in unit], dim=-1)  # the map is linear

    def loss(x):
        return (bloch_sum(x, layout, kpoints).abs() ** 4).sum()

    def plain(x):
        return ((matrix @ x.to(matrix.dtype)).abs() ** 4).sum()

    def second(function):
        (grad,) = torch.autograd.grad(function(leaf := harness.leaf(blocks)), leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)[0]

    harness.assert_close(second(loss), second(plain))


def test_gradcheck():
    (src, dst, R, orbitals, _), kpoints = graph("ragged")
    kpoints = kpoints[:1]
    few = bloch_layout(src[:3], dst[:3], R[:3], orbitals)
    x = torch.view_as_complex(harness.random(few.n_numbers, 2))
    u = torch.view_as_complex(harness.random(1, few.size, 2, 2, seed=1))
    for blocks in (x, x.real.clone()):
        harness.gradcheck(lambda blocks: bloch_sum(blocks, few, kpoints), blocks)
        harness.gradcheck(lambda blocks: bloch_derivative(blocks, few, kpoints, CELL), blocks)
        harness.gradcheck(lambda blocks, u: bloch_project(blocks, few, kpoints, u), blocks, u)


@pytest.mark.parametrize("positions", [False, True])
def test_derivative_with_respect_to_k(positions):
    """Central differences: an error of some step² = 1e-10 and rounding of 1e-16/step."""
    blocks, layout, kpoints = inputs("spinor", positions=positions)
    slope, step = bloch_derivative(blocks, layout, kpoints, CELL), 1e-5
    for c in range(3):
        k = step * CELL[:, c] / (2 * torch.pi)  # a Cartesian step in units of the reciprocal vectors
        difference = (bloch_sum(blocks, layout, kpoints + k) - bloch_sum(blocks, layout, kpoints - k)) / (2 * step)
        harness.assert_close(slope[:, c], difference, 1e-7)


@pytest.mark.parametrize("case", ["spinor", "many k-points"])
def test_projection(case):
    blocks, layout, kpoints = inputs(case)
    left, right = (torch.view_as_complex(harness.random(len(kpoints), layout.size, n, 2, seed=n)) for n in (3, 4))
    dense = bloch_sum(blocks, layout, kpoints)
    harness.assert_close(bloch_project(blocks, layout, kpoints, left, right), left.mH @ dense @ right)
    harness.assert_close(bloch_project(blocks, layout, kpoints, left), left.mH @ dense @ left)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_projection_in_a_large_cell(dtype, monkeypatch):
    """Few edges between many orbitals: block by block, some edges at a time; H(k) is never formed."""
    orbitals = torch.tensor([3, 1, 0, 4, 2, 4, 3])
    src, dst = torch.tensor([[0, 0, 3, 5, 6, 6, 1, 3, 0], [0, 4, 3, 6, 5, 6, 0, 5, 4]])
    R = torch.randint(-1, 2, (9, 3), generator=torch.Generator().manual_seed(1))
    layout = bloch_layout(src, dst, R, orbitals, 2)
    assert is_cheaper(layout) and not is_cheaper(inputs("production")[1])
    real = harness.random(layout.n_numbers, 2)
    blocks = torch.view_as_complex(real) if dtype.is_complex else real[:, 0].clone()
    kpoints = harness.random(3, 3, seed=5)
    left, right = (torch.view_as_complex(harness.random(3, layout.size, n, 2, seed=n)) for n in (3, 4))

    def formed(blocks, left, right):
        return torch.view_as_real(left.mH @ (bloch_sum(blocks, layout, kpoints) @ right))

    def projected(blocks, left, right):
        return torch.view_as_real(bloch_project(blocks, layout, kpoints, left, right))

    given = {"blocks": blocks, "left": left, "right": right}
    with monkeypatch.context() as patch:
        patch.setattr("nextham_kernels.ops.bloch_sum.block_by_block._MEMORY", 3000)
        harness.assert_close(projected(**given), formed(**given))
        harness.assert_same_gradients(projected, formed, given)
        patch.setattr("nextham_kernels.ops.bloch_sum._run", None)  # not called
        projected(**given)
    assert bloch_project(blocks, layout, kpoints[:0], left[:0]).shape == (0, 3, 3)


def test_hermitian_input_gives_hermitian_matrices():
    (src, dst, R, orbitals, _), kpoints = graph("ragged")
    both = bloch_layout(torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([R, -R]), orbitals)
    blocks, at, mirrored = harness.random(both.n_numbers // 2), 0, []
    for a, b in zip(orbitals[src], orbitals[dst], strict=True):
        mirrored.append(blocks[at : at + a * b].reshape(a, b).T.flatten())
        at += a * b
    dense = bloch_sum(torch.cat([blocks, *mirrored]), both, kpoints)
    harness.assert_close(dense, dense.mH)


def test_threads_change_nothing():
    blocks, layout, kpoints = inputs("production", torch.complex64)

    def run():
        dense = bloch_sum(leaf := harness.leaf(blocks), layout, kpoints)
        return dense.detach(), *torch.autograd.grad(dense.abs().sum(), leaf)

    harness.assert_threads_agree(run)


def test_contract():
    blocks, layout, kpoints = inputs("ragged")
    (src, dst, R, orbitals, _), _ = graph("ragged")
    nothing = bloch_layout(src[:0], dst[:0], R[:0], orbitals)
    assert not bloch_sum(blocks[:0], nothing, kpoints).any()
    assert bloch_sum(blocks, layout, kpoints[:0]).shape == (0, 9, 9)
    grad = torch.autograd.grad(bloch_sum(leaf := harness.leaf(blocks), layout, kpoints[:0]).real.sum(), leaf)[0]
    assert not grad.any()
    spread = torch.stack([blocks, blocks], dim=1)[:, 0]
    assert not spread.is_contiguous()
    harness.assert_close(bloch_sum(spread, layout, kpoints), bloch_sum(blocks, layout, kpoints))
    torch.library.opcheck(torch.ops.nextham.bloch_sum, (harness.leaf(arguments("ragged")[0]), *arguments("ragged")[1:]))
    left = torch.zeros(3, 9, 2, dtype=torch.complex128)
    for call, error, sentence in (
        (lambda: bloch_sum(blocks[1:], layout, kpoints), ValueError, "blocks: expected shape [137], got [136]"),
        (lambda: bloch_sum(blocks, layout, kpoints[:, :2]), ValueError, "kpoints: expected shape [q, 3]"),
        (lambda: bloch_sum(blocks, layout, kpoints.float()), TypeError, "layout: expected dtype float32 as kpoints"),
        (lambda: bloch_sum(blocks.real.half(), layout, kpoints), TypeError, "blocks: expected dtype float32 or"),
        (lambda: bloch_sum(blocks.numpy(), layout, kpoints), TypeError, "blocks: expected a torch.Tensor, got ndarray"),
        (lambda: bloch_project(blocks, layout, kpoints, left[:, 1:]), ValueError, "left: expected shape [q, 9, s]"),
        (lambda: bloch_project(blocks, layout, kpoints, left.real), TypeError, "left: expected dtype complex64 or"),
        (lambda: bloch_derivative(blocks, layout, kpoints, CELL[0]), ValueError, "cell: expected shape [3, 3]"),
        (lambda: bloch_layout(src, dst, R, orbitals, 3), ValueError, "spins: expected 1 or 2, got 3"),
        (lambda: bloch_layout(src, dst + 1, R, orbitals), ValueError, "dst: expected 0 <= index < 3, got 1 to 3"),
        (lambda: bloch_layout(src, dst, R.int(), orbitals), TypeError, "R: expected dtype int64, got int32"),
        (lambda: bloch_layout(src, dst[1:], R, orbitals), ValueError, "dst: expected shape [e] with e = 17, got [16]"),
    ):
        with harness.raises(error, sentence):
            call()
