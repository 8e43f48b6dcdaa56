"""The training loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextham.dataset import Dataset, split
from nextham.device import checked_device
from nextham.losses import Loss
from nextham.metrics import DISTANCE_EDGES
from nextham.model import Ensemble, NextHAMConfig, load_any
from nextham.train.parallel import Processes
from nextham.train.record import History
from nextham.train.samples import SampleStore, packed_batches
from nextham.train.settings import OptimizerSettings, TrainSettings, settings_to_yaml, to_dict
from nextham.train.state import read_checkpoint, same_run, save_model, write_checkpoint
from nextham.train.step import Readout, batch_losses, errors_of, predict_batch

__all__ = ["Trainer", "TrainingError", "learning_rate"]

Progress = Callable[[str, int, int], None]


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite."""


def learning_rate(settings: OptimizerSettings, epoch: float) -> float:
    """Returns the rate at an epoch: linear warm-up, then lr_min + (lr − lr_min)(1 + cos(π epoch/epochs))/2."""
    s = settings
    if epoch < s.warmup_epochs:
        return s.warmup_lr + (s.lr - s.warmup_lr) * epoch / s.warmup_epochs
    return s.min_lr + (s.lr - s.min_lr) * (1 + math.cos(math.pi * min(1.0, epoch / s.epochs))) / 2


def make_ensemble(settings: TrainSettings) -> Ensemble:
    """Returns the networks a run begins with.

    Raises:
        ValueError: a setting of the network that is unknown or makes none, or weights that do not fit it.
        FileError: the model folder cannot be read.
    """
    torch.manual_seed(settings.run.seed)
    dtype = torch.float64 if settings.run.precision == "double" else torch.float32
    start = None if settings.start_from is None else load_any(settings.start_from)
    base = NextHAMConfig() if start is None else start.config
    try:
        config = NextHAMConfig.from_dict({**base.to_dict(), **settings.model})
    except ValueError as error:
        raise ValueError(f"model: {str(error).removeprefix('config: ')}") from error
    ensemble = Ensemble(config).to(settings.run.device, dtype)
    if start is None:
        with torch.no_grad():
            for network in ensemble.networks:
                network.readout.weight.mul_(settings.optimizer.output_scale)
    else:
        try:
            ensemble.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"start_from: the weights in {settings.start_from} do not fit these model settings"
            ) from error
    return ensemble


