"""The text of a STRU: its blocks, their rows, and the words in an atom's row."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from nextham.io.errors import FileError
from nextham.io.text_file import parse_number

__all__ = ["HEADINGS", "Block", "atom_words", "split_blocks"]

HEADINGS = (
    "ATOMIC_SPECIES",
    "NUMERICAL_ORBITAL",
    "LATTICE_CONSTANT",
    "LATTICE_VECTORS",
    "LATTICE_PARAMETERS",
    "ATOMIC_POSITIONS",
    "NUMERICAL_DESCRIPTOR",
    "ABFS_ORBITAL",
    "ABFS_JLES_ORBITAL",
    "PAW_FILES",
)
"""The words that begin a block."""

_NEEDED = ("ATOMIC_SPECIES", "LATTICE_CONSTANT", "ATOMIC_POSITIONS")

# Word of an atom's row -> the name it is kept under and how many numbers may follow it.
_WORDS = {
    "m": ("m", (3,)),
    "v": ("v", (3,)),
    "vel": ("v", (3,)),
    "velocity": ("v", (3,)),
    "mag": ("mag", (1, 3)),
    "magmom": ("mag", (1, 3)),
    "angle1": ("angle1", (1,)),
    "angle2": ("angle2", (1,)),
    "lambda": ("lambda", (1, 3)),
    "sc": ("sc", (1, 3)),
}


@dataclass(frozen=True)
class Block:
    """A heading and the lines below it, comments included.

    Args:
        path: the file, for errors.
        name: the heading.
        line: line number of the heading.
        raw: (line number, text) of every line; the first is what follows the heading in its own line.
    """

    path: str | os.PathLike[str]
    name: str
    line: int
    raw: list[tuple[int, str]] = field(default_factory=list)

    def rows(self) -> list[tuple[int, str]]:
        """Returns (line number, text) of the lines that say something, without comments.

        Where file names stand, `//` and `#` begin a comment only at the start of a word.
        """
        numeric = self.name in ("LATTICE_CONSTANT", "LATTICE_VECTORS", "ATOMIC_POSITIONS")
        comment = re.compile("(//|#).*" if numeric else r"(?<!\S)(//|#).*")
        stripped = ((line, comment.sub("", text).strip()) for line, text in self.raw)
        return [(line, text) for line, text in stripped if text]

    def error(self, sentence: str, line: int | None = None) -> FileError:
        """Returns the error of a line of this block, or of its heading."""
        return FileError(self.path, sentence, line or self.line)

    def number(self, word: str, what: str, line: int) -> float:
        """Returns the number that a word spells; FileError where it spells none."""
        return parse_number(self.path, word, what, line)

    def vector(self, words: Sequence[str], what: str, line: int) -> list[float]:
        """Returns the numbers that the first three words of a row spell; what follows them is left alone."""
        if len(words) < 3:
            raise self.error(f"expected three numbers for {what}, got {len(words)}", line)
        return [self.number(word, what, line) for word in words[:3]]


def split_blocks(path: str | os.PathLike[str], text: str) -> dict[str, Block]:
    """Returns the blocks of a STRU by heading; text before the first heading is left out, as ABACUS does.

    Raises:
        FileError: a block that occurs twice, or one that is needed and absent.
    """
    blocks: dict[str, Block] = {}
    current = None
    for line, row in enumerate(text.splitlines(), start=1):
        found = re.match(r"\s*([A-Z_]+)(?=\s|//|#|$)", row)
        if found and found[1] in HEADINGS:
            name = found[1]
            if name in blocks:
                raise FileError(path, f"second {name} block; the first is in line {blocks[name].line}", line)
            current = blocks[name] = Block(path, name, line)
            row = row[found.end() :]
        if current is not None:
            current.raw.append((line, row))
    for name in _NEEDED:
        if name not in blocks:
            raise FileError(path, f"there is no {name} block")
    if "LATTICE_VECTORS" not in blocks:
        sentence = (
            "there is no LATTICE_VECTORS block: `latname` of the INPUT file sets the lattice; write the vectors out"
        )
        raise FileError(path, sentence)
    return blocks


def atom_words(block: Block, row: Sequence[str], line: int) -> dict[str, tuple[float, ...]]:
    """Returns what stands behind an atom's coordinates: name → numbers; three flags may come first without a word.

    Raises:
        FileError: unknown or repeated word, or one with too many or too few numbers.
    """
    if row and not row[0][0].isalpha():
        row = ["m", *row]
    words: dict[str, tuple[float, ...]] = {}
    starts = [i for i, word in enumerate(row) if word[0].isalpha()]
    for start, end in pairwise([*starts, len(row)]):
        word = row[start]
        if word not in _WORDS:
            raise block.error(f"expected one of {', '.join(_WORDS)} after the coordinates, got {word!r}", line)
        name, counts = _WORDS[word]
        if name in words:
            raise block.error(f"`{name}` stands twice in this row", line)
        numbers = tuple(block.number(x, f"`{name}`", line) for x in row[start + 1 : end])
        if len(numbers) not in counts:
            expected = " or ".join(map(str, counts))
            got = f"got {len(numbers)}"
            raise block.error(f"expected {expected} numbers for `{name}` after the coordinates, {got}", line)
        if name == "m" and not set(numbers) <= {0.0, 1.0}:
            raise block.error(f"expected three flags 0 or 1, got {' '.join(row[start + 1 : end])}", line)
        words[name] = numbers
    return words
