"""Datasets: what is built is what was read, an interrupted build loses nothing, bad samples are refused and named."""

import json
import lzma
import shutil
from dataclasses import replace

import numpy as np
import pytest
from block_cases import assert_equal, real_matrices

from nextham.blocks import Blocks
from nextham.cli import dataset as command
from nextham.cli import main
from nextham.data import sample
from nextham.dataset import Dataset, Refused, check_sample, split
from nextham.io.errors import FileError
from nextham.io.hdf5 import write_blocks_h5
from nextham.io.published_sample import PublishedSample, write_published
from nextham.io.scf_log import read_scf_log
from nextham.metrics import gauge_mae


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two good samples, one in a folder of folders, and one whose run did not converge."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(sample("Si-1"), folder / "Si-a")
    shutil.copytree(sample("Si-1"), folder / "more" / "Si-b")
    shutil.copytree(sample("Si-1"), folder / "Si-c")
    info = json.loads((folder / "Si-c" / "info.json").read_text())
    (folder / "Si-c" / "info.json").write_text(json.dumps({**info, "converged": False}))
    return folder


@pytest.fixture(scope="module")
def built(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("data") / "data.h5"
    assert main(["dataset", "build", str(runs), "-o", str(output), "--jobs", "1", "--precision", "double"]) == 0
    return output


def test_what_is_read_is_what_was_built(built):
    dataset = Dataset(built)
    assert sorted(dataset.samples) == ["Si-a", "Si-b"]
    facts, matrices = dataset.samples["Si-a"], real_matrices()
    assert (facts.material, facts.n_atoms, facts.n_orbitals, facts.n_edges) == ("Si", 2, 26, 212)
    assert (facts.elements, facts.n_spin, facts.efermi) == (("Si",), 4, 6.9295483008)
    read = dataset.read("Si-b")
    for name in ("H", "S"):
        assert_equal(read[name], matrices[name].spinless() if name == "S" else matrices[name])
    error = (read["H0"].on(matrices["H0"].graph) - matrices["H0"]).data
    assert not error.any()
    expected = gauge_mae(matrices["H0"], matrices["H"], matrices["S"]).mae_meV
    assert facts.h0_mae == pytest.approx(expected, rel=1e-12)
    assert dataset.stored_bands("Si-a") is None


def test_refused_are_listed(built, runs, capsys):
    (source, why), *more = Dataset(built).refused.items()
    assert not more and source == str(runs / "Si-c") and why == "the calculation did not converge"
    assert main(["info", str(built)]) == 0
    shown = capsys.readouterr().out
    assert "2 samples" in shown and "did not converge" in shown and "Si" in shown


def test_matrices_without_structure_are_refused_by_name(tmp_path, capsys):
    shutil.copytree(sample("Si-1"), tmp_path / "runs" / "Si-z")
    (tmp_path / "runs" / "Si-z" / "STRU").unlink()
    assert main(["dataset", "build", str(tmp_path / "runs"), "-o", str(tmp_path / "data.h5"), "--jobs", "1"]) == 1
    assert "Si-z: there is no STRU" in capsys.readouterr().err


def test_interrupted_build_goes_on(runs, tmp_path, monkeypatch):
    """Killed after the first sample: the second build reads the others only, and nothing is lost."""
    output, done = tmp_path / "data.h5", []
    whole = command.build_part

    def counted(task):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(task.name)
        return whole(task)

    arguments = ["dataset", "build", str(runs), "-o", str(output), "--jobs", "1"]
    monkeypatch.setattr(command, "build_part", counted)
    assert main(arguments) == 130
    assert not output.exists() and (tmp_path / "data.h5.parts" / f"{done[0]}.h5").exists()
    monkeypatch.setattr(command, "build_part", whole)
    read = []
    monkeypatch.setattr(command, "_read", lambda task, f=command._read: read.append(task.name) or f(task))
    assert main(arguments) == 0
    assert sorted(Dataset(output).samples) == ["Si-a", "Si-b"]
    assert done[0] not in read and len(read) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.h5"]


def test_building_into_a_file_adds(built, tmp_path):
    output = tmp_path / "data.h5"
    shutil.copy(built, output)
    shutil.copytree(sample("Si-1"), tmp_path / "Si-d")
    assert main(["dataset", "build", str(tmp_path / "Si-d"), "-o", str(output), "--jobs", "1"]) == 0
    dataset = Dataset(output)
    assert sorted(dataset.samples) == ["Si-a", "Si-b", "Si-d"] and len(dataset.refused) == 1
    assert_equal(dataset.read("Si-a", ["H"])["H"], Dataset(built).read("Si-a", ["H"])["H"])


def test_published_sample_keeps_its_bands(tmp_path):
    m, k = real_matrices(), np.array([[0.1, 0.2, 0.3]])
    published = PublishedSample.from_matrices(m["H0"], m["H"], m["S"], k, fermi=6.9295, name="Si")
    write_published(tmp_path / "one.pth", published)
    output = tmp_path / "data.h5"
    assert main(["dataset", "build", str(tmp_path / "one.pth"), "-o", str(output), "--jobs", "1"]) == 0
    dataset = Dataset(output)
    assert dataset.samples["one"].n_low == published.band_cut
    kpoints, vectors = dataset.stored_bands("one")
    np.testing.assert_array_equal(kpoints, k)
    np.testing.assert_array_equal(vectors, published.eigenvectors.swapaxes(1, 2))
    s = m["S"].spinor().to_dense(k)[0]
    assert np.abs(vectors[0].conj().T @ s @ vectors[0] - np.eye(52)).max() < 1e-4
    assert main(["dataset", "build", str(tmp_path / "one.pth"), "-o", str(tmp_path / "d.h5"), "--no-eigenvectors"]) == 0
    assert Dataset(tmp_path / "d.h5").stored_bands("one") is None


@pytest.mark.shared
def test_packed_sample(shared, tmp_path):
    """A packed sample holds what its expanded ABACUS files do, in single precision."""
    import importlib.util

    from nextham.io.packed_sample import read_packed

    spec = importlib.util.spec_from_file_location("expand", shared / "data" / "expand.py")
    expand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(expand)
    expand.main(tmp_path, {"LiH-1"})
    found = read_packed(shared / "data" / "packed" / "LiH-1.npz.xz")
    assert found.info["name"] == "LiH-1"
    for name, file in (("H0", "hrs0"), ("H", "hrs1"), ("S", "srs1")):
        from nextham.io.csr import read_blocks

        expected = read_blocks(tmp_path / "LiH-1" / f"{file}_nao.csr", found.structure, found.basis)
        ours = found.matrices[name].with_spin(4)
        assert np.abs(ours.on(expected.graph).data - expected.data).max() < 1e-7
        assert ours.within(0, 8).n_edges >= expected.within(0, 8).n_edges > 50
    with open(tmp_path / "cut.npz.xz", "wb") as file:
        file.write((shared / "data" / "packed" / "LiH-1.npz.xz").read_bytes()[:1000])
    with pytest.raises(FileError, match="no packed sample, or damaged"):
        read_packed(tmp_path / "cut.npz.xz")
    with lzma.open(tmp_path / "other.npz.xz", "wb") as file:
        np.savez(file, stru=np.zeros(3))
    with pytest.raises(FileError, match="no packed sample, or damaged"):
        read_packed(tmp_path / "other.npz.xz")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop("S"), "there is no S"),
        (lambda m: m["H"].data.__setitem__(0, np.nan), "H has numbers that are not finite"),
        (lambda m: m["H"].data.__setitem__(-1, 1.0), "H is not Hermitian: M(R) and M(-R)† differ by up to"),
        (lambda m: m.update(S=m["S"] * -1.0), "S is not positive definite at Γ"),
        (lambda m: m.update(H0=m["H0"].select(~m["H0"].graph.onsite())), "H0 lacks the on-site block of an atom"),
        (lambda m: m.update(H0=m["H0"].channel(0)), "H0 and H have n_spin 1 and 4"),
    ],
)
def test_bad_samples_are_refused(change, sentence):
    matrices = {name: m.like(m.data.copy()) for name, m in real_matrices().items()}
    matrices["S"] = matrices["S"].spinless()
    change(matrices)
    with pytest.raises(Refused) as refused:
        check_sample(matrices, True, 6.93)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("converged", "efermi", "sentence"),
    [(False, 6.9, "did not converge"), (None, None, "Fermi level is not known"), (True, 500.0, "expected levels")],
)
def test_refused_for_what_the_log_says(converged, efermi, sentence):
    with pytest.raises(Refused, match=sentence):
        check_sample(dict(real_matrices()), converged, efermi)


