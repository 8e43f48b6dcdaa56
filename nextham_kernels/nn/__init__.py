"""e3nn's modules on our kernels: the same constructors, attributes, weights and results.

Each class that e3nn has too is a subclass of e3nn's and differs in its `forward`. So `load_state_dict` takes the
checkpoints of e3nn (its constant `_w3j_…` entries are not needed and passed over), `isinstance` and `copy.deepcopy`
work, and `nextham_kernels.accelerate` can turn the modules of an existing model into these and back.

`TensorProductConv`, `RadialTensorProduct`, `TensorProductLinear` and `EdgeTensorProduct` do in one what e3nn needs
several modules for.

Results agree with e3nn's to the precision of e3nn's coefficients, which it stores in float32 (some 1e-7 relative).

Example:
    >>> import torch
    >>> from nextham_kernels import nn
    >>> product = nn.FullyConnectedTensorProduct("4x0e+2x1o", "1x0e+1x1o", "3x0e+5x1o")
    >>> product(torch.randn(7, 10), torch.randn(7, 4)).shape
    torch.Size([7, 18])
"""

import e3nn

if tuple(int(part) for part in e3nn.__version__.split(".")[:2]) < (0, 5):
    raise ImportError(
        f"e3nn: expected 0.5 or newer, got {e3nn.__version__}, whose weights of paths mean something else"
    )

from nextham_kernels.nn.batch_norm import BatchNorm
from nextham_kernels.nn.edge_tensor_product import EdgeTensorProduct
from nextham_kernels.nn.gate import Gate, NormActivation
from nextham_kernels.nn.linear import Linear
from nextham_kernels.nn.radial_tensor_product import RadialTensorProduct
from nextham_kernels.nn.spherical_harmonics import SphericalHarmonics
from nextham_kernels.nn.tensor_product import (
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    TensorProduct,
    TensorSquare,
)
from nextham_kernels.nn.tensor_product_conv import TensorProductConv
from nextham_kernels.nn.tensor_product_linear import TensorProductLinear

__all__ = [
    "BatchNorm",
    "EdgeTensorProduct",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Gate",
    "Linear",
    "NormActivation",
    "RadialTensorProduct",
    "SphericalHarmonics",
    "TensorProduct",
    "TensorProductConv",
    "TensorProductLinear",
    "TensorSquare",
]
