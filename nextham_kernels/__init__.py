"""Kernels for irreps features and k-space matrices: a faster backend for e3nn models.

`accelerate(model)` runs the e3nn modules of a model on them, `restore(model)` undoes it, `nn` holds the modules, and
inside `with use_reference():` everything runs its plain reference.
"""

import importlib

__version__ = "0.1.0"

__all__ = ["accelerate", "nn", "restore", "use_reference"]


def __getattr__(name: str) -> object:
    # Looked up when first used, because e3nn takes 2.5 s to import.
    if name == "nn":
        return importlib.import_module("nextham_kernels.nn")
    modules = {"accelerate": "acceleration", "restore": "acceleration", "use_reference": "loading"}
    if name in modules:
        return getattr(importlib.import_module(f"nextham_kernels.{modules[name]}"), name)
    raise AttributeError(f"module 'nextham_kernels' has no attribute {name!r}")
