"""e3nn's `Gate` and `NormActivation` on our kernels."""

from __future__ import annotations

import torch
from e3nn import nn

from nextham_kernels.nn.tensor_product import as_rows, product_of_module
from nextham_kernels.nn.unscripted import Unscripted
from nextham_kernels.ops.gate import gate_rows

__all__ = ["Gate", "NormActivation"]


class Gate(Unscripted, nn.Gate):
    """e3nn's `nn.Gate`, with the same arguments.

    With SiLU on even scalars and sigmoid on even gates it is the kernel of `nextham_kernels.ops.gate`; with other
    activations these run in torch and scale the blocks by the kernel of the tensor product.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._adopt()

    def _adopt(self) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        cut = self.sc.cut
        slices = cut.irreps_in.slices()
        self._slices = [[slices[i] for i in blocks] for blocks in cut.instructions]
        plain = [
            all(_is(act, function) and p == 1 for _, (_, p), act in activation.paths)
            for activation, function in ((self.act_scalars, "silu"), (self.act_gates, "sigmoid"))
        ]
        in_order = [s for blocks in self._slices for s in blocks] == slices
        no_scalars = all(not ir.is_scalar() for _, ir in self.irreps_gated)
        self._fused = str(self.irreps_out) if all(plain) and in_order and no_scalars else None
        self._scaling = product_of_module(self.mul)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns [..., irreps_out.dim] of features [..., irreps_in.dim]."""
        if self._fused is not None:
            rows = gate_rows(features.reshape(-1, features.shape[-1]), self._fused, False, 0)
            return rows.reshape(*features.shape[:-1], rows.shape[1])
        scalars, gates, gated = (
            torch.cat([features.new_zeros(*features.shape[:-1], 0), *(features[..., s] for s in blocks)], dim=-1)
            for blocks in self._slices
        )
        scalars = self.act_scalars(scalars)
        if not gates.shape[-1]:
            return scalars
        return torch.cat([scalars, as_rows(self._scaling, gated, self.act_gates(gates), None, True)], dim=-1)


class NormActivation(Unscripted, nn.NormActivation):
    """e3nn's `nn.NormActivation`, with the same arguments."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._adopt()

    def _adopt(self) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        self._square, self._scaling = product_of_module(self.norm.tp), product_of_module(self.scalar_multiplier)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns [..., irreps_in.dim], each channel scaled by the function of its norm."""
        squares = as_rows(self._square, features, features, None, True)
        if self._eps_squared > 0:
            norms = squares.clamp_min(self._eps_squared).sqrt()
        else:
            norms = squares.relu().sqrt()
        scale = self.scalar_nonlinearity(norms + self.biases if self.bias else norms)
        if self.normalize:
            scale = scale / norms
        return as_rows(self._scaling, scale, features, None, True)


def _is(activation: object, name: str) -> bool:
    """Whether a normalised activation of e3nn is a function of torch."""
    function = getattr(activation, "f", None)
    return (
        function is getattr(torch, name, None)
        or function is getattr(torch.nn.functional, name)
        or (type(function).__name__.lower() == name and type(function).__module__.startswith("torch.nn"))
    )
