"""Modules of generated source text, kept on disk: Triton reads the source of a kernel from its file.

A file is named by the hash of its text and of this package's version, so it never changes: processes that need it at
the same time write the same bytes, each to a file of its own that is then renamed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

__all__ = ["folder", "module_of"]

VERSION = "1"
"""Changes when files of an earlier version must not be read any more."""


@functools.cache
def folder() -> Path:
    """Returns where generated files lie: `NEXTHAM_CACHE`, else `nextham_kernels` in the user's cache folder.

    Where that cannot be written, it is a temporary folder of this process.
    """
    given = os.environ.get("NEXTHAM_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(given) if given else Path(cache) / "nextham_kernels"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="nextham_kernels_"))


@functools.cache
def module_of(name: str, text: str) -> ModuleType:
    """Returns the module with this source text.

    Args:
        name: what the file's name begins with, such as the op.
        text: Python.
    """
    digest = hashlib.sha256(f"{VERSION}\n{text}".encode()).hexdigest()[:24]
    path = folder() / f"{name}_{digest}.py"
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        handle, own = tempfile.mkstemp(dir=path.parent, suffix=".py")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(own, path)
    module_name = f"nextham_kernels_generated.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module
