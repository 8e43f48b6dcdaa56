"""eigh against scipy, and its derivatives against finite differences."""

import harness
import numpy as np
import pytest
import scipy.linalg
import torch

from nextham_kernels.ops.eigh import NotPositiveDefinite, cpu, eigh, reference

CASES = {"one level": (1, 1), "small": (3, 5), "odd": (5, 37), "several groups": (9, 130)}
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def random(*shape, dtype=torch.complex128, seed=0):
    real = harness.random(*shape, 2, seed=seed)
    return (torch.view_as_complex(real) if dtype.is_complex else real[..., 0]).to(dtype)


def inputs(q, n, dtype=torch.complex128, seed=0):
    a, b = random(q, n, n, dtype=dtype, seed=seed), random(q, n, n, dtype=dtype, seed=seed + 100)
    return (a + a.mH) / 2, b @ b.mH / n + 0.1 * torch.eye(n, dtype=dtype)


def degenerate(q, n):
    """Every level twice, but not along the axes."""
    h, s = inputs(q, n)
    t = random(q, 2 * n, 2 * n, seed=7)
    return tuple(t.mH @ torch.stack([torch.kron(x, torch.eye(2)) for x in m]) @ t for m in (h, s))


def hermitian(x):
    return (x + x.mH) / 2


def definition(h, s):
    found = [scipy.linalg.eigh(a, b) for a, b in zip(h.numpy(), s.numpy(), strict=True)]
    return tuple(torch.from_numpy(np.stack(x)) for x in zip(*found, strict=True))


def densities(c):
    """c_s c_s†, which phases do not change."""
    return torch.einsum("qas,qbs->qsab", c, c.conj())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case, dtype):
    h, s = inputs(*CASES[case], dtype)
    values, c = definition(h, s)
    (found,) = reference.solve([(h, s)], True, None, None)
    harness.assert_close(found.values, values, 1e-11)
    harness.assert_close(densities(found.vectors[:2]), densities(c[:2]), 1e-8)
    exact = [np.linalg.cond(x, 1) for x in s.numpy()]
    harness.assert_close(found.condition, torch.tensor(exact), 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype):
    """Measured: 30 epsilons times the condition number of S, which is some 100."""
    h, s = inputs(*CASES[case], dtype)
    found, tolerance = eigh(h, s), 2e4 * torch.finfo(dtype).eps
    assert found.values.dtype == h.real.dtype and found.vectors.dtype == dtype and found.first == 0
    expected, _ = definition(*(x.to(torch.complex128) for x in (h, s)))
    harness.assert_close(found.values.double(), expected, tolerance)
    eye = torch.eye(h.shape[-1], dtype=dtype).expand_as(h)
    harness.assert_close(found.vectors.mH @ s @ found.vectors, eye, tolerance)
    harness.assert_close(h @ found.vectors, s @ found.vectors * found.values[:, None], tolerance)
    assert eigh(h, s, vectors=False).vectors is None
    harness.assert_close(eigh(h, s, vectors=False).values, found.values, tolerance)
    # LAPACK's estimate is a lower bound, rarely off by more than a factor of three.
    exact = torch.tensor([np.linalg.cond(x, 1) for x in s.numpy()])
    assert (found.condition <= 1.01 * exact).all() and (found.condition > exact / 10).all()


def test_without_overlap():
    h, _ = inputs(3, 6)
    found = eigh(h)
    harness.assert_close(found.values, torch.linalg.eigvalsh(h))
    assert found.condition.tolist() == [1.0, 1.0, 1.0]


def test_structures_of_different_size():
    problems = [inputs(q, n, seed=n) for q, n in ((4, 3), (1, 60), (0, 4), (7, 20))]
    found = eigh(*zip(*problems, strict=True))
    for (h, s), one in zip(problems, found, strict=True):
        assert one.values.shape == h.shape[:2]
        if len(h):
            harness.assert_close(one.values, definition(h, s)[0], 1e-11)


def test_threads_change_nothing():
    problems = [inputs(q, n, seed=n) for q, n in ((9, 90), (20, 40), (1, 300))]
    found = []
    for threads in (1, 2, 3):
        with harness.threads(threads):
            found.append(cpu.solve(problems, True, None, None))
            assert torch.get_num_threads() == threads
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            harness.assert_close(a.values, b.values)
            harness.assert_close(a.condition, b.condition, 1e-9)


