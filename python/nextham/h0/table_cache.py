"""Tables kept on disk, so that they are computed once and not in every run.

They lie in the folder that NEXTHAM_CACHE names, else in `nextham` below XDG_CACHE_HOME or ~/.cache; an empty
NEXTHAM_CACHE keeps nothing. A table's name is a hash of all that it depends on, so a changed orbital file or setting
is another table and nothing ever needs to be cleared. Any number of processes may share the folder: a file appears
under its name when it is whole, and one that is damaged is computed anew. A folder that cannot be read or written is
as good as none.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from nextham.io.digest import content_key

__all__ = ["VERSION", "cache_folder", "cached_table", "table_key"]

VERSION = 2
"""Part of every key: to be raised when the tables of the same input change."""

_DIGEST = 16


def cache_folder() -> Path | None:
    """Returns the folder of the tables, whether it exists or not; None where nothing is to be kept."""
    named = os.environ.get("NEXTHAM_CACHE")
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nextham"


def table_key(parts: Iterable[object]) -> str:
    """Returns the key of a table that depends on some arrays and values."""
    return content_key((VERSION, *parts))


def cached_table(name: str, key: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the table of a key: from disk, or built and written there.

    Args:
        name: what it is, in words that a file name may have.
        key: `table_key` of all that it depends on.
        build: makes it.
    """
    folder = cache_folder()
    path = None if folder is None else folder / f"{name}-{key}.table"
    found = None if path is None else _read(path)
    if found is None:
        found = build()
        if path is not None:
            _write(path, found)
    return found


def _read(path: Path) -> np.ndarray | None:
    """The table of a file that is there and whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, table = content[:_DIGEST], content[_DIGEST:]
    if hashlib.blake2b(table, digest_size=_DIGEST).digest() != digest:
        return None
    return np.load(io.BytesIO(table), allow_pickle=False)


def _write(path: Path, table: np.ndarray) -> None:
    """Puts a whole file in place, or nothing."""
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    content = file.getvalue()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as target:
            temporary = target.name
            target.write(hashlib.blake2b(content, digest_size=_DIGEST).digest() + content)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
