"""What a training run is made of: dataclasses, and the YAML file that sets them."""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextham.io.errors import FileError
from nextham.losses import LossSettings

__all__ = [
    "AugmentSettings",
    "KPointSettings",
    "OptimizerSettings",
    "RunSettings",
    "SplitSettings",
    "TrainSettings",
    "read_settings",
    "settings_from_dict",
    "settings_to_yaml",
]


@dataclass(frozen=True)
class SplitSettings:
    """Which samples train (see `nextham.dataset.split`).

    Args:
        by: `name` or `material`.
        validation: share of validation.
        test: share of test.
        seed: another seed is another split.
        validation_only: names or materials that always are in validation.
        test_only: likewise in test.
    """

    by: str = "name"
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    validation_only: tuple[str, ...] = ()
    test_only: tuple[str, ...] = ()


@dataclass(frozen=True)
class KPointSettings:
    """Where the k-space terms of the loss are taken.

    Args:
        per_step: k-points of each structure in a step; 0 leaves the k-space terms out.
        source: `fresh`, eigenvectors are computed at new k-points in every step; `stored`, those that came with the
            sample are used, one of them drawn per k-point.
        mesh: a fresh k-point is one of a mesh of so many points per direction with a random shift; 0 draws it anywhere.
        window: low bands are those with lo ≤ ε − E_F ≤ hi, eV; without it, the published cut 10 eV above E_F.
    """

    per_step: int = 1
    source: str = "fresh"
    mesh: int = 4
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class AugmentSettings:
    """What is done to a sample anew in every step.

    Args:
        gauge: standard deviation, eV, of a random c: the network reads H0 + c·S in place of H0, whose zero of energy
            means nothing and differs from material to material; the label H − H0 stays. 0 (published) is off.
    """

    gauge: float = 0.0


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam and its schedule; the defaults are the published ones.

    Args:
        lr: learning rate after the warm-up.
        min_lr: where the cosine ends.
        warmup_lr: where the warm-up begins.
        warmup_epochs: epochs of the linear warm-up.
        epochs: all of them.
        schedule: the rate changes with every `epoch` (published) or every `step`.
        output_scale: the last linear map of each network starts with its weights times this and learns at a rate times
            this, as if its output were in units of so many eV; corrections are some 0.01 eV.
        eps: Adam's ε; gradients of a loss in eV are small, of the order of 1e-6.
        weight_decay: decoupled (AdamW).
        clip: largest norm of the gradient; 0 is no clipping.
        ema: decay of the running mean of the weights that is validated and kept; 0 is off.
        structures: structures in a step.
        max_edges: fewer structures, if they have more edges together; 0 is no bound.
        squares_after: the loss takes squares from this epoch on.
    """

    lr: float = 5e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_epochs: int = 5
    epochs: int = 100
    schedule: str = "epoch"
    output_scale: float = 1.0
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    structures: int = 1
    max_edges: int = 0
    squares_after: int = 130


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out.

    Args:
        seed: of weights, order and k-points.
        precision: `single` or `double`.
        device: where to compute, such as `cpu` or `cuda`.
        checkpoint_minutes: time between checkpoints; one is also written at the end of each epoch that is validated.
        validate_every: epochs.
        patience: validations without a better gauge MAE after which to stop; 0 never stops.
        stop_after_steps: stop there, with a checkpoint to resume from; 0 never.
        log_every: steps between lines of history.jsonl.
        cache_mb: memory of prepared samples.
        tensorboard: write scalars for TensorBoard.
    """

    seed: int = 0
    precision: str = "single"
    device: str = "cpu"
    checkpoint_minutes: float = 10.0
    validate_every: int = 1
    patience: int = 0
    stop_after_steps: int = 0
    log_every: int = 1
    cache_mb: int = 4000
    tensorboard: bool = True