@pytest.mark.parametrize(
    ("text", "converged", "efermi"),
    [
        (" charge density convergence is achieved\n final etot is -214.9 eV\n EFERMI = 6.5 eV\n", True, 6.5),
        ("E_Fermi  0.4 5.5\nE_Fermi   0.48   6.53\n convergence has NOT been achieved!\n", False, 6.53),
        (" #SCF IS CONVERGED#\n !!SCF IS NOT CONVERGED!!\n", False, None),
        ("nothing of the kind\n", None, None),
    ],
)
def test_scf_log(tmp_path, text, converged, efermi):
    (tmp_path / "running_scf.log").write_text(text)
    log = read_scf_log(tmp_path / "running_scf.log")
    assert (log.converged, log.efermi) == (converged, efermi)


def test_a_log_beside_the_run_is_heard(tmp_path):
    folder = tmp_path / "Si"
    shutil.copytree(sample("Si-1"), folder)
    (folder / "info.json").unlink()
    (folder / "OUT.Si").mkdir()
    log = folder / "OUT.Si" / "running_scf.log"
    log.write_text(" charge density convergence is achieved\n EFERMI = 6.9 eV\n")
    output = tmp_path / "data.h5"
    assert main(["dataset", "build", str(folder), "-o", str(output), "--jobs", "1"]) == 0
    assert Dataset(output).samples["Si"].efermi == 6.9


