"""ABACUS's sparse matrices in text: `read` and `write`, from and to a file in the page cache.

`gb_per_s` counts the bytes of the text. `numpy` takes a line at a time with numpy's own parser, `words` goes word by
word in Python, as most readers of these files do. All of it runs on one thread, in float64.
"""

import argparse
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from nextham.basis import Basis
from nextham.data import sample
from nextham.io.csr import SparseMatrices, read_blocks, read_csr, write_blocks, write_csr
from nextham.io.stru import read_stru

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

# H of Si-1 with spin-orbit coupling, 5 MB, and in a supercell, 147 MB; S in a supercell without spin, 37 MB.
CASES = {"si2": ((1, 1, 1), "h"), "si54": ((3, 3, 3), "h"), "si128-real": ((4, 4, 4), "s")}
DIRECTIONS = ("read", "write")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """A file and what is in it.

    Args:
        folder: where it is, and where others are written; removed with the problem.
        matrices: its content.
    """

    folder: tempfile.TemporaryDirectory
    matrices: SparseMatrices

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder.name) / "matrix.csr"

    def gbytes(self, direction: str) -> float:
        """Returns the size of the text."""
        return self.path.stat().st_size / 1e9

    def gflop(self, direction: str) -> None:
        """Returns None: there is no arithmetic."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Writes the file of a case."""
    arguments.dtype, arguments.threads = "float64", 1
    supercell, letter = CASES[case]
    run = sample("Si-1")
    structure = read_stru(run / "STRU").structure
    blocks = read_blocks(run / f"{letter}rs1_nao.csr.xz", structure, Basis.published(structure.numbers))
    blocks = (blocks.spinless() if letter == "s" else blocks).supercell(*supercell)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "matrix.csr"
    write_blocks(path, blocks, letter=letter.upper())
    return Problem(folder, read_csr(path))


def nextham(problem: Problem) -> Runs:
    """What is measured."""
    return {
        "read": lambda: content(read_csr(problem.path).matrices),
        "write": lambda: written(problem, lambda path: write_csr(path, problem.matrices)),
    }


def numpy_lines(problem: Problem) -> Runs:
    """A line at a time with numpy."""

    def numbers(line: str, dtype: type) -> np.ndarray:
        if "(" in line:
            return np.fromstring(line.translate(str.maketrans("(),", "   ")), sep=" ").view(np.complex128)
        return np.fromstring(line, dtype=dtype, sep=" ")

    def text(values: np.ndarray) -> str:
        pairs = values.view(np.float64).tolist()
        if np.iscomplexobj(values):
            return (" (%.8e,%.8e)" * len(values)) % tuple(pairs)
        return (" %.8e" * len(values)) % tuple(pairs)

    return {
        "read": lambda: content(read_lines(problem.path, numbers)),
        "write": lambda: written(problem, lambda path: write_lines(path, problem.matrices, text)),
    }


def words(problem: Problem) -> Runs:
    """Word by word in Python."""

    def numbers(line: str, dtype: type) -> np.ndarray:
        if "(" in line:
            return np.array([complex(*map(float, word[1:-1].split(","))) for word in line.split()])
        return np.array([float(word) for word in line.split()]).astype(dtype)

    def text(values: np.ndarray) -> str:
        if np.iscomplexobj(values):
            return "".join(f" ({v.real:.8e},{v.imag:.8e})" for v in values)
        return "".join(f" {v:.8e}" for v in values)

    return {
        "read": lambda: content(read_lines(problem.path, numbers)),
        "write": lambda: written(problem, lambda path: write_lines(path, problem.matrices, text)),
    }


IMPLEMENTATIONS = {"nextham": nextham, "numpy": numpy_lines, "words": words}


def read_lines(path: Path, numbers: Callable[[str, type], np.ndarray]) -> Iterator[scipy.sparse.csr_matrix]:
    """Yields the matrices of a file, given how a line of numbers is read."""
    with open(path, encoding="ascii") as file:
        n = [int(file.readline().split()[-1]) for _ in range(3)][1]
        for header in file:
            arrays = [np.empty(0), np.empty(0, np.int32), np.zeros(n + 1, np.int32)]
            if int(header.split()[3]):
                arrays = [numbers(file.readline(), dtype) for dtype in (np.float64, np.int32, np.int32)]
            yield scipy.sparse.csr_matrix(tuple(arrays), shape=(n, n))


def write_lines(path: Path, matrices: SparseMatrices, text: Callable[[np.ndarray], str]) -> None:
    """Writes a file, given how a line of numbers is written."""
    letter, n = matrices.letter, matrices.dimension
    with open(path, "w", encoding="ascii") as file:
        file.write(f"STEP: 0\nMatrix Dimension of {letter}(R): {n}\nMatrix number of {letter}(R): {len(matrices.R)}\n")
        for R, matrix in zip(matrices.R, matrices.matrices, strict=True):
            file.write(f"{R[0]} {R[1]} {R[2]} {matrix.nnz}\n")
            if matrix.nnz:
                indices, pointers = (" " + " ".join(map(str, a.tolist())) for a in (matrix.indices, matrix.indptr))
                file.write(f"{text(matrix.data)}\n{indices}\n{pointers}\n")


def content(matrices: Iterator[scipy.sparse.csr_matrix] | list[scipy.sparse.csr_matrix]) -> Tensors:
    """The values of each matrix, and sums of its indices, which cost next to nothing."""
    result = {}
    for r, matrix in enumerate(matrices):
        if matrix.nnz:
            result[f"values {r}"] = torch.from_numpy(matrix.data)
        sums = [float(a.sum(dtype=np.int64)) for a in (matrix.indices, matrix.indptr)]
        result[f"indices {r}"] = torch.tensor(sums, dtype=torch.float64)
    return result


def written(problem: Problem, write: Callable[[Path], None]) -> Tensors:
    """Size and checksum of a file that is written; the checksum takes about a tenth of the time of the fastest."""
    path = problem.path.with_name("copy.csr")
    write(path)
    text = path.read_bytes()
    return {"text": torch.tensor([len(text), zlib.crc32(text)], dtype=torch.float64)}