class Trainer:
    """Trains an ensemble; every file of the run is in `settings.output`.

    The folder gets settings.yaml, history.jsonl, checkpoint.pth (to resume), best/ and last/ (model
    folders), TensorBoard's files, and failure.pth where a loss is not finite. The order of samples and the k-points
    follow from the seed and the number of the step alone, so a resumed run takes the steps that the interrupted one
    would have taken, bit for bit.

    Args:
        settings: the run.
        resume: continue from checkpoint.pth.

    Raises:
        ValueError: settings that do not fit the dataset, nothing to train on, or a folder that already holds a run.
        FileError: dataset, model folder or checkpoint cannot be read.
    """

    def __init__(self, settings: TrainSettings, resume: bool = False) -> None:
        self.settings, self.folder = settings, Path(settings.output)
        self.checkpoint = self.folder / "checkpoint.pth"
        if not resume and self.checkpoint.exists():
            raise ValueError(
                f"output: {self.folder} already holds a run: go on with --resume, or choose another folder"
            )
        checked_device(settings.run.device)
        content = read_checkpoint(self.checkpoint) if resume else None
        if content is not None:
            same_run(content["settings"], to_dict(settings))
        self.processes = Processes(settings.run.device)
        self.dataset = Dataset(settings.data)
        s = settings.split
        self.parts = split(
            self.dataset.samples.values(), s.validation, s.test, s.by, s.seed, s.validation_only, s.test_only
        )
        if not self.parts["train"]:
            raise ValueError("split: no sample is left to train on")
        if content is not None and content.get("samples", self.parts) != self.parts:
            raise ValueError(
                f"data: a resumed run keeps its samples, {settings.data} has others (or they changed their parts)"
            )
        self.ensemble = make_ensemble(settings)
        self.readout = Readout(self.ensemble)
        cache = settings.run.cache_mb * 10**6
        self.store = SampleStore(
            self.dataset, self.ensemble, settings.kpoints, cache, overlap=settings.augment.gauge > 0
        )
        self.parameters = [p for p in self.ensemble.parameters() if p.requires_grad]
        self.gradient = _flat_gradient(self.parameters)
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=1.0,
            eps=settings.optimizer.eps,
            weight_decay=settings.optimizer.weight_decay,
            fused=True,
        )
        self.mean = [p.detach().clone() for p in self.parameters] if settings.optimizer.ema else None
        self.edges = {name: facts.n_edges for name, facts in self.dataset.samples.items()}
        self.step = self.epoch = self.batch = 0
        self.best, self.worse = math.inf, 0
        if content is not None:
            self._restore(content)
        self._h0: dict[str, Any] = {}

    # --- the loop

    def run(self, progress: Progress | None = None, say: Callable[[str], None] = print) -> float:
        """Trains to the end, an early stop, or `stop_after_steps`; returns the best validation gauge MAE, meV.

        Args:
            progress: called with the epoch in words, the batches done and their total.
            say: takes one line per validation.

        Raises:
            TrainingError: a loss or gradient that is not finite.
        """
        o, r = self.settings.optimizer, self.settings.run
        history = None
        if self.processes.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.yaml").write_text(settings_to_yaml(self.settings), encoding="utf-8")
            history = History(self.folder, self.step, r.tensorboard)
        last_save = time.monotonic()
        try:
            while self.epoch < o.epochs:
                batches = self._batches(self.epoch)
                while self.batch < len(batches):
                    start = time.monotonic()
                    values = self._step(batches[self.batch], self.epoch + self.batch / len(batches))
                    self.step, self.batch = self.step + 1, self.batch + 1
                    if history is not None and self.step % r.log_every == 0:
                        edges = sum(self.edges[name] for name in batches[self.batch - 1])
                        values["edges_per_s"] = edges / (time.monotonic() - start)
                        history.write("step", self.step, self.epoch + (self.batch - 1) / len(batches), values)
                    if progress is not None:
                        progress(f"epoch {self.epoch + 1}/{o.epochs}", self.batch, len(batches))
                    if self.step == r.stop_after_steps:
                        self.save()
                        return self.best
                    if any(self.processes.gather(time.monotonic() - last_save > 60 * r.checkpoint_minutes)):
                        self.save()
                        last_save = time.monotonic()
                self.epoch, self.batch = self.epoch + 1, 0
                if self.epoch % r.validate_every == 0 or self.epoch == o.epochs:
                    better = self._validate(history, say)
                    if history is not None and better:
                        with self.averaged():
                            save_model(self.ensemble, self.folder / "best")
                    self.save()
                    last_save = time.monotonic()
                    if r.patience and self.worse >= r.patience:
                        say(f"no better validation for {self.worse} times: stopped")
                        break
            if self.processes.first:
                with self.averaged():
                    save_model(self.ensemble, self.folder / "last")
            return self.best
        finally:
            if history is not None:
                history.close()

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters and their factors of the rate: those of the last linear maps learn in their own unit."""
        scale = self.settings.optimizer.output_scale
        last = {id(p) for network in self.ensemble.networks for p in network.readout.parameters()}
        return [
            {"params": [p for p in self.parameters if id(p) not in last], "factor": 1.0},
            {"params": [p for p in self.parameters if id(p) in last], "factor": scale},
        ]

    def _batches(self, epoch: int) -> list[tuple[str, ...]]:
        """The steps of an epoch: samples in an order of its own, packed."""
        names = self.parts["train"]
        order = np.random.default_rng([self.settings.run.seed, 1, epoch]).permutation(len(names))
        o = self.settings.optimizer
        return packed_batches([names[i] for i in order], self.edges, o.structures, o.max_edges)

    def _step(self, names: tuple[str, ...], position: float) -> dict[str, float]:
        """One step of the optimizer; returns what to log, means over the batch."""
        o = self.settings.optimizer
        rate = learning_rate(o, position if o.schedule == "step" else math.floor(position))
        squares = self.settings.loss.squares or self.epoch >= o.squares_after
        loss_settings = replace_squares(self.settings.loss, squares)
        mine = self.processes.share(list(names), self.edges)
        self.gradient.zero_()
        losses: list[Loss] = []
        kpoints: dict[str, np.ndarray] = {}
        if mine:
            samples = [self.store[name] for name in mine]
            targets = []
            for i, (name, sample) in enumerate(zip(mine, samples, strict=True)):
                place = sorted(names).index(name)
                rng = np.random.default_rng([self.settings.run.seed, 2, self.step, place])
                targets.append(sample.target_at(self.settings.kpoints, rng))
                if self.settings.augment.gauge:
                    samples[i] = sample.in_gauge(self.settings.augment.gauge * rng.standard_normal())
                kpoints[name] = targets[-1].kpoints.double().cpu().numpy()
            losses = batch_losses(self.ensemble, self.readout, samples, targets, loss_settings)
            torch.stack([loss.total for loss in losses]).sum().div(len(names)).backward()
        bad = next(
            (n for n, loss in zip(mine, losses, strict=True) if not math.isfinite(float(loss.total.detach()))), None
        )
        self.processes.add(self.gradient)
        norm = float(self.gradient.norm())
        self._check(names, bad, norm, kpoints)
        if o.clip and norm > o.clip:
            self.gradient.mul_(o.clip / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        if self.mean is not None:
            decay = min(o.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)
        return self._means(losses, len(names)) | {"learning_rate": rate, "gradient": norm}

    def _means(self, losses: list[Loss], count: int) -> dict[str, float]:
        names = ("total", "hamiltonian", "trace", "real", "low", "rest", "coupling")
        sums = torch.zeros(len(names), dtype=torch.float64)
        for loss in losses:
            values = {"total": loss.total, "hamiltonian": loss.hamiltonian, "trace": loss.trace, **loss.terms}
            sums += torch.tensor([float(values[name].detach()) for name in names], dtype=torch.float64)
        sums = self.processes.add(sums.to(self.gradient.device)) / count
        return dict(zip(names, sums.tolist(), strict=True))

    def _check(self, names: tuple[str, ...], bad: str | None, norm: float, kpoints: dict[str, np.ndarray]) -> None:
        """Stops where a loss or the gradient is not finite, and saves what reproduces it."""
        found = next((name for name in self.processes.gather(bad) if name is not None), None)
        if found is None and math.isfinite(norm):
            return
        path = self.folder / "failure.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        points = {name: k for part in self.processes.gather(kpoints) for name, k in part.items()}
        if self.processes.first:
            content = self._content() | {
                "batch_names": list(names), "kpoints": {name: k.tolist() for name, k in points.items()},
            }  # fmt: skip
            write_checkpoint(path, content)
        what = f"the loss of sample {found}" if found else f"the gradient of samples {', '.join(names)}"
        raise TrainingError(
            f"{what} is not finite in epoch {self.epoch + 1}, step {self.step + 1}; "
            f"{path} has the weights, the batch and its k-points"
        )

    # --- validation

    def averaged(self) -> _Averaged:
        """Returns a context in which the ensemble has the running mean of its weights, where there is one."""
        return _Averaged(self.parameters, self.mean)

    def _validate(self, history: History | None, say: Callable[[str], None]) -> bool:
        """Gauge MAE of the validation samples (of training, where there are none); True where it is the best so far."""
        names = self.parts["validation"] or self.parts["train"]
        mine = names[self.processes.rank :: self.processes.count]
        rows = {}
        with self.averaged(), torch.no_grad():
            for name in mine:
                sample = self.store[name]
                delta, _ = predict_batch(self.ensemble, self.readout, [sample], with_trace=False)[0]
                if name not in self._h0:
                    self._h0[name] = errors_of(sample, None)
                rows[name] = (errors_of(sample, delta), self._h0[name])
        rows = {name: row for part in self.processes.gather(rows) for name, row in part.items()}
        mae, of_h0 = (float(np.mean([row[i].mae for row in rows.values()])) for i in (0, 1))
        ranges = {}
        for i, (low, high) in enumerate(itertools.pairwise(DISTANCE_EDGES)):
            counts = sum(row[0].counts[i] for row in rows.values())
            if counts:
                ranges[f"{low:g}-{high:g} Å"] = float(sum(row[0].sums[i] for row in rows.values()) / counts)
        better = mae < self.best
        self.best, self.worse = (mae, 0) if better else (self.best, self.worse + 1)
        if history is not None:
            materials: dict[str, float] = {name: row[0].mae for name, row in sorted(rows.items())}
            values = {"mae_meV": mae, "h0_mae_meV": of_h0, "ranges": ranges, "samples": materials}
            history.write("validation", self.step, self.epoch, values)
            say(f"epoch {self.epoch}: gauge MAE {mae:.4f} meV (H0 {of_h0:.4f})" + (", best so far" if better else ""))
        return better

    # --- checkpoints

    def save(self) -> None:
        """Writes checkpoint.pth."""
        if self.processes.first:
            write_checkpoint(self.checkpoint, self._content())
        self.processes.wait()

    def _content(self) -> dict[str, Any]:
        return {
            "settings": to_dict(self.settings),
            "config": self.ensemble.config.to_dict(),
            "samples": self.parts,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "worse": self.worse,
            "weights": self.ensemble.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def _restore(self, content: dict[str, Any]) -> None:
        self.ensemble.load_state_dict(content["weights"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.mean is not None:
            for ours, saved in zip(self.mean, content["mean"], strict=True):
                ours.copy_(saved)
        torch.set_rng_state(content["random"])
        for name in ("step", "epoch", "batch", "best", "worse"):
            setattr(self, name, content[name])


class _Averaged:
    """Exchanges the weights for their running mean, and back."""

    def __init__(self, parameters: list[torch.nn.Parameter], mean: list[torch.Tensor] | None) -> None:
        self.parameters, self.mean = parameters, mean

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for p, m in zip(self.parameters, self.mean, strict=True) if self.mean is not None else ():
            kept = p.clone()
            p.copy_(m)
            m.copy_(kept)


def _flat_gradient(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """One tensor that all gradients are views of: zeroing, clipping and adding over processes are one call each."""
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    return flat


def replace_squares(settings: Any, squares: bool) -> Any:
    """The loss of one epoch."""
    import dataclasses

    return settings if settings.squares == squares else dataclasses.replace(settings, squares=squares)
