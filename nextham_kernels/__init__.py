"""Kernels for irreps features and k-space matrices: a faster backend for e3nn models.

`accelerate(model)` runs the e3nn modules of a model on them, `restore(model)` undoes it, `nn` holds the modules, and
inside `with use_reference():` everything runs its plain reference.
"""

__version__ = "0.1.0"

__all__ = ["accelerate", "restore", "use_reference"]


def __getattr__(name: str) -> object:
    # Looked up when first used, because e3nn takes 2.5 s to import.
    if name in ("accelerate", "restore"):
        from nextham_kernels import acceleration

        return getattr(acceleration, name)
    if name == "use_reference":
        from nextham_kernels.loading import use_reference

        return use_reference
    raise AttributeError(f"module 'nextham_kernels' has no attribute {name!r}")
