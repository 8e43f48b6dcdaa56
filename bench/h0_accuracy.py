"""Command line: `python -m bench.h0_accuracy [NAME …] [--energies 100,200,400] [--plot FILE]`.

H of step zero from the structure alone against ABACUS's.

For every sample (ABACUS runs and packed ones of `--data`) one line with what the default grid gives is appended to
`results/<device>/h0_accuracy.jsonl` and all of them are printed as a table. With `--energies` the same samples are
computed on these grids too (Ry), and `--plot` draws their errors against the grid's spacing.

Columns: gauge MAE and largest element against ABACUS's H of step zero (meV); largest difference of the bands at three
k-points (meV), of all levels below 20 eV; of S; of the elements that depend on spin or are imaginary (eV);
and with `--egg-box` the egg-box error, the largest change of an element of V when all atoms are moved by (0.3, 0.4,
0.2) steps of the grid (meV); with `--single` by how much single precision on the grid changes V at most and on average
over its elements (meV).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench import record
from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.h0 import AtomicFiles, Pieces, build_pieces, local_potential
from nextham.h0.grid import Grid
from nextham.h0.local_settings import default_energy
from nextham.io.csr import read_blocks
from nextham.io.packed_sample import read_packed
from nextham.io.stru import read_stru
from nextham.metrics import band_error, gauge_mae
from nextham.structure import Structure

__all__ = ["main", "measure", "samples"]

KPOINTS = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.3, -0.1]])
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def samples(data: Path, names: Sequence[str]) -> Iterator[tuple[str, Structure, Blocks, Blocks]]:
    """Yields name, structure, H of step zero and S of each sample."""
    folders = {path.name: path for path in sorted((data / "abacus").iterdir())}
    packed = {path.name.removesuffix(".npz.xz"): path for path in sorted((data / "packed").glob("*.npz.xz"))}
    for name in names or [*folders, *packed]:
        if name in folders:
            structure = read_stru(folders[name] / "STRU").structure
            files = AtomicFiles.read(data / "basis", structure.numbers)
            basis = Basis({z: orb.shells for z, orb in files.orbitals.items()})
            words = ("hrs0_nao.csr.xz", "srs1_nao.csr.xz")
            h0, overlap = (read_blocks(folders[name] / word, structure, basis) for word in words)
            yield name, structure, h0, overlap.spinless()
        elif name in packed:
            sample = read_packed(packed[name])
            yield name, sample.structure, sample.matrices["H0"], sample.matrices["S"]
        else:
            raise ValueError(f"names: there is no sample {name!r} in {data}")


def _spin_error(pieces: Pieces, reference: Blocks) -> float:
    """Largest difference in what depends on spin or is imaginary: only V_NL has it, eV."""
    found = pieces.hamiltonian()
    largest = 0.0
    for _, _, _, d in (found - reference.on(found.graph)).groups():
        parts = (d[:, 1], d[:, 2], d[:, 0] - d[:, 3], d.imag)
        largest = max(largest, *(float(np.abs(x).max()) for x in parts))
    return largest


def _moved(structure: Structure, shape: Sequence[int], steps: Sequence[float]) -> Structure:
    """All atoms at the lower end of the cell, then moved by parts of the grid's steps; none leaves the cell."""
    fractional = structure.wrapped()[0].fractional()
    fractional = fractional - fractional.min(axis=0) + 1e-4 + np.array(steps) / np.array(shape)
    return Structure(structure.cell, fractional @ structure.cell, structure.numbers, structure.pbc)


