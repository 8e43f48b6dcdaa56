"""Matrices for the tests of sparse-matrix files, and writers and a reader of those files that know nothing of ours."""

import io
import struct
import zipfile

import numpy as np
import scipy.sparse
from hypothesis import strategies as st

from nextham.io.csr import SparseMatrices
from nextham.structure import Structure

CRYSTAL = Structure(np.diag([3.0, 4.0, 5.0]), [[0.0, 0, 0], [1, 1, 1]], [14, 8])


def of_arrays(arrays: dict, letter="H", step=0, structure=None) -> SparseMatrices:
    """SparseMatrices of {R: dense array}."""
    matrices = [scipy.sparse.csr_matrix(a) for a in arrays.values()]
    n = next(iter(arrays.values())).shape[0]
    return SparseMatrices(n, np.array(list(arrays), dtype=np.int64).reshape(-1, 3), matrices, letter, step, structure)


def equal(a: SparseMatrices, b: SparseMatrices) -> bool:
    """The same lattice vectors in the same order, and the same elements to the last bit."""
    return (
        a.dimension == b.dimension
        and np.array_equal(a.R, b.R)
        and all(
            x.dtype == y.dtype
            and x.shape == y.shape
            and np.array_equal(x.indptr, y.indptr)
            and np.array_equal(x.indices, y.indices)
            and x.data.tobytes() == y.data.tobytes()
            for x, y in zip(a.matrices, b.matrices, strict=True)
        )
    )


def differences(a: SparseMatrices, b: SparseMatrices) -> int:
    """How many numbers differ; −1 where already dimension, lattice vectors with elements, or numbers of elements do."""
    mine, theirs = ({tuple(R): x for R, x in zip(m.R.tolist(), m.matrices, strict=True) if x.nnz} for m in (a, b))
    if a.dimension != b.dimension or mine.keys() != theirs.keys():
        return -1
    count = 0
    for R, x in mine.items():
        y = theirs[R]
        if x.nnz != y.nnz:
            return -1
        if x.data.tobytes() != y.data.tobytes():
            count += sum(p != q for p, q in zip(x.data.view(float), y.data.view(x.dtype).view(float), strict=True))
        count += (x.indices != y.indices).sum() + (x.indptr != y.indptr).sum()
    return int(count)


@st.composite
def matrices(draw, max_n=4):
    """Small SparseMatrices: real or complex, partners ±R, some of them empty, any finite values."""
    n = draw(st.integers(1, max_n))
    is_complex = draw(st.booleans())
    half = draw(
        st.lists(st.tuples(*[st.integers(-3, 3)] * 3), max_size=3, unique_by=lambda r: max(r, tuple(-x for x in r)))
    )
    vectors = sorted({r for v in half for r in (v, tuple(-x for x in v))} or {(0, 0, 0)})
    real = st.floats(-1e300, 1e300, allow_nan=False).filter(lambda x: x != 0)
    value = st.builds(complex, real, real) if is_complex else real
    arrays = {}
    for vector in vectors:
        array = np.zeros((n, n), dtype=complex if is_complex else float)
        places = draw(st.lists(st.integers(0, n * n - 1), unique=True, max_size=n * n))
        array.reshape(-1)[places] = [draw(value) for _ in places]
        arrays[vector] = array
    if is_complex and not any(a.any() for a in arrays.values()):  # an empty matrix says nothing of its kind
        arrays[vectors[0]][0, 0] = 1j
        arrays[tuple(-x for x in vectors[0])][0, 0] = -1j
    return of_arrays(arrays, letter=draw(st.sampled_from("HST")), step=draw(st.integers(0, 12)), structure=CRYSTAL)


@st.composite
def hermitian(draw):
    """Small SparseMatrices with M(−R) = M(R)†, R = 0 among them and not empty."""
    m = draw(matrices(max_n=3))
    arrays = {tuple(R): a.toarray() for R, a in zip(m.R.tolist(), m.matrices, strict=True)}
    arrays.setdefault((0, 0, 0), np.zeros((m.dimension, m.dimension), dtype=m.dtype))
    for R in list(arrays):
        partner = tuple(-x for x in R)
        if R > partner:
            arrays[R] = arrays[partner].conj().T
        elif R == partner:
            upper = np.triu(arrays[R], 1)
            arrays[R] = upper + upper.conj().T + np.diag(arrays[R].diagonal().real)
            arrays[R][0, 0] = arrays[R][0, 0] or 1
    return of_arrays({R: arrays[R] for R in sorted(arrays)}, m.letter, m.step, CRYSTAL)


def value_words(values) -> list[str]:
    return [f"({v.real:.8e},{v.imag:.8e})" if np.iscomplexobj(values) else f"{v:.8e}" for v in values]


def old_text(m: SparseMatrices) -> bytes:
    """ABACUS's text before 3.11."""
    out = [f"STEP: {m.step}", f"Matrix Dimension of {m.letter}(R): {m.dimension}"]
    out.append(f"Matrix number of {m.letter}(R): {len(m.R)}")
    for (x, y, z), a in zip(m.R.tolist(), m.matrices, strict=True):
        out.append(f"{x} {y} {z} {a.nnz}")
        if a.nnz:
            for words in (value_words(a.data), map(str, a.indices), map(str, a.indptr)):
                out.append("".join(" " + word for word in words))
    return ("\n".join(out) + "\n").encode()


