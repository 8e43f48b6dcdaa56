"""The one error of every file reader and writer."""

from __future__ import annotations

import os

__all__ = ["FileError"]


class FileError(OSError):
    """A file that cannot be used, said in one sentence.

    It prints `PATH, line N: sentence` in text, `PATH, byte N: sentence` in binary, `PATH: sentence` otherwise.
    """

    def __init__(
        self, path: str | os.PathLike[str], sentence: str, line: int | None = None, *, byte: int | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.sentence = sentence
        self.line = line
        self.byte = byte
        place = f", line {line}" if line is not None else f", byte {byte}" if byte is not None else ""
        super().__init__(f"{self.path}{place}: {sentence}")
