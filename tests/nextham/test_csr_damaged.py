"""Mutilated sparse-matrix files: an error in one sentence, or the same matrix; never another traceback."""

import gzip
import lzma

import csr_cases as cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham.data import sample
from nextham.io.csr import read_csr, write_csr
from nextham.io.errors import FileError

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXT = {"text": cases.old_text, "text-3.11": cases.new_text}
BINARY = {
    "binary": cases.binary,
    "binary, pointers after an empty matrix": lambda m: cases.binary(m, after_empty=True),
    "binary-3.11": lambda m: cases.binary(m, "<i8", after_empty=True),
    "text header of 3.11, binary matrices": cases.hybrid,
}


def read(path, content: bytes):
    """What a file of this content is, or the sentence of its error."""
    path.write_bytes(content)
    try:
        return read_csr(path)
    except FileError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and len(error.sentence) > 10
        return error


def replaced(content: bytes, where: int, byte: int) -> bytes:
    where %= len(content)
    return content[:where] + bytes([byte]) + content[where + 1 :]


@quick
@given(m=cases.hermitian(), form=st.sampled_from(sorted(TEXT)), where=st.integers(0, 10**4))
def test_truncated_text(tmp_path, m, form, where):
    content = TEXT[form](m)
    whole = read(tmp_path / "a", content)
    found = read(tmp_path / "a", content[: where % len(content)])
    if isinstance(found, FileError):
        assert found.line is not None or found.sentence in ("the file is empty",) or "neither text" in found.sentence
    else:  # all that was lost is white space, or the titles of empty lists
        assert cases.differences(found, whole) == 0


@quick
@given(m=cases.hermitian(), form=st.sampled_from(sorted(BINARY)), where=st.integers(0, 10**4))
def test_truncated_binary(tmp_path, m, form, where):
    content = BINARY[form](m)
    whole = read(tmp_path / "a", content)
    found = read(tmp_path / "a", content[: where % len(content)])
    assert isinstance(found, FileError) or cases.differences(found, whole) == 0


# Bytes that make the likeliest mischief, and any other.
characters = st.sampled_from(list(b"0123456789+-.e(), \n\r\t#")) | st.integers(0, 255)


@settings(quick, max_examples=600)
@given(m=cases.hermitian(), form=st.sampled_from(sorted(TEXT)), where=st.integers(0, 10**4), byte=characters)
def test_one_changed_byte_of_text_changes_at_most_one_number(tmp_path, m, form, where, byte):
    content = TEXT[form](m)
    whole = read(tmp_path / "a", content)
    found = read(tmp_path / "a", replaced(content, where, byte))
    assert isinstance(found, FileError) or cases.differences(found, whole) in (0, 1)


@settings(quick, max_examples=400)
@given(m=cases.hermitian(), form=st.sampled_from(sorted(BINARY)), where=st.integers(0, 10**4), byte=characters)
def test_one_changed_byte_of_binary_changes_at_most_one_number(tmp_path, m, form, where, byte):
    content = BINARY[form](m)
    whole = read(tmp_path / "a", content)
    found = read(tmp_path / "a", replaced(content, where, byte))
    assert isinstance(found, FileError) or cases.differences(found, whole) in (0, 1)


@quick
@given(m=cases.hermitian(), where=st.integers(0, 10**4), byte=characters, cut=st.booleans(), ours=st.booleans())
def test_damaged_npz(tmp_path, m, where, byte, cut, ours):
    if ours:
        write_csr(tmp_path / "npz", m, format="npz")
        content = (tmp_path / "npz").read_bytes()
    else:
        arrays = {tuple(R): a.toarray() for R, a in zip(m.R.tolist(), m.matrices, strict=True)}
        orbitals = {0: m.dimension - m.dimension // 2, 1: m.dimension // 2}
        content = cases.abacus_npz(arrays, orbitals, half=True)
    whole = read(tmp_path / "a", content)
    assert cases.differences(whole, m) == 0
    found = read(tmp_path / "a", content[: where % len(content)] if cut else replaced(content, where, byte))
    assert isinstance(found, FileError) or cases.differences(found, whole) == 0


@quick
@given(m=cases.hermitian(), where=st.integers(0, 10**4), byte=characters, cut=st.booleans(), xz=st.booleans())
def test_damaged_compression(tmp_path, m, where, byte, cut, xz):
    content = lzma.compress(cases.old_text(m)) if xz else gzip.compress(cases.old_text(m))
    whole = read(tmp_path / "a", content)
    found = read(tmp_path / "a", content[: where % len(content)] if cut else replaced(content, where, byte))
    assert isinstance(found, FileError) or cases.differences(found, whole) == 0


@quick
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path, content):
    found = read(tmp_path / "a", content)
    assert isinstance(found, FileError) or not found.nnz


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 5, 6, 7, 100, 477])
def test_a_real_file_cut_after_some_lines(tmp_path, lines):
    text = lzma.decompress((sample("Si-1") / "hrs1_nao.csr.xz").read_bytes())
    found = read(tmp_path / "a", b"".join(text.splitlines(keepends=True)[:lines]))
    assert isinstance(found, FileError)
    assert found.line == lines + 1 or found.sentence == "the file is empty"