def measure(
    name: str,
    structure: Structure,
    reference: Blocks,
    overlap: Blocks,
    data: Path,
    energies: Sequence[float],
    egg_box: bool = False,
    single: bool = False,
) -> list[record.Line]:
    """Returns the lines of one sample: the default grid first."""
    files = AtomicFiles.read(data / "basis", structure.numbers)
    pieces = build_pieces(structure, files)
    lines = []
    for energy in (None, *energies):
        if energy is not None:
            potentials = (files.orbitals, files.pseudopotentials)
            pieces = replace(pieces, local=local_potential(pieces.overlap, *potentials, energy_cutoff=energy))
        hamiltonian = pieces.hamiltonian()
        report = gauge_mae(hamiltonian, reference, pieces.overlap, cutoff=None)
        used = default_energy(files.orbitals, files.pseudopotentials, structure.species()) if energy is None else energy
        wrapped, _ = structure.wrapped()
        grid = Grid.of(wrapped, used, 0.0)
        line = {
            "op": "h0_accuracy",
            "case": name,
            "device": record.device_name(torch.device("cpu")),
            "energy_Ry": used,
            "default": energy is None,
            "shape": list(grid.shape),
            "spacing_Bohr": float(np.linalg.norm(grid.step, axis=1).max()),
            "mae_meV": report.mae_meV,
            "max_meV": report.max_meV,
            "mu_meV": 1e3 * report.mu_eV,
        }
        if energy is None:
            bands = band_error(hamiltonian, reference, pieces.overlap, KPOINTS, efermi=0.0, window=(-1e3, 20.0))
            difference = (pieces.overlap - overlap.on(pieces.overlap.graph)).data
            line |= {
                "bands_meV": bands.max_meV,
                "overlap": float(np.abs(difference).max()),
                "spin_eV": _spin_error(pieces, reference),
                "egg_box_meV": None,
                "single_meV": None,
            }
        if energy is None and single:
            rounded = local_potential(pieces.overlap, files.orbitals, files.pseudopotentials, dtype=torch.float32)
            change = 1e3 * np.abs(rounded.data - pieces.local.data)
            line |= {"single_meV": float(change.max()), "single_mean_meV": float(change[pieces.local.data != 0].mean())}
        if energy is None and egg_box:
            moved = (_moved(structure, grid.shape, steps) for steps in ((0, 0, 0), (0.3, 0.4, 0.2)))
            here, there = (build_pieces(s, files).local for s in moved)
            line["egg_box_meV"] = 1e3 * float(np.abs(here.data - there.data).max())
        lines.append({**line, "versions": record.versions(torch.device("cpu")), "commit": record.commit()})
    return lines


def plot(lines: Sequence[record.Line], path: Path) -> None:
    """Draws largest and mean error against the spacing, one colour per sample."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(line["case"] for line in lines)):
        own = sorted((x for x in lines if x["case"] == name and not x["default"]), key=lambda x: x["spacing_Bohr"])
        spacing = [x["spacing_Bohr"] for x in own]
        axes.plot(spacing, [x["max_meV"] for x in own], "o-", color=f"C{i}", label=name)
        axes.plot(spacing, [x["mae_meV"] for x in own], "s:", color=f"C{i}", markersize=3)
        chosen = next(x for x in lines if x["case"] == name and x["default"])
        axes.plot(chosen["spacing_Bohr"], chosen["max_meV"], "o", color=f"C{i}", markersize=11, fillstyle="none")
    axes.set(xscale="log", yscale="log", xlabel="spacing of the grid, Bohr", ylabel="error of H of step zero, meV")
    axes.set_title("Against ABACUS: largest element (line), gauge MAE (dotted), default grid (ring)", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.h0_accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="samples (default: all)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with abacus/, packed/ and basis/")
    parser.add_argument("--energies", default="", help="more grids, Ry, separated by commas")
    parser.add_argument("--plot", type=Path, help="draws the errors on these grids")
    parser.add_argument("--egg-box", action="store_true", help="the egg-box error too: two more runs per sample")
    parser.add_argument(
        "--single", action="store_true", help="single precision too: another run of the grid per sample"
    )
    parser.add_argument("--no-save", action="store_true", help="do not append the lines to the results")
    arguments = parser.parse_args(argv)
    energies = [float(x) for x in arguments.energies.split(",") if x]
    lines = []
    print("| sample | grid | MAE, meV | largest | bands | S | spin, eV | egg-box | single |\n" + 9 * "|---" + "|")
    for sample in samples(arguments.data, arguments.names):
        for line in measure(*sample, arguments.data, energies, arguments.egg_box, arguments.single):
            lines.append(line)
            if not arguments.no_save:
                record.save(line)
            if line["default"]:
                keys = ("mae_meV", "max_meV", "bands_meV", "overlap", "spin_eV", "egg_box_meV", "single_meV")
                row = ["–" if line[key] is None else f"{line[key]:.2g}" for key in keys]
                shape = "×".join(map(str, line["shape"]))
                print(f"| {line['case']} | {shape} | {' | '.join(row)} |", flush=True)
    if arguments.plot:
        plot(lines, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
