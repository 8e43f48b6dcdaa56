"""e3nn's `BatchNorm` without a loop over its blocks."""

from __future__ import annotations

import torch
from e3nn import nn

from nextham_kernels.nn.unscripted import Unscripted

__all__ = ["BatchNorm"]


class BatchNorm(Unscripted, nn.BatchNorm):
    """e3nn's `nn.BatchNorm`, with the same arguments.

    With `instance=True` or `reduce="max"`, which look at each sample, e3nn's own code runs.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._adopt()

    def _adopt(self) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        scalar = torch.tensor([is_scalar for mul, d, is_scalar in self.irs for _ in range(mul * d)], dtype=torch.bool)
        dims = torch.tensor([d for mul, d, _ in self.irs for _ in range(mul)], dtype=torch.float64)
        device = next((b.device for b in self.buffers() if b is not None), None)
        for name, value in {
            "_channel": torch.repeat_interleave(torch.arange(len(dims)), dims.long()),
            "_scalar": scalar.nonzero()[:, 0],
            "_share": 1 / dims if self.normalization == "component" else torch.ones_like(dims),
        }.items():
            self.register_buffer(name, value.to(device), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns [batch, ..., irreps.dim]; in training it moves the running averages."""
        if self.instance or self.reduce != "mean":
            return super().forward(input)
        x = input.reshape(-1, input.shape[-1])
        mean = x[:, self._scalar].mean(0) if self.training else self.running_mean
        x = x - self._spread(mean)
        if self.training:
            square = self.running_var.new_zeros(()).expand_as(self.running_var)
            square = square.index_add(0, self._channel, x.square().mean(0)) * self._share.to(x.dtype)
            with torch.no_grad():
                self.running_mean.copy_(self._roll_avg(self.running_mean, mean))
                self.running_var.copy_(self._roll_avg(self.running_var, square))
        else:
            square = self.running_var
        scale = (square + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        x = x * scale[self._channel]
        if self.affine and self.include_bias:
            x = x + self._spread(self.bias)
        return x.reshape(input.shape)

    def _spread(self, scalars: torch.Tensor) -> torch.Tensor:
        """The numbers of the scalars on the whole feature axis, zeros elsewhere."""
        return scalars.new_zeros(len(self._channel)).index_copy(0, self._scalar, scalars)
