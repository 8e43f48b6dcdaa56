"""Trains the networks on a dataset.

The settings are a YAML file; what it leaves out has the published value (--print-settings shows all). The folder of the
run gets history.jsonl, TensorBoard scalars, checkpoint.pth to resume from, the model folders best/ and last/, and the
learning curve. A run that was interrupted in any way continues with --resume as if nothing had happened. Several
processes: torchrun --nproc-per-node N -m nextham.cli.train SETTINGS, each with its share of every batch.

Ablations: `model: {reads: elements}` for networks that are told the elements in place of H0; without the k-space loss
`loss: {low: 0, rest: 0, coupling: 0}` and `kpoints: {per_step: 0}`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

SUMMARY = "train the networks on a dataset"
EXAMPLES = """\
  nextham train --print-settings > train.yaml
  nextham train train.yaml
  nextham train train.yaml --resume
  tensorboard --logdir run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham train`."""
    parser.add_argument("settings", nargs="?", metavar="SETTINGS", help="YAML file")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the output folder")
    parser.add_argument(
        "--device", help="where the networks run, in place of run.device of the settings: cpu, cuda, cuda:N"
    )
    parser.add_argument("--print-settings", action="store_true", help="print all settings, and do nothing else")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham train`."""
    from nextham.train import Trainer, TrainSettings, read_settings, settings_to_yaml
    from nextham.train.record import plot_history

    settings = read_settings(args.settings) if args.settings else TrainSettings()
    if args.device is not None:
        settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, device=args.device))
    if args.print_settings:
        print(settings_to_yaml(settings), end="")
        return 0
    if args.settings is None:
        raise ValueError("settings: expected a YAML file, such as one made of --print-settings")
    trainer = Trainer(settings, args.resume)
    first = trainer.processes.first
    if first:
        n = {part: len(names) for part, names in trainer.parts.items()}
        parameters = sum(p.numel() for p in trainer.parameters)
        print(
            f"{settings.data}: {n['train']} samples for training, {n['validation']} for validation, {n['test']} for "
            f"test\n{len(trainer.ensemble.networks)} networks, {parameters:,} parameters"
            + ("" if n["validation"] else "\nno sample for validation: the errors shown are those of training")
            + (f"\nresumed after step {trainer.step}" if args.resume else "")
            + (", behind the last epoch: nothing is left to do" if trainer.epoch == settings.optimizer.epochs else ""),
            flush=True,
        )
    try:
        with _progress(first) as (progress, say):
            best = trainer.run(progress, say)
    finally:
        trainer.processes.close()
    if first:
        if trainer.epoch < settings.optimizer.epochs and trainer.step == settings.run.stop_after_steps:
            print(f"stopped after step {trainer.step} (run.stop_after_steps); go on with --resume")
            return 0
        plot_history([(Path(settings.output).name, trainer.folder / "history.jsonl")], trainer.folder / "history.png")
        part = "validation" if trainer.parts["validation"] else "training"
        print(f"best gauge MAE of {part}: {best:.4f} meV; models in {trainer.folder}/best and {trainer.folder}/last")
    return 0


class _progress:
    """A bar of the batches of an epoch on a terminal; lines of validation above it."""

    def __init__(self, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))

    def __enter__(self):  # noqa: ANN204
        self.progress.start()
        task = self.progress.add_task("", total=None)

        def move(title: str, done: int, total: int) -> None:
            self.progress.update(task, description=title, completed=done, total=total)

        return move, lambda text: print(text, flush=True)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


if __name__ == "__main__":  # what torchrun starts
    from nextham.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
