"""The training loss: gauge, Hamiltonian in real and in k-space, trace.

With the error E = ΔĤ − ΔH_label on the edges of one structure, its Bloch sum E(k), eigenvectors U of the converged
(H(k), S(k)), their low bands P and the rest Q:

    E_P = U_P† E(k) U_P,  E_Q = U_Q† E(k) U_Q,  E_PQ = U_P† E(k) U_Q
    μ = [λ_R Re⟨S,E⟩/N_R + λ_P Re tr E_P/|P|² + λ_Q Re tr E_Q/|Q|²] / [λ_R ⟨S,S⟩/N_R + λ_P/|P| + λ_Q/|Q|]
    loss_H = λ_R Σ|Re(E − μS)|/N_R + λ_P ‖E_P − μ‖/|P|² + λ_Q ‖E_Q − μ‖/|Q|² + λ_PQ ‖E_PQ‖/(|P||Q|)
    total = (1 − w) loss_H + w · stopgrad(loss_H/loss_t) · loss_t

‖·‖ = Σ|Re| + |Im|; with squares every |x| becomes x². N_R counts real orbitals (four spin blocks with spin), never
padding. Where several k-points are given, k-space terms are their mean. The target says how E is stored: `Target` has
padded blocks [e, s, a, b] (s: spin blocks 1 or 4; all slots in one order, any), the form in which NextHAM was
published; `CompactTarget` only what exists, the form in which it trains. Both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import layer_norm

from nextham.compact_target import CompactTarget
from nextham.loss_target import Target

__all__ = ["Loss", "LossSettings", "gauge_mu", "hamiltonian_loss", "total_loss", "trace_loss"]


@dataclass(frozen=True)
class LossSettings:
    """Weights and form of the loss; the defaults are the published ones but for `padded_slots`.

    Args:
        low: λ_P, weight of the low bands.
        rest: λ_Q, weight of the other bands.
        coupling: λ_PQ, weight of what mixes the two.
        trace: w, share of the trace loss in the total.
        squares: squared errors instead of absolute ones.
        padded_slots: the real-space sum runs over slots without an orbital too, and so trains them to zero
            (published); E there is the prediction itself.
        imaginary: the real-space sum also takes |Im E|, which published training leaves to the k-space terms.

    Raises:
        ValueError: a negative weight, or weights whose sum exceeds 1.
    """

    low: float = 2e-4
    rest: float = 1e-4
    coupling: float = 1.5e-4
    trace: float = 0.2
    squares: bool = False
    padded_slots: bool = False
    imaginary: bool = False

    def __post_init__(self) -> None:
        if min(self.low, self.rest, self.coupling, self.real) < 0 or not 0 <= self.trace <= 1:
            raise ValueError("settings: expected weights of at least 0, low + rest + coupling and trace of at most 1")

    @property
    def real(self) -> float:
        """λ_R, what the k-space terms leave."""
        return 1.0 - self.low - self.rest - self.coupling


class Loss(NamedTuple):
    """The loss of one structure, all tensors without axes; energies in eV (eV² with squares)."""

    total: torch.Tensor
    hamiltonian: torch.Tensor
    trace: torch.Tensor
    mu: torch.Tensor
    """The gauge shift, eV."""
    terms: dict[str, torch.Tensor]
    """The weighted terms of loss_H: `real`, `low`, `rest`, `coupling`."""


def total_loss(
    delta: torch.Tensor,
    trace: torch.Tensor,
    target: Target | CompactTarget,
    settings: LossSettings | None = None,
) -> Loss:
    """Returns the loss of one structure.

    Args:
        delta: predicted ΔH in the form that the target's `error` takes, eV.
        trace: the trace head [e, p], a number for each pair of shells.
        target: the structure, its label and its bands.
        settings: weights and form.

    Derivatives:
        first and higher with respect to delta and trace. Through μ only the trace label passes a gradient (published);
        in loss_H it is a constant. At zero |x| has the derivative 0.

    Raises:
        ValueError: a shape that does not fit the target.
    """
    settings = settings or LossSettings()
    error = target.error(delta)
    if trace.shape != target.trace_shape:
        raise ValueError(f"trace: expected shape {target.trace_shape}, got {tuple(trace.shape)}")
    projected = project(error, target)
    # Its real part once, where nothing else is read: gradients of complex numbers are added up once then, not thrice.
    read = error if settings.imaginary or target.overlap.is_complex() else error.real
    mu = gauge_mu(read, projected, target, settings)
    terms = hamiltonian_loss(read, projected, mu.detach(), target, settings)
    if settings.padded_slots:
        terms["real"] = terms["real"] + settings.real * target.outside(delta, settings.squares) / target.n_elements
    of_h = sum(terms.values())
    of_trace = trace_loss(trace, mu, target)
    # A trace loss of exactly zero has no ratio; it then adds nothing.
    balance = torch.where(of_trace > 0, of_h / of_trace.clamp_min(torch.finfo(of_trace.dtype).tiny), 0.0).detach()
    total = (1 - settings.trace) * of_h + settings.trace * balance * of_trace
    return Loss(total, of_h, of_trace, mu, terms)


class Projected(NamedTuple):
    """The error between eigenvectors of one k-point, complex."""

    low: torch.Tensor  # E_P [s, s']
    rest: torch.Tensor  # E_Q
    coupling: torch.Tensor  # E_PQ


def project(error: torch.Tensor, target: Target | CompactTarget) -> list[Projected]:
    """Returns U†E(k)U of each k-point, cut into low bands and rest; E(k) = Σ_e exp(2πi k·R_e) E_e.

    Args:
        error: E as the target stores it, eV.
        target: edges, k-points and eigenvectors.
    """
    if not len(target.kpoints):
        return []
    return [
        Projected(matrix[low][:, low], matrix[~low][:, ~low], matrix[low][:, ~low])
        for matrix, low in zip(target.between(error), target.low, strict=True)
    ]


def gauge_mu(
    error: torch.Tensor, projected: list[Projected], target: Target | CompactTarget, settings: LossSettings
) -> torch.Tensor:
    """Returns the gauge shift μ of the module's page, eV; it minimises the squared loss without its coupling."""
    above = settings.real * _real_product(target.overlap, error) / target.n_elements
    below = settings.real * _real_product(target.overlap, target.overlap) / target.n_elements
    for of_k in projected:
        for weight, matrix in ((settings.low, of_k.low), (settings.rest, of_k.rest)):
            if len(matrix):
                above = above + weight / len(projected) * matrix.diagonal().real.sum() / len(matrix) ** 2
                below = below + weight / len(projected) / len(matrix)
    return above / below


