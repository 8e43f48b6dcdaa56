"""The bytes of a file, plain, gzip or xz."""

from __future__ import annotations

import errno
import gzip
import lzma
import mmap
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nextham.io.errors import FileError

__all__ = ["Content", "load_bytes", "open_for_writing"]

Content = bytes | bytearray | mmap.mmap
"""What a file holds, in memory or mapped."""


def load_bytes(path: str | os.PathLike[str]) -> Content:
    """Returns the content of a file; gzip and xz are told by their first bytes and unpacked.

    A plain file is mapped, not read: its pages come and go as they are looked at.

    Raises:
        FileError: an absent, unreadable or empty file, or damaged compression.
    """
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise FileError(path, "the file is empty")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for magic, opener in ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\x00", lzma.open)):
            if content[: len(magic)] == magic:
                with opener(path) as file:
                    return _all_of(file)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise FileError(path, f"the compressed file is damaged or cut short ({error})") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    return content


def _all_of(file: BinaryIO) -> bytearray:
    """The rest of a file; a bytearray grows in place, where bytes would be held twice when their pieces are joined."""
    content = bytearray()
    while piece := file.read(1 << 20):
        content += piece
    return content


@contextmanager
def open_for_writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only once it is complete; `.gz` and `.xz` in the name compress it.

    Until then it is called `PATH.part`, and it is removed if the body of the `with` statement fails.

    Raises:
        FileError: it cannot be created, or the disk is full.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC or str(error.filename) == str(part):
            raise FileError(path, f"cannot be written: {error.strerror}") from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise
