"""What a run writes down: history.jsonl, TensorBoard scalars, and the learning curve as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["History", "plot_history", "read_history"]


class History:
    """Lines of JSON, one per logged step (`kind` step) and per validation (`kind` validation).

    Args:
        folder: of the run.
        step: the step that a resumed run continues behind; later lines of an interrupted run are dropped.
        tensorboard: also write TensorBoard's files.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "history.jsonl"
        kept = [line for line in read_history(self.path) if line["step"] <= step] if step else []
        part = self.path.with_name(self.path.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, self.path)
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "run.tensorboard: TensorBoard is not installed: pip install tensorboard, or set it to false"
                ) from error
            self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, float | dict[str, float]]) -> None:
        """Adds a line; numbers, and dictionaries of numbers, also become scalars `kind/name[/part]`."""
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        if self._board is None:
            return
        for name, value in values.items():
            for part, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                if isinstance(number, int | float):
                    self._board.add_scalar("/".join(filter(None, (kind, name, part))), number, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_history(path: Path) -> list[dict]:
    """Reads history.jsonl; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def plot_history(histories: Sequence[tuple[str, Path]], picture: Path) -> None:
    """Draws loss and validation gauge MAE against the epoch.

    Args:
        histories: (label, history.jsonl) of each run.
        picture: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (label, path) in enumerate(histories):
        lines, color = read_history(path), f"C{number}"
        mean: dict[int, list[float]] = {}
        for line in lines:
            if line["kind"] == "step":
                mean.setdefault(int(line["epoch"]), []).append(1e3 * line["hamiltonian"])
        left.plot([e + 1 for e in mean], [sum(x) / len(x) for x in mean.values()], color=color, label=label)
        found = [line for line in lines if line["kind"] == "validation"]
        right.plot([v["epoch"] for v in found], [v["mae_meV"] for v in found], color=color, label=label)
        if found:
            right.axhline(found[0]["h0_mae_meV"], color="0.5", linestyle="--", linewidth=1)
            right.annotate(
                "H of step zero", (0.98, found[0]["h0_mae_meV"]), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", color="0.4",
            )  # fmt: skip
    left.set(xlabel="epoch", ylabel="loss_H of training / meV", yscale="log")
    right.set(xlabel="epoch", ylabel="gauge MAE of validation / meV", yscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for kind in ("major", "minor"):
            getattr(axes.yaxis, f"set_{kind}_formatter")(LogFormatter(minor_thresholds=(1.5, 0.4)))
        axes.legend(frameon=False)
    figure.savefig(picture, dpi=130)
