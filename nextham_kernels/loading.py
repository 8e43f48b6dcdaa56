"""Finds the compiled kernels and the GPU kernels, and says which kernel serves which device.

`NEXTHAM_KERNELS` changes what serves all ops, for the whole process: `reference` binds every op to its reference,
`triton-interpreted` runs the Triton kernels on CPU tensors by Triton's interpreter (thousands of times slower: for
tests of tiny cases where there is no GPU).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "compiled",
    "composed",
    "fused",
    "gpu_kernel",
    "gpu_ops",
    "instruction_sets",
    "interpreted",
    "kernels",
    "loaded",
    "missing",
    "reference_only",
    "require",
    "use_interpreter",
    "use_reference",
]

_KERNELS = {
    "bloch_sum": {"cpu": "cpp", "cuda": "cupy"},
    "blocks_to_irreps": {"cpu": "cpp", "cuda": "triton"},
    "edge_linear": {"cpu": "cpp", "cuda": "triton"},
    "edge_message": {"cpu": "cpp", "cuda": "triton"},
    "edge_tensor_product": {"cpu": "cpp", "cuda": "triton"},
    "edge_wigner": {"cpu": "cpp", "cuda": "triton"},
    "gate": {"cpu": "cpp", "cuda": "triton"},
    "gram": {"cpu": "cpp", "cuda": "triton"},
    "gram_apply": {"cpu": "cpp", "cuda": "triton"},
    "gram_update": {"cpu": "cpp", "cuda": "triton"},
    "grid_integrals": {"cpu": "cpp", "cuda": "triton"},
    "irreps_to_blocks": {"cpu": "cpp", "cuda": "triton"},
    "layer_norm_silu": {"cpu": "cpp", "cuda": "triton"},
    "layer_norm_silu_vjp": {"cpu": "cpp", "cuda": "triton"},
    "norm": {"cpu": "cpp", "cuda": "triton"},
    "number_text": {"cpu": "cpp"},
    "projector_product": {"cpu": "cpp", "cuda": "triton"},
    "radial_basis": {"cpu": "cpp", "cuda": "triton"},
    "rotate_to_edges": {"cpu": "cpp", "cuda": "triton"},
    "rotate_to_nodes": {"cpu": "cpp", "cuda": "triton"},
    "segment_softmax": {"cpu": "cpp", "cuda": "triton"},
    "solid_harmonics": {"cpu": "cpp", "cuda": "triton"},
    "superposition": {"cpu": "cpp", "cuda": "triton"},
    "tensor_product": {"cpu": "cpp", "cuda": "triton"},
    "tensor_product_conv": {"cpu": "cpp", "cuda": "triton"},
    "tensor_product_linear": {"cpu": "cpp", "cuda": "triton"},
    "tensor_product_radial": {"cpu": "cpp", "cuda": "triton"},
    "two_center": {"cpu": "cpp", "cuda": "triton"},
    "xc_potential": {"cpu": "cpp", "cuda": "triton"},
}
"""Op → device → kind of kernel; `tests/test_registration.py` compares it with what the ops registered."""

_TRITON = (3, 6)
"""The oldest Triton that the GPU kernels run with, as in pyproject.toml."""

_references = 0  # how many `use_reference` are open
_interpreters = 0  # how many `use_interpreter` are open
_as_on_gpu = 0  # how many `gpu_ops` are open
_MODE = os.environ.get("NEXTHAM_KERNELS", "")
_MODES = ("", "reference", "triton-interpreted")

if _MODE == "triton-interpreted":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


def _mode() -> str:
    if _MODE not in _MODES:
        raise ValueError(f"NEXTHAM_KERNELS: expected 'reference', 'triton-interpreted' or nothing, got {_MODE!r}")
    return _MODE


def reference_only() -> bool:
    """Returns whether `NEXTHAM_KERNELS=reference` or `use_reference` binds every operation to its reference.

    The variable is read once, when the package is imported.

    Raises:
        ValueError: it has a value other than those on this module's page.
    """
    return _mode() == "reference" or _references > 0


def interpreted() -> bool:
    """Returns whether ops on CPU tensors run their Triton kernels by the interpreter.

    Those without a Triton kernel run their references then, as they would on a GPU.

    Raises:
        ValueError: `NEXTHAM_KERNELS` has a value other than those on this module's page.
    """
    return _mode() == "triton-interpreted" or _interpreters > 0


@contextlib.contextmanager
def use_interpreter() -> Iterator[None]:
    """Inside, ops on CPU tensors run their Triton kernels by Triton's interpreter, in all threads.

    `TRITON_INTERPRET=1` must be set before anything imports triton.

    Raises:
        RuntimeError: triton is missing, or was imported without that variable.
    """
    global _interpreters
    _check_interpreter()
    _interpreters += 1
    try:
        yield
    finally:
        _interpreters -= 1


@contextlib.contextmanager
def gpu_ops() -> Iterator[None]:
    """Inside, what is made of several ops calls those that a GPU would be given; CPU tensors still have CPU kernels."""
    global _as_on_gpu
    _as_on_gpu += 1
    try:
        yield
    finally:
        _as_on_gpu -= 1


def composed(device: torch.device) -> bool:
    """Returns whether layers and TraceGrad are made of ops there, and not one C++ kernel each."""
    return device.type != "cpu" or reference_only() or interpreted() or _as_on_gpu > 0


def fused(device: torch.device) -> bool:
    """Returns whether the ops that only a GPU fuses (`edge_message`, `gram_update`) are called there."""
    return device.type == "cuda" or interpreted() or _as_on_gpu > 0


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

    return [name for name in ("scalar", "avx2", "avx512", "amx") if hasattr(compiled(), name)]


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


@functools.cache
def gpu_kernel(name: str) -> Callable:
    """Returns a function of a GPU kernel, such as `gate.kernel.forward`: module and function inside `ops`.

    Raises:
        RuntimeError: triton (of a module `kernel`) or cupy (of a module `cuda`) is missing; the sentence says how to
            install it.
    """
    module, function = name.rsplit(".", 1)
    if interpreted():
        _check_interpreter()
    _installed("cupy" if module.endswith(".cuda") else "triton", f"the kernel {name}")
    return getattr(importlib.import_module(f"nextham_kernels.ops.{module}"), function)


@functools.cache
def _check_interpreter() -> None:
    _installed("triton", "the interpreter")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    if not isinstance(importlib.import_module("triton.language").cdiv, interpreter.InterpretedFunction):
        raise RuntimeError("the interpreter: expected TRITON_INTERPRET=1 set before triton is imported")
    # Bounds of loops are arrays of one number in Triton 3.6, which numpy 2.4 does not take for a number.
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_with_index


def missing() -> dict[str, str]:
    """Returns the packages of GPU kernels that cannot be imported here, each with a sentence that says what to do."""
    found = {}
    for package in ("triton", "cupy"):
        try:
            _installed(package, "a GPU kernel")
        except RuntimeError as error:
            found[package] = str(error)
    return found


def _installed(package: str, what: str) -> None:
    remedy = "run `pip install 'nextham-kernels[gpu]'` (or set NEXTHAM_KERNELS=reference to run the slow references)"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise RuntimeError(f"{what} needs {package}, which cannot be imported: {remedy}: {error}") from error
    if package == "triton" and tuple(map(int, module.__version__.split(".")[:2])) < _TRITON:
        least = ".".join(map(str, _TRITON))
        raise RuntimeError(f"{what} needs triton {least} or newer, got {module.__version__}: {remedy}")


REQUIRABLE = ("cpp", "scalar", "avx2", "avx512", "amx", "triton", "triton-interpreted", "cupy", "nvcc", "cuda")
"""What `require` knows: kinds of kernels, instruction sets, the compiler of CUDA C++, a GPU."""


def require(*kinds: str) -> None:
    """Fails where something cannot run here that a user, or a machine that runs tests, counts on.

    Args:
        kinds: words of `REQUIRABLE`.

    Raises:
        ValueError: a word that is none of them.
        RuntimeError: it is missing; the sentence says why, and how to get it where that is known.

    Example:
        >>> from nextham_kernels.loading import require
        >>> require("scalar")
    """
    for kind in kinds:
        if kind not in REQUIRABLE:
            raise ValueError(f"kind: expected one of {', '.join(REQUIRABLE)}, got {kind!r}")
        if kind == "cpp":
            compiled()
        elif kind in ("triton", "cupy"):
            _installed(kind, "what was asked for")
        elif kind == "triton-interpreted":
            _check_interpreter()
        elif kind == "nvcc":
            if shutil.which("nvcc") is None:
                raise RuntimeError("nvcc is not on the PATH: install the CUDA toolkit")
        elif kind == "cuda":
            import torch

            if not torch.cuda.is_available():
                why = "is built for the CPU alone" if torch.version.cuda is None else "finds no driver or no GPU"
                raise RuntimeError(f"cuda: torch {torch.__version__} {why}")
        elif kind not in instruction_sets():
            raise RuntimeError(f"{kind}: this processor and this build have {', '.join(instruction_sets())} alone")


def loaded() -> dict[str, dict[str, str]]:
    """Returns which kernel serves which device: {op: {device: kernel}}.

    A kernel is `cpp` (compiled, CPU), `triton` or `cupy` (GPU), `triton-interpreted` (see this module's page) or
    `reference`; an op or device that is not listed runs its reference.

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
    served = {op: dict(devices) for op, devices in _KERNELS.items()}
    if interpreted():
        for devices in served.values():
            if "cuda" in devices:
                devices["cpu"] = "triton-interpreted" if devices["cuda"] == "triton" else "reference"
    return served
