"""e3nn's `o3.SphericalHarmonics` on the kernel of `nextham_kernels.ops.spherical_harmonics`."""

from __future__ import annotations

import math

import torch
from e3nn import o3

from nextham_kernels.nn.unscripted import Unscripted
from nextham_kernels.ops.spherical_harmonics import solid_harmonics

__all__ = ["SphericalHarmonics"]


class SphericalHarmonics(Unscripted, o3.SphericalHarmonics):
    """e3nn's `o3.SphericalHarmonics`, with the same arguments; degrees up to 11, those above by e3nn's own code."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if self._lmax <= 11:
            self.__dict__.pop("sph_func", None)  # e3nn's compiled function, which cannot be pickled
        self._adopt()

    def _adopt(self) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        scale = {"component": lambda l: 1.0, "norm": lambda l: (2 * l + 1) ** -0.5}.get(
            self.normalization, lambda l: (4 * math.pi) ** -0.5
        )
        self._scales = [scale(l) for l in self._ls_list for _ in range(2 * l + 1)]
        self._columns = [i for l in self._ls_list for i in range(l * l, (l + 1) ** 2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the harmonics [..., irreps_out.dim] of vectors [..., 3]."""
        if self._lmax > 11:
            return super().forward(x)
        if self.normalize:
            x = torch.nn.functional.normalize(x, dim=-1)
        y = solid_harmonics(x.reshape(-1, 3), self._lmax)
        if not self._is_range_lmax:
            y = y[:, self._columns]
        if self.normalization == "integral":
            y = y * self._scales[0]
        elif self.normalization == "norm":
            y = y * y.new_tensor(self._scales)
        return y.reshape(*x.shape[:-1], y.shape[1])
