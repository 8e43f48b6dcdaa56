"""The published checkpoints, `torch.save({'state_dict': …})`, one file per distance range: read and written.

Only tensors are read, with torch's restricted unpickler; nothing in a file is ever executed. The names and shapes of
all parameters of a published network are in `published_v1.json.xz`, with whether the forward pass reads them.
"""

from __future__ import annotations

import functools
import json
import lzma
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nextham.io.errors import FileError
from nextham.io.torch_file import StoredTensor, stored_tensors
from nextham.model import checkpoint
from nextham.model.config import NextHAMConfig
from nextham.model.ensemble import Ensemble
from nextham.model.published_names import published_places, published_tensors

__all__ = ["load_any", "load_published", "published_manifest", "save_published"]

_STORED_BY_E3NN = ("_compiled_main", "output_mask")
_FILE = "model_range{}_*.pth.tar"


@functools.cache
def published_manifest() -> dict[str, tuple[tuple[int, ...], bool]]:
    """Returns the parameters of a published v1 network: name → (shape, whether the forward pass reads it)."""
    packed = (Path(__file__).parent / "published_v1.json.xz").read_bytes()
    table = json.loads(lzma.decompress(packed))
    return {name: (tuple(shape), bool(used)) for name, (shape, used) in table.items()}


def load_published(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], config: NextHAMConfig | None = None
) -> tuple[Ensemble, dict[str, torch.Tensor]]:
    """Reads the published checkpoints of all ranges into an ensemble.

    Every name and shape is checked against the manifest; what e3nn stores beside the parameters is ignored. With a
    configuration whose parameters are not the published ones (the later variant) those that are read are checked
    against the configuration, and whatever else a file holds counts as dead.

    Args:
        paths: the files in the order of their ranges, or a folder that holds `model_range0_*.pth.tar` and so on.
        config: the configuration; the default is the published v1. It may change what is no parameter, such as target.

    Returns:
        The ensemble (float32 as the files are), and the dead parameters, which no forward pass reads: `network:name` →
        tensor.

    Raises:
        FileError: a missing or unreadable file, one that holds code, or a missing, unexpected or misshapen parameter.
        ValueError: another number of files than ranges, or files in another order than their names say.
    """
    config = NextHAMConfig() if config is None else config
    ensemble, dead = _load(_files(paths, len(config.ranges)), config)
    return ensemble, {f"{number}:{n}": _tensor(path, n, x) for number, path, rest in dead for n, x in rest.items()}


def _load(
    files: Sequence[Path], config: NextHAMConfig
) -> tuple[Ensemble, list[tuple[int, Path, dict[str, torch.Tensor | StoredTensor]]]]:
    """The ensemble, and the dead parameters of each file, not read yet."""
    ensemble = checkpoint.empty_ensemble(config)
    dead_shapes = _dead_shapes(ensemble)
    places, targets, dead = published_places(config), published_tensors(ensemble), []
    for number, (path, network) in enumerate(zip(files, ensemble.networks, strict=True)):
        tensors = _read(path)
        shapes = {n: tuple(targets[f"{number}:{n}"].shape) for n in places}
        rest = {n: t for n, t in tensors.items() if n not in shapes}
        checkpoint.check_shapes(
            path,
            {n: t for n, t in tensors.items() if n in shapes or dead_shapes is not None},
            {**shapes, **(dead_shapes or {})},
        )
        ours = dict(network.named_parameters())
        for name, place in places.items():
            value = _tensor(path, name, tensors[name])
            checkpoint.check_finite(path, name, value)
            parameter = ours[place.name]
            if value.shape == parameter.shape and value.dtype == parameter.dtype:
                parameter.data = value
            else:
                parameter.data[place.entries] = value
        dead.append((number, path, rest))
    return ensemble, dead


def _tensor(path: Path, name: str, value: torch.Tensor | StoredTensor) -> torch.Tensor:
    """The tensor itself."""
    try:
        return value.read() if isinstance(value, StoredTensor) else value
    except RuntimeError as error:
        raise FileError(path, f"parameter {name} cannot be read, the file is damaged") from error


