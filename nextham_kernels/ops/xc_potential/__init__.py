"""Exchange-correlation potential of an unpolarised density, at points, in Rydberg and Bohr.

Of an energy per volume f(n, σ) with σ = |∇n|²,

    v = ∂f/∂n − ∇·(2 ∂f/∂σ ∇n) = f_n − 2 f_σ ∇²n − 2 f_nσ σ − 4 f_σσ ∇n·(∇∇n)∇n.

`pbe`: Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), with the correlation of Perdew and Wang, Phys.
Rev. B 45, 13244 (1992). `lda`: Slater's exchange with the correlation of Perdew and Zunger, Phys. Rev. B 23, 5048
(1981). Where n is below 1e-10 Bohr⁻³ the potential is zero.

Derivatives are those of the reference.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.xc_potential import cpu, reference
from nextham_kernels.registration import define

__all__ = ["xc_potential"]

_op = define(
    "xc_potential",
    "Tensor fields, str functional",
    reference.xc_potential,
    cpu.forward,
    None,
    lambda fields, functional: fields.new_empty(len(fields)),
    gpu=("xc_potential.kernel.forward",),
)


def xc_potential(fields: torch.Tensor, functional: str) -> torch.Tensor:
    """Returns v_xc at every point.

    Args:
        fields: n (Bohr⁻³), |∇n|², ∇²n and ∇n·(∇∇n)∇n [p, 4], float32 or float64.
        functional: `pbe` or `lda`.

    Returns:
        [p], Ry.

    Raises:
        ValueError: a wrong shape or an unknown functional.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> xc_potential(torch.tensor([[0.01, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), "lda").round(decimals=4)
        tensor([-0.5128,  0.0000])
    """
    check_tensors(fields=fields)
    check_shapes(fields=(fields, "p 4"))
    if functional not in reference.FUNCTIONALS:
        raise ValueError(f"functional: expected one of {', '.join(reference.FUNCTIONALS)}, got {functional!r}")
    return _op(fields, functional)
