"""A dataset: many structures with H0, converged H and S in one HDF5 file.

    /                 attributes: format, version; refused: JSON, what was left out and why
    /samples/<name>   one structure, laid out as a file of `nextham.io.hdf5`; its metadata hold the facts of `Sample`

Matrices keep all edges of the calculation, so that eigenvectors at any k-point are those of the whole H and S. Reading
a sample touches no other. A build writes each sample to a file of its own in `<output>.parts` (`write_part`) and joins
them at the end by copying compressed chunks (`join`), so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from nextham.blocks import Blocks
from nextham.io.errors import FileError
from nextham.io.hdf5 import contents_of_group, open_h5, read_group, write_blocks_h5
from nextham.io.hdf5_matrix import put_word, word
from nextham.kspace import bands_at
from nextham.loss_target import low_bands
from nextham.metrics import gauge_mae
from nextham.structure import Structure

if TYPE_CHECKING:
    import h5py

__all__ = [
    "FORMAT",
    "VERSION",
    "Dataset",
    "Refused",
    "Sample",
    "check_sample",
    "join",
    "material",
    "split",
    "write_part",
]

FORMAT = "nextham dataset"
VERSION = 1

CUTOFF = 8.0
"""Å; edges and H0 errors of a sample's facts are those of shorter pairs."""

_HERMITIAN = 1e-4  # eV; ABACUS prints H to 1e-8 Ry, packed data have 3e-6 eV


class Refused(ValueError):
    """A sample that is not fit for training, in one sentence."""


@dataclass(frozen=True)
class Sample:
    """What is known of a sample without reading its matrices.

    Args:
        name: its name in the dataset.
        material: its reduced formula, elements in alphabetical order, such as `AsGa`.
        n_atoms: in the cell.
        n_orbitals: of the cell, without spin.
        n_edges: pairs closer than 8 Å, on-site ones included.
        n_spin: of H.
        n_low: how many bands count as low in the loss.
        efermi: Fermi level of the converged H, eV.
        h0_mae: gauge MAE of H0, meV.
        elements: their symbols.
        source: where it came from.
    """

    name: str
    material: str
    n_atoms: int
    n_orbitals: int
    n_edges: int
    n_spin: int
    n_low: int
    efermi: float
    h0_mae: float
    elements: tuple[str, ...]
    source: str


