"""e3nn's `o3.Linear` on the kernel of the tensor product, whose second operand is one."""

from __future__ import annotations

from math import prod

import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.nn.tensor_product import as_rows, drop_generated, forget_generated
from nextham_kernels.ops.tensor_product import Path, Product

__all__ = ["Linear"]


class Linear(o3.Linear):
    """e3nn's `o3.Linear`, with the same arguments.

    With `f_in` and `f_out`, which add axes of channels that all irreps share, plain torch runs.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        drop_generated(self)
        self._adopt(kwargs.get("f_in") is not None)

    def _adopt(self, channels: bool | None = None) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        if channels is None:  # weights of a module made by e3nn have two axes in front if it has f_in
            channels = self.weight.ndim > 1 or (self.bias_numel > 0 and self.bias.ndim > 1)
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
        # Plain numbers, since torch.compile does not read irreps: (multiplicity, components) of each block.
        self._blocks = [[(mul, ir.dim) for mul, ir in irreps] for irreps in (self.irreps_in, self.irreps_out)]
        self._product = None if channels else Product(self.irreps_in, irreps_of("0e"), self.irreps_out, tuple(paths))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        forget_generated(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, features: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns [..., irreps_out.dim] of features [..., irreps_in.dim]."""
        if weight is None:
            if self.weight_numel > 0 and not self.internal_weights:
                raise RuntimeError("weight: expected weights, as internal_weights = False")
            weight = self.weight
        if bias is None:
            if self.bias_numel > 0 and not self.internal_weights:
                raise RuntimeError("bias: expected biases, as internal_weights = False")
            bias = self.bias
        if self._product is None:
            return self._of_channels(features, weight, bias)
        weight = weight.reshape(-1) if self.shared_weights else weight
        out = as_rows(self._product, features, features.new_ones(*features.shape[:-1], 1), weight, self.shared_weights)
        if self._bias_slices:
            full = out.new_zeros(*bias.shape[:-1], out.shape[-1])
            for to, start, stop in self._bias_slices:
                full[..., to : to + stop - start] = bias[..., start:stop]
            out = out + full
        return out

    def _of_channels(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Returns [..., f_out, irreps_out.dim] of features [..., f_in, irreps_in.dim]."""
        given = features.split([mul * dim for mul, dim in self._blocks[0]], dim=-1)
        weights = weight.split([prod(ins.path_shape) for ins in self.instructions if ins.i_in != -1], dim=-1)
        n_channels = (weight if self.weight_numel > 0 else bias).shape[-2]
        leading = torch.broadcast_shapes(features.shape[:-2], weight.shape[:-3], bias.shape[:-2])
        blocks = [features.new_zeros(*leading, n_channels, *block) for block in self._blocks[1]]
        of_weights, used = iter(weights), 0
        for ins in self.instructions:
            if ins.i_in == -1:
                found = bias[..., used : used + ins.path_shape[0], None]
                used += ins.path_shape[0]
            else:
                x = given[ins.i_in].unflatten(-1, self._blocks[0][ins.i_in])
                w = next(of_weights).unflatten(-1, ins.path_shape)
                found = torch.einsum("...fui,...fgum->...gmi", x, w) * ins.path_weight
            blocks[ins.i_out] = blocks[ins.i_out] + found
        return torch.cat([block.flatten(-2) for block in blocks], dim=-1)
