"""Exchange and correlation: functionals by the names in pseudopotential files, and their potentials at points.

PBE and LDA (Perdew-Zunger) are the op `nextham_kernels.ops.xc_potential`; other functionals of the density and its
gradient are libxc's, which PySCF brings (`pip install 'nextham-kernels[functionals]'`).
"""

from __future__ import annotations

from types import ModuleType

import torch

from nextham_kernels.ops.xc_potential import reference, xc_potential

__all__ = ["check_functional", "functional_named", "xc_at"]

_NAMES = {
    "PBE": "pbe",
    "SLA PW PBX PBC": "pbe",
    "LDA": "lda",
    "PZ": "lda",
    "SLA PZ NOGX NOGC": "lda",
    "PW": "lda,pw",
    "SLA PW": "lda,pw",
    "SLA PW NOGX NOGC": "lda,pw",
    "PBESOL": "pbesol",
    "SLA PW PSX PSC": "pbesol",
    "REVPBE": "revpbe",
    "SLA PW REVX PBC": "revpbe",
    "RPBE": "rpbe",
    "SLA PW HHNX PBC": "rpbe",
    "PW91": "pw91",
    "SLA PW GGX GGC": "pw91",
    "BLYP": "blyp",
    "SLA LYP B88 BLYP": "blyp",
}
"""Name in a pseudopotential file, in Quantum ESPRESSO's words → ours, or libxc's in the form that PySCF reads."""


def functional_named(name: str) -> str:
    """Returns the functional that a pseudopotential names, for `xc_at`.

    Raises:
        ValueError: another functional.
    """
    known = _NAMES.get(" ".join(name.replace("-", " ").replace("+", " ").upper().split()))
    if known is None:
        names = "PBE, LDA (PZ), PW, PBEsol, revPBE, RPBE, PW91 or BLYP"
        raise ValueError(f"functional: expected {names}, got {name!r}")
    return known


def check_functional(functional: str) -> None:
    """Checks that `xc_at` knows a functional.

    Raises:
        ValueError: it is neither ours nor a functional of density and gradient in libxc, or PySCF is missing.
    """
    if functional in reference.FUNCTIONALS:
        return
    libxc = _libxc(functional)
    try:
        fits = libxc.xc_type(functional) in ("LDA", "GGA") and not libxc.is_hybrid_xc(functional)
    except (KeyError, ValueError):
        fits = False
    if not fits:
        ours = " or ".join(reference.FUNCTIONALS)
        raise ValueError(
            f"functional: expected {ours}, or one of libxc's of the density and its gradient (such as pbesol), "
            f"got {functional!r}"
        )


def xc_at(fields: torch.Tensor, functional: str) -> torch.Tensor:
    """Returns v_xc at points: f_n − 2 f_σ ∇²n − 2 f_nσ σ − 4 f_σσ ∇n·(∇∇n)∇n of an energy per volume f(n, σ).

    Args:
        fields: n (Bohr⁻³), σ = |∇n|², ∇²n and ∇n·(∇∇n)∇n [p, 4].
        functional: one that `check_functional` accepts; those of libxc, such as `pbesol`, are computed on the CPU in
            double precision.

    Returns:
        [p], Ry; zero where n is below 1e-10.

    Source: S. Lehtola et al., SoftwareX 7, 1 (2018), for libxc.
    """
    if functional in reference.FUNCTIONALS:
        return xc_potential(fields, functional)
    return _of_libxc(fields, functional)


def _of_libxc(fields: torch.Tensor, functional: str) -> torch.Tensor:
    libxc = _libxc(functional)
    there = fields[:, 0] > reference.VACUUM
    n, sigma, laplacian, curved = fields[there].double().cpu().unbind(1)
    result = fields.new_zeros(len(fields))
    if not len(n):
        return result
    flat = torch.zeros_like(n)
    if libxc.xc_type(functional) == "LDA":
        found = torch.from_numpy(libxc.eval_xc(functional, n.numpy(), deriv=1)[1][0])
    else:
        rho = torch.stack([n, sigma.sqrt(), flat, flat]).numpy()
        (of_n, of_sigma, *_), (_, mixed, second, *_) = libxc.eval_xc(functional, rho, deriv=2)[1:3]
        of_n, of_sigma, mixed, second = (torch.from_numpy(x) for x in (of_n, of_sigma, mixed, second))
        found = of_n - 2 * of_sigma * laplacian - 2 * mixed * sigma - 4 * second * curved
    result[there] = (2 * found).to(result)  # from Hartree
    return result


def _libxc(functional: str) -> ModuleType:
    try:
        from pyscf.dft import libxc
    except ImportError as error:
        raise ValueError(
            f"functional: {functional} needs libxc, which PySCF brings: pip install 'nextham-kernels[functionals]'"
        ) from error
    return libxc
