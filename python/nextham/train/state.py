"""Checkpoints of a run: everything that the next step depends on, in one file that is replaced in one step."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from nextham.io.errors import FileError
from nextham.model import Ensemble, save

__all__ = ["FORMAT", "read_checkpoint", "same_run", "save_model", "write_checkpoint"]

FORMAT = "nextham training 1"


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; a process killed at any moment leaves the old file or the new one.

    Args:
        path: the file.
        content: tensors, numbers, words, and dictionaries and lists of them.

    Raises:
        FileError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise FileError(path, f"cannot be written ({error.strerror or error})") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; nothing in it is executed.

    Raises:
        FileError: no such file, or no checkpoint of a training run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileError(path, "no such file: there is no run to resume") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FileError(path, f"is damaged or no checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(path, "is no checkpoint of a training run")
    return content


def save_model(ensemble: Ensemble, folder: Path) -> None:
    """Writes a model folder; each of its files is replaced in one step."""
    part = folder.with_name(folder.name + ".part")
    save(ensemble, part)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(part.iterdir()):
        os.replace(file, folder / file.name)
    part.rmdir()


# What a resumed run may change.
_FREE = ("output", "data", "start_from", "run")


def same_run(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to resume with settings under which the steps would be others.

    Raises:
        ValueError: the first such setting.
    """
    before, after = _flat(saved), _flat(now)
    for name in {**before, **after}:
        free = name.split(".")[0] in _FREE and name not in ("run.seed", "run.precision")
        if not free and before.get(name) != after.get(name):
            raise ValueError(
                f"{name}: a resumed run keeps its settings, {before.get(name)!r} became {after.get(name)!r}; to go on "
                "with others, start a run in another folder from its weights (start_from: FOLDER/last)"
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names, such as `optimizer.lr`."""
    found = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
