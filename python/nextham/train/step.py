"""One batch: prediction, losses and errors of its structures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from nextham.compact_target import CompactTarget
from nextham.losses import Loss, LossSettings, total_loss
from nextham.metrics import DISTANCE_EDGES
from nextham.model import Ensemble, NextHAMConfig
from nextham.train.samples import PreparedSample
from nextham_kernels.ops.blocks_irreps import irreps_to_blocks

__all__ = ["Errors", "Readout", "batch_losses", "errors_of", "predict_batch"]


class Readout:
    """From the networks' output irreps to the elements that the loss reads, as one matrix.

    For the targets `uu` and `scalar` the correction is one real block for ↑↑ and ↓↓: it is ΔH = x M with M
    [irreps, a·b], made once from the ensemble's own `correction`. On 212 edges of silicon that takes 2 ms, where all
    irreps to all spin blocks take 50 ms. Other targets go through `correction`.

    Args:
        ensemble: the networks.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        config = ensemble.config
        self.ensemble = ensemble
        self.places: torch.Tensor | None = None
        if config.spinor and config.target == "scalar+vector":
            return
        with torch.no_grad():
            places, matrix = _matrix(config)
        self.places = places.to(ensemble.device)
        self.matrix = matrix.to(ensemble.device, ensemble.dtype)

    def __call__(self, irreps: torch.Tensor) -> torch.Tensor:
        """Returns ΔH of irreps [g, d] in a form of `CompactTarget.error`: [g, a·b] or [g, s, a·b]."""
        if self.places is None:
            return self.ensemble.correction(irreps).flatten(2)
        return irreps[:, self.places] @ self.matrix


def _matrix(config: NextHAMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The irreps that enter the correction, and what each of them adds, float64."""
    dim = config.block_dim
    rows = []
    for first in range(0, dim, 512):
        x = torch.zeros(min(512, dim - first), dim, dtype=torch.float64)
        x[torch.arange(len(x)), first + torch.arange(len(x))] = 1.0
        blocks = irreps_to_blocks(x, config.shells, config.spinor, spin=config.target)
        rows.append((blocks[:, 0].real if config.spinor else blocks[:, 0]).flatten(1))
    matrix = torch.cat(rows)
    places = torch.nonzero(matrix.abs().amax(1) > 1e-12)[:, 0]
    return places, matrix[places].contiguous()


def predict_batch(
    ensemble: Ensemble, readout: Readout, samples: Sequence[PreparedSample], with_trace: bool = True
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Returns ΔH and trace head of each structure; all go through the networks as one graph without common edges."""
    h0 = torch.cat([s.h0 for s in samples])
    if ensemble.engine == "edge_frame":
        prediction = ensemble.on_geometries(h0, [s.geometry for s in samples], with_trace)
    else:
        starts = np.concatenate([[0], np.cumsum([s.n_atoms for s in samples])]).tolist()
        src, dst = (
            torch.cat([getattr(s, name) + first for s, first in zip(samples, starts, strict=False)])
            for name in ("src", "dst")
        )
        prediction = ensemble(h0, src, dst, torch.cat([s.vector for s in samples]), with_trace=with_trace)
    sizes = [len(s.src) for s in samples]
    deltas = readout(prediction.irreps).split(sizes)
    traces = prediction.trace.split(sizes) if with_trace else [None] * len(samples)
    return list(zip(deltas, traces, strict=True))


def batch_losses(
    ensemble: Ensemble,
    readout: Readout,
    samples: Sequence[PreparedSample],
    targets: Sequence[CompactTarget],
    settings: LossSettings,
) -> list[Loss]:
    """Returns the loss of each structure of a batch."""
    predictions = predict_batch(ensemble, readout, samples)
    return [
        total_loss(delta, trace, target, settings) for (delta, trace), target in zip(predictions, targets, strict=True)
    ]


class Errors(NamedTuple):
    """Gauge errors of one structure, as `nextham.metrics.gauge_mae` defines them."""

    mu: float
    """eV."""
    mae: float
    """meV."""
    sums: np.ndarray
    """Σ |E − μS| in meV per range of `DISTANCE_EDGES`."""
    counts: np.ndarray
    """Elements in each range."""


def errors_of(sample: PreparedSample, delta: torch.Tensor | None) -> Errors:
    """Returns the gauge errors of a prediction (as `CompactTarget.error` takes it), or of H0 alone where it is None."""
    target = sample.target
    with torch.no_grad():
        error = -target.delta if delta is None else target.error(delta)
        s = target.overlap
        mu = (s * error.real).sum(dtype=torch.float64) / s.square().sum(dtype=torch.float64)
        size = (error - mu.to(s.dtype) * s).abs().double()
        edge_of = torch.arange(len(target.sizes), device=s.device).repeat_interleave(target.sizes)
        of_edge = size.new_zeros(len(target.sizes)).index_add(0, edge_of, size).cpu().numpy()
    count = target.sizes.cpu().numpy()
    distance = sample.distance.double().cpu().numpy()
    inside = [(distance >= low) & (distance < high) for low, high in pairwise(DISTANCE_EDGES)]
    sums = np.array([1e3 * of_edge[where].sum() for where in inside])
    counts = np.array([count[where].sum() for where in inside])
    return Errors(float(mu), float(1e3 * of_edge.sum() / count.sum()), sums, counts)
