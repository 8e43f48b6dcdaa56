"""The derivative of the Wigner matrices of an edge by its vector, without going back through their recursion.

Where the rotation Q turns by dω, dQ = [dω]× Q and dD = Σ_k dω_k L_k D with the generators L_k. So what pulls at D pulls
at ω as τ_k = Σ_l ⟨grad^l, L_k^l D^l⟩, at Q as ½ [τ]× Q, and through `edge_rotation`, which is 9 numbers, at the vector.
Per edge Σ_l (2l+1)³ + 3 (2l+1)² multiply-adds (1,884 up to l = 4), in double.
"""

from __future__ import annotations

import functools

import torch

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.edge_layout import edge_rotation

__all__ = ["vector_gradient"]


@functools.cache
def _generators(l: int, device: torch.device) -> torch.Tensor:
    """∂D^l/∂ω_k of a rotation by the vector ω = (x, y, z), at ω = 0: [k, i, j], float64."""
    found = (l * (l + 1) * (2 * l + 1)) ** 0.5 * wigner_3j(l, 1, l)[:, [2, 0, 1]].transpose(0, 1)
    x, y, z = found
    return (found * torch.sign(((x @ y - y @ x) * z).sum())).to(device)  # [L_x, L_y] = L_z


def vector_gradient(grad: torch.Tensor, d: torch.Tensor, vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns the gradient of the vector [e, 3] of that of D [e, w], given D in double."""
    start, torque = 1, d.new_zeros(len(vector), 3)  # D⁰ is 1
    for l in range(1, l_max + 1):
        n = 2 * l + 1
        own, of_d = (t[:, start : start + n * n].unflatten(1, (n, n)) for t in (grad.double(), d))
        torque = torque + (own @ of_d.mT).flatten(1) @ _generators(l, vector.device).flatten(1).T
        start += n * n
    turn, pull = torch.func.vjp(edge_rotation, vector.double())
    return pull(torch.linalg.cross(torque[:, :, None], turn, dim=1) / 2)[0].to(vector.dtype)
