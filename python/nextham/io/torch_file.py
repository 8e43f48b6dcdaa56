"""Files of `torch.save`, read without running code from them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable

import numpy as np

from nextham.io.errors import FileError

__all__ = ["load_restricted"]


def load_restricted(path: str | os.PathLike[str], *, verify: bool = True) -> object:
    """Returns what a file of `torch.save` holds: tensors (mapped, not read), numbers, words, lists and dictionaries.

    Args:
        path: the file.
        verify: whether to check the checksums of the whole file first; torch itself does not look at them.

    Raises:
        FileError: no such file, damaged, or with objects that only code could rebuild.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if verify and archive.testzip():
                raise FileError(path, "is damaged: a checksum is wrong")
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileError:
        raise
    except pickle.UnpicklingError as error:
        sentence = "holds more than tensors, numbers and words: whole objects are refused, for code is never run"
        raise FileError(path, sentence) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError, NotImplementedError) as error:
        raise FileError(path, "is no file of torch.save, or is damaged or cut short") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error


def _numpy_scalars() -> list:
    """What a restricted unpickler needs for numpy's integers, reals and words, of any numpy version."""
    kinds = (type(np.dtype(kind)) for kind in ("i4", "i8", "f4", "f8", "U1"))
    return [_scalar_of("numpy.core.multiarray"), _scalar_of("numpy._core.multiarray"), np.dtype, *kinds]


def _scalar_of(module: str) -> Callable[[np.dtype, bytes | str], np.generic]:
    """The maker of numpy's scalars under the name that a file calls it (not every torch takes a name beside it)."""
    make = np.int64(0).__reduce__()[0]

    def scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
        return make(dtype, data)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar
