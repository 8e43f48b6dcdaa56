"""The ensemble: one network per distance range, and what their sum does to H⁽⁰⁾."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from nextham.model.config import NextHAMConfig
from nextham.model.network import Geometry, Network
from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.blocks_irreps import blocks_to_irreps, irreps_to_blocks

__all__ = ["Ensemble", "Prediction", "correction"]


class Prediction(NamedTuple):
    """The sum of the networks' outputs."""

    irreps: torch.Tensor  # [e, d], eV
    trace: torch.Tensor | None  # [e, s²] for s shells


class Ensemble(nn.Module):
    """The networks of all distance ranges; beyond the last range ΔH is zero.

    Args:
        config: the configuration; the default is the published one.
    """

    def __init__(self, config: NextHAMConfig | None = None) -> None:
        super().__init__()
        self.config = NextHAMConfig() if config is None else config
        self.networks = nn.ModuleList(Network(self.config, span) for span in self.config.ranges)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in: that of its parameters."""
        return self.networks[0].embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that its parameters are on."""
        return self.networks[0].embed.weight.device

    def forward(
        self,
        h0: torch.Tensor,
        src: torch.Tensor,
        dst: torch.Tensor,
        vector: torch.Tensor,
        with_trace: bool = True,
        record: list[dict[str, torch.Tensor]] | None = None,
    ) -> Prediction:
        """Predicts ΔH irreps and trace head from the irreps of H⁽⁰⁾.

        Every atom needs its on-site edge (r = 0). Edges run i→j; attention collects over the edges into j.

        Args:
            h0: irreps of the blocks of H⁽⁰⁾ [e, d], eV (`irreps_of_blocks` makes them).
            src: atom i of each edge [e], int64.
            dst: atom j of each edge [e], int64.
            vector: r = τ_j + R − τ_i of each edge [e, 3], Å, shorter than the cutoff.
            with_trace: compute the trace head, which inference does not read.
            record: a list that takes one dictionary of intermediates per network (see `Network.forward`).

        Returns:
            The sums over the networks.

        Raises:
            ValueError: a wrong shape, an atom without on-site edge, or an edge beyond the cutoff.
            TypeError: a wrong dtype or device.
        """
        check_tensors(h0=h0, vector=vector, weights=self.networks[0].embed.weight, integer={"src": src, "dst": dst})
        check_shapes(
            src=(src, "e"), dst=(dst, "e"), vector=(vector, "e 3"), h0=(h0, f"e {self.config.block_irreps.dim}")
        )
        geometry = Geometry.of(src, dst, vector, self.config)
        if len(vector) and not float(geometry.distance.max()) < self.config.cutoff:
            longest = float(geometry.distance.max())
            raise ValueError(f"vector: expected edges below the cutoff {self.config.cutoff} Å, got {longest:.4f} Å")
        irreps, trace = h0.new_zeros(h0.shape), None
        for network in self.networks:
            recorded: dict[str, torch.Tensor] | None = None if record is None else {}
            output, head = network(h0, geometry, with_trace, recorded)
            irreps = irreps + output
            if with_trace:
                trace = head if trace is None else trace + head
            if record is not None:
                record.append({**recorded, "output": output})
        return Prediction(irreps, trace)

    def irreps_of_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """Returns the irreps [e, d] of padded blocks: [e, 4, a, b] complex with spin, [e, 1, a, b] real without."""
        return blocks_to_irreps(blocks, self.config.shells)

    def correction(self, irreps: torch.Tensor) -> torch.Tensor:
        """Returns the ΔH that is added to H⁽⁰⁾: padded blocks of predicted irreps, reduced to the configured target.

        Args:
            irreps: predicted irreps [e, d], eV.

        Returns:
            [e, 4, a, b] complex with spin (uu, ud, du, dd), [e, 1, a, b] real without; eV.
        """
        blocks = irreps_to_blocks(irreps, self.config.shells, self.config.spinor)
        return correction(blocks, self.config.target) if self.config.spinor else blocks


def correction(blocks: torch.Tensor, target: str) -> torch.Tensor:
    """Returns what of a predicted spinor block is added to H⁽⁰⁾.

    - `uu`: Re ↑↑, to ↑↑ and ↓↓. It is (h₀ + h_z)/√2, so a vector component enters and the result depends on the axes.
    - `scalar`: Re(↑↑ + ↓↓)/2 = Re h₀/√2, to ↑↑ and ↓↓.
    - `scalar+vector`: the half that time reversal allows, (H + σ_y H* σ_y)/2, which is Re h₀ and i Im h.

    Args:
        blocks: [e, 4, a, b] complex (uu, ud, du, dd).
        target: one of `nextham.model.config.TARGETS`.

    Returns:
        [e, 4, a, b] complex.

    Raises:
        ValueError: another target.
    """
    uu, ud, du, dd = blocks.unbind(1)
    if target == "scalar+vector":
        reversed_ = torch.stack([dd, -du, -ud, uu], dim=1).conj()
        return (blocks + reversed_) / 2
    if target not in ("uu", "scalar"):
        raise ValueError(f"target: expected 'uu', 'scalar' or 'scalar+vector', got {target!r}")
    same = uu.real if target == "uu" else (uu.real + dd.real) / 2
    same = torch.complex(same, torch.zeros_like(same))
    zero = torch.zeros_like(same)
    return torch.stack([same, zero, zero, same], dim=1)
