"""What the tests of ops share: tolerances, rotations of features, and the comparison of a kernel with its reference."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from scipy.spatial.transform import Rotation

from nextham_kernels.clebsch_gordan import irreps_of, wigner_d

EXACT = 1e-12
"""Two correct float64 formulations of one op, relative to the largest entry: 4000 epsilons for some thousand terms."""

DEEP = 1e-9
"""The same for a whole network: its layer norms multiply rounding errors by some ten to a hundred each."""

GOLDEN = 1e-6
"""A float64 computation against numbers stored in float32 or computed with e3nn's float32 constants (1.2e-7 each)."""

NODES, EDGES = 5, 17
"""A size that is a multiple of nothing."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual − expected| / max |expected|; infinite where shapes differ or a number is not finite."""
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    if actual.shape != expected.shape:
        return math.inf
    if not actual.numel():
        return 0.0
    difference = float((actual - expected).abs().max())
    if not math.isfinite(difference):
        return math.inf
    scale = float(expected.abs().max())
    return difference / scale if scale else (0.0 if difference == 0 else math.inf)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = EXACT, what: str = "result") -> None:
    """Fails where the relative error exceeds the tolerance."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g} exceeds {tolerance:.3g}"


def assert_as_exact_as_reference(kernel: Callable, reference: Callable, inputs: Sequence, what: str = "result") -> None:
    """Fails where a kernel is more than twice as wrong as its reference in the same dtype, plus eight epsilons.

    Both are compared with the reference on the same inputs in float64; what is no floating tensor passes as it is.
    """
    exact = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    expected, actual, plain = (_tuple(f(*x)) for f, x in ((reference, exact), (kernel, inputs), (reference, inputs)))
    assert len(actual) == len(expected), f"{what}: {len(actual)} results, the reference gives {len(expected)}"
    for i, (a, e, p) in enumerate(zip(actual, expected, plain, strict=True)):
        assert a.dtype == p.dtype, f"{what} {i}: dtype {a.dtype}, the reference gives {p.dtype}"
        allowed = 2 * relative_error(p.double(), e) + 8 * torch.finfo(p.dtype).eps
        assert_close(a.double(), e, allowed, f"{what} {i}")


def assert_same_gradients(f: Callable, g: Callable, inputs: dict[str, torch.Tensor], tolerance: float = EXACT) -> None:
    """Fails where the gradients of two functions of the same keyword arguments differ, each by its name."""
    grads = []
    for function in (f, g):
        leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        results = _tuple(function(**leaves))
        generator = torch.Generator().manual_seed(0)
        loss = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in results)
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
    for name, actual, expected in zip(inputs, *grads, strict=True):
        assert_close(actual, expected, tolerance, f"grad_{name}")


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Inside, torch and the kernels use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_threads_agree(run: Callable[[], Sequence[torch.Tensor]], tolerance: float = 0.0) -> None:
    """Fails where three threads give other bits a second time, or differ from one thread by more than the tolerance."""
    runs = []
    for n in (1, 3, 3):
        with threads(n):
            runs.append(run())
    for one, three, again in zip(*runs, strict=True):
        assert_close(three, one, tolerance, "three threads")
        assert torch.equal(three, again)


def leaf(x: torch.Tensor) -> torch.Tensor:
    """A copy that collects a gradient."""
    return x.detach().clone().requires_grad_()


def gradcheck(function: Callable, *inputs: torch.Tensor) -> None:
    """Fails where first or second derivatives differ from finite differences (float64)."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    assert all(x.dtype in (torch.float64, torch.complex128) for x in leaves)
    torch.autograd.gradcheck(function, leaves)
    torch.autograd.gradgradcheck(function, leaves)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rotation(seed: int = 0) -> torch.Tensor:
    """A proper rotation [3, 3], float64."""
    q, r = torch.linalg.qr(random(3, 3, seed=seed))
    q = q * torch.sign(torch.diagonal(r))
    return q * torch.det(q)


def representation(irreps: object, rotation: torch.Tensor, inversion: bool = False) -> torch.Tensor:
    """The matrix [d, d] by which features transform, x → D x, under a rotation and, after it, the inversion."""
    irreps = irreps_of(irreps)
    matrices = wigner_d(rotation, irreps.lmax)
    blocks = [matrices[ir.l] * (ir.p if inversion else 1) for mul, ir in irreps for _ in range(mul)]
    return torch.block_diag(*blocks)


def spin_representation(rotation: torch.Tensor) -> torch.Tensor:
    """The SU(2) matrix [2, 2] of a rotation, up to a sign that no operator sees."""
    x, y, z, w = Rotation.from_matrix(rotation.numpy()).as_quat().tolist()
    return torch.tensor([[w - 1j * z, -y - 1j * x], [y - 1j * x, w + 1j * z]], dtype=torch.complex128)


def raises(error: type[Exception], sentence: str) -> object:
    """`pytest.raises` for one sentence that holds these words literally."""
    return pytest.raises(error, match=re.escape(sentence))


def _tuple(result: object) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
