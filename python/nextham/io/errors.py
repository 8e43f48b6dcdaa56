"""The one error of every file reader and writer."""

from __future__ import annotations

import os

__all__ = ["FileError"]


class FileError(OSError):
    """A file that cannot be used, said in one sentence: `PATH, line N: sentence` (or `PATH: sentence`)."""

    def __init__(self, path: str | os.PathLike[str], sentence: str, line: int | None = None) -> None:
        self.path = os.fspath(path)
        self.sentence = sentence
        self.line = line
        super().__init__(f"{self.path}: {sentence}" if line is None else f"{self.path}, line {line}: {sentence}")