def material(structure: Structure) -> str:
    """Returns the reduced formula with elements in alphabetical order, such as `O2Ti` or `Bi2Se3`.

    Example:
        >>> import numpy as np
        >>> material(Structure(np.eye(3), np.zeros((4, 3)), [31, 33, 31, 33]))
        'AsGa'
    """
    from nextham.units import SYMBOLS

    counts = {SYMBOLS[z]: int((structure.numbers == z).sum()) for z in structure.species()}
    divisor = math.gcd(*counts.values())
    return "".join(s + (str(n // divisor) if n > divisor else "") for s, n in sorted(counts.items()))


def check_sample(matrices: Mapping[str, Blocks], converged: bool | None, efermi: float | None) -> dict[str, object]:
    """Checks one sample and returns its facts.

    Args:
        matrices: H0, H and S.
        converged: what its log says; None where it says nothing.
        efermi: Fermi level, eV.

    Raises:
        Refused: a matrix is missing, a number not finite, H0, H or S not Hermitian within 1e-4 (eV), S(Γ) not positive
            definite, different spin, an atom without on-site block, no convergence, no Fermi level, or no band 10 eV
            above it.
    """
    for name in ("H0", "H", "S"):
        if name not in matrices:
            raise Refused(f"there is no {name}")
        if not np.isfinite(matrices[name].data).all():
            raise Refused(f"{name} has numbers that are not finite")
    if converged is False:
        raise Refused("the calculation did not converge")
    h0, h, s = (matrices[name] for name in ("H0", "H", "S"))
    if h0.n_spin != h.n_spin or h.n_spin == 2:
        raise Refused(f"H0 and H have n_spin {h0.n_spin} and {h.n_spin}: expected the same, 1 or 4")
    for name, matrix in (("H0", h0), ("H", h), ("S", s)):
        error = matrix.hermitian_error()
        if error > _HERMITIAN:
            raise Refused(f"{name} is not Hermitian: M(R) and M(-R)† differ by up to {error:.3g}")
        present = np.unique(matrix.graph.src[matrix.graph.onsite()])
        if len(present) < matrix.graph.structure.n_atoms:
            raise Refused(f"{name} lacks the on-site block of an atom")
    smallest = scipy.linalg.eigvalsh(s.to_dense(np.zeros(3)))[0]
    if not smallest > 0:
        raise Refused(f"S is not positive definite at Γ: its smallest eigenvalue is {smallest:.3g}")
    if efermi is None:
        raise Refused("its Fermi level is not known: expected efermi_eV in info.json, or a log that prints it")
    try:
        n_low = low_bands(bands_at(h, s, np.zeros((1, 3)))[0], efermi)
    except ValueError as error:
        raise Refused(str(error)) from error
    return {"n_low": n_low, "efermi_eV": float(efermi), **_statistics(h0, h, s)}


def _statistics(h0: Blocks, h: Blocks, s: Blocks) -> dict[str, object]:
    report = gauge_mae(h0, h, s, CUTOFF)
    return {
        "h0_mae_meV": report.mae_meV,
        "n_edges": h.within(0.0, CUTOFF).n_edges,
        "n_orbitals": h.n_orbitals,
        "n_spin": h.n_spin,
    }


# --- writing


def write_part(
    folder: Path,
    name: str,
    matrices: Mapping[str, Blocks],
    facts: Mapping[str, object],
    precision: str | None = "single",
    relative: bool = True,
) -> None:
    """Writes a checked sample as a file of its own, which is there only once it is complete.

    Args:
        folder: where the parts are.
        name: name of the sample.
        matrices: H0, H and S.
        facts: `check_sample`'s, and whatever else is to be kept: words, numbers, arrays.
        precision: `single`, `double` or None for that of the matrices.
        relative: store H as its difference from H0, where both have the same edges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    h0, h = matrices["H0"], matrices["H"]
    if relative and h0.graph is not h.graph:
        matrices = {**matrices, "H0": h0.on(h.graph)} if not (h.graph.find(h0.graph) < 0).any() else matrices
    write_blocks_h5(folder / f"{name}.h5", matrices, facts, precision)


def join(output: str | os.PathLike[str], parts: Sequence[Path], refused: Mapping[str, str]) -> None:
    """Joins parts, and what the output already has, into one dataset; the file is replaced in one step.

    Args:
        output: the dataset.
        parts: files of `write_part`; a sample of the same name in the output is replaced.
        refused: source → why.

    Raises:
        FileError: the output is no dataset, or cannot be written.
    """
    import h5py

    output = Path(output)
    part = output.with_name(output.name + ".part")
    fresh = {path.stem: path for path in parts}
    said = dict(refused)
    try:
        with h5py.File(part, "w", libver=("v110", "v110")) as file:
            put_word(file, "format", FORMAT)
            file.attrs["version"] = VERSION
            samples = file.create_group("samples")
            if output.exists():
                with open_h5(output, FORMAT, VERSION) as old:
                    said = {**_refused_of(old), **said}
                    for name in old["samples"]:
                        if name not in fresh:
                            old.copy(old["samples"][name], samples, name)
            for name in sorted(fresh):
                with open_h5(fresh[name]) as sample:
                    group = samples.create_group(name)
                    for key in sample:
                        sample.copy(key, group)
            sources = {word(group["metadata"], "source") for group in samples.values()}
            left = {source: why for source, why in said.items() if source not in sources}
            file.create_dataset("refused", data=np.frombuffer(json.dumps(left).encode(), dtype=np.uint8))
        os.replace(part, output)
    except FileError:
        raise
    except OSError as error:
        raise FileError(output, f"cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def _refused_of(file: h5py.File) -> dict[str, str]:
    return json.loads(bytes(file["refused"][()]).decode()) if "refused" in file else {}


def remove_parts(folder: Path) -> None:
    """Removes the folder of the parts once they are joined."""
    shutil.rmtree(folder, ignore_errors=True)


# --- reading


class Dataset:
    """A dataset on disk: facts of all samples at once, matrices of one when they are asked for.

    Args:
        path: a file of `nextham dataset build`.

    Raises:
        FileError: not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileError(self.path, "there is no such dataset: `nextham dataset build RUNS -o FILE` makes one")
        with open_h5(self.path, FORMAT, VERSION) as file:
            self.samples = {name: _facts(name, file["samples"][name]) for name in file["samples"]}
            self.refused = _refused_of(file)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, name: str, matrices: Sequence[str] = ("H0", "H", "S")) -> dict[str, Blocks]:
        """Reads matrices of a sample (H0, H in eV; S).

        Raises:
            FileError: no such sample, or damage.
        """
        with open_h5(self.path, FORMAT, VERSION) as file:
            return read_group(self.path, self._group(file, name), list(matrices))

    def stored_bands(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the k-points [q, 3] and eigenvectors [q, a, s] that came with a sample, or None.

        Raises:
            FileError: no such sample, or damage.
        """
        with open_h5(self.path, FORMAT, VERSION) as file:
            metadata = self._group(file, name)["metadata"]
            if "eigenvectors" not in metadata:
                return None
            return metadata["kpoints"][()], metadata["eigenvectors"][()].swapaxes(1, 2)

    def _group(self, file: h5py.File, name: str) -> h5py.Group:
        if name not in file["samples"]:
            raise FileError(self.path, f"there is no sample {name!r}, only {len(self.samples)} others")
        return file["samples"][name]

    def bytes_of(self) -> dict[str, int]:
        """Returns how many bytes each sample takes in the file."""
        import h5py

        sizes: dict[str, int] = {}
        with open_h5(self.path, FORMAT, VERSION) as file:
            for name in file["samples"]:
                found = []
                file["samples"][name].visititems(
                    lambda _, item, found=found: (
                        found.append(item.id.get_storage_size()) if isinstance(item, h5py.Dataset) else None
                    )
                )
                sizes[name] = sum(found)
        return sizes


def _facts(name: str, group: h5py.Group) -> Sample:
    contents = contents_of_group(group)
    facts, structure = contents.metadata, contents.structure
    from nextham.units import SYMBOLS

    return Sample(
        name=name,
        material=material(structure),
        n_atoms=structure.n_atoms,
        n_orbitals=int(facts["n_orbitals"]),
        n_edges=int(facts["n_edges"]),
        n_spin=int(facts["n_spin"]),
        n_low=int(facts["n_low"]),
        efermi=float(facts["efermi_eV"]),
        h0_mae=float(facts["h0_mae_meV"]),
        elements=tuple(sorted(SYMBOLS[z] for z in structure.species())),
        source=str(facts["source"]),
    )


def _alphabetical(formula: str) -> str:
    """A formula as `material` writes it: `GaAs` becomes `AsGa`; any other word stays."""
    if not re.fullmatch(r"([A-Z][a-z]?\d*)+", formula):
        return formula
    return "".join(sorted(re.findall(r"[A-Z][a-z]?\d*", formula)))


def split(
    samples: Iterable[Sample],
    validation: float = 0.1,
    test: float = 0.1,
    by: str = "name",
    seed: int = 0,
    validation_only: Sequence[str] = (),
    test_only: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Returns the names of the parts train, validation and test.

    A sample's part follows from a hash of the seed and its name alone (or its material's), so samples that are added
    later move no other.

    Args:
        samples: facts of the samples.
        validation: share of validation, 0 to 1.
        test: share of test.
        by: `name`, or `material`, which keeps all samples of one material in one part.
        seed: another seed is another split.
        validation_only: names or materials, such as `GaAs`, that belong to validation whatever their hash.
        test_only: likewise to test.

    Raises:
        ValueError: shares outside 0...1, another `by`, or a name or material that no sample has.
    """
    if min(validation, test) < 0 or validation + test > 1:
        raise ValueError(f"split: expected validation and test of 0 to 1 in all, got {validation} and {test}")
    if by not in ("name", "material"):
        raise ValueError(f"split.by: expected 'name' or 'material', got {by!r}")
    samples = list(samples)
    known = {s.name for s in samples} | {s.material for s in samples}
    for name in (*validation_only, *test_only):
        if not {name, _alphabetical(name)} & known:
            materials = ", ".join(sorted({s.material for s in samples}))
            raise ValueError(f"split: no sample is called {name!r} or of that material; the materials are {materials}")
    in_validation, in_test = ({*only, *map(_alphabetical, only)} for only in (validation_only, test_only))
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sample in sorted(samples, key=lambda s: s.name):
        ids = {sample.name, sample.material}
        digest = hashlib.sha256(f"{seed}:{getattr(sample, by)}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if ids & in_test:
            part = "test"
        elif ids & in_validation:
            part = "validation"
        else:
            part = "test" if place < test else "validation" if place < test + validation else "train"
        parts[part].append(sample.name)
    return parts
