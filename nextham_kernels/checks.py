"""Checks of arguments: done once, in the public function, each with a sentence that says expected and got."""

from __future__ import annotations

import torch

__all__ = [
    "check_irreps_dim",
    "check_range",
    "check_shapes",
    "check_starts",
    "check_tensors",
    "check_true",
    "check_weight",
    "tracing",
]


def tracing() -> bool:
    """Returns whether values are unknown: torch compiles, or one of its modes (such as fake tensors) sees each call."""
    # torch 2.6 does not say that it compiles inside a function that it takes whole into its graph.
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def check_shapes(**arguments: tuple[torch.Tensor, str]) -> dict[str, int]:
    """Checks shapes against patterns of sizes and axis letters, and returns the size of each letter.

    A letter takes the size it meets first and must keep it: `check_shapes(x=(x, "e 392"), weight=(weight, "e p"))`
    asks for the same number of edges in both.

    Args:
        arguments: name → (tensor, pattern); the pattern is letters and numbers between blanks.

    Returns:
        The size of each letter.

    Raises:
        ValueError: a wrong number of axes or a wrong size.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, pattern) in arguments.items():
        axes, known = pattern.split(), dict(sizes)
        fits = tensor.ndim == len(axes)
        if fits:
            for axis, size in zip(axes, tensor.shape, strict=True):
                fits = fits and bool(size == (int(axis) if axis.isdigit() else sizes.setdefault(axis, size)))
        if not fits:
            given = ", ".join(f"{axis} = {known[axis]}" for axis in axes if axis in known)
            where = f" with {given}" if given else ""
            raise ValueError(f"{name}: expected shape [{', '.join(axes)}]{where}, got {list(tensor.shape)}")
    return sizes


def check_tensors(
    integer: dict[str, torch.Tensor] | None = None, complex_: bool = False, **floating: torch.Tensor
) -> None:
    """Checks that the floating tensors share one dtype and all tensors one device.

    Args:
        integer: name → tensor of indices, which must be int64.
        complex_: the floating tensors are complex64 or complex128 instead of float32 or float64.
        floating: name → tensor.

    Raises:
        TypeError: a wrong or mixed dtype or device, or something that is no tensor.
    """
    allowed = (torch.complex64, torch.complex128) if complex_ else (torch.float32, torch.float64)
    first: tuple[str, torch.Tensor] | None = None
    for name, tensor in {**floating, **(integer or {})}.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if integer and name in integer:
            if tensor.dtype != torch.int64:
                raise TypeError(f"{name}: expected dtype int64, got {_short(tensor.dtype)}")
        elif tensor.dtype not in allowed:
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            hint = " (made by torch.autocast? cast it with .float())" if half else ""
            expected = " or ".join(map(_short, allowed))
            raise TypeError(f"{name}: expected dtype {expected}, got {_short(tensor.dtype)}{hint}")
        elif first and tensor.dtype != first[1].dtype:
            raise TypeError(
                f"{name}: expected dtype {_short(first[1].dtype)} as {first[0]}, got {_short(tensor.dtype)}"
            )
        if first and tensor.device != first[1].device:
            raise TypeError(f"{name}: expected device {first[1].device} as {first[0]}, got {tensor.device}")
        first = first or (name, tensor)


def check_irreps_dim(name: str, tensor: torch.Tensor, irreps: object, dim: int) -> None:
    """Checks that the last axis of a feature tensor [e, d] has the dimension of its irreps.

    Raises:
        ValueError: another number of axes or another dimension.
    """
    if tensor.ndim != 2 or tensor.shape[1] != dim:
        shown = str(irreps)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ValueError(f"{name}: expected shape [e, {dim}] for irreps {shown}, got {list(tensor.shape)}")


def check_weight(weight: torch.Tensor, count: int, rows: int) -> None:
    """Checks weights that are shared by all rows, [count], or given for each, [rows, count].

    Raises:
        ValueError: another shape.
    """
    # Axis by axis: comparing [rows, count] with [count] as tuples would compare rows with count, and torch.compile
    # would compile anew where they happen to be equal.
    if weight.ndim not in (1, 2) or weight.shape[-1] != count or (weight.ndim == 2 and weight.shape[0] != rows):
        shape = list(weight.shape)
        raise ValueError(f"weight: expected shape [{count}] or [e, {count}] with e = {rows}, got {shape}")


def check_range(name: str, index: torch.Tensor, size: int, ascending: bool = False, least: int = 0) -> None:
    """Checks that indices count from 0 (or `least`) and lie below a size, and that they ascend if they are said to.

    On the CPU only: on a GPU an exception would wait for the device, so there an assertion on the device checks it,
    which ends the process's use of that GPU. Nothing is checked while torch compiles.

    Raises:
        ValueError: an index out of range, or less than the one before it.
    """
    if tracing() or not index.numel():
        return
    if index.is_cuda:
        inside = (index >= least) & (index < size)
        torch._assert_async(inside.all(), f"{name}: expected {least} <= index < {size}")
        if ascending:
            torch._assert_async((index[1:] >= index[:-1]).all(), f"{name}: expected indices in ascending order")
    else:
        low, high = (int(i) for i in index.aminmax())
        if low < least or high >= size:
            raise ValueError(f"{name}: expected {least} <= index < {size}, got {low} to {high}")
        if ascending and not bool((index[1:] >= index[:-1]).all()):
            raise ValueError(f"{name}: expected indices in ascending order, got {_first_descent(index)}")


def _first_descent(index: torch.Tensor) -> str:
    place = int(torch.nonzero(index[1:] < index[:-1])[0, 0])
    return f"{int(index[place])} before {int(index[place + 1])}"


def check_starts(name: str, starts: torch.Tensor, length: int, total: int) -> None:
    """Checks that `starts` [length] says where the parts of `total` rows begin and, last, where they end.

    Raises:
        ValueError: another shape, or it does not count up from 0 to `total` (on a GPU as by `check_true`).
    """
    if starts.ndim != 1 or len(starts) != length:
        raise ValueError(f"{name}: expected shape [{length}], got {list(starts.shape)}")
    counts_up = (starts[0] == 0) & (starts[-1] == total) & (starts[1:] >= starts[:-1]).all()
    check_true(counts_up, f"{name}: expected to count up from 0 to {total}")


def check_true(condition: torch.Tensor, sentence: str) -> None:
    """Checks that all of a condition holds; on a GPU by an assertion on the device, as `check_range`.

    Raises:
        ValueError: it does not hold; `sentence` says what was expected.
    """
    if tracing():
        return
    if condition.is_cuda:
        torch._assert_async(condition.all(), sentence)
    elif not bool(condition.all()):
        raise ValueError(sentence)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
