"""Kernels for irreps features and k-space matrices: a faster backend for e3nn models."""

__version__ = "0.1.0"
