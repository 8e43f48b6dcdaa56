import io
import json
import zipfile

import numpy as np
import pytest
import torch
from block_cases import assert_equal, real_matrices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham.basis import Basis, order_permutation, published_slots
from nextham.blocks import Blocks
from nextham.data import sample as sample_folder
from nextham.graph import Graph, neighbour_graph
from nextham.io.errors import FileError
from nextham.io.hdf5 import read_blocks_h5, write_blocks_h5
from nextham.io.published_sample import PublishedSample, kpoint_mesh, read_published, write_published
from nextham.structure import Structure
from nextham.units import PUBLISHED_RYDBERG, RYDBERG

K = np.array([[0.03, 0.28, -0.2], [0.5, 0.0, 0.25]])
KINDS = """str f32[3,3] f32[n,3] int i64[] i64[] f64[q,3] c64[qN,54n] f32[e,5832] c64[e,4,729] c64[e,4,729] f32[e,4,729]
    f32[e,3] i64[e] i64[e] list str c64[e,4,729] c64[e,54,54] c64[e,54,54] f32[e,54,54] c64[e,54,54]""".split()


def of_folder(folder, kpoints=K, name="Si-1"):
    found = real_matrices(folder)
    fermi = json.loads((folder / "info.json").read_text())["efermi_eV"]
    return PublishedSample.from_matrices(**found, kpoints=kpoints, fermi=fermi, name=name, path="somewhere/0.pth")


@pytest.fixture(scope="module")
def sample():
    return of_folder(sample_folder("Si-1"))


