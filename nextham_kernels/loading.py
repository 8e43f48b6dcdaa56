"""Finds the compiled kernels, and says which kernel serves which device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

__all__ = ["compiled", "instruction_sets", "kernels", "loaded", "reference_only", "use_reference"]

_KERNELS = {
    "bloch_sum": {"cpu": "cpp"},
    "blocks_irreps": {"cpu": "cpp"},
    "edge_tensor_product": {"cpu": "cpp"},
    "edge_wigner": {"cpu": "cpp"},
    "gate": {"cpu": "cpp"},
    "gram": {"cpu": "cpp"},
    "gram_apply": {"cpu": "cpp"},
    "layer_norm_silu": {"cpu": "cpp"},
    "layer_norm_silu_vjp": {"cpu": "cpp"},
    "norm": {"cpu": "cpp"},
    "number_text": {"cpu": "cpp"},
    "radial_basis": {"cpu": "cpp"},
    "rotation": {"cpu": "cpp"},
    "segment_softmax": {"cpu": "cpp"},
    "solid_harmonics": {"cpu": "cpp"},
    "tensor_product": {"cpu": "cpp"},
}
"""Operation → device → kind of kernel, for everything that is more than its reference."""

_references = 0  # how many `use_reference` are open
_MODE = os.environ.get("NEXTHAM_KERNELS", "")


def reference_only() -> bool:
    """Returns whether `NEXTHAM_KERNELS=reference` or `use_reference` binds every operation to its reference.

    The variable is read once, when the package is imported.

    Raises:
        ValueError: it has a value other than `reference` or nothing.
    """
    if _MODE not in ("", "reference"):
        raise ValueError(f"NEXTHAM_KERNELS: expected 'reference' or nothing, got {_MODE!r}")
    return _MODE == "reference" or _references > 0


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Inside, every op runs its plain reference, in all threads, for comparison.

    Example:
        >>> import torch
        >>> from nextham_kernels.loading import reference_only, use_reference
        >>> with use_reference():
        ...     reference_only()
        True
    """
    global _references
    _references += 1
    try:
        yield
    finally:
        _references -= 1


def compiled() -> ModuleType:
    """Returns the extension module `nextham_kernels._C`.

    Raises:
        RuntimeError: it is not built; the sentence names the build step.
    """
    try:
        return importlib.import_module("nextham_kernels._C")
    except ImportError as error:
        raise RuntimeError(
            "the compiled kernels nextham_kernels._C are missing: run `pip install .` in the source folder "
            f"(or set NEXTHAM_KERNELS=reference to run the slow references): {error}"
        ) from error


def instruction_sets() -> list[str]:
    """Returns the instruction sets that the arithmetic kernels are compiled for and this processor has, best last.

    Raises:
        RuntimeError: the extension is not built.
    """
    # The kernels share the OpenMP runtime that torch brings, and with it its thread count: torch must come first.
    import torch  # noqa: F401

    return [name for name in ("scalar", "avx2", "avx512") if hasattr(compiled(), name)]


@functools.cache
def kernels(instruction_set: str | None = None) -> ModuleType:
    """Returns the arithmetic kernels for an instruction set, by default the best one that this processor has.

    Raises:
        RuntimeError: the extension is not built, or the processor or the build lacks the instruction set.
    """
    there = instruction_sets()
    name = there[-1] if instruction_set is None else instruction_set
    if name not in there:
        raise RuntimeError(f"instruction_set: expected one of {', '.join(there)}, got {name!r}")
    return getattr(compiled(), name)


def loaded() -> dict[str, dict[str, str]]:
    """Returns which kernel serves which device: {operation: {device: kernel}}.

    A kernel is `cpp` (compiled, CPU) or `reference`; an operation or device that is not listed runs its reference.

    Raises:
        RuntimeError: the compiled kernels are not built, and the references were not asked for.

    Example:
        >>> from nextham_kernels.loading import loaded
        >>> loaded()["number_text"]["cpu"] in ("cpp", "reference")
        True
    """
    if reference_only():
        return {op: dict.fromkeys(devices, "reference") for op, devices in _KERNELS.items()}
    compiled()
    return {op: dict(devices) for op, devices in _KERNELS.items()}