def hamiltonian_loss(
    error: torch.Tensor,
    projected: list[Projected],
    mu: torch.Tensor,
    target: Target | CompactTarget,
    settings: LossSettings,
) -> dict[str, torch.Tensor]:
    """Returns the weighted terms of loss_H over real orbitals for a given μ; their sum is the loss."""

    def size(x: torch.Tensor) -> torch.Tensor:
        return (x.square() if settings.squares else x.abs()).sum()

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (size(x.real) + size(x.imag)) / max(1, x.numel())

    mask = target.mask()
    real = size(_masked(error.real - mu * target.overlap.real, mask))
    if settings.imaginary and error.is_complex():
        above = mu * target.overlap.imag if target.overlap.is_complex() else 0
        real = real + size(_masked(error.imag - above, mask))
    terms = {"real": settings.real * real / target.n_elements}
    terms |= {name: torch.zeros_like(real) for name in ("low", "rest", "coupling")}
    for of_k in projected:
        for name, matrix in of_k._asdict().items():
            if name != "coupling":
                matrix = matrix - mu * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
            terms[name] = terms[name] + getattr(settings, name) / len(projected) * mean(matrix)
    return terms


def trace_loss(trace: torch.Tensor, mu: torch.Tensor, target: Target | CompactTarget) -> torch.Tensor:
    """Returns the masked mean of |trace head − label|.

    label = layernorm over the pairs of shells of Σ|ΔH_label + μS|² (spin blocks and components summed); a pair counts
    where the layernorm of the same sum of ones over real orbitals is not 0. So the published mask leaves out only a
    pair whose number of orbitals is exactly the edge's mean, not the empty pairs. The square is expanded in μ, so that
    its three sums are those of the label alone.

    Args:
        trace: the trace head [e, p], pairs in row-major order of the shells.
        mu: the gauge shift, eV; a gradient flows through it.
        target: label, overlap and shells.
    """
    sums = target.shell_pair_sums
    label = sums.delta + 2 * mu * sums.mixed + mu.square() * sums.overlap
    counted = layer_norm(sums.count, sums.count.shape[1:]) != 0
    difference = (trace - layer_norm(label, label.shape[1:]).to(trace.dtype)).abs() * counted
    return difference.sum() / counted.sum().clamp_min(1)


def _real_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Re⟨a,b⟩, without a complex product where one is real."""
    real = (a.real * b.real).sum()
    return real + (a.imag * b.imag).sum() if a.is_complex() and b.is_complex() else real


def _masked(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return x if mask is None else x * mask