GOOD = (
    "STEP: 0\nMatrix Dimension of H(R): 2\nMatrix number of H(R): 3\n"
    "-1 0 0 2\n 1.0e-01 2.0e-01\n 0 1\n 0 1 2\n0 0 0 0\n1 0 0 2\n 1.0e-01 2.0e-01\n 0 1\n 0 1 2\n"
)


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        (GOOD, "", None, "the file is empty"),
        (
            GOOD,
            "Hello, world!\n",
            None,
            "is no ABACUS sparse matrix, neither text nor binary",
        ),
        (GOOD, "STEP: 0\nMatrix Dimension of H(R): 2\n", 3, "the file ends where the header should be"),
        ("STEP: 0", "STEP: x", 1, "expected 'STEP: n', got 'STEP: x'"),
        ("Dimension of H(R): 2", "Dimension of H(R): 0", 3, "expected matrices of at least one row, got 0"),
        ("Dimension of H(R): 2", "Dimension of H(R): two", 2, "expected 'Matrix Dimension of H(R): n', got 'Matrix"),
        ("number of H(R): 3", "number of S(R): 3", 3, "the header is of H(R) in one line and of S(R) in the next"),
        ("number of H(R): 3", "number of H(R): 4", 13, "the file ends where matrix 4 of 4 should be"),
        ("number of H(R): 3", "number of H(R): 2", 9, "expected the end of the file or another ionic step, got '1 0 0"),
        ("-1 0 0 2\n", "-1 0 2\n", 4, "expected the four integers Rx Ry Rz nnz, got '-1 0 2'"),
        ("-1 0 0 2\n", "-1 0 0 5\n", 4, "a matrix of 2 rows cannot have 5 elements"),
        ("-1 0 0 2\n", "-1 0 0 1\n", 5, "expected 1 values of R = (-1, 0, 0), found more of them"),
        ("-1 0 0 2\n", "0 0 0 2\n", 8, "the lattice vector R = (0, 0, 0) occurs twice"),
        ("-1 0 0 2\n", "-2 0 0 2\n", None, "R = (-2, 0, 0) has 2 elements, but its partner R = (2, 0, 0) is missing"),
        (" 1.0e-01 2.0e-01\n 0 1\n", " 1.0e-01 nan\n 0 1\n", 5, "found 'nan' in place of the number 2"),
        (" 1.0e-01 2.0e-01\n 0 1\n", " 1.0e-01 2.0e-0x\n 0 1\n", 5, "found '2.0e-0x' in place of the number 2"),
        (" 1.0e-01 2.0e-01\n 0 1\n", " (1,2) (3,4)\n 0 1\n", 10, "expected 2 values of R = (1, 0, 0), found '1.0e-01'"),
        (" 0 1\n 0 1 2\n", " 0 2\n 0 1 2\n", 6, "column index 2 is outside 0...1, in R = (-1, 0, 0)"),
        (" 0 1\n 0 1 2\n", " 0 -1\n 0 1 2\n", 6, "column index -1 is outside 0...1, in R = (-1, 0, 0)"),
        (" 0 1\n 0 1 2\n", " 0 1\n 0 3 2\n", 7, "the row pointers must ascend from 0 to 2, but number 3 is 2"),
        (" 0 1\n 0 1 2\n", " 0 1\n 0 1 1\n", 7, "the row pointers must ascend from 0 to 2, but number 3 is 1"),
        (" 0 1\n 0 1 2\n", " 0 1\n 0 1\n", 8, "expected 3 row pointers of R = (-1, 0, 0), found more of them"),
        (" 0 1\n 0 1 2\n0", " 0 1 0\n 0 1 2\n0", 6, "expected 2 column indices of R = (-1, 0, 0), found more of them"),
    ],
)
def test_sentences(tmp_path, old, new, line, sentence):
    assert not isinstance(read(tmp_path / "a", GOOD.encode()), FileError)
    error = read(tmp_path / "a", GOOD.replace(old, new, 1).encode())
    assert isinstance(error, FileError) and sentence in error.sentence and error.line == line


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (" --- Ionic Step 1 ---", " --- Ionic Step 0 ---", "line 1: expected '--- Ionic Step n ---'"),
        (" S(R)", " H(R)", "line 2: the header is of S and of H(R) in one line"),
        (" 2 # number of localized basis\n", "", "line 5: the header has no '# number of localized basis'"),
        (
            " 2 # number of localized",
            " two # number of localized",
            "line 5: expected an integer before '# number",
        ),
        ("# number of localized basis", "", "line 5: expected a number and '# what it is', got '2'"),
        (" 0 1.33333 0\n", " 0 1.33333\n", "line 11: expected 3 numbers for a lattice vector, got '0 1.33333'"),
        (" 0 1.33333 0\n", " 0 1e33333 0\n", "line 11: a lattice vector is out of range: 0 1e33333 0"),
        (" 1 1\n", " 1\n", "line 14: expected 2 numbers of atoms, got '1'"),
        ("Direct", "Cartesian", "line 15: expected 'Direct', got 'Cartesian'"),
        (" 1 0 0\n", " 0 0 0\n", "line 17: cell: the three lattice vectors span no volume"),
        (" # CSR column indices", " # CSR columns", "expected the comment '# CSR column indices', got '# CSR columns'"),
        (" # CSR values\n", "", "expected the comment '# CSR values', got '1.00000000e+00 1.00000000e+00'"),
    ],
)
def test_sentences_of_3_11(tmp_path, old, new, sentence):
    content = cases.new_text(cases.of_arrays({(0, 0, 0): np.eye(2)}, letter="S")).decode()
    assert old in content
    error = read(tmp_path / "a", content.replace(old, new, 1).encode())
    assert isinstance(error, FileError) and sentence in str(error)


