"""What a file or folder is, told by its content."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nextham.io.compression import load_bytes
from nextham.io.csr_binary import binary_records
from nextham.io.csr_npz import npz_records
from nextham.io.csr_text import looks_like_text, text_records
from nextham.io.errors import FileError
from nextham.io.hdf5 import read_contents_h5
from nextham.io.orb import read_orb
from nextham.io.stru import read_stru
from nextham.io.structure_file import read_structure
from nextham.io.torch_file import load_restricted
from nextham.io.upf import read_valence
from nextham.structure import Structure
from nextham.units import SYMBOLS

__all__ = ["KINDS", "FileKind", "identify"]

KINDS = {
    "abacus-matrix": "ABACUS sparse matrix (text, binary or NPZ)",
    "stru": "STRU",
    "orb": "orbital file (.orb)",
    "upf": "pseudopotential (.upf)",
    "structure": "structure that ASE reads (CIF, POSCAR, XYZ, …)",
    "blocks": "block matrices of nextham (.h5)",
    "dataset": "dataset of nextham (.h5)",
    "packed-sample": "packed sample (.npz.xz)",
    "published-sample": "published training sample (.pth)",
    "published-checkpoint": "published checkpoint (.pth.tar)",
    "model": "model folder of nextham",
    "published-model": "folder of published checkpoints",
    "deeph": "DeepH folder",
    "abacus-run": "folder of an ABACUS run",
}
"""Kind → what it is, in words."""

_HEAD = 1 << 22  # the header of a matrix of ABACUS 3.11 lists all atoms
_STRU_LINE = re.compile(rb"^[ \t]*(NUMERICAL_ORBITAL|LATTICE_CONSTANT|LATTICE_VECTORS)(?!\w)", re.MULTILINE)


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Args:
        kind: one of `KINDS`.
        facts: one line on what it holds.
    """

    kind: str
    facts: str


