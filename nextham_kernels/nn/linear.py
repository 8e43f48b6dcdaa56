"""e3nn's `o3.Linear` on the kernel of the tensor product, whose second operand is one."""

from __future__ import annotations

import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.nn.tensor_product import as_rows, drop_generated, forget_generated
from nextham_kernels.ops.tensor_product import Path, Product

__all__ = ["Linear"]


class Linear(o3.Linear):
    """e3nn's `o3.Linear`, with the same arguments.

    With `f_in` and `f_out`, which add axes of channels that all irreps share, e3nn's own code runs.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        plain = kwargs.get("f_in") is not None
        if not plain:
            drop_generated(self)
        self._adopt(plain)

    def _adopt(self, plain: bool | None = None) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        if plain is None:  # weights of a module made by e3nn have two axes in front if it has f_in
            plain = self.weight.ndim > 1 or (self.bias_numel > 0 and self.bias.ndim > 1)
        paths, self._bias_slices = [], []
        start, slices = 0, self.irreps_out.slices()
        for ins in self.instructions:
            if ins.i_in == -1:
                self._bias_slices.append((slices[ins.i_out].start, start, start + ins.path_shape[0]))
                start += ins.path_shape[0]
            else:
                # C_i0k of an irrep and a scalar is δ_ik / √(2l + 1)
                scale = float(ins.path_weight) * self.irreps_in[ins.i_in].ir.dim ** 0.5
                paths.append(Path(ins.i_in, 0, ins.i_out, "uvw", True, scale))
        self._product = None if plain else Product(self.irreps_in, irreps_of("0e"), self.irreps_out, tuple(paths))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        forget_generated(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, features: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns [..., irreps_out.dim] of features [..., irreps_in.dim]."""
        if self._product is None:
            return super().forward(features, weight, bias)
        if weight is None:
            if self.weight_numel > 0 and not self.internal_weights:
                raise RuntimeError("weight: expected weights, as internal_weights = False")
            weight = self.weight
        if bias is None:
            if self.bias_numel > 0 and not self.internal_weights:
                raise RuntimeError("bias: expected biases, as internal_weights = False")
            bias = self.bias
        weight = weight.reshape(-1) if self.shared_weights else weight
        out = as_rows(self._product, features, features.new_ones(*features.shape[:-1], 1), weight, self.shared_weights)
        if self._bias_slices:
            full = out.new_zeros(*bias.shape[:-1], out.shape[-1])
            for to, start, stop in self._bias_slices:
                full[..., to : to + stop - start] = bias[..., start:stop]
            out = out + full
        return out
