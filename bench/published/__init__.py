"""The published formulation of the NextHAM network: plain e3nn modules, as published NextHAM and Equiformer use them.

It is the denominator of every speed figure, so it does what the published code does, and nothing slower:

- depthwise products are `o3.TensorProduct` with 'uvu' instructions, code generated and einsums optimised by e3nn;
- every irreps-wise linear map is an `o3.TensorProduct` with 'uvw' instructions against 1x0e, on the irreps as they come
  (1,296 blocks of one channel for the Hamiltonian), which is what Equiformer's `LinearRS` is;
- TraceGrad is `o3.FullyConnectedTensorProduct(x, x)`, with `torch.autograd.grad` inside the forward pass;
- nothing is folded; what the published forward pass never reads is not even built.

Parameters have the published names and shapes.
Source: NextHAM (v1, `materials_ham_soc`); Equiformer, Liao and Smidt (2023).
"""

from bench.published.network import PublishedEnsemble, PublishedNetwork, compiled_by

__all__ = ["PublishedEnsemble", "PublishedNetwork", "compiled_by"]
