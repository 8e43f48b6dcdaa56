"""Functionals by name, and potentials of libxc's against our own formulas."""

import functools
import sys

import numpy as np
import pytest
import torch

from nextham.h0 import xc
from nextham.h0.xc import check_functional, functional_named, xc_at
from nextham_kernels.ops.xc_potential import reference


def fields():
    g = np.random.default_rng(0)
    n = 10 ** g.uniform(-6, 0.5, 200)
    sigma = n ** (8 / 3) * 10 ** g.uniform(-2, 1, 200)
    laplacian, curved = n ** (5 / 3) * g.normal(size=200), sigma * n ** (5 / 3) * g.normal(size=200)
    n[:3] = 0.0, 1e-12, 5e-11
    return torch.from_numpy(np.stack([n, sigma, laplacian, curved], axis=1))


@pytest.mark.parametrize(("ours", "theirs"), [("pbe", "pbe"), ("lda", "slater,pz")])
def test_libxc_gives_our_functionals(ours, theirs):
    torch.testing.assert_close(xc._of_libxc(fields(), theirs), xc_at(fields(), ours), rtol=1e-12, atol=0)


def test_pbesol_is_pbe_with_two_other_constants(monkeypatch):
    pbesol = functools.partial(reference.pbe, beta=0.046, mu=10 / 81)  # Phys. Rev. Lett. 100, 136406 (2008)
    found = xc_at(fields(), "pbesol")
    monkeypatch.setitem(reference.FUNCTIONALS, "pbesol", pbesol)
    torch.testing.assert_close(found, reference.xc_potential(fields(), "pbesol"), rtol=1e-8, atol=1e-12)
    assert not found[:3].any() and found[3:].all()
    assert not torch.allclose(found, xc_at(fields(), "pbe"), rtol=1e-3)


def test_single_precision_and_no_points():
    found = xc_at(fields().float(), "lda,pw")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), xc_at(fields(), "lda,pw"), rtol=1e-6, atol=1e-6)
    assert xc_at(fields()[:0], "pbesol").shape == (0,)


def test_names_of_files():
    assert functional_named("SLA-PW-PBX-PBC") == functional_named("pbe") == "pbe"
    assert functional_named("PZ") == "lda"
    assert functional_named("PBEsol") == functional_named("SLA PW PSX PSC") == "pbesol"
    for name in set(xc._NAMES.values()):
        check_functional(name)
    with pytest.raises(ValueError, match=r"functional: expected PBE, LDA \(PZ\), PW, .*, got 'SCAN'"):
        functional_named("SCAN")


@pytest.mark.parametrize("name", ["scan", "b3lyp", "PBX"])
def test_others_are_refused(name):
    with pytest.raises(ValueError, match=f"functional: expected pbe or lda, or one of libxc's .*, got '{name}'"):
        check_functional(name)


def test_without_pyscf(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyscf.dft", None)
    with pytest.raises(ValueError, match="functional: pbesol needs libxc, which PySCF brings: pip install 'nextham"):
        xc_at(fields(), "pbesol")
