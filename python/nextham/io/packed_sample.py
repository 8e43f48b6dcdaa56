"""Packed samples, `<name>.npz.xz`: H0, converged H and S of one calculation in single precision.

An `.npz` compressed with xz. `stru` and `info` are the texts of STRU and of info.json, `R` [r, 3] is half of the
lattice vectors (the others follow from M(−R) = M(R)†), `n_orb` counts orbitals without spin. For each of `h0`, `h1` and
`s` (Rydberg; S without unit) `_scalar` holds the real part that both spins share, [r, a, b] float32 with the bytes of
all numbers sorted by significance, and `_where`, `_values`, `_start` what is added to M(R_r) in its flat [2a, 2b]
matrix: values[start[r]:start[r + 1]] at where[...]. Rows are in ABACUS's order, spin fastest.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.io.errors import FileError
from nextham.io.orb import basis_from_stru
from nextham.io.stru import read_stru
from nextham.structure import Structure
from nextham.units import RYDBERG

__all__ = ["PackedSample", "read_packed"]

_MATRICES = {"H0": ("h0", RYDBERG), "H": ("h1", RYDBERG), "S": ("s", 1.0)}


@dataclass(frozen=True, eq=False)
class PackedSample:
    """A packed calculation.

    Args:
        structure: as in its STRU.
        basis: shells of its elements.
        info: what info.json says, such as `efermi_eV`.
        matrices: H0, H (eV, n_spin 4) and S (n_spin 1).
    """

    structure: Structure
    basis: Basis
    info: dict[str, Any]
    matrices: dict[str, Blocks]


def read_packed(path: str | os.PathLike[str]) -> PackedSample:
    """Reads a packed sample.

    Raises:
        FileError: not such a file, or a damaged one.
    """
    try:
        with lzma.open(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as archive:
            pack = dict(archive)
        info = json.loads(str(pack["info"]))
        with tempfile.TemporaryDirectory() as folder:
            stru = Path(folder) / "STRU"
            stru.write_text(str(pack["stru"]), encoding="utf-8")
            structure = read_stru(stru).structure
            basis = basis_from_stru(stru)
        matrices = {name: _matrix(pack, *where, structure, basis) for name, where in _MATRICES.items()}
    except FileError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, KeyError, ValueError, IndexError) as error:
        raise FileError(path, f"is no packed sample, or damaged ({error})") from error
    return PackedSample(structure, basis, info, {**matrices, "S": matrices["S"].spinless()})


def _matrix(pack: dict[str, np.ndarray], key: str, unit: float, structure: Structure, basis: Basis) -> Blocks:
    half, n = pack["R"], int(pack["n_orb"])
    scalar = np.ascontiguousarray(pack[f"{key}_scalar"].reshape(4, -1).T).view("<f4").reshape(len(half), n, n)
    where, values, start = (pack[f"{key}_{what}"] for what in ("where", "values", "start"))
    vectors, matrices = [], []
    for r, vector in enumerate(half):
        dense = np.kron(scalar[r].astype(np.float64), np.eye(2)).astype(np.complex128)
        part = slice(start[r], start[r + 1])
        dense.reshape(-1)[where[part]] += values[part]
        dense *= unit
        both = [(tuple(int(x) for x in vector), dense)]
        if vector.any():
            both.append((tuple(-int(x) for x in vector), dense.conj().T))
        for R, matrix in both:
            vectors.append(R)
            matrices.append(scipy.sparse.csr_matrix(matrix))
    return Blocks.from_sparse(structure, basis, np.array(vectors), matrices, n_spin=4)