def test_windows():
    h, s = inputs(4, 12)
    whole = eigh(h, s)
    part = eigh(h, s, window=(3, 7))
    assert (part.first, part.values.shape, part.vectors.shape) == (3, (4, 4), (4, 12, 4))
    harness.assert_close(part.values, whole.values[:, 3:7])
    harness.assert_close(densities(part.vectors), densities(whole.vectors[:, :, 3:7]), 1e-10)
    low, high = float(whole.values[1, 4]) - 1e-9, float(whole.values[2, 8]) + 1e-9
    inside = (whole.values >= low) & (whole.values <= high)
    part = eigh(h, s, energies=(low, high))
    expected = inside.any(0).nonzero().flatten().tolist()
    assert list(range(part.first, part.first + part.values.shape[1])) == expected
    harness.assert_close(part.values, whole.values[:, expected])
    harness.assert_close(densities(part.vectors), densities(whole.vectors[:, :, expected]), 1e-10)
    assert eigh(h, s, energies=(1e6, 1e7)).values.shape == (4, 0)


def test_congruence():
    """A change of basis T, H → T†HT and S → T†ST, leaves the levels and C → T⁻¹C."""
    h, s = inputs(2, 8)
    t = random(2, 8, 8, seed=5)
    plain, changed = eigh(h, s), eigh(t.mH @ h @ t, t.mH @ s @ t)
    harness.assert_close(changed.values, plain.values, 1e-9)
    harness.assert_close(densities(t @ changed.vectors), densities(plain.vectors), 1e-9)


# --- derivatives


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_backward(dtype):
    """Against torch's own derivative of Cholesky, triangular solves and eigh."""
    h, s = inputs(3, 6, dtype)
    weight = random(3, 6, 6, dtype=dtype, seed=8)

    def invariant(values, c):
        return values, torch.view_as_real((densities(c) * weight[:, None]).sum((2, 3)).to(torch.complex128))

    def plain(h, s):
        (found,) = reference.solve([(hermitian(h), hermitian(s))], True, None, None)
        return invariant(found.values, found.vectors)

    def ours(h, s):
        found = eigh(hermitian(h), hermitian(s))
        return invariant(found.values, found.vectors)

    harness.assert_same_gradients(ours, plain, {"h": h, "s": s}, 1e-10)


def test_gradcheck():
    h, s = inputs(2, 4)

    def function(h, s):
        found = eigh(hermitian(h), hermitian(s), window=(1, 3))
        return found.values, found.vectors @ found.vectors.mH

    harness.gradcheck(function, h, s)
    harness.gradcheck(lambda h: eigh(hermitian(h), vectors=False, energies=(-9.0, 9.0)).values, h)


def test_derivatives_inside_degenerate_groups():
    """What is invariant there: projectors on whole groups and sums of levels; finite differences split the levels."""
    h, s = degenerate(1, 2)

    def function(h, s):
        found = eigh(hermitian(h), hermitian(s))
        pair = found.vectors[:, :, 2:]
        return found.values[:, :2].sum(1), found.values[:, 2:].sum(1), pair @ pair.mH

    torch.autograd.gradcheck(function, (harness.leaf(h), harness.leaf(s)))
    (grad,) = torch.autograd.grad(eigh(leaf := harness.leaf(h), s).values.sum(), leaf)
    harness.assert_close(grad, torch.linalg.inv(s), 1e-9)  # Σ E = tr S⁻¹H


def test_what_is_not_determined_has_no_derivative():
    h, s = degenerate(2, 3)
    cut = eigh(harness.leaf(h), s, window=(0, 3)).vectors
    with harness.raises(RuntimeError, "vectors: the result depends on the choice of vectors among the degenerate"):
        ((cut @ cut.mH) * random(2, 6, 6)).sum().real.backward()
    h, s = inputs(2, 3)
    with harness.raises(RuntimeError, "of level 0 at k-point 0 (its phase)"):
        eigh(harness.leaf(h), s).vectors[:, 0, 0].real.sum().backward()


# --- overlaps that are not sound


def test_overlap_must_be_positive_definite():
    h, s = inputs(70, 40)
    s[68] -= 2 * torch.linalg.eigvalsh(s[68])[0] * torch.eye(40)
    with pytest.raises(NotPositiveDefinite, match=r"structure 0, k-point 68 has the eigenvalue -0.1") as error:
        eigh(h, s)
    smallest = float(torch.linalg.eigvalsh(s[68])[0])
    assert (error.value.structure, error.value.k) == (0, 68) and error.value.smallest == pytest.approx(smallest)


