"""e3nn's tensor products on the kernel of `nextham_kernels.ops.tensor_product`."""

from __future__ import annotations

import torch
from e3nn import o3

from nextham_kernels.nn.unscripted import Unscripted
from nextham_kernels.ops.tensor_product import Path, Product, check_path, tensor_product

__all__ = [
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "TensorProduct",
    "TensorSquare",
    "as_rows",
    "drop_generated",
    "forget_generated",
    "product_of_module",
]


def as_rows(
    product: Product, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, shared: bool
) -> torch.Tensor:
    """Calls the op for operands with any leading axes, which are broadcast as e3nn does."""
    if weight is not None and product.n_weights == 0:
        weight = None
    if x.ndim == y.ndim == 2 and x.shape[0] == y.shape[0] and (weight is None or weight.ndim == (1 if shared else 2)):
        return tensor_product(x, y, weight, product)
    leading = [x.shape[:-1], y.shape[:-1]]
    if weight is not None and not shared:
        leading.append(weight.shape[:-1])
    shape = torch.broadcast_shapes(*leading)
    if weight is not None and not shared:
        weight = weight.expand(*shape, product.n_weights).reshape(-1, product.n_weights)
    x, y = (t.expand(*shape, d).reshape(shape.numel(), d) for t, d in ((x, product.dims[0]), (y, product.dims[1])))
    return tensor_product(x, y, weight, product).reshape(*shape, product.dims[2])


def product_of_module(module: o3.TensorProduct) -> Product:
    """Returns the paths of a tensor product of e3nn, whose constructor has found their coefficients.

    Raises:
        ValueError: paths that e3nn refuses only when it generates its code.
    """
    for ins in module.instructions:
        check_path((*ins[:5], 1.0), module.irreps_in1, module.irreps_in2, module.irreps_out)
    paths = tuple(Path(*ins[:4], bool(ins[4]), float(ins.path_weight)) for ins in module.instructions)
    return Product(module.irreps_in1, module.irreps_in2, module.irreps_out, paths)


def drop_generated(module: torch.nn.Module) -> None:
    """Removes the code that e3nn's constructor has generated."""
    for name in module.__codegen__:
        delattr(module, name)
    module.__codegen__.clear()


def forget_generated(module: torch.nn.Module, state_dict: dict, prefix: str) -> None:
    """Takes the constants of e3nn's generated code out of a checkpoint, unless the module has such code."""
    own = {prefix + name for name, _ in module.named_buffers()}
    for name in [n for n in state_dict if n.startswith(prefix + "_compiled_main") and n not in own]:
        del state_dict[name]


class TensorProduct(Unscripted, o3.TensorProduct):
    """e3nn's `o3.TensorProduct`, with the same arguments; nothing is compiled, so construction is quick.

    Derivatives of any order exist. Weights are float32 or float64, of one dtype with the operands.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs["compile_left_right"] = kwargs["compile_right"] = False
        super().__init__(*args, **kwargs)
        drop_generated(self)
        self._adopt()

    def _adopt(self) -> None:
        """Makes what `forward` needs of what e3nn's constructor has set."""
        self._product = product_of_module(self)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        forget_generated(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns the product [..., irreps_out.dim] of [..., irreps_in1.dim] and [..., irreps_in2.dim]."""
        return as_rows(self._product, x, y, self._get_weights(weight), self.shared_weights)

    def right(self, y: torch.Tensor, weight: torch.Tensor | list[torch.Tensor] | None = None) -> torch.Tensor:
        """Returns the product as a map [..., irreps_in1.dim, irreps_out.dim] of the first operand."""
        weight = self._get_weights(weight)
        if not self.shared_weights:
            weight = weight.unsqueeze(-2)
        x = torch.eye(self.irreps_in1.dim, dtype=y.dtype, device=y.device)
        return as_rows(self._product, x, y.unsqueeze(-2), weight, self.shared_weights)


class FullyConnectedTensorProduct(TensorProduct, o3.FullyConnectedTensorProduct):
    """e3nn's `o3.FullyConnectedTensorProduct`."""


class ElementwiseTensorProduct(TensorProduct, o3.ElementwiseTensorProduct):
    """e3nn's `o3.ElementwiseTensorProduct`."""


class FullTensorProduct(TensorProduct, o3.FullTensorProduct):
    """e3nn's `o3.FullTensorProduct`."""


class TensorSquare(TensorProduct, o3.TensorSquare):
    """e3nn's `o3.TensorSquare`."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor | list[torch.Tensor] | None = None) -> torch.Tensor:
        """Returns the product of x [..., irreps_in.dim] with itself."""
        return as_rows(self._product, x, x, self._get_weights(weight), self.shared_weights)
