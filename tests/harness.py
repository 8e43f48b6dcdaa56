"""What the tests of ops share: tolerances, rotations of features, and the comparison of a kernel with its reference."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import pytest
import torch
from scipy.spatial.transform import Rotation

from nextham_kernels import registration
from nextham_kernels.clebsch_gordan import irreps_of, wigner_d
from nextham_kernels.loading import gpu_kernel, use_interpreter

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


@contextlib.contextmanager
def on_gpu() -> Iterator[torch.device]:
    """Where ops run their GPU kernels: the GPU, or the CPU with Triton's interpreter where there is none."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    # Fresh memory holds NaN, so that a number nobody wrote is found.
    torch.use_deterministic_algorithms(True)
    try:
        with use_interpreter():
            yield torch.device("cpu")
    finally:
        torch.use_deterministic_algorithms(False)


def assert_gpu_kernel(
    ops: str,
    function: Callable,
    plain: Callable,
    inputs: dict[str, torch.Tensor],
    float32: float | None = None,
    second: bool = False,
) -> None:
    """Compares GPU kernels with the reference, in both precisions: the result and, by name, each gradient.

    Args:
        ops: the ops whose GPU kernels must have run, such as "gate gate_backward".
        function: calls the op with the inputs as keywords; every tensor that it reads is one of them.
        plain: the same by the reference.
        inputs: name → float64 tensor, or tensor of indices.
        float32: tolerance in single precision; by default twice the reference's own error and eight epsilons.
        second: compare the gradients of the gradients too (float64).
    """
    expected = _results_and_gradients(plain, inputs, second)
    called = set()

    def counted(name: str) -> Callable:
        called.add(name)
        return gpu_kernel(name)

    with on_gpu() as device, mock.patch.object(registration, "gpu_kernel", counted):
        moved = {name: x.to(device) for name, x in inputs.items()}
        found = _results_and_gradients(function, moved, second)
        single = _results_and_gradients(function, _rounded(moved), False)
    for op in ops.split():
        assert registration.GPU_KERNELS.get(f"nextham::{op}") in called, f"nextham::{op}: its GPU kernel did not run"
    plain_single = _results_and_gradients(plain, _rounded(inputs), False)
    rounded = {name: x.double() for name, x in _rounded(inputs).items() if x.is_floating_point()}
    exact_single = _results_and_gradients(plain, {**inputs, **rounded}, False)
    for name, value in expected.items():
        assert_close(found[name].cpu(), value, EXACT, name)
    for name, value in exact_single.items():
        allowed = 2 * relative_error(plain_single[name].double(), value) + 8 * torch.finfo(torch.float32).eps
        assert_close(single[name].cpu().double(), value, float32 or allowed, f"{name} in float32")


def _rounded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}


def _results_and_gradients(
    function: Callable, inputs: dict[str, torch.Tensor], second: bool
) -> dict[str, torch.Tensor]:
    """`result i`, `grad_<name>` and `grad2_<name>` of a random sum of the results, the same whatever the device."""

    def random_sum(tensors: Sequence[torch.Tensor], seed: int) -> torch.Tensor:
        weights = [random(*t.shape, seed=seed + i).to(t) for i, t in enumerate(tensors)]
        return sum((w * t).sum() for w, t in zip(weights, tensors, strict=True))

    leaves = {name: leaf(x) if x.is_floating_point() else x for name, x in inputs.items()}
    floating = {name: x for name, x in leaves.items() if x.requires_grad}
    results = _tuple(function(**leaves))
    grads = torch.autograd.grad(random_sum(results, 100), list(floating.values()), create_graph=second)
    found = {f"result {i}": r for i, r in enumerate(results)}
    found |= {f"grad_{name}": g for name, g in zip(floating, grads, strict=True)}
    if second:
        # A gradient that depends on nothing has a node where a kernel made it, and none in the reference.
        joined = random_sum(grads, 200)
        again = torch.autograd.grad(joined, list(floating.values()), materialize_grads=True)
        found |= {f"grad2_{name}": g for name, g in zip(floating, again, strict=True)}
    return found


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