def new_text(m: SparseMatrices, *, note="", empty_lists=True) -> bytes:
    """ABACUS's text since 3.11, for the crystal of this module."""
    out = [
        f" --- Ionic Step {m.step + 1} ---",
        f" # print {m.letter} matrix in real space {m.letter}(R)",
        " 1 # number of spin directions",
        " 1 # spin index",
        f" {m.dimension} # number of localized basis",
        f" {len(m.R)} # number of Bravais lattice vector R",
        "",
        " user_defined_lattice",
        " 3",
        " 1 0 0",
        " 0 1.33333 0",
        " 0 0 1.66667",
        " Si O1",
        " 1 1",
        " Direct",
        " 0 0 0",
        " 0.333333333333333 0.25 0.2",
        *([f"# representation: {note}"] if note else []),
        "",
        " #----------------------------------------------------------------------#",
        " #                               CSR Format                             #",
        " # (Rx, Ry, Rz), followed by the number of non-zero elements.           #",
        " #----------------------------------------------------------------------#",
        "",
    ]

    def wrapped(words, per_line):
        words = list(words)
        return ["".join(" " + w for w in words[i : i + per_line]) for i in range(0, len(words), per_line)]

    for (x, y, z), a in zip(m.R.tolist(), m.matrices, strict=True):
        out.append(f" {x} {y} {z} {a.nnz}")
        if a.nnz:
            out += [" # CSR values", *wrapped(value_words(a.data), 6)]
            out += [" # CSR column indices", *wrapped(map(str, a.indices), 16)]
            out += [" # CSR row pointers", *wrapped(map(str, a.indptr), 16), ""]
        elif empty_lists:
            out += [" # CSR values", "", " # CSR column indices", "", " # CSR row pointers", " 0" * (m.dimension + 1)]
    return ("\n".join(out) + "\n").encode()


def binary_body(m: SparseMatrices, pointers="<i4", after_empty=False) -> bytes:
    """The matrices of a binary file, in one of its layouts."""
    out = []
    for vector, a in zip(m.R.tolist(), m.matrices, strict=True):
        out.append(struct.pack("<4i", *vector, a.nnz))
        if a.nnz or after_empty:
            out += [a.data.tobytes(), a.indices.astype("<i4").tobytes(), a.indptr.astype(pointers).tobytes()]
    return b"".join(out)


def binary(m: SparseMatrices, pointers="<i4", after_empty=False) -> bytes:
    """A binary file of ABACUS, in one of its layouts."""
    return struct.pack("<3i", m.step, m.dimension, len(m.R)) + binary_body(m, pointers, after_empty)


def hybrid(m: SparseMatrices) -> bytes:
    """The text header of 3.11 in front of binary matrices."""
    header = new_text(m).split(b" #---")[0]
    return header + binary_body(m, "<i8", after_empty=True)


def abacus_npz(arrays: dict, orbitals: dict, *, half: bool) -> bytes:
    """ABACUS's NPZ of {R: array} for the crystal of this module; `half` leaves out the blocks with I > J."""
    types = np.array([0.0, 1.0])
    frac = CRYSTAL.fractional()
    content = {"lattice_vectors": CRYSTAL.cell.reshape(-1) / 0.529177}
    content["atom_info"] = np.column_stack([types, CRYSTAL.numbers, frac])
    for t, n in orbitals.items():
        content[f"orbital_info_{t}"] = np.zeros((n, 3))
    size = next(iter(arrays.values())).shape[0]
    spins = size // sum(orbitals.values())
    cut = np.cumsum([0] + [spins * n for n in orbitals.values()])
    for (x, y, z), a in arrays.items():
        for i in range(2):
            for j in range(2):
                if not (half and i > j):
                    content[f"mat_{i}_{j}_{x}_{y}_{z}"] = np.ascontiguousarray(
                        a[cut[i] : cut[i + 1], cut[j] : cut[j + 1]]
                    )
    out = io.BytesIO()
    np.savez(out, **content)
    return out.getvalue()


def tokens(text: bytes) -> dict:
    """{R: dense array} of text before 3.11, word by word."""
    lines = text.decode().splitlines()
    n, n_matrices = int(lines[1].split()[-1]), int(lines[2].split()[-1])
    rest, found = iter(lines[3:]), {}
    for _ in range(n_matrices):
        x, y, z, nnz = map(int, next(rest).split())
        array = np.zeros((n, n), dtype=complex)
        if nnz:
            values = [complex(*map(float, w.strip("()").split(","))) for w in next(rest).split()]
            columns, pointers = ([int(w) for w in next(rest).split()] for _ in range(2))
            for row in range(n):
                for k in range(pointers[row], pointers[row + 1]):
                    array[row, columns[k]] += values[k]
        found[x, y, z] = array
    return found


def repack(content: bytes, change: dict) -> bytes:
    """A zip archive with some of its arrays replaced (None removes one)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            key = name.removesuffix(".npy")
            if key not in change:
                new.writestr(name, old.read(name))
            elif change[key] is not None:
                with new.open(name, "w") as entry:
                    np.lib.format.write_array(entry, np.asarray(change[key]))
    return out.getvalue()