@pytest.mark.parametrize(
    ("dtype", "singular", "sound"), [(torch.complex128, 1e-15, 1e-9), (torch.complex64, 1e-8, 1e-3)]
)
def test_overlap_singular_to_rounding(dtype, singular, sound):
    h, _ = inputs(1, 6)
    u = torch.linalg.qr(random(6, 6, seed=2))[0]
    for smallest in (singular, sound):
        sigma = torch.tensor([smallest, 1, 1, 2, 2, 3], dtype=torch.float64)
        s = hermitian(u * sigma @ u.mH)[None].to(dtype)
        if smallest == sound:
            assert torch.isfinite(eigh(h.to(dtype), s).values).all()
        else:
            with pytest.raises(NotPositiveDefinite, match="k-point 0"):
                eigh(h.to(dtype), s)


def test_canonical_orthogonalisation():
    """Dropping the combinations below the threshold, by scipy in the space that is left."""
    h, _ = inputs(3, 7)
    sigma = torch.tensor([[1e-9, 1e-3, 1, 1, 2, 2, 3], [-1e-8, 1e-9, 1, 1, 2, 2, 3], [1, 1, 1, 1, 2, 2, 3]])
    u = torch.linalg.qr(random(3, 7, 7, seed=2))[0]
    s = hermitian(u * sigma[:, None].double() @ u.mH)
    found = eigh(h, s, threshold=1e-6)
    assert found.kept.tolist() == [6, 5, 7]
    harness.assert_close(found.condition, torch.tensor([3000.0, 3.0, 3.0]).double(), 1e-6)
    for k, m in enumerate(found.kept):
        x = u[k, :, 7 - m :]
        values, c = scipy.linalg.eigh((x.mH @ h[k] @ x).numpy(), np.diag(sigma[k, 7 - m :].double()))
        harness.assert_close(found.values[k, :m], torch.from_numpy(values), 1e-7)
        ours, theirs = found.vectors[k : k + 1, :, :m], x @ torch.from_numpy(c)
        harness.assert_close(densities(ours), densities(theirs[None]), 1e-7)
        assert found.values[k, m:].isinf().all() and not found.vectors[k, :, m:].any()
    h, s = inputs(2, 5)
    harness.assert_close(eigh(h, s, threshold=0).values, eigh(h, s).values, 1e-10)
    assert not eigh(h, -s, threshold=0).kept.any()


def test_contract():
    h, s = inputs(2, 5)
    assert eigh(h[:0], s[:0]).values.shape == (0, 5)
    assert eigh(h[:, :0, :0], s[:, :0, :0]).vectors.shape == (2, 0, 0)
    harness.assert_close(eigh(h.mT.contiguous().mT, s).values, eigh(h, s).values)
    nan = h.clone()
    nan[1, 2, 3] = torch.nan
    for call, error, sentence in (
        (lambda: eigh(nan, s), ValueError, "h: contains numbers that are not finite (structure 0, k-point 1)"),
        (lambda: eigh(h, nan), ValueError, "s: contains numbers that are not finite (structure 0, k-point 1)"),
        (lambda: eigh(h[:, 1:], s), ValueError, "h: expected shape [q, 5, N], got [2, 4, 5]"),
        (lambda: eigh(h, s[1:]), ValueError, "s: expected shape [q, 5, N] with q = 2, N = 5, got [1, 5, 5]"),
        (lambda: eigh([h, h], [s]), ValueError, "s: expected one for each of 2 structures"),
        (lambda: eigh(h, s.real.clone()), TypeError, "s: expected dtype complex64 or complex128, got float64"),
        (lambda: eigh(h, s, window=(2, 2)), ValueError, "window: expected 0 <= first < last <= 5, got 2 and 2"),
        (lambda: eigh(h, s, window=(0, 1), energies=(0, 1)), ValueError, "window, energies: expected at most one"),
        (lambda: eigh(h, s, energies=(1, 0)), ValueError, "energies: expected two ascending energies, got 1 and 0"),
        (lambda: eigh(h, s, threshold=-1), ValueError, "threshold: expected at least 0, got -1"),
        (lambda: eigh(harness.leaf(h), s, threshold=0), RuntimeError, "threshold: canonical orthogonalisation has no"),
    ):
        with harness.raises(error, sentence):
            call()
