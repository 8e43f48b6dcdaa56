"""The text forms of ABACUS sparse matrices: before and since version 3.11.

Before:

    STEP: 0
    Matrix Dimension of H(R): 52
    Matrix number of H(R): 119
    -3 0 0 188
     (-3.63212909e-10,-3.14596277e-14) …       values, column indices and row pointers, one line each,
     …                                          nothing where the last number of the first line is 0

Since 3.11 (`out_hsr`) the header is ` --- Ionic Step 1 ---`, lines of a number, `#` and what it is, the cell, and
comments; each of the three lists has a comment line before it and runs over several lines, also when it is empty.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO

import numpy as np
import scipy.sparse

from nextham.io.compression import Content
from nextham.io.csr_binary import binary_matrices
from nextham.io.csr_format import CsrForm, CsrHeader, LatticeVector, Records, checked_matrix
from nextham.io.errors import FileError
from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number
from nextham_kernels.number_text import MalformedNumber, format_numbers, parse_numbers

__all__ = ["NewTextForm", "TextForm", "looks_like_text", "text_records"]

_BLANK = re.compile(rb"[ \t\r]*(?:\n|\Z)")
_START = re.compile(rb"\s*(?:STEP:|Matrix |-+ *Ionic)")
_COUNT = re.compile(r"Matrix (Dimension|number) of (\w+)\(R\): *(\d{1,9})")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_FIRST_VALUE = re.compile(rb"\s*(?:#[^\n]*\s*)?(\(?)")
_EXPLANATION = (
    "The outer loop corresponds to the number of Bravais lattice vectors.",
    "The first line contains the index of the Bravais lattice vector",
    "(Rx, Ry, Rz), followed by the number of non-zero elements.",
    "The subsequent lines consist of three blocks of data, which are",
    "values, column indices, row pointers.",
)
_FIELDS = {"localized basis": "dimension", "Bravais lattice vector": "n_matrices"}


def looks_like_text(content: Content) -> bool:
    """Returns whether a file begins as one of the text forms does."""
    return _START.match(content) is not None


def text_records(path: str, content: Content) -> Records:
    """Yields each ionic step of a text file: its header and its matrices.

    Raises:
        FileError: anything that is not as ABACUS writes it, with its line.
    """
    cursor = _Cursor(path, content)
    while not cursor.at_end():
        line = cursor.peek().strip()
        labelled = line.startswith("---")
        if not labelled and not line.startswith(("STEP:", "Matrix ")):
            raise cursor.error(f"expected the end of the file or another ionic step, got {line[:40]!r}")
        header = _new_header(cursor) if labelled else _old_header(cursor)
        if header.dimension < 1 or header.n_matrices < 0:
            raise cursor.error(f"expected matrices of at least one row, got {header.dimension}")
        if labelled and _is_binary(content[cursor.offset : cursor.offset + 16]):
            yield header, binary_matrices(path, content, cursor.offset, header)
            return
        if labelled and "gamma-only folded" in _comments(cursor):
            header = replace(header, folded=True)
        yield header, _matrices(cursor, header, labelled)


class _Cursor:
    """A place in the text; errors raised by it know their line."""

    def __init__(self, path: str, content: Content, offset: int = 0) -> None:
        self.path, self.content, self.offset = path, content, offset
        self.start_of_line = offset

    def error(self, sentence: str, offset: int | None = None) -> FileError:
        """The error at an offset, by default at the line taken last."""
        end = self.start_of_line if offset is None else offset
        step = 1 << 24
        breaks = sum(self.content[i : min(i + step, end)].count(b"\n") for i in range(0, end, step))
        return FileError(self.path, sentence, breaks + 1)

    def at_end(self) -> bool:
        """Skips blank lines, and returns whether nothing follows."""
        size = len(self.content)
        while self.offset < size and (blank := _BLANK.match(self.content, self.offset)):
            self.offset = blank.end()
        self.start_of_line = self.offset
        return self.offset >= size

    def line(self) -> str:
        """Takes the rest of the line."""
        self.start_of_line = self.offset
        end = self.content.find(b"\n", self.offset)
        end = len(self.content) if end < 0 else end
        text = self.content[self.offset : end]
        self.offset = min(end + 1, len(self.content))
        return text.decode("ascii", "replace")

    def next_line(self, what: str) -> str:
        """Takes the next line that is not blank, without the white space around it."""
        if self.at_end():
            raise self.error(f"the file ends where {what} should be")
        return self.line().strip()

    def peek(self) -> str:
        """The line that comes next, without taking it."""
        offset = self.offset
        text = self.line()
        self.offset = self.start_of_line = offset
        return text

    def numbers(self, count: int, dtype: type, what: str) -> np.ndarray:
        """Takes `count` numbers and the end of their last line."""
        start = self.offset
        try:
            numbers, self.offset = parse_numbers(self.content, start, count, dtype)
        except MalformedNumber as error:
            found = repr(error.word) if error.word else "the end of the file"
            sentence = f"expected {count} {what}, found {found} in place of the number {error.index + 1}"
            raise self.error(sentence, error.offset) from error
        blank = _BLANK.match(self.content, self.offset)
        if blank is None:
            raise self.error(f"expected {count} {what}, found more of them", self.offset)
        self.offset = blank.end()
        return numbers


def _old_header(cursor: _Cursor) -> CsrHeader:
    """The header before 3.11; the first versions had no STEP line."""
    step, line = 0, cursor.next_line("the header")
    if line.startswith("STEP:"):
        if not _INTEGER.fullmatch(line[5:].strip()):
            raise cursor.error(f"expected 'STEP: n', got {line[:40]!r}")
        step, line = int(line[5:]), cursor.next_line("the header")
    found = []
    for kind in ("Dimension", "number"):
        match = _COUNT.fullmatch(line)
        if not match or match[1] != kind:
            raise cursor.error(f"expected 'Matrix {kind} of H(R): n', got {line[:60]!r}")
        found.append(match)
        if kind == "Dimension":
            line = cursor.next_line("the header")
    if found[0][2] != found[1][2]:
        raise cursor.error(f"the header is of {found[0][2]}(R) in one line and of {found[1][2]}(R) in the next")
    return CsrHeader(int(found[0][3]), int(found[1][3]), found[0][2], step)


def _new_header(cursor: _Cursor) -> CsrHeader:
    """The header since 3.11, up to the blank line behind the cell."""
    match = re.fullmatch(r"-+ *Ionic Step +(\d{1,9}) *-+", cursor.next_line("the header"))
    if not match or int(match[1]) < 1:
        raise cursor.error("expected '--- Ionic Step n ---'")
    letter, fields = None, {}
    while "n_matrices" not in fields:
        line = cursor.next_line("the number of lattice vectors")
        number, sign, comment = (part.strip() for part in line.partition("#"))
        if title := re.match(r"print (\w+) matrix in real space (\w*)", comment):
            letter = title[1]
            if title[2] not in ("", letter):
                raise cursor.error(f"the header is of {letter} and of {title[2]}(R) in one line")
        elif not sign:
            raise cursor.error(f"expected a number and '# what it is', got {line[:40]!r}")
        elif number:
            if not _INTEGER.fullmatch(number):
                raise cursor.error(f"expected an integer before '# {comment[:40]}', got {number[:40]!r}")
            for words, name in _FIELDS.items():
                if words in comment:
                    fields[name] = int(number)
    if "dimension" not in fields:
        raise cursor.error("the header has no '# number of localized basis'")
    structure = None
    if not cursor.at_end() and not cursor.peek().lstrip().startswith("#") and len(cursor.peek().split()) != 4:
        structure = _cell_block(cursor)
        if not cursor.peek().strip():
            cursor.line()
    return CsrHeader(**fields, letter=letter, step=int(match[1]) - 1, structure=structure)


def _comments(cursor: _Cursor) -> str:
    """Takes the comments before the first matrix."""
    lines = []
    while not cursor.at_end() and cursor.peek().lstrip().startswith("#"):
        lines.append(cursor.line())
    return "\n".join(lines)


def _is_binary(head: bytes) -> bool:
    """Whether the matrices that begin so are int32 numbers (small ones have zero bytes) rather than text."""
    return any(byte < 9 or 13 < byte < 32 or byte > 126 for byte in head)


def _cell_block(cursor: _Cursor) -> Structure | None:
    """The cell of a 3.11 header: name, lattice constant in Å, vectors, labels, counts, `Direct`, positions."""

    def reals(count: int, what: str) -> list[float]:
        words = cursor.next_line(what).split()
        if len(words) != count or not all(map(_NUMBER.fullmatch, words)):
            raise cursor.error(f"expected {count} numbers for {what}, got {' '.join(words)[:60]!r}")
        values = [float(word) for word in words]
        if max(map(abs, values)) > 1e6:
            raise cursor.error(f"{what} is out of range: {' '.join(words)[:60]}")
        return values

    if not _NUMBER.fullmatch(cursor.peek().strip()):
        cursor.line()  # the name of the lattice; an empty one leaves a blank line
    constant = reals(1, "the lattice constant")[0]
    cell = constant * np.array([reals(3, "a lattice vector") for _ in range(3)])
    labels = cursor.next_line("the elements").split()
    counts = cursor.next_line("the number of atoms of each element").split()
    if len(counts) != len(labels) or not all(map(_INTEGER.fullmatch, counts)) or min(map(int, counts)) < 0:
        raise cursor.error(f"expected {len(labels)} numbers of atoms, got {' '.join(counts)[:60]!r}")
    kind = cursor.next_line("'Direct'")
    if kind != "Direct":
        raise cursor.error(f"expected 'Direct', got {kind[:40]!r}")
    positions = np.array([reals(3, "a position") for _ in range(sum(map(int, counts)))]).reshape(-1, 3)
    try:
        numbers = [atomic_number(label.rstrip("0123456789")) for label in labels]
    except ValueError:  # labels are free words in ABACUS
        return None
    try:
        return Structure(cell, positions @ cell, np.repeat(numbers, [int(c) for c in counts]))
    except ValueError as error:
        raise cursor.error(str(error)) from error


def _matrices(
    cursor: _Cursor, header: CsrHeader, labelled: bool
) -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
    """The matrices of one ionic step."""
    n, seen, dtype = header.dimension, set(), None
    for i in range(header.n_matrices):
        R, nnz = _block_line(cursor, header, i)
        if R in seen:
            raise cursor.error(f"the lattice vector R = {R} occurs twice")
        seen.add(R)
        # Before 3.11 nothing follows an empty matrix, since then three empty lists do (in some versions).
        if not nnz and not (labelled and not cursor.at_end() and cursor.peek().lstrip().startswith("#")):
            yield R, scipy.sparse.csr_matrix((n, n), dtype=dtype or np.float64)
            continue
        if nnz and not dtype:
            dtype = np.complex128 if _FIRST_VALUE.match(cursor.content, cursor.offset)[1] else np.float64
        places, lists = {}, []
        for name, kind, count in (
            ("values", dtype or np.float64, nnz),
            ("column indices", np.int32, nnz),
            ("row pointers", np.int64, n + 1),
        ):
            if labelled:
                label = cursor.next_line(f"the comment '# CSR {name}'")
                if not label.startswith("#") or name not in label:
                    raise cursor.error(f"expected the comment '# CSR {name}', got {label[:40]!r}")
            places[name] = cursor.offset
            lists.append(cursor.numbers(count, kind, f"{name} of R = {R}"))
        yield R, checked_matrix(partial(_fail, cursor, R, places), n, *lists)


def _block_line(cursor: _Cursor, header: CsrHeader, i: int) -> tuple[LatticeVector, int]:
    """Takes the line `Rx Ry Rz nnz` of matrix i."""
    words = cursor.next_line(f"matrix {i + 1} of {header.n_matrices}").split()
    if len(words) != 4 or not all(map(_INTEGER.fullmatch, words)):
        raise cursor.error(f"expected the four integers Rx Ry Rz nnz, got {' '.join(words)[:60]!r}")
    x, y, z, nnz = map(int, words)
    if not 0 <= nnz <= header.dimension**2:
        raise cursor.error(f"a matrix of {header.dimension} rows cannot have {nnz} elements")
    return (x, y, z), nnz


def _fail(cursor: _Cursor, R: LatticeVector, places: dict[str, int], name: str, sentence: str) -> FileError:
    """The error in one of the three lists of a matrix."""
    return cursor.error(f"{sentence}, in R = {R}", places[name])


class TextForm(CsrForm):
    """The text form before 3.11, which PyATB reads: each list on one line, nothing after nnz = 0."""

    wrap = (0, 0, 0)
    """Numbers per line of values, column indices and row pointers; 0 is all."""

    def __init__(self, file: BinaryIO, header: CsrHeader, digits: int, spin: tuple[int, int]) -> None:
        super().__init__(file, header, digits, spin)
        self.line(*self.title())

    def title(self) -> list[str]:
        """The lines of the header."""
        header = self.header
        return [
            f"STEP: {header.step}",
            f"Matrix Dimension of {header.letter}(R): {header.dimension}",
            f"Matrix number of {header.letter}(R): {header.n_matrices}",
        ]

    def line(self, *lines: str) -> None:
        """Writes whole lines."""
        self.file.write("".join(line + "\n" for line in lines).encode())

    def start(self, R: LatticeVector, nnz: int) -> None:
        """Writes `Rx Ry Rz nnz`."""
        self.nnz = nnz
        self.line(f"{R[0]} {R[1]} {R[2]} {nnz}")

    def values(self, values: np.ndarray, first: int) -> None:
        """Writes values."""
        self.file.write(format_numbers(values, self.digits, self.wrap[0], first))

    def columns(self, columns: np.ndarray, first: int) -> bytes:
        """Returns the text of column indices."""
        return format_numbers(columns, 0, self.wrap[1], first)

    def finish(self, columns: BinaryIO, pointers: np.ndarray) -> None:
        """Writes the two lines of column indices and row pointers."""
        if self.nnz:
            self.line("")
            shutil.copyfileobj(columns, self.file)
            self.line("", format_numbers(pointers).decode())


class NewTextForm(TextForm):
    """The text form since 3.11, whose header has the cell and whose lists have titles, also when they are empty."""

    wrap = (6, 16, 16)

    def title(self) -> list[str]:
        """The lines of the header; the lattice constant is 1 Å."""
        header, crystal, rule = self.header, self.header.structure, " #" + 70 * "-" + "#"
        species = crystal.species()
        return [
            f" --- Ionic Step {header.step + 1} ---",
            f" # print {header.letter} matrix in real space {header.letter}(R)",
            f" {self.spin[1]} # number of spin directions",
            f" {self.spin[0]} # spin index",
            f" {header.dimension} # number of localized basis",
            f" {header.n_matrices} # number of Bravais lattice vector R",
            "",
            " user_defined_lattice",
            " 1",
            *(" " + " ".join(f"{x:.15g}" for x in vector) for vector in crystal.cell),
            " " + " ".join(SYMBOLS[z] for z in species),
            " " + " ".join(str((crystal.numbers == z).sum()) for z in species),
            " Direct",
            *(" " + " ".join(f"{x:.15g}" for x in position) for position in crystal.fractional()),
            "",
            rule,
            " #" + "CSR Format".center(70) + "#",
            *(" # " + words.ljust(69) + "#" for words in _EXPLANATION),
            rule,
            "",
        ]

    def start(self, R: LatticeVector, nnz: int) -> None:
        """Writes ` Rx Ry Rz nnz` and the title of the values."""
        self.nnz = nnz
        self.line(f" {R[0]} {R[1]} {R[2]} {nnz}", " # CSR values")

    def finish(self, columns: BinaryIO, pointers: np.ndarray) -> None:
        """Writes column indices and row pointers with their titles."""
        self.line("", " # CSR column indices")
        shutil.copyfileobj(columns, self.file)
        self.line("", " # CSR row pointers", format_numbers(pointers, 0, self.wrap[2] if self.nnz else 0).decode())
        if self.nnz:
            self.line("")
