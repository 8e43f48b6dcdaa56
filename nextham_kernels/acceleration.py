"""Turns the e3nn modules of an existing model into ours and back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from nextham_kernels import nn
from nextham_kernels.loading import missing, reference_only

__all__ = ["Report", "accelerate", "restore"]

_OURS = {
    o3.TensorProduct: nn.TensorProduct,
    o3.FullyConnectedTensorProduct: nn.FullyConnectedTensorProduct,
    o3.FullTensorProduct: nn.FullTensorProduct,
    o3.ElementwiseTensorProduct: nn.ElementwiseTensorProduct,
    o3.TensorSquare: nn.TensorSquare,
    o3.Linear: nn.Linear,
    o3.SphericalHarmonics: nn.SphericalHarmonics,
    e3nn_nn.Gate: nn.Gate,
    e3nn_nn.NormActivation: nn.NormActivation,
    e3nn_nn.BatchNorm: nn.BatchNorm,
}
# e3nn modules whose work is done by others inside them, or that have nothing to gain.
_SILENT = (o3.Norm, e3nn_nn.Activation, e3nn_nn.Extract, e3nn_nn.Identity, e3nn_nn.Dropout, e3nn_nn.FullyConnectedNet)


@dataclass
class Report:
    """What `accelerate` did, or with `dry_run` would do; `print(report)` shows it."""

    replaced: dict[str, str] = field(default_factory=dict)
    """Name of the module in the model → name of its class."""
    kept: dict[str, str] = field(default_factory=dict)
    """Name of each e3nn module that stays as it is → why."""

    def __str__(self) -> str:
        count = "1 module" if len(self.replaced) == 1 else f"{len(self.replaced)} modules"
        lines = [f"{count} on the kernels of nextham-kernels, {len(self.kept)} left as they are"]
        lines += [f"  + {name or '(the model)'}: {kind}" for name, kind in self.replaced.items()]
        lines += [f"  - {name or '(the model)'}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def accelerate(model: torch.nn.Module, *, dry_run: bool = False) -> Report:
    """Runs the supported e3nn modules inside a model on our kernels, in place.

    The modules themselves, their parameters, buffers and hooks stay the same objects; only their class changes, so
    optimizers, checkpoints and references to them keep working. The code that e3nn generated and compiled inside them
    is kept, unused, for `restore`. Doing it twice changes nothing.

    Args:
        model: any module; it may contain modules compiled by `torch.compile`, which compile anew.
        dry_run: change nothing and only report.

    Which kernel runs is decided in each call by the device of its tensors: C++ on the CPU, Triton on CUDA. So a model
    may be accelerated on either and moved afterwards. A model on another device stays as it is, and so does one on CUDA
    where Triton is missing.

    Returns:
        What was replaced, and which e3nn modules were not, and why.

    Raises:
        TypeError: not a module.

    Example:
        >>> from e3nn import o3
        >>> from nextham_kernels.acceleration import accelerate
        >>> print(accelerate(o3.Linear("4x0e", "2x0e")))
        1 module on the kernels of nextham-kernels, 0 left as they are
          + (the model): Linear
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    report, inside = Report(), []
    elsewhere = _without_kernels({t.device.type for t in itertools.chain(model.parameters(), model.buffers())})
    for name, module in model.named_modules():
        if any(name == outer or name.startswith(outer + ".") or not outer for outer in inside):
            continue  # part of a module that has been dealt with
        kind = type(module)
        if kind in _OURS:
            inside.append(name)
            if kept := elsewhere or _channels(module):
                report.kept[name] = kept
                continue
            report.replaced[name] = kind.__name__
            if not dry_run:
                _adopt(module, _OURS[kind])
        elif kind in _OURS.values():
            inside.append(name)
        else:
            reason = _reason(module)
            if reason:
                inside.append(name)
                report.kept[name] = reason
    return report


def restore(model: torch.nn.Module) -> int:
    """Undoes `accelerate`: e3nn's own code runs again. Modules built with `nextham_kernels.nn` stay.

    Returns:
        The number of modules that were restored.
    """
    restored = 0
    for module in model.modules():
        names = module.__dict__.pop("_adopted_names", None)
        if names is None:
            continue
        for name in names:
            delattr(module, name)
        ours = type(module)
        module.__class__ = next(theirs for theirs, own in _OURS.items() if own is ours)
        restored += 1
    return restored


def _without_kernels(devices: set[str]) -> str | None:
    """Why models on these devices stay as they are; None if we have kernels there."""
    others = sorted(devices - {"cpu", "cuda"})
    if others:
        return f"the model is on {', '.join(others)}; the kernels are for the CPU and CUDA"
    if "cuda" in devices and not reference_only():
        return missing().get("triton")
    return None


def _channels(module: torch.nn.Module) -> str:
    """Why a linear map of channels stays e3nn's, or nothing."""
    maps = isinstance(module, o3.Linear) and (module.weight.ndim > 1 or module.bias.ndim > 1)
    return "f_in: e3nn's own code is as quick" if maps else ""


def _adopt(module: torch.nn.Module, ours: type) -> None:
    """Makes a module of e3nn one of ours, remembering what that adds."""
    before = {*module.__dict__, *module._buffers}
    module.__class__ = ours
    module._adopt()
    module.__dict__["_adopted_names"] = sorted({*module.__dict__, *module._buffers} - before)


def _reason(module: torch.nn.Module) -> str | None:
    """Why a module is not replaced; None if there is nothing to say about it."""
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", "") in {kind.__name__ for kind in _OURS}:
            return "compiled by TorchScript as a whole; accelerate the model before scripting it"
        return None
    for kind in _OURS:
        if isinstance(module, kind):
            return f"{type(module).__name__} is a subclass of {kind.__name__} with code of its own"
    kind = type(module)
    if kind.__module__.startswith(("e3nn.o3.", "e3nn.nn.")) and kind not in _SILENT and kind.__name__[0] != "_":
        return f"{kind.__name__} has no counterpart here"
    return None
