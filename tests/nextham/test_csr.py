"""Sparse-matrix files: every form is read as what it says and written as ABACUS writes it."""

import errno
import gzip
import lzma
import tracemalloc

import csr_cases as cases
import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham.data import sample
from nextham.io import csr_text
from nextham.io.csr import (
    CsrHeader,
    CsrWriter,
    SparseMatrices,
    iter_csr,
    open_csr,
    read_csr,
    write_csr,
)
from nextham.io.errors import FileError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FORMS = {
    "text": cases.old_text,
    "text-3.11": cases.new_text,
    "text-3.11, nothing after an empty matrix": lambda m: cases.new_text(m, empty_lists=False),
    "binary": cases.binary,
    "binary, pointers after an empty matrix": lambda m: cases.binary(m, after_empty=True),
    "binary-3.11": lambda m: cases.binary(m, "<i8", after_empty=True),
    "text header of 3.11, binary matrices": cases.hybrid,
}
PACK = {"plain": bytes, "gz": gzip.compress, "xz": lzma.compress}


def printed(m: SparseMatrices, digits: int) -> SparseMatrices:
    """What is left of the values once they are printed."""

    def to(x):
        return float(f"{x:.{digits}e}")

    def one(a):
        data = [complex(to(v.real), to(v.imag)) if np.iscomplexobj(a.data) else to(v) for v in a.data.tolist()]
        return scipy.sparse.csr_matrix((np.array(data, dtype=a.dtype), a.indices, a.indptr), shape=a.shape)

    return SparseMatrices(m.dimension, m.R, [one(a) for a in m.matrices], m.letter, m.step, m.structure)


# --- reading what others write


@quick
@given(m=cases.matrices(), form=st.sampled_from(sorted(FORMS)), pack=st.sampled_from(sorted(PACK)))
def test_every_form_is_read(tmp_path, m, form, pack):
    path = tmp_path / "any name"
    path.write_bytes(PACK[pack](FORMS[form](m)))
    found = read_csr(path)
    assert cases.equal(found, printed(m, 8) if form.startswith("text-3.11") or form == "text" else m)
    assert found.step == m.step
    assert found.letter == (None if form.startswith("binary") else m.letter)
    assert found.n_spin == (4 if np.iscomplexobj(m.matrices[0].data) else 1)
    assert found.nnz == sum(a.nnz for a in m.matrices)


def test_a_real_file_is_what_its_words_say():
    path = sample("Si-1") / "hrs1_nao.csr.xz"
    expected = cases.tokens(lzma.decompress(path.read_bytes()))
    found = read_csr(path)
    assert (found.letter, found.step, found.dimension, found.n_spin) == ("H", 0, 52, 4)
    assert [tuple(r) for r in found.R.tolist()] == list(expected)
    for R, a in zip(found.R.tolist(), found.matrices, strict=True):
        assert np.array_equal(a.toarray(), expected[tuple(R)])
    assert [r for r, _ in iter_csr(path)] == list(expected)
    header, matrices = open_csr(path)
    assert (header.letter, header.dimension, header.n_matrices) == ("H", 52, 119)
    assert [r for r, _ in matrices] == list(expected)


@pytest.mark.parametrize("pack", sorted(PACK))
def test_memory_of_reading_is_less_than_three_times_the_text(tmp_path, pack):
    text = lzma.decompress((sample("Si-1") / "hrs1_nao.csr.xz").read_bytes())
    # The decoder's dictionary is a constant, 8 MiB by default: more than this file, so the test takes a small one.
    packed = lzma.compress(text, preset=0) if pack == "xz" else PACK[pack](text)
    (tmp_path / "a").write_bytes(packed)
    read_csr(tmp_path / "a")
    tracemalloc.start()
    read_csr(tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1] + (len(text) if pack == "plain" else 0)  # mapped pages are not traced
    tracemalloc.stop()
    assert peak < 3 * len(text)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["hrs0_nao.csr.xz", "hrs1_nao.csr.xz", "srs1_nao.csr.xz"])
def test_another_real_file_comes_back_byte_for_byte(shared, tmp_path, name):
    path = shared / "data" / "abacus" / "GaAs-1" / name
    text = lzma.decompress(path.read_bytes())
    expected = cases.tokens(text)
    found = read_csr(path)
    for R, a in zip(found.R.tolist(), found.matrices, strict=True):
        assert np.array_equal(a.toarray(), expected[tuple(R)])
    write_csr(tmp_path / "copy.csr", found)
    assert (tmp_path / "copy.csr").read_bytes() == text