@pytest.fixture(scope="module")
def file(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "0.pth"
    write_published(path, sample)
    return path


def entries_of(path):
    return torch.load(path, weights_only=True)


def changed(file, tmp_path, **entries):
    """A copy of the file with other entries: e4=… is entry 4."""
    content = entries_of(file)
    for name, value in entries.items():
        content[int(name[1:])] = value
    torch.save(content, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def assert_same(a, b):
    for name in ("H0", "S", "delta"):
        assert_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.kpoints, b.kpoints)
    np.testing.assert_array_equal(a.eigenvectors, b.eigenvectors)
    assert (a.name, a.path, a.band_cut) == (b.name, b.path, b.band_cut)


def in_float32(sample):
    """The same with cell and positions as the file has them."""
    s = sample.structure
    graph = sample.graph
    structure = Structure(s.cell.astype(np.float32), s.positions.astype(np.float32), s.numbers)
    graph = Graph(structure, graph.src, graph.dst, graph.R)
    moved = {n: Blocks(graph, sample.basis, m.data, m.n_spin) for n, m in vars(sample).items() if isinstance(m, Blocks)}
    return PublishedSample(**{**vars(sample), **moved})


def test_entries(sample, file):
    """Kinds and shapes of all 22, and what repeats what."""
    entries = entries_of(file)
    sizes = {"e": sample.graph.n_edges, "n": 2, "q": 2, "N": 52, "qN": 104, "54n": 108}
    names = {"f32": torch.float32, "f64": torch.float64, "c64": torch.complex64, "i64": torch.int64}
    assert len(entries) == len(KINDS) == 22
    for entry, kind in zip(entries, KINDS, strict=True):
        if "[" not in kind:
            assert type(entry).__name__ == kind
            continue
        dtype, shape = kind[:3], [x for x in kind[4:-1].split(",") if x]
        assert entry.dtype == names[dtype]
        assert list(entry.shape) == [sizes.get(x) or int(x) for x in shape]
    assert (entries[0], entries[3], entries[4], entries[5], entries[16]) == ("somewhere/0.pth", 52, 19, 2, "Si-1")
    assert set(entries[15]) == {("Si", "Si")}
    shells = (1, 1, 1, 1, 3, 3, 5, 5, 7)
    for pairs, square in ((9, 18), (10, 19), (11, 20), (17, 21)):
        matrix = entries[square].reshape(-1, 2, 27, 2, 27)
        parts = [
            [matrix[:, s, :, t].split(shells, 1)[i].split(shells, 2)[j].flatten(1) for i in range(9) for j in range(9)]
            for s in (0, 1)
            for t in (0, 1)
        ]
        assert torch.equal(torch.stack([torch.cat(part, 1) for part in parts], 1), entries[pairs])
    exists = torch.zeros(54)
    exists[[s + 27 * spin for spin in (0, 1) for s in (0, 1, *range(4, 15))]] = 1
    assert torch.equal(entries[20], torch.outer(exists, exists).expand(sample.graph.n_edges, 54, 54))
    for index in (18, 19, 21):
        assert not entries[index][entries[20] == 0].any()


def test_one_element_by_hand(sample, file):
    """⟨p_x↑ | H0 | d_xz↓⟩ of an edge, where FORMATS says that it is."""
    entries, e = entries_of(file), 5
    block = sample.H0.block(e)
    p_x, d_xz = 2 + 2, 8 + 3  # e3nn: s s (y z x) (y z x) (xy yz z² xz x²−y²)
    assert entries[18].numpy()[e, 4, 27 + 8 + 2 + 3] == block[1, p_x, d_xz]  # 4s (x y z)…: slot 4; d: z² x²−y² xy xz yz
    assert np.linalg.norm(entries[12][e].numpy()) == pytest.approx(sample.graph.distance()[e], rel=1e-6)


def test_round_trip(sample, file, tmp_path):
    found = read_published(file)
    assert_same(found, in_float32(sample))
    write_published(tmp_path / "again.pth", found)
    for i, (a, b) in enumerate(zip(entries_of(file), entries_of(tmp_path / "again.pth"), strict=True)):
        if i == 12:  # made of positions that were rounded to float32
            torch.testing.assert_close(a, b, rtol=0, atol=3e-6)
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_ours_keeps_the_bits_and_is_small(sample, file, tmp_path):
    """H0, ΔH and S of a published file in ours, with eigenvectors at its few k-points."""
    found = read_published(file)
    matrices = {"H0": found.H0, "delta": found.delta, "S": found.S}
    metadata = {"band_cut": found.band_cut, "kpoints": found.kpoints, "eigenvectors": found.eigenvectors}
    write_blocks_h5(tmp_path / "0.h5", matrices, metadata)
    for name, matrix in read_blocks_h5(tmp_path / "0.h5").items():
        assert_equal(matrix, matrices[name])
    assert file.stat().st_size / (tmp_path / "0.h5").stat().st_size > 60


def test_edges_and_eigenvectors(sample):
    """Published edges in their order, and U of the full matrices, not of those below 8 Å."""
    graph = sample.graph
    assert graph.n_edges == 212 and graph.distance().max() < 8
    order = np.lexsort((graph.dst, graph.src, graph.R[:, 2], graph.R[:, 1], graph.R[:, 0]))
    np.testing.assert_array_equal(order, np.arange(212))
    full = real_matrices()
    for k, U in zip(sample.kpoints, sample.eigenvectors, strict=True):
        H, S = full["H"].to_dense(k), full["S"].to_dense(k)
        np.testing.assert_allclose(U.conj() @ S @ U.T, np.eye(52), atol=3e-5)
        energies = U.conj() @ H @ U.T
        np.testing.assert_allclose(energies, np.diag(np.diag(energies)), atol=1e-3)
    np.testing.assert_array_equal(kpoint_mesh((0.5, 0.25, 0))[:5, 2], [0, 0.25, 0.5, 0.75, 0])
    assert kpoint_mesh().shape == (64, 3) and kpoint_mesh((0.5, 0.25, 0))[0].tolist() == [0.125, 0.0625, 0]


def reference_order(reference, graph, cutoff):
    """Our edges that the reference has, and that they are in its order."""
    ours = np.flatnonzero(graph.distance() < cutoff)
    for name, mine in (("R", graph.R), ("edge_src", graph.src), ("edge_dst", graph.dst)):
        np.testing.assert_array_equal(mine[ours], reference[name])
    np.testing.assert_allclose(graph.vector()[ours], reference["edge_vec"], atol=1e-5)
    return ours


@pytest.mark.shared
@pytest.mark.parametrize(("run", "name", "cutoff"), [("GaAs-1", "gaas", 4.4), ("Si-1", "si", 4.6)])
def test_published_code_says_the_same(shared, tmp_path, run, name, cutoff):
    """Order of edges, irreps of H0, band_cut, and eigenvectors up to their phases."""
    reference = np.load(shared / "reference" / f"{name}.npz")
    expected = json.loads((shared / "reference" / f"{name}.json").read_text())
    sample = of_folder(shared / "data" / "abacus" / run, reference["kpt"][None], run)
    write_published(tmp_path / "0.pth", sample)
    entries = entries_of(tmp_path / "0.pth")
    ours = reference_order(reference, sample.graph, cutoff)
    irreps = entries[8].numpy()[ours] * (PUBLISHED_RYDBERG / RYDBERG)
    np.testing.assert_allclose(irreps, reference["H0_ds"], atol=2e-5 * np.abs(reference["H0_ds"]).max())
    assert sample.band_cut == expected["band_cut_index"] == len(reference["P_err"])

    theirs, mine = reference["eigenvectors_padded"], entries[7].numpy()
    assert theirs.shape == mine.shape
    energies = reference["eigenvalues"]
    alone = np.minimum(np.diff(energies, prepend=-1e9), np.diff(energies, append=1e9)) > 1e-2
    assert alone.sum() > 10
    largest = np.abs(theirs).argmax(axis=1)[:, None]
    phase = np.take_along_axis(theirs, largest, 1) / np.take_along_axis(mine, largest, 1)
    np.testing.assert_allclose(np.abs(phase[alone]), 1, atol=1e-3)
    np.testing.assert_allclose((phase * mine)[alone], theirs[alone], atol=2e-3)


SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)