def test_split_is_stable(built):
    facts = Dataset(built).samples["Si-a"]
    many = [replace(facts, name=f"s{i}", material=f"m{i % 17}") for i in range(400)]
    parts = split(many, 0.2, 0.1, seed=3)
    assert sorted(name for names in parts.values() for name in names) == sorted(s.name for s in many)
    assert 60 < len(parts["validation"]) < 100 and 25 < len(parts["test"]) < 60
    half = split(many[::2], 0.2, 0.1, seed=3)
    assert all(set(half[part]) <= set(parts[part]) for part in parts)  # a sample's part depends on no other
    assert split(many, 0.2, 0.1, seed=4) != parts
    by_material = split(many, 0.2, 0.2, by="material", test_only=["m3", "s8"])
    where = {name: part for part, names in by_material.items() for name in names}
    assert where["s8"] == "test" and {where[f"s{i}"] for i in range(3, 400, 17)} == {"test"}
    for m in set(range(17)) - {8}:
        assert len({where[f"s{i}"] for i in range(m, 400, 17)}) == 1
    either = [replace(facts, name=m, material=m) for m in ("AsGa", "O2Ti", "Bi2Se3")]
    assert split(either, 0, 0, test_only=["GaAs", "Bi2Se3"], validation_only=["TiO2"])["validation"] == ["O2Ti"]
    with pytest.raises(ValueError, match="no sample is called 'Xy' or of that material; the materials are m0, m1, m10"):
        split(many, test_only=["Xy"])
    with pytest.raises(ValueError, match=r"^split: expected validation and test of 0 to 1"):
        split(many, 0.7, 0.7)
    with pytest.raises(ValueError, match=r"^split.by: expected"):
        split(many, by="colour")


def test_wrong_files_are_named(tmp_path, built):
    write_blocks_h5(tmp_path / "one.h5", {"S": real_matrices()["S"]})
    with pytest.raises(FileError, match="is not a nextham dataset"):
        Dataset(tmp_path / "one.h5")
    with pytest.raises(FileError, match="there is no sample 'Xy'"):
        Dataset(built).read("Xy")
    assert main(["dataset", "build", str(tmp_path / "absent"), "-o", str(tmp_path / "d.h5")]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["dataset", "build", str(tmp_path / "empty"), "-o", str(tmp_path / "d.h5")]) == 1
    assert isinstance(real_matrices()["S"], Blocks)