def test_the_header_of_3_11_has_the_crystal(tmp_path):
    m = cases.of_arrays({(0, 0, 0): np.eye(3)}, step=4)
    (tmp_path / "a").write_bytes(cases.new_text(m))
    found = read_csr(tmp_path / "a")
    assert found.step == 4 and not found.folded
    assert found.structure.numbers.tolist() == [14, 8]
    assert np.allclose(found.structure.cell, cases.CRYSTAL.cell, atol=2e-5)
    assert np.allclose(found.structure.fractional(), cases.CRYSTAL.fractional(), atol=1e-14)
    (tmp_path / "a").write_bytes(cases.new_text(m, note="gamma-only folded matrix; summed into R = (0, 0, 0)"))
    assert read_csr(tmp_path / "a").folded
    (tmp_path / "a").write_bytes(cases.new_text(m).replace(b" Si O1", b" Si ghost"))
    assert read_csr(tmp_path / "a").structure is None


def test_the_oldest_text_has_no_step(tmp_path):
    m = cases.of_arrays({(0, 0, 0): np.eye(3)})
    (tmp_path / "a").write_bytes(cases.old_text(m).split(b"\n", 1)[1])
    assert cases.equal(read_csr(tmp_path / "a"), m)
    (tmp_path / "a").write_bytes(cases.old_text(m).replace(b"\n", b"\r\n"))
    assert cases.equal(read_csr(tmp_path / "a"), m)


@pytest.mark.parametrize("form", ["text", "text-3.11", "binary", "binary-3.11"])
def test_several_ionic_steps(tmp_path, form):
    steps = [cases.of_arrays({(0, 0, 0): np.eye(2) * (s + 1)}, step=s) for s in range(3)]
    path = tmp_path / "md"
    path.write_bytes(b"".join(FORMS[form](m) for m in steps))
    for s, m in enumerate(steps):
        assert cases.equal(read_csr(path, step=s), m)
    with pytest.raises(FileError, match=r"several ionic steps \(another is 1\): say which one with step="):
        read_csr(path)
    with pytest.raises(FileError, match="has no ionic step 7, it has 0, 1, 2"):
        read_csr(path, step=7)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("spins", [1, 2])
def test_npz_of_abacus(tmp_path, half, spins):
    rng = np.random.default_rng(0)
    n = 5 * spins
    arrays = {}
    for R in [(0, 0, 0), (1, 0, -2)]:
        a = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.7) + (1j * rng.normal(size=(n, n)) if spins == 2 else 0)
        arrays[R] = a + a.conj().T if R == (0, 0, 0) else a
    arrays[-1, 0, 2] = arrays[1, 0, -2].conj().T
    path = tmp_path / "hrs1_nao.npz"
    path.write_bytes(cases.abacus_npz(arrays, {0: 3, 1: 2}, half=half))
    found = read_csr(path)
    assert found.dimension == n and found.letter is None
    assert [tuple(r) for r in found.R.tolist()] == sorted(arrays)
    for R, a in zip(found.R.tolist(), found.matrices, strict=True):
        assert np.array_equal(a.toarray(), arrays[tuple(R)])
    assert found.structure.numbers.tolist() == [14, 8]
    assert np.allclose(found.structure.positions, cases.CRYSTAL.positions)
    atoms = np.column_stack([[0, 1], [14, 0], cases.CRYSTAL.fractional()])  # the label of the second is no element
    path.write_bytes(cases.repack(path.read_bytes(), {"atom_info": atoms}))
    assert cases.equal(read_csr(path), found) and read_csr(path).structure is None


# --- what we write


@quick
@given(m=cases.matrices(), form=st.sampled_from(["text", "text-3.11"]), suffix=st.sampled_from(["", ".gz", ".xz"]))
def test_text_reads_back_to_the_last_printed_digit(tmp_path, m, form, suffix):
    for digits in (3, 8, 16):
        path = tmp_path / ("a" + suffix)
        write_csr(path, m, format=form, digits=digits)
        found = read_csr(path)
        assert cases.equal(found, printed(m, digits))
        assert (found.letter, found.step) == (m.letter, m.step)
    assert cases.equal(found, m)


@quick
@given(m=cases.matrices(), form=st.sampled_from(["binary", "npz"]))
def test_binary_and_npz_keep_every_bit(tmp_path, m, form):
    write_csr(tmp_path / "a", m, format=form)
    found = read_csr(tmp_path / "a")
    assert cases.equal(found, m) and found.step == m.step


@quick
@given(m=cases.matrices())
def test_we_write_what_abacus_writes(tmp_path, m):
    write_csr(tmp_path / "text", m)
    assert (tmp_path / "text").read_bytes() == cases.old_text(m)
    write_csr(tmp_path / "binary", m, format="binary")
    assert (tmp_path / "binary").read_bytes() == cases.binary(m)
    # Since 3.11 the header's cell may be printed in another lattice constant; the matrices may not differ.
    write_csr(tmp_path / "new", m, format="text-3.11")
    mark = b"-------#\n\n"
    assert (tmp_path / "new").read_bytes().split(mark)[-1] == cases.new_text(m).split(mark)[-1]
    found = read_csr(tmp_path / "new").structure
    assert np.allclose(found.positions, cases.CRYSTAL.positions, atol=1e-13)