@SETTINGS
@given(numbers=st.lists(st.sampled_from([1, 3, 14, 11, 32, 22]), min_size=1, max_size=3), seed=st.integers(0, 999))
def test_round_trip_of_any_elements(tmp_path, numbers, seed):
    """All six orbital sets, without any symmetry; atoms of the file may lie outside the cell."""
    rng = np.random.default_rng(seed)
    cell = 4 * np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3))
    structure = Structure(cell, rng.uniform(0, 1, (len(numbers), 3)) @ cell, numbers)
    graph, basis = neighbour_graph(structure, 4.5), Basis.published(numbers)
    size = 2 * int(basis.offsets(structure.numbers)[-1])

    def random(shape, dtype):
        return (rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype == "c8" else 0)).astype(dtype)

    def blocks(n_spin, dtype):
        empty = Blocks.zeros(graph, basis, n_spin, dtype)
        return empty.like(random(len(empty.data), dtype))

    sample = PublishedSample(
        "x",
        blocks(4, "c8"),
        blocks(1, "f4"),
        blocks(4, "c8"),
        3,
        rng.uniform(size=(2, 3)),
        random((2, size, size), "c8"),
    )
    write_published(tmp_path / "x.pth", sample)
    assert_same(read_published(tmp_path / "x.pth"), in_float32(sample))
    moved = torch.tensor(structure.positions + rng.integers(-2, 3, (len(numbers), 3)) @ cell)
    content = entries_of(tmp_path / "x.pth")
    shifts = torch.round((moved - content[2]) @ torch.linalg.inv(content[1].double()))
    content[2] = (content[2].double() + shifts @ content[1].double()).float()
    torch.save(content, tmp_path / "x.pth")
    found = read_published(tmp_path / "x.pth")
    np.testing.assert_allclose(found.graph.vector(), graph.vector(), atol=1e-4)
    np.testing.assert_array_equal(found.H0.data, sample.H0.data)


def test_orbitals_of_the_eigenvectors(sample, file):
    """One of them where the page of the module says."""
    entries = entries_of(file)
    index, sign = order_permutation((0, 0, 1, 1, 2), "deeph")
    np.testing.assert_array_equal(sign, 1)
    slots = published_slots((0, 0, 1, 1, 2))
    atom, orbital, spin, band = 1, 7, 1, 9
    padded = entries[7].numpy().reshape(2, 52, 2, 2, 27)[1, band, atom, spin, slots[orbital]]
    assert padded == sample.eigenvectors[1, band, 2 * (13 * atom + index[orbital]) + spin]


def test_wrong_entries(file, tmp_path):
    content = entries_of(file)
    mask = content[20].clone()
    mask[7, 2, 3] = 1
    away = content[12].clone()
    away[9, 1] += 0.01
    spin = content[19].clone()
    spin[3, 0, 27] = 0.1
    nan = content[18].clone()
    nan[0, 0, 0] = float("nan")
    mixed = list(content[15])
    mixed[11] = ("Si", "C")
    for entries, sentence in (
        ({"e18": content[18][:5]}, r"entry 18: expected a tensor \[212, 54, 54\], got \[5, 54, 54\]"),
        ({"e21": "x"}, r"entry 21: expected a tensor \[212, 54, 54\], got str"),
        ({"e18": nan}, "entry 18: a number is not finite"),
        ({"e7": content[7][:, :54]}, r"entry 7: expected a tensor \[104, 108\]"),
        ({"e12": away}, "entry 12: edge 9 is 0.01 Å away"),
        ({"e15": mixed}, "atom [01] is Si in one pair and C in another"),
        ({"e15": mixed[:3]}, "entry 15: expected 212 pairs"),
        ({"e15": [("Q", "Q")] * 212}, "expected an element, got 'Q'"),
        ({"e15": [("Lu", "Lu")] * 212}, "published basis has no orbitals for Lu"),
        ({"e15": [("C", "C")] * 212, "e20": mask}, r"the mask of edge 7 \(C-C\) is not that"),
        ({"e15": [("Ge", "Ge")] * 212}, r"the mask of edge 0 \(Ge-Ge\) is not that"),
        ({"e13": content[13] + 1}, r"edges of the atoms 0\.\.\.1|out of bounds"),
        ({"e2": content[2].repeat(2, 1)}, r"edges of the atoms 0\.\.\.3 and no others"),
        ({"e19": spin}, "depends on spin"),
        ({"e4": torch.ones(2)}, "converted"),
    ):
        with pytest.raises(FileError, match=sentence) as caught:
            read_published(changed(file, tmp_path, **entries))
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy(file, tmp_path):
    """Its numbers and words among the entries are no code, whichever numpy wrote them."""
    path = changed(file, tmp_path, e3=np.int64(52), e4=np.int64(19), e16=np.str_("Si-1"), e5=np.float64(2))
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.", b"numpy.core."))
    with zipfile.ZipFile(tmp_path / "old.pth") as old:
        assert b"numpy.core.multiarray" in old.read("changed/data.pkl")
    for written in (path, tmp_path / "old.pth"):
        assert_same(read_published(written), read_published(file))