def identify(path: str | os.PathLike[str]) -> FileKind:
    """Returns what a file or folder is; text may be packed with gzip or xz.

    Names say nothing, but for structures of other programs, where ASE looks at them too.
    Little is read: the beginning of a text, the list of contents of an archive. A file that is recognised may still
    turn out to be damaged further on.

    Raises:
        FileError: absent, empty, recognised but useless (the sentence says why), or of no known kind.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    head = _head(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5(path)
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<(UPF|PP_)", head):
        number, valence = read_valence(path)
        return FileKind("upf", f"pseudopotential of {SYMBOLS[number]} with {valence:g} valence electrons")
    if looks_like_text(head):
        return _matrix(path, head)
    if re.search(rb"^\s*Type\s+L\s+N\s*$", head, re.MULTILINE):
        orbitals = read_orb(path)
        shells = "".join(f"{n}{'spdfghiklm'[l]}" for l, n in enumerate(orbitals.zetas) if n)
        facts = f"orbitals {shells} of {SYMBOLS[orbitals.number]}, cut off at {orbitals.radius_cutoff:g} Bohr"
        return FileKind("orb", facts)
    if _STRU_LINE.search(head):
        return FileKind("stru", _words(read_stru(path).structure))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return _model(path.parent)
    return _guess(path, head)


def _head(path: Path) -> bytes:
    """The first bytes, unpacked."""
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        opener = gzip.open if magic[:2] == b"\x1f\x8b" else lzma.open if magic == b"\xfd7zXZ\x00" else open
        with opener(path, "rb") as file:
            head = file.read(_HEAD)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise FileError(path, f"the compressed file is damaged or cut short ({error})") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    if not head:
        raise FileError(path, "the file is empty")
    return head


def _words(structure: Structure) -> str:
    atoms = "1 atom" if structure.n_atoms == 1 else f"{structure.n_atoms} atoms"
    return f"{structure.formula()}, {atoms}"


def _matrix(path: Path, head: bytes) -> FileKind:
    """A text matrix, of which the header is enough."""
    header, _ = next(text_records(os.fspath(path), head))
    form = "text since 3.11" if head.lstrip().startswith(b"-") else "text before 3.11"
    return FileKind("abacus-matrix", _matrix_words(header.letter, header.dimension, header.n_matrices, form))


def _matrix_words(letter: str | None, dimension: int, n_matrices: int, form: str) -> str:
    what = f"{letter}(R)" if letter else "matrix"
    return f"{what} of ABACUS, {form}: {n_matrices} lattice vectors, {dimension} rows"


def _guess(path: Path, head: bytes) -> FileKind:
    """What has no mark of its own: binary matrices, and structures of other programs."""
    if b"\x00" in head:
        try:
            header, _ = next(binary_records(os.fspath(path), load_bytes(path)))
            return FileKind("abacus-matrix", _matrix_words(None, header.dimension, header.n_matrices, "binary"))
        except FileError as error:
            if error.byte is not None and path.suffix == ".csr":
                raise
    try:
        return FileKind("structure", _words(read_structure(path)))
    except FileError as error:
        raise FileError(path, f"is nothing known; known are: {'; '.join(KINDS.values())}") from error


def _archive(path: Path) -> FileKind:
    """NPZ, also packed with xz, or a file of torch.save."""
    try:
        with zipfile.ZipFile(path if zipfile.is_zipfile(path) else io.BytesIO(load_bytes(path))) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise FileError(path, "is an archive (zip, npz, pth), but damaged or cut short") from error
    if "h0_scalar.npy" in names:
        return FileKind("packed-sample", "H0, H and S of one calculation, single precision")
    if any(name.endswith(".npy") for name in names):
        header, _ = next(npz_records(os.fspath(path), load_bytes(path)))
        return FileKind("abacus-matrix", _matrix_words(header.letter, header.dimension, header.n_matrices, "NPZ"))
    if not any(name.endswith("/data.pkl") for name in names):
        raise FileError(path, "is a zip archive, but neither NPZ nor a file of torch.save")
    content = load_restricted(path, verify=False)
    if isinstance(content, list | tuple) and len(content) == 22:
        n_atoms, n_edges, k = (len(content[i]) for i in (2, 12, 6))
        facts = f"{content[16]}: {n_atoms} atoms, {n_edges} edges, {k} k-points"
        return FileKind("published-sample", facts)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        tensors = content["state_dict"].values()
        facts = f"{len(tensors)} tensors of {sum(getattr(t, 'nelement', int)() for t in tensors):,} numbers"
        return FileKind("published-checkpoint", facts)
    raise FileError(path, "is a file of torch.save, but neither a published sample nor a published checkpoint")


def _hdf5(path: Path) -> FileKind:
    import h5py

    try:
        with h5py.File(path) as file:
            deeph = "atom_pairs" in file and "chunk_shapes" in file
            n_samples = len(file["samples"]) if "samples" in file and "matrices" not in file else None
    except (OSError, RuntimeError, KeyError) as error:
        raise FileError(path, f"the HDF5 file is damaged or cut short ({error})") from error
    if deeph:
        raise FileError(path, "is one matrix of a DeepH folder: give the folder, which has structure and basis")
    if n_samples is not None:
        return FileKind("dataset", f"{n_samples} samples")
    contents = read_contents_h5(path)
    matrices = ", ".join(
        f"{name} ({edges} edges, n_spin {contents.n_spin[name]}, {contents.dtype[name]})"
        for name, edges in contents.n_edges.items()
    )
    return FileKind("blocks", f"{_words(contents.structure)}: {matrices}")


# --- folders


def _folder(path: Path) -> FileKind:
    if (path / "config.json").is_file():
        return _model(path)
    if checkpoints := sorted(path.glob("model_range*_*.pth.tar")):
        return FileKind("published-model", ", ".join(p.name for p in checkpoints))
    if (path / "info.json").is_file() and (path / "POSCAR").is_file():
        matrices = [p.name for p in sorted(path.glob("*.h5"))]
        structure = read_structure(path / "POSCAR", "vasp")
        return FileKind("deeph", f"{_words(structure)}: {', '.join(matrices) or 'no matrices'}")
    matrices = [os.fspath(p.relative_to(path)) for p in _matrices(path)]
    if (path / "STRU").is_file():
        structure = read_stru(path / "STRU").structure
        return FileKind("abacus-run", f"{_words(structure)}: {', '.join(matrices) or 'no matrices'}")
    if matrices:
        return FileKind("abacus-run", f"without STRU: {', '.join(matrices)}")
    if any(re.search(r"\.(orb|upf)(\.xz|\.gz)?$", p.name, re.IGNORECASE) for p in path.iterdir()):
        raise FileError(path, "is a folder of orbital or pseudopotential files: `nextham basis check` says what it has")
    raise FileError(path, f"is a folder of nothing known; known are: {'; '.join(KINDS.values())}")


def _matrices(path: Path) -> Iterator[Path]:
    """Matrices of a run, in its folder and in OUT.*: texts by their content, others by their endings."""
    for folder in (path, *sorted(path.glob("OUT.*"))):
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.stat().st_size:
                if file.suffix in (".csr", ".npz") or looks_like_text(_head(file)):
                    yield file


def _model(path: Path) -> FileKind:
    """A model folder of ours, recognised by its configuration."""
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
        said = str(content["format"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FileError(path / "config.json", "expected the configuration of a model of nextham") from error
    if not said.startswith("nextham ensemble"):
        raise FileError(path / "config.json", f"expected the format of a model of nextham, got {said!r}")
    config = content.get("config", {})
    return FileKind("model", f"{said}: {len(config.get('ranges', []))} networks" if isinstance(config, dict) else said)
