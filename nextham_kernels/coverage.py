"""What serves every derivative of every op on a GPU: the table of `nextham info --kernels`."""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["ORDERS", "WITHOUT_KERNEL", "coverage"]

ORDERS = ("forward", "backward", "double backward")

_NETWORK = "the network is differentiated once: the second derivative inside TraceGrad is written out (closed_form.py)"
_H0 = "H of step zero is not differentiated"
_FUSED = "for inference; where gradients are recorded the network calls the ops that it is made of"
_EDGES = (
    "edge_wigner gate layer_norm_silu "
    "layer_norm_silu_vjp norm radial_basis rotate_to_edges rotate_to_nodes segment_softmax"
).split()
_OF_H0 = ("grid_integrals", "projector_product", "superposition", "two_center", "xc_potential")
WITHOUT_KERNEL = {
    **{(op, "double backward"): _NETWORK for op in _EDGES},
    **{(op, order): _H0 for op in _OF_H0 for order in ORDERS[1:]},
    **{(op, order): _FUSED for op in ("edge_message", "gram_update") for order in ORDERS[1:]},
    ("bloch_sum", "double backward"): "linear in H, and losses are differentiated once",
}
"""(op, order) that runs its reference on a GPU → why no kernel is needed; a test keeps it complete."""


def coverage() -> dict[str, tuple[str, str, str]]:
    """Returns op → what serves its forward, backward and double backward on a GPU.

    `triton` and `cupy` are kernels of our own, `composed` calls such kernels, `reference` is plain
    torch (`WITHOUT_KERNEL` says why).

    Example:
        >>> from nextham_kernels.coverage import coverage
        >>> coverage()["tensor_product"]
        ('triton', 'triton', 'composed')
    """
    ops = importlib.import_module("nextham_kernels.ops")
    for module in pkgutil.walk_packages(ops.__path__, "nextham_kernels.ops."):
        if module.name.rsplit(".", 1)[1] not in ("kernel", "cuda"):  # they need triton and cupy
            importlib.import_module(module.name)
    from nextham_kernels.registration import GPU_ORDERS

    return dict(sorted(GPU_ORDERS.items()))
