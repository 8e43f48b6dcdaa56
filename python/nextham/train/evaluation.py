"""The tables of a trained model: gauge MAE by material, distance, spin block and element, next to H0 and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nextham.blocks import Blocks
from nextham.dataset import Dataset
from nextham.fermi import monkhorst_pack
from nextham.kspace import bands_at
from nextham.metrics import GaugeReport, gauge_mae, gauge_mu, overlap_condition
from nextham.model import Ensemble, predict_delta

__all__ = ["Evaluation", "GhostReport", "evaluate", "ghost_states"]


@dataclass
class Evaluation:
    """Errors of one model, or of H0, on some samples.

    Args:
        label: of the model.
        samples: name → gauge MAE, meV.
        materials: material → mean over its samples, meV.
        groups: `distance`, `spin`, `elements` → name → MAE over all elements of all samples, meV.
    """

    label: str
    samples: dict[str, float] = field(default_factory=dict)
    materials: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def mae_meV(self) -> float:
        """Mean over the structures, the published figure."""
        return float(np.mean(list(self.samples.values())))

    def to_dict(self) -> dict[str, object]:
        """Returns everything for JSON."""
        return {"mae_meV": self.mae_meV, **vars(self)}


def evaluate(
    dataset: Dataset,
    names: Sequence[str],
    models: Mapping[str, Ensemble],
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Returns the errors of H0 (labelled `H0`) and of each model; of a prediction its Hermitian part is taken.

    Args:
        dataset: where the samples are.
        names: the samples.
        models: label → networks.
        progress: called with the samples done and their total.

    Raises:
        ValueError: no names.
    """
    if not names:
        raise ValueError("names: expected at least one sample")
    results = [Evaluation(label) for label in ("H0", *models)]
    sums: list[dict[str, dict[str, list[float]]]] = [{} for _ in results]
    for done, name in enumerate(names, start=1):
        matrices = dataset.read(name)
        for result, total, report in zip(results, sums, _reports(matrices, models), strict=True):
            result.samples[name] = report.mae_meV
            for group in ("distance", "spin", "elements"):
                for part, (mae, count) in getattr(report, f"by_{group}").items():
                    held = total.setdefault(group, {}).setdefault(part, [0.0, 0.0])
                    held[0] += mae * count
                    held[1] += count
        if progress is not None:
            progress(done, len(names))
    for result, total in zip(results, sums, strict=True):
        result.groups = {g: {p: s / n for p, (s, n) in sorted(parts.items())} for g, parts in total.items()}
        of = {name: dataset.samples[name].material for name in names}
        result.materials = {
            m: float(np.mean([result.samples[name] for name in names if of[name] == m]))
            for m in sorted(set(of.values()))
        }
    return results


def _reports(matrices: Mapping[str, Blocks], models: Mapping[str, Ensemble]) -> Iterator[GaugeReport]:
    h0, h, s = (matrices[key] for key in ("H0", "H", "S"))
    yield gauge_mae(h0, h, s)
    for ensemble in models.values():
        yield gauge_mae(_predicted(ensemble, h0), h, s)


def _predicted(ensemble: Ensemble, h0: Blocks) -> Blocks:
    """Returns the Hermitian part of H0 + ΔH."""
    delta = predict_delta(ensemble, h0)
    n_spin = max(h0.n_spin, delta.n_spin)
    return (h0.with_spin(n_spin) + delta.with_spin(n_spin)).symmetrised()


@dataclass(frozen=True)
class GhostReport:
    """Band errors of one Hamiltonian within a window around the Fermi level, after the gauge shift.

    Args:
        mean_meV: mean error.
        max_meV: the largest.
        n_levels: levels of the reference in the window, over all k-points.
        n_bad: how many of them are more than 500 meV off.
        condition: largest condition number of S(k).
    """

    mean_meV: float
    max_meV: float
    n_levels: int
    n_bad: int
    condition: float


def ghost_states(
    dataset: Dataset, name: str, ensemble: Ensemble | None, mesh: int = 4, window: float = 5.0
) -> GhostReport:
    """Returns how far the bands of a prediction (of H0 where there is no model) are off within ± `window` eV of E_F.

    Bands are paired by their number at each k-point, so one ghost state below the window shows as a large error.

    Args:
        dataset: where the sample is.
        name: the sample.
        ensemble: the networks, or None for H0.
        mesh: k-points per direction, Γ-centred.
        window: eV.
    """
    matrices = dataset.read(name)
    h0, h, s = (matrices[key] for key in ("H0", "H", "S"))
    ours = h0 if ensemble is None else _predicted(ensemble, h0)
    kpoints, _ = monkhorst_pack((mesh, mesh, mesh))
    near = h.within(0.0, 8.0)
    mu = gauge_mu(ours.on(near.graph).with_spin(h.n_spin) - near, s)
    expected = bands_at(h, s, kpoints)
    error = np.abs(bands_at(ours, s, kpoints) - mu - expected)
    inside = np.abs(expected - dataset.samples[name].efermi) <= window
    error = 1e3 * error[inside]
    condition = overlap_condition(s, kpoints).condition
    return GhostReport(float(error.mean()), float(error.max()), int(inside.sum()), int((error > 500).sum()), condition)