def test_npz_is_plain_numpy(tmp_path):
    m = cases.of_arrays({(0, 0, 1): np.diag([1.0, 2]), (0, 0, -1): np.diag([1.0, 2])}, letter="S")
    write_csr(tmp_path / "a.npz", m, format="npz")
    with np.load(tmp_path / "a.npz") as f:
        assert f["R"].tolist() == m.R.tolist() and str(f["letter"]) == "S" and int(f["dimension"]) == 2
        assert f["values_1"].tolist() == [1, 2]
        assert f["column_indices_1"].tolist() == [0, 1] and f["row_pointers_1"].tolist() == [0, 1, 2]


def test_rows_in_groups_are_the_whole(tmp_path):
    rng = np.random.default_rng(1)
    whole = scipy.sparse.random(40, 40, 0.3, format="csr", random_state=rng)
    m = SparseMatrices(40, np.zeros((1, 3), dtype=int), [whole], "H", 0, cases.CRYSTAL)
    for form in ("text", "text-3.11", "binary", "npz"):
        write_csr(tmp_path / "whole", m, format=form)
        with CsrWriter(tmp_path / "groups", CsrHeader(40, 1, "H", 0, cases.CRYSTAL), float, format=form) as file:
            file.append_rows((0, 0, 0), whole.nnz, (whole[a : a + 7] for a in range(0, 40, 7)))
        if form == "npz":
            assert cases.equal(read_csr(tmp_path / "groups"), m)
        else:
            assert (tmp_path / "groups").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_the_writer_refuses(tmp_path):
    header, eye = CsrHeader(2, 1, "H"), scipy.sparse.eye(2, format="csr")

    def written(*appended, header=header, dtype=float, name="a", **options):
        with CsrWriter(tmp_path / name, header, dtype, **options) as file:
            for R, matrix in appended:
                file.append(R, matrix)

    for sentence, call in {
        "dtype: expected float64 or complex128, got float32": lambda: written(dtype=np.float32),
        "format: expected one of text, text-3.11, binary, npz, got 'csv'": lambda: written(format="csv"),
        "header: expected dimension >= 1": lambda: written(header=CsrHeader(0, 1, "H")),
        "expected a letter such as 'H' or 'S', got None": lambda: written(header=CsrHeader(2, 1)),
        "digits: expected 0...17, got 18": lambda: written(digits=18),
        "there is no structure": lambda: written(format="text-3.11"),
        "is not compressed again": lambda: written(format="npz", name="a.npz.xz"),
        "announced 1 matrices, appended 0": lambda: written(),
        "was written before, or is beyond the 1 announced": lambda: written(((0, 0, 0), eye), ((1, 0, 0), eye)),
        "expected 2 columns of float64, got 2 of complex128": lambda: written(((0, 0, 0), eye * 1j)),
        "expected 2 rows and 2 elements, got 3 and 2": lambda: written(
            ((0, 0, 0), scipy.sparse.eye(3, 2, format="csr"))
        ),
        "a value is not a finite number": lambda: written(((0, 0, 0), eye * np.nan), format="npz"),
    }.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert sentence in str(caught.value)
        assert list(tmp_path.iterdir()) == []  # neither the file nor its beginning
    with pytest.raises(FileError, match="a: cannot be written: No such file or directory"):
        write_csr(tmp_path / "no" / "a", cases.of_arrays({(0, 0, 0): np.eye(2)}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="folder: cannot be written: Is a directory"):
        write_csr(tmp_path / "folder", cases.of_arrays({(0, 0, 0): np.eye(2)}))
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(csr_text, "format_numbers", full)
    with pytest.raises(FileError, match="a: cannot be written: No space left on device"):
        write_csr(tmp_path / "a", cases.of_arrays({(0, 0, 0): np.eye(2)}))
    assert list(tmp_path.iterdir()) == []


def test_unsorted_columns_are_sorted_and_repeated_ones_refused(tmp_path):
    text = b"STEP: 0\nMatrix Dimension of H(R): 2\nMatrix number of H(R): 1\n0 0 0 2\n 1.0 2.0\n 1 0\n 0 2 2\n"
    (tmp_path / "a").write_bytes(text)
    (found,) = read_csr(tmp_path / "a").matrices
    assert found.indices.tolist() == [0, 1] and found.data.tolist() == [2, 1]
    (tmp_path / "a").write_bytes(text.replace(b" 1 0\n", b" 1 1\n"))
    with pytest.raises(FileError, match="line 6: a column index occurs twice in a row, in R"):
        read_csr(tmp_path / "a")
