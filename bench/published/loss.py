"""The published formulation of the training loss: padded spinor blocks, whole matrices, each projected.

Every edge has a block of 54 × 54 complex numbers, whatever its atoms are. The predicted and the converged Hamiltonian
are added up into one dense array for each lattice vector and contracted with the phases; both dense matrices are
projected on the low bands, on the rest, and between the two, and subtracted last. The sums run over all slots, and
masks say which count. The numbers are those of `nextham.losses` with `padded_slots`.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm

from nextham.losses import LossSettings

__all__ = ["PublishedLoss", "dense_bloch_sum"]


def dense_bloch_sum(wide: torch.Tensor, cell: torch.Tensor, n_atoms: int, phases: torch.Tensor) -> torch.Tensor:
    """Returns M(k) [q, n, n] of padded blocks, through one dense array for each lattice vector.

    Args:
        wide: blocks [e, a, b], complex.
        cell: (lattice vector, atom of the row, atom of the column) of each as one number [e], int64.
        n_atoms: in the cell.
        phases: exp(2πi k·R) [r, q].
    """
    n, vectors = wide.shape[-1], len(phases)
    per_vector = wide.new_zeros(vectors * n_atoms**2, n, n).index_add(0, cell, wide)
    per_vector = per_vector.reshape(vectors, n_atoms, n_atoms, n, n)
    return torch.einsum("rq,rijab->qiajb", phases, per_vector).reshape(-1, n_atoms * n, n_atoms * n)


@dataclass(frozen=True)
class PublishedLoss:
    """The loss of one structure.

    Args:
        h0: padded spinor blocks of H⁽⁰⁾ [e, 54, 54], complex, eV.
        label: of the converged H.
        overlap: of S.
        mask: which slots hold orbitals [e, 54, 54], real, 0 or 1.
        pair: the pair of shells of each slot of a spin block [27, 27], int64.
        cell: as for `dense_bloch_sum`.
        n_atoms: in the cell.
        phases: exp(2πi k·R) [r], complex, of the k-point of the step.
        low: eigenvectors U_P [N, s], padded.
        rest: U_Q.
        settings: the weights of the terms.
    """

    h0: torch.Tensor
    label: torch.Tensor
    overlap: torch.Tensor
    mask: torch.Tensor
    pair: torch.Tensor
    cell: torch.Tensor
    n_atoms: int
    phases: torch.Tensor
    low: torch.Tensor
    rest: torch.Tensor
    settings: LossSettings

    def __call__(self, delta: torch.Tensor, trace: torch.Tensor) -> torch.Tensor:
        """Returns the total loss.

        Args:
            delta: predicted Re ↑↑ of ΔH [e, 27, 27], which is ↓↓ too; eV.
            trace: the trace head [e, 81].
        """
        s, zero = self.settings, torch.zeros_like(delta)
        rows = (torch.stack([delta, zero], dim=2).flatten(1, 2), torch.stack([zero, delta], dim=2).flatten(1, 2))
        predicted = self.h0 + torch.stack(rows, dim=3).flatten(2)  # spin fastest
        ours, theirs = (
            dense_bloch_sum(h, self.cell, self.n_atoms, self.phases[:, None])[0] for h in (predicted, self.label)
        )
        p, q = self.low, self.rest
        e_p, e_q, e_pq = (u.mH @ ours @ v - u.mH @ theirs @ v for u, v in ((p, p), (q, q), (p, q)))
        error, n = predicted - self.label, self.mask.sum()
        above = s.real * (self.overlap.conj() * error).real.sum() / n
        below = s.real * self.overlap.abs().square().sum() / n
        for weight, matrix in ((s.low, e_p), (s.rest, e_q)):
            above = above + weight * matrix.diagonal().real.sum() / matrix.numel()
            below = below + weight / len(matrix)
        mu = above / below
        shift = mu.detach()

        def mean(x: torch.Tensor) -> torch.Tensor:
            return (x.real.abs().sum() + x.imag.abs().sum()) / x.numel()

        of_h = s.real * (error - shift * self.overlap).real.abs().sum() / n
        for weight, matrix in ((s.low, e_p), (s.rest, e_q)):
            of_h = of_h + weight * mean(matrix - shift * torch.eye(len(matrix), dtype=matrix.dtype))
        of_h = of_h + s.coupling * mean(e_pq)
        label = self._of_pairs((self.label - self.h0 + mu * self.overlap).abs().square())
        counted = layer_norm(self._of_pairs(self.mask), label.shape[1:]) != 0
        difference = (trace - layer_norm(label, label.shape[1:])).abs() * counted
        of_trace = difference.sum() / counted.sum()
        return (1 - s.trace) * of_h + s.trace * (of_h / of_trace).detach() * of_trace

    def _of_pairs(self, x: torch.Tensor) -> torch.Tensor:
        """Sums over spin and over the components of each pair of shells [e, 81]."""
        n = len(self.pair)
        slots = x.unflatten(2, (n, 2)).unflatten(1, (n, 2)).sum((2, 4)).flatten(1)
        return slots.new_zeros(len(slots), int(self.pair.max()) + 1).index_add(1, self.pair.flatten(), slots)