class Harmful:
    def __reduce__(self):
        return (print, ("code from a file was run",))


def test_no_code_is_run(file, tmp_path, capsys):
    for value in (Harmful(), torch.nn.Linear(2, 2)):
        with pytest.raises(FileError, match="code is never run"):
            read_published(changed_unsafe(file, tmp_path, value))
    assert capsys.readouterr().out == ""


def changed_unsafe(file, tmp_path, value):
    content = entries_of(file)
    content[0] = value
    torch.save(content, tmp_path / "unsafe.pth")
    return tmp_path / "unsafe.pth"


def test_other_files(file, tmp_path):
    content = file.read_bytes()
    broken = bytearray(content)
    broken[len(content) // 2] ^= 1
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("a", "b")
    list_of_three = io.BytesIO()
    torch.save([1, 2, 3], list_of_three)
    state = io.BytesIO()
    torch.save({"state_dict": {}}, state)
    for data, sentence in (
        (b"", "damaged or cut short"),
        (b"STEP: 0\n", "damaged or cut short"),
        (content[:1000], "damaged or cut short"),
        (content[:-1000], "damaged or cut short"),
        (bytes(broken), "a checksum is wrong"),
        (archive.getvalue(), "damaged or cut short"),
        (list_of_three.getvalue(), "expected the 22 entries of a published sample, got 3 entries"),
        (state.getvalue(), "expected the 22 entries of a published sample, got dict"),
    ):
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(FileError, match=sentence) as caught:
            read_published(tmp_path / "x.pth")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_published(tmp_path / "absent.pth")


def test_no_damage_goes_unseen(sample, tmp_path):
    """Any changed byte gives an error or changes nothing; eighty of them, all over a file of the on-site blocks."""
    onsite = sample.graph.onsite()
    graph = sample.graph.select(onsite)
    blocks = {n: getattr(sample, n).select(onsite).data for n in ("H0", "S", "delta")}
    blocks = {n: Blocks(graph, sample.basis, data, 1 if n == "S" else 4) for n, data in blocks.items()}
    write_published(tmp_path / "x.pth", PublishedSample(**{**vars(sample), **blocks}))
    expected, content = read_published(tmp_path / "x.pth"), (tmp_path / "x.pth").read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for place in [*np.linspace(0, len(content) - 1, 50), *rng.integers(len(content) - 4000, len(content), 30)]:
        damaged = bytearray(content)
        damaged[int(place)] ^= int(rng.integers(1, 256))
        (tmp_path / "x.pth").write_bytes(damaged)
        try:
            assert_same(read_published(tmp_path / "x.pth"), expected)
        except FileError as error:
            assert "\n" not in str(error)
            errors += 1
    assert errors > 50


def test_what_makes_no_sample(sample):
    found = real_matrices()
    make = PublishedSample.from_matrices
    with pytest.raises(ValueError, match="expected one of the two"):
        make(**found, kpoints=K)
    with pytest.raises(ValueError, match="no band is 10"):
        make(**found, kpoints=K, fermi=1e4)
    with pytest.raises(ValueError, match="not positive definite at k"):
        make(found["H0"], found["H"], found["S"] * -1.0, K, band_cut=1)
    with pytest.raises(ValueError, match="depends on spin"):
        make(found["H0"], found["H"], found["H"], K, band_cut=1)
    with pytest.raises(ValueError, match="delta: expected n_spin 4 on the graph"):
        PublishedSample(**{**vars(sample), "delta": found["H"]})
    with pytest.raises(ValueError, match="kpoints, eigenvectors"):
        PublishedSample(**{**vars(sample), "kpoints": K[:1]})
