"""The calls of cuSOLVER's batched eigensolver, with LAPACK behind its functions: order of numbers, sizes, errors."""

import contextlib
import ctypes
import types

import harness
import numpy as np
import pytest
import torch
from test_eigh import CASES, DTYPES, definition, inputs, random

from nextham_kernels.ops.eigh import NotPositiveDefinite, cusolver, reference

KINDS = {0: np.float32, 1: np.float64, 4: np.complex64, 5: np.complex128}


def array(pointer, kind, *shape):
    numbers = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * numbers).from_address(pointer.value), dtype=kind).reshape(shape)


class Library:
    """The three functions, on the CPU; matrices are in columns, as there."""

    calls, failing = 0, None

    def cusolverDnSetStream(self, handle, stream):
        return 0

    def cusolverDnXsyevBatched_bufferSize(self, *arguments):
        *problem, on_device, on_host, size = arguments
        assert len(problem) == 11 and size.value > 0
        on_device._obj.value, on_host._obj.value = 24, 8
        return 0

    def cusolverDnXsyevBatched(self, *arguments):
        _, _, jobz, uplo, n, kind, a, lda, real, w, compute, *buffers, info, size = arguments
        assert lda.value == n.value and compute.value == kind.value and uplo.value == 0
        assert [b.value for b in buffers[1::2]] == [24, 8] and all(b.value for b in buffers)
        q, n = size.value, n.value
        columns, levels = array(a, KINDS[kind.value], q, n, n), array(w, KINDS[real.value], q, n)
        for k in range(q):
            values, vectors = np.linalg.eigh(columns[k].T, UPLO="L")
            levels[k] = values
            columns[k] = vectors.T if jobz.value else np.nan
        self.calls += 1
        if self.failing is not None:
            array(info, np.int32, q)[self.failing] = 3
        return 0


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(cusolver, "_library", lambda: found)
    monkeypatch.setattr(cusolver, "_handle", lambda device, thread: (ctypes.c_void_p(), ctypes.c_void_p()))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_solutions_are_the_references(library, dtype):
    h, s = inputs(*CASES["odd"], dtype)
    tolerance = 1e-11 if dtype in (torch.float64, torch.complex128) else 1e-3
    for overlap in (None, s):
        (found,) = cusolver.solve([(h, overlap)], True, (2, 9), None)
        (expected,) = reference.solve([(h, overlap)], True, (2, 9), None)
        harness.assert_close(found.values, expected.values, tolerance)
        harness.assert_close(found.condition, expected.condition, tolerance)
        c, metric = found.vectors, torch.eye(37, dtype=dtype) if overlap is None else overlap
        harness.assert_close(h @ c, metric @ c * found.values[:, None, :], tolerance)
        harness.assert_close(c.mH @ metric @ c, torch.eye(7, dtype=dtype).expand(5, 7, 7), tolerance)
        (values,) = cusolver.solve([(h, overlap)], False, None, None)
        assert values.vectors is None
        harness.assert_close(values.values[:, 2:9], expected.values, tolerance)
    assert library.calls == 4


def test_the_library_works_on_the_device_of_the_matrices(library, monkeypatch):
    current = []

    @contextlib.contextmanager
    def device_of(x):
        current.append(x.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    devices, solve = [], library.cusolverDnXsyevBatched

    def noted(*given):
        devices.append([*current])
        return solve(*given)

    monkeypatch.setattr(library, "cusolverDnXsyevBatched", noted, raising=False)
    h, _ = inputs(*CASES["odd"])
    cusolver.hermitian(h, True)
    assert devices == [[h.device]] and not current


def test_groups_of_matrices(library, monkeypatch):
    h, s = inputs(*CASES["odd"])
    monkeypatch.setattr(cusolver, "NUMBERS", 2 * 37**2)
    (found,) = cusolver.solve([(h, s)], True, None, None)
    harness.assert_close(found.values, definition(h, s)[0], 1e-11)
    assert library.calls == 3


def test_one_matrix_and_large_ones_go_to_torch(library, monkeypatch):
    monkeypatch.setattr(cusolver, "LARGEST", 5)
    for q, n in ((1, 4), (2, 6), (3, 1)):
        h, s = inputs(q, n)
        harness.assert_close(cusolver.solve([(h, s)], True, None, None)[0].values, definition(h, s)[0], 1e-11)
    assert library.calls == 0


def test_canonical_orthogonalisation(library):
    h, s = inputs(3, 6)
    x = random(3, 6, 5)
    s = x @ x.mH  # of rank five
    (found,), (expected,) = (f.solve([(h, s)], True, None, 1e-8) for f in (cusolver, reference))
    assert torch.equal(found.kept, expected.kept) and (found.kept == 5).all()
    harness.assert_close(found.values[:, :5], expected.values[:, :5], 1e-9)


def test_errors_name_the_k_point(library):
    h, s = inputs(4, 5)
    s[2] -= 3 * torch.eye(5)
    with pytest.raises(NotPositiveDefinite, match="structure 1, k-point 2") as error:
        cusolver.solve([inputs(2, 5), (h, s)], True, None, None)
    assert error.value.smallest == pytest.approx(float(torch.linalg.eigvalsh(s[2])[0]))
    library.failing = 1
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge at k-point 1"):
        cusolver.hermitian(h, True)
    library.cusolverDnXsyevBatched = lambda *_: 7
    with pytest.raises(RuntimeError, match="cusolverDnXsyevBatched: cuSOLVER returned the status 7"):
        cusolver.hermitian(h, True)