def save_published(
    ensemble: Ensemble, directory: str | os.PathLike[str], dead: Mapping[str, torch.Tensor] | None = None
) -> list[Path]:
    """Writes an ensemble as published checkpoints, `model_range0_nextham.pth.tar` and so on.

    Args:
        ensemble: the networks.
        directory: the folder, made if it is not there.
        dead: the dead parameters that `load_published` gave; by default zeros in the published shapes, which the
            published code loads and never reads.

    Returns:
        The files.

    Raises:
        FileError: a file cannot be written.
    """
    directory = Path(directory)
    values = {name: value.clone() for name, value in published_tensors(ensemble).items()}
    if dead is None:
        shapes = _dead_shapes(ensemble) or {}
        count = len(ensemble.networks)
        dead = {f"{k}:{name}": torch.zeros(shape) for k in range(count) for name, shape in shapes.items()}
    values |= dead
    files = []
    for number in range(len(ensemble.networks)):
        prefix = f"{number}:"
        state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        files.append(directory / _FILE.format(number).replace("*", "nextham"))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": state}, files[-1])
        except (OSError, RuntimeError) as error:
            raise FileError(files[-1], f"cannot be written ({error})") from error
    return files


def load_any(directory: str | os.PathLike[str]) -> Ensemble:
    """Reads a model folder of either kind: ours (`config.json`) or the published checkpoints (`model_range*.pth.tar`).

    Raises:
        FileError: neither kind, or a file of it cannot be used.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        return checkpoint.load(directory)
    if any(directory.glob(_FILE.format("*"))):
        config = NextHAMConfig()
        return _load(_files(directory, len(config.ranges)), config)[0]
    raise FileError(directory, "expected a model folder: config.json, or model_range0_*.pth.tar and so on")


def _files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], count: int) -> list[Path]:
    """One file per range, in order."""
    if isinstance(paths, (str, os.PathLike)):
        files = []
        for number in range(count):
            found = sorted(Path(paths).glob(_FILE.format(number)))
            if len(found) != 1:
                raise FileError(paths, f"expected one file {_FILE.format(number)}, found {len(found)}")
            files += found
        return files
    files = [Path(path) for path in paths]
    if len(files) != count:
        raise ValueError(f"paths: expected {count} files, one per distance range, got {len(files)}")
    for number, path in enumerate(files):
        named = re.match(r"model_range(\d+)_", path.name)
        if named and int(named[1]) != number:
            raise ValueError(f"paths: expected the file of range {number} at place {number}, got {path.name}")
    return files


def _read(path: Path) -> dict[str, object]:
    """Reads the state of one file, without what e3nn stores beside the parameters."""
    if not path.is_file():
        raise FileError(path, "no such file")
    content = stored_tensors(path)
    try:
        if content is None:
            with warnings.catch_warnings():  # torch warns of foreign pickles before it refuses them
                warnings.simplefilter("ignore", UserWarning)
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise FileError(
                path, f"holds code ({found[1]}), a pickled module perhaps; only tensors are read"
            ) from error
        raise FileError(path, "truncated or no checkpoint of torch.save") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise FileError(path, "truncated or no checkpoint of torch.save") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise FileError(path, "expected a checkpoint with an entry 'state_dict', parameters by name")
    return {name: value for name, value in state.items() if not any(word in name for word in _STORED_BY_E3NN)}


def _dead_shapes(ensemble: Ensemble) -> dict[str, tuple[int, ...]] | None:
    """The dead parameters of the published v1 network, or None where the ensemble has other parameters than that."""
    places, values = published_places(ensemble.config), published_tensors(ensemble)
    manifest = published_manifest()
    used = {name for name, (_, used) in manifest.items() if used}
    same = used <= set(places) <= set(manifest) and all(
        tuple(values[f"0:{name}"].shape) == manifest[name][0] for name in places
    )
    return {name: shape for name, (shape, _) in manifest.items() if name not in places} if same else None
