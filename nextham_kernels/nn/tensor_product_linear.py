"""A tensor product followed at once by a linear map."""

from __future__ import annotations

import torch
from e3nn import o3

from nextham_kernels.nn.linear import Linear
from nextham_kernels.nn.tensor_product import TensorProduct
from nextham_kernels.ops.tensor_product.linear import tensor_product_linear

__all__ = ["TensorProductLinear"]


class TensorProductLinear(TensorProduct):
    """`TensorProduct` followed by `Linear`, without storing the product.

    The constructor is that of `TensorProduct` with the irreps after the linear map behind it. The product's own weights
    are as in `TensorProduct`; `linear.weight` is that of `o3.Linear(irreps_mid, irreps_out)`, which has no bias.

    Args:
        irreps_in1: of the first operand.
        irreps_in2: of the second operand.
        irreps_mid: of the product; `o3.TensorProduct` calls it irreps_out.
        instructions: paths of the product.
        irreps_out: of the result.
        kwargs: further arguments of `o3.TensorProduct`.
    """

    def __init__(
        self,
        irreps_in1: o3.Irreps,
        irreps_in2: o3.Irreps,
        irreps_mid: o3.Irreps,
        instructions: list[tuple],
        irreps_out: o3.Irreps,
        **kwargs: object,
    ) -> None:
        super().__init__(irreps_in1, irreps_in2, irreps_mid, instructions, **kwargs)
        self.linear = Linear(self.irreps_out, irreps_out)
        self.irreps_mid, self.irreps_out = self.irreps_out, self.linear.irreps_out

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns the mapped product [e, irreps_out.dim] of [e, irreps_in1.dim] and [e, irreps_in2.dim]."""
        weight = self._get_weights(weight)
        weight = weight if self.weight_numel else None
        return tensor_product_linear(x, y, weight, self.linear.weight, self._product, self.linear._product)
