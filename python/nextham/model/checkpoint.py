"""Checkpoints of ours: a folder with `config.json` and `weights.safetensors`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from nextham.io.errors import FileError
from nextham.io.torch_file import StoredTensor
from nextham.model.config import NextHAMConfig
from nextham.model.ensemble import Ensemble
from nextham.model.layers import not_drawn

__all__ = ["check_finite", "check_shapes", "empty_ensemble", "load", "save"]

_CONFIG, _WEIGHTS = "config.json", "weights.safetensors"
_FORMAT = "nextham ensemble 1"


def save(ensemble: Ensemble, directory: str | os.PathLike[str]) -> None:
    """Writes an ensemble to a folder, which is made if it is not there: `config.json` and `weights.safetensors`.

    Raises:
        FileError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    tensors = {name: p.detach().cpu().contiguous() for name, p in ensemble.named_parameters()}
    text = json.dumps({"format": _FORMAT, "config": ensemble.config.to_dict()}, indent=1) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, directory / _WEIGHTS)
    except OSError as error:
        raise FileError(directory, f"cannot be written ({error.strerror or error})") from error


def load(directory: str | os.PathLike[str]) -> Ensemble:
    """Reads an ensemble that `save` wrote, in the dtype it was saved in.

    Raises:
        FileError: a missing, truncated or foreign file; a missing, unexpected or misshapen parameter.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    config = _read_config(directory / _CONFIG)
    path = directory / _WEIGHTS
    if not path.is_file():
        raise FileError(path, "no such file; a model folder holds config.json and weights.safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FileError(path, f"truncated or no safetensors file ({error})") from error
    ensemble = empty_ensemble(config)
    check_shapes(path, tensors, {name: tuple(p.shape) for name, p in ensemble.named_parameters()})
    for name, tensor in tensors.items():
        check_finite(path, name, tensor)
    ensemble.load_state_dict(tensors, assign=True)
    return ensemble


def empty_ensemble(config: NextHAMConfig) -> Ensemble:
    """Returns an ensemble whose parameters are not set: drawing them would take longer than reading them."""
    with not_drawn():
        return Ensemble(config)


def check_shapes(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor | StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Checks that a file holds exactly the expected parameters, each a floating tensor of its shape.

    Args:
        path: the file, for the sentence.
        tensors: what it holds.
        shapes: expected name → shape.

    Raises:
        FileError: the first parameter that is missing, unexpected, misshapen or not floating.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise FileError(path, f"parameter {name} is missing")
        tensor = tensors[name]
        if not isinstance(tensor, (torch.Tensor, StoredTensor)) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, (torch.Tensor, StoredTensor)) else type(tensor).__name__
            raise FileError(path, f"parameter {name}: expected floating-point numbers, got {kind}")
        if tuple(tensor.shape) != tuple(shape):
            raise FileError(path, f"parameter {name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    for name in tensors:
        if name not in shapes:
            raise FileError(path, f"parameter {name} is unexpected")


def check_finite(path: str | os.PathLike[str], name: str, tensor: torch.Tensor) -> None:
    """Checks that the numbers of a parameter are finite.

    Raises:
        FileError: it has NaN or infinity.
    """
    # A sum needs a tenth of the time of isfinite, but may overflow where every number is finite.
    if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise FileError(path, f"parameter {name}: expected finite numbers, got NaN or infinity")


def _read_config(path: Path) -> NextHAMConfig:
    if not path.is_file():
        raise FileError(path, "no such file; a model folder holds config.json and weights.safetensors")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FileError(path, f"no JSON: {error.msg}", line=error.lineno) from error
    except UnicodeDecodeError as error:
        raise FileError(path, "no JSON: not a text file") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("config"), dict):
        raise FileError(path, f'expected {{"format": "{_FORMAT}", "config": {{...}}}}')
    try:
        return NextHAMConfig.from_dict(content["config"])
    except ValueError as error:
        raise FileError(path, str(error)) from error
