"""Prints how good models are on the samples of a dataset, next to H0.

The tables hold the gauge MAE (meV) of each material, distance range, spin block and pair of elements. Several models
stand side by side, such as the ablations of a recipe. Which samples: a part of a run's split, or names and materials.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import natural

if TYPE_CHECKING:
    from nextham.dataset import Dataset
    from nextham.train.evaluation import Evaluation

SUMMARY = "tables of a model's errors on a dataset, next to H of step zero"
EXAMPLES = """\
  nextham evaluate run/best --data data.h5 --run run --part test
  nextham evaluate run/best other/best --data data.h5 --samples Si AsGa --bands --json errors.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham evaluate`."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders")
    parser.add_argument("--data", required=True, metavar="FILE", help="dataset")
    parser.add_argument("--run", dest="folder", metavar="DIR", help="folder of a training run, for its split")
    parser.add_argument(
        "--part", choices=("train", "validation", "test"), default="test", help="of --run's split (default test)"
    )
    parser.add_argument("--samples", nargs="+", metavar="NAME", help="samples or materials, instead of --run")
    parser.add_argument("--bands", action="store_true", help="band errors within 5 eV of E_F, ghost states, cond S")
    parser.add_argument("--mesh", type=natural, default=4, metavar="N", help="k-points per direction (default 4)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, errors in meV")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham evaluate`."""
    from rich.console import Console

    from nextham.cli.progress import bar
    from nextham.cli.run_folder import check_output_file
    from nextham.dataset import Dataset
    from nextham.model import load_any
    from nextham.train.evaluation import evaluate

    if args.json:
        check_output_file(Path(args.json))
    dataset = Dataset(args.data)
    names = _names(dataset, args)
    labels = _labels(args.models)
    models = {label: load_any(path) for label, path in zip(labels, args.models, strict=True)}
    with bar("samples") as progress:
        results = evaluate(dataset, names, models, progress)
    console = Console()
    for table in _tables(results):
        console.print(table)
    content: dict[str, object] = {"gauge": [result.to_dict() for result in results]}
    if args.bands:
        content["bands"] = _bands(dataset, names, models, args.mesh, console)
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    return 0


def _names(dataset: Dataset, args: argparse.Namespace) -> list[str]:
    from nextham.dataset import split
    from nextham.train import read_settings

    if args.samples:
        names = [n for n, facts in dataset.samples.items() if {n, facts.material} & set(args.samples)]
        known = {n for n, _ in dataset.samples.items()} | {facts.material for facts in dataset.samples.values()}
        for name in args.samples:
            if name not in known:
                raise ValueError(f"samples: no sample is called {name!r} or of that material")
        return sorted(names)
    if not args.folder:
        raise ValueError("run, samples: give --run with a training run's folder, or --samples")
    s = read_settings(Path(args.folder) / "settings.yaml").split
    parts = split(dataset.samples.values(), s.validation, s.test, s.by, s.seed, s.validation_only, s.test_only)
    if not parts[args.part]:
        raise ValueError(f"part: the split of {args.folder} has no sample for {args.part}")
    return parts[args.part]


def _labels(paths: list[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    resolved = [Path(path).resolve() for path in paths]
    for depth in (1, 2, 3):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in resolved]


def _tables(results: list[Evaluation]):  # noqa: ANN202
    from rich.table import Table

    table = Table(title="gauge MAE / meV")
    for column in ("", *(result.label for result in results)):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("all structures", *(f"{result.mae_meV:.4f}" for result in results))
    for title in ("materials", "distance", "spin", "elements"):
        table.add_section()
        rows = [result.materials if title == "materials" else result.groups[title] for result in results]
        for name in sorted({name for row in rows for name in row}):
            table.add_row(name, *(f"{row[name]:.4f}" if name in row else "" for row in rows))
    yield table


def _bands(dataset, names, models, mesh, console) -> dict:  # noqa: ANN001
    from rich.table import Table

    from nextham.cli.progress import bar
    from nextham.train.evaluation import ghost_states

    found: dict[str, dict[str, dict]] = {}
    table = Table(title="bands within 5 eV of E_F")
    for column in ("sample", "", "mean / meV", "largest / meV", "over 500 meV", "levels", "cond S"):
        table.add_column(column, justify="left" if column in ("sample", "") else "right")
    with bar("bands") as progress:
        for done, name in enumerate(names, start=1):
            for label, ensemble in (("H0", None), *models.items()):
                report = ghost_states(dataset, name, ensemble, mesh)
                found.setdefault(name, {})[label] = vars(report)
                table.add_row(
                    name if label == "H0" else "", label, f"{report.mean_meV:.1f}", f"{report.max_meV:.1f}",
                    str(report.n_bad), str(report.n_levels), f"{report.condition:.2e}",
                )  # fmt: skip
            progress(done, len(names))
    console.print(table)
    return found