def test_sentences_of_binary(tmp_path):
    m = cases.of_arrays({(0, 0, 0): np.eye(2), (1, 0, 0): np.zeros((2, 2)), (-1, 0, 0): np.zeros((2, 2))})
    content = bytearray(cases.binary(m))
    columns = 12 + 16 + 2 * 8
    for where, byte, place, sentence in (
        (columns, 7, columns, "column index 7 is outside 0...1, in R = (0, 0, 0)"),
        (columns + 12, 9, columns + 8, "the row pointers must ascend from 0 to 2, but number 3 is 2, in R = (0, 0, 0)"),
        (12, 1, 12 + 16 + 16 + 8 + 12, "the lattice vector R = (1, 0, 0) occurs twice"),
        (12 + 16 + 6, 0xF0, None, None),
    ):
        changed = bytearray(content)
        changed[where] = byte
        if sentence is None:  # 1.0 → NaN
            changed[34:36] = b"\xff\x7f"
            place, sentence = 28, "a value is not a finite number: nan, in R = (0, 0, 0)"
        error = read(tmp_path / "a", bytes(changed))
        assert isinstance(error, FileError) and error.sentence == sentence and error.byte == place
    error = read(tmp_path / "a", bytes(content[:-1]))
    assert str(error) == f"{tmp_path / 'a'}, byte {len(content) - 16}: the binary matrices are cut short or damaged"


def test_sentences_of_npz(tmp_path):
    m = cases.of_arrays({(0, 0, 0): np.eye(5)})
    write_csr(tmp_path / "npz", m, format="npz")
    ours = (tmp_path / "npz").read_bytes()
    theirs = cases.abacus_npz({(0, 0, 0): np.eye(5)}, {0: 3, 1: 2}, half=True)
    for content, change, sentence in (
        (ours, {"format": "hdf5"}, "expected the format 'nextham sparse matrices 1', got 'hdf5'"),
        (ours, {"format": None}, "is an NPZ archive, but of no sparse matrices"),
        (ours, {"R": None}, "the array R is missing"),
        (ours, {"R": np.zeros(3)}, "the array R should be (None, 3) of kind 'i', and is (3,) of float64"),
        (
            ours,
            {"R": np.zeros((2, 3), dtype=int)},
            "expected matrices of at least one row and distinct lattice",
        ),
        (
            ours,
            {"column_indices_0": np.arange(5) + 1},
            "column index 5 is outside 0...4, in the column indices of R =",
        ),
        (theirs, {"orbital_info_1": None}, "the array orbital_info_1 is missing"),
        (
            theirs,
            {"mat_0_1_0_0_0": np.zeros((3, 3))},
            "the array mat_0_1_0_0_0 should be (3, 2) of kind 'fc', and is",
        ),
        (theirs, {"atom_info": np.ones((1, 5))}, "the array mat_0_1_0_0_0 is of an atom beyond the 1 of atom_info"),
        (theirs, {"atom_info": np.full((2, 5), 0.5)}, "atom_info: expected integer types and atomic numbers"),
        (theirs, {"lattice_vectors": np.zeros(9)}, "cell: the three lattice vectors span no volume"),
    ):
        error = read(tmp_path / "a", cases.repack(content, change))
        assert isinstance(error, FileError) and sentence in error.sentence


def test_absent_and_unreadable(tmp_path):
    with pytest.raises(FileError, match="nothing: cannot be read: No such file or directory"):
        read_csr(tmp_path / "nothing")
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_csr(tmp_path)
    assert read(tmp_path / "a", gzip.compress(b"")).sentence == "the file is empty"
