"""e3nn's `o3.Linear` on the kernel of the tensor product, whose second operand is one."""

from __future__ import annotations

from math import prod

import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.nn.tensor_product import as_rows, drop_generated, forget_generated
from nextham_kernels.nn.unscripted import Unscripted
from nextham_kernels.ops.tensor_product import Path, Product

__all__ = ["Linear"]


class Linear(Unscripted, o3.Linear):
    """e3nn's `o3.Linear`, with the same arguments.

    With `f_in` and `f_out`, which add axes of channels that all irreps share, the channels count as multiplicity.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        drop_generated(self)
        self._adopt((kwargs["f_in"], kwargs["f_out"]) if kwargs.get("f_in") is not None else None)

    def _adopt(self, channels: tuple[int, int] | None = None) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        self._channels = channels
        irreps_in, irreps_out = (
            o3.Irreps([(n * mul, ir) for mul, ir in irreps])
            for n, irreps in zip(channels or (1, 1), (self.irreps_in, self.irreps_out), strict=True)
        )
        # Plain numbers, since torch.compile does not read irreps.
        self._dims = [[mul * ir.dim for mul, ir in irreps] for irreps in (self.irreps_in, self.irreps_out)]
        paths, self._bias_slices, self._path_shapes = [], [], []
        start, slices = 0, self.irreps_out.slices()
        for ins in self.instructions:
            if ins.i_in == -1:
                self._bias_slices.append((slices[ins.i_out].start, start, start + ins.path_shape[0]))
                start += ins.path_shape[0]
            else:
                # C_i0k of an irrep and a scalar is δ_ik / √(2l + 1)
                scale = float(ins.path_weight) * self.irreps_in[ins.i_in].ir.dim ** 0.5
                paths.append(Path(ins.i_in, 0, ins.i_out, "uvw", True, scale))
                self._path_shapes.append(ins.path_shape)
        self._product = Product(irreps_in, irreps_of("0e"), irreps_out, tuple(paths))

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
        if self._channels is not None:
            features, weight = self._joined(features, weight)
        weight = weight.reshape(-1) if self.shared_weights else weight
        out = as_rows(self._product, features, features.new_ones(*features.shape[:-1], 1), weight, self.shared_weights)
        if self._channels is not None:
            n = self._channels[1]
            parts = out.split([n * dim for dim in self._dims[1]], dim=-1)
            out = torch.cat([out[..., :0].unflatten(-1, (n, 0)), *(x.unflatten(-1, (n, -1)) for x in parts)], dim=-1)
        if self._bias_slices:
            full = out.new_zeros(*bias.shape[:-1], out.shape[-1])
            for to, start, stop in self._bias_slices:
                full[..., to : to + stop - start] = bias[..., start:stop]
            out = out + full
        return out

    def _joined(self, features: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [..., f_in, irreps_in.dim] and weights, of irreps with f_in and f_out times the multiplicity."""
        parts = [part.flatten(-2) for part in features.split(self._dims[0], dim=-1)]
        parts = [features[..., 0, :0], *parts]
        if not self._path_shapes:
            return torch.cat(parts, dim=-1), weight
        weights = weight.split([prod(shape) for shape in self._path_shapes], dim=-1)
        joined = [
            w.unflatten(-1, shape).transpose(-3, -2).flatten(-4)  # [f_in, f_out, u, w] → f_in, u, f_out, w
            for w, shape in zip(weights, self._path_shapes, strict=True)
        ]
        return torch.cat(parts, dim=-1), torch.cat(joined, dim=-1)
