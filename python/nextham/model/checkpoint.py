"""Checkpoints of ours: a folder with `config.json` and `weights.safetensors`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from nextham.io.errors import FileError
from nextham.model.config import NextHAMConfig
from nextham.model.ensemble import Ensemble

__all__ = ["check_parameters", "load", "save"]

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
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn only to be overwritten
        ensemble = Ensemble(config)
    check_parameters(path, tensors, {name: tuple(p.shape) for name, p in ensemble.named_parameters()})
    ensemble.to(next(iter(tensors.values())).dtype)
    ensemble.load_state_dict(tensors)
    return ensemble


def check_parameters(
    path: str | os.PathLike[str], tensors: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that a file holds exactly the expected parameters, each a finite floating tensor of its shape.

    Args:
        path: the file, for the sentence.
        tensors: what it holds.
        shapes: expected name → shape.

    Raises:
        FileError: the first parameter that is missing, unexpected, misshapen, not floating or not finite.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise FileError(path, f"parameter {name} is missing")
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise FileError(path, f"parameter {name}: expected floating-point numbers, got {kind}")
        if tuple(tensor.shape) != tuple(shape):
            raise FileError(path, f"parameter {name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise FileError(path, f"parameter {name}: expected finite numbers, got NaN or infinity")
    for name in tensors:
        if name not in shapes:
            raise FileError(path, f"parameter {name} is unexpected")


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