@dataclass(frozen=True)
class TrainSettings:
    """A training run; the defaults are the published recipe.

    Args:
        data: the dataset (`nextham dataset build`).
        output: folder of the run.
        model: settings of `NextHAMConfig` that differ from the published ones.
        start_from: model folder to begin with, ours or published; `model` then changes its settings.
        split: which samples train.
        loss: weights and form of the loss.
        kpoints: of the k-space terms.
        augment: what is done to a sample anew in every step.
        optimizer: Adam and its schedule.
        run: how it is carried out.

    Raises:
        ValueError: a setting that makes no run, in one sentence.
    """

    data: str = "data.h5"
    output: str = "run"
    model: dict[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    split: SplitSettings = field(default_factory=SplitSettings)
    loss: LossSettings = field(default_factory=lambda: LossSettings(padded_slots=True))
    kpoints: KPointSettings = field(default_factory=KPointSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        o, k, r = self.optimizer, self.kpoints, self.run
        _require("kpoints.source", k.source in ("fresh", "stored"), "'fresh' or 'stored'", k.source)
        _require("kpoints.per_step", k.per_step >= 0, "0 or more", k.per_step)
        _require("kpoints.mesh", k.mesh >= 0, "0 or more", k.mesh)
        ordered = k.window is None or (len(k.window) == 2 and k.window[0] < k.window[1])
        _require("kpoints.window", ordered, "two ascending energies", k.window)
        _require("augment.gauge", self.augment.gauge >= 0, "0 or more", self.augment.gauge)
        without = self.augment.gauge == 0 or self.model.get("reads", "h0") == "h0"
        _require("augment.gauge", without, "0 where the networks do not read H0", self.augment.gauge)
        _require("optimizer.lr", o.lr > 0, "a positive rate", o.lr)
        _require("optimizer.epochs", o.epochs >= 1, "1 or more", o.epochs)
        _require("optimizer.schedule", o.schedule in ("epoch", "step"), "'epoch' or 'step'", o.schedule)
        _require("optimizer.ema", 0 <= o.ema < 1, "0 to below 1", o.ema)
        _require("optimizer.structures", o.structures >= 1, "1 or more", o.structures)
        _require("optimizer.output_scale", o.output_scale > 0, "a positive number", o.output_scale)
        for name in ("clip", "weight_decay", "warmup_epochs", "max_edges"):
            _require(f"optimizer.{name}", getattr(o, name) >= 0, "0 or more", getattr(o, name))
        _require("run.precision", r.precision in ("single", "double"), "'single' or 'double'", r.precision)
        for name in ("validate_every", "log_every", "cache_mb"):
            _require(f"run.{name}", getattr(r, name) >= 1, "1 or more", getattr(r, name))
        _require("run.checkpoint_minutes", r.checkpoint_minutes > 0, "a positive time", r.checkpoint_minutes)
        for name in ("patience", "stop_after_steps"):
            _require(f"run.{name}", getattr(r, name) >= 0, "0 or more", getattr(r, name))


def _require(name: str, fits: bool, expected: str, got: object) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def read_settings(path: str | os.PathLike[str]) -> TrainSettings:
    """Reads a YAML file; paths in it are relative to its folder.

    Raises:
        FileError: no YAML, or a setting that is unknown, of the wrong type or out of range.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise FileError(path, f"no YAML: {error.problem}", line=line) from error
    if not isinstance(content, dict):
        raise FileError(path, "expected settings such as `data: data.h5`")
    try:
        settings = settings_from_dict(content)
    except ValueError as error:
        raise FileError(path, str(error)) from error
    here = path.parent
    start = settings.start_from
    return dataclasses.replace(
        settings,
        data=os.fspath(here / settings.data),
        output=os.fspath(here / settings.output),
        start_from=None if start is None else os.fspath(here / start),
    )


def settings_from_dict(content: dict[str, Any]) -> TrainSettings:
    """Returns the settings of plain dictionaries; what is absent has its default.

    Raises:
        ValueError: a setting that is unknown, of the wrong type or out of range.
    """
    return _dataclass_of(TrainSettings(), content, "")


def settings_to_yaml(settings: TrainSettings) -> str:
    """Returns the text of a YAML file that `read_settings` reads back."""
    import yaml

    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)


def to_dict(settings: TrainSettings) -> dict[str, Any]:
    """Returns plain dictionaries and lists."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(x) for key, x in value.items()}
        return [plain(x) for x in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(settings))


def _dataclass_of(default: Any, content: object, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{prefix.rstrip('.')}: expected settings, got {content!r}")
    kinds = typing.get_type_hints(type(default))
    values = {}
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"{prefix}{name}: unknown setting; known are {', '.join(kinds)}")
        old = getattr(default, name)
        if dataclasses.is_dataclass(old):
            values[name] = _dataclass_of(old, value, f"{prefix}{name}.")
        else:
            values[name] = _value(f"{prefix}{name}", value, kinds[name])
    return dataclasses.replace(default, **values)


def _value(name: str, value: object, kind: Any) -> Any:
    """A value of a setting's type; YAML's lists become tuples, whole numbers floats, and 5e-4, a text to YAML, too."""
    options = typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)
    if value is None and type(None) in options:
        return None
    kind = next(k for k in options if k is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is tuple and isinstance(value, list):
        inner = typing.get_args(kind)[0]
        return tuple(_value(name, x, inner) for x in value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, origin) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}: expected {getattr(origin, '__name__', origin)}, got {value!r}")
    return value
