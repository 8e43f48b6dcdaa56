import gzip
import json
import lzma
import shutil

import ase.build
import ase.io
import h5py
import numpy as np
import pytest
import torch
from block_cases import real_matrices

from nextham.data import sample
from nextham.io.csr import read_csr, write_blocks, write_csr
from nextham.io.deeph import write_deeph
from nextham.io.detect import KINDS, identify
from nextham.io.errors import FileError
from nextham.io.hdf5 import write_blocks_h5
from nextham.io.published_sample import PublishedSample, write_published


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each kind, under names that say nothing."""
    folder = tmp_path_factory.mktemp("kinds")
    run = sample("Si-1")
    found = {name: matrix.within(0, 3.0) for name, matrix in real_matrices().items()}
    shutil.copy(run / "STRU", folder / "stru")
    (folder / "stru.gz").write_bytes(gzip.compress((run / "STRU").read_bytes()))
    shutil.copy(run / "srs1_nao.csr.xz", folder / "text.xz")
    (folder / "text").write_bytes(lzma.open(run / "srs1_nao.csr.xz").read())
    matrix = read_csr(folder / "text")
    for form in ("text-3.11", "binary", "npz"):
        if form == "text-3.11":
            write_blocks(folder / form, found["H"], format=form)
        else:
            write_csr(folder / form, matrix, format=form)
    (folder / "binary.gz").write_bytes(gzip.compress((folder / "binary").read_bytes()))
    write_blocks_h5(folder / "ours", found, {"efermi_eV": 6.9})
    onsite = {name: matrix.within(0, 0.1) for name, matrix in found.items()}
    published = PublishedSample.from_matrices(**onsite, kpoints=np.zeros((1, 3)), band_cut=3, name="Si-1")
    write_published(folder / "sample", published)
    torch.save({"state_dict": {"a.weight": torch.zeros(3, 4), "b": torch.zeros(5)}}, folder / "checkpoint")
    ase.io.write(folder / "salt.cif", ase.build.bulk("NaCl", "rocksalt", 5.6), format="cif")
    write_deeph(folder / "deeph", found["S"], found["H"])
    (folder / "model").mkdir()
    content = {"format": "nextham ensemble 1", "config": {"ranges": [[0, 2], [2, 6]]}}
    (folder / "model" / "config.json").write_text(json.dumps(content))
    (folder / "model" / "weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "published").mkdir()
    torch.save({"state_dict": {}}, folder / "published" / "model_range0_nextham.pth.tar")
    (folder / "run" / "OUT.x").mkdir(parents=True)
    shutil.copy(run / "STRU", folder / "run")
    shutil.copy(folder / "text", folder / "run" / "OUT.x" / "data-SR")
    return folder


CASES = {
    "stru": ("stru", "Si2, 2 atoms"),
    "stru.gz": ("stru", "Si2, 2 atoms"),
    "text": ("abacus-matrix", "S(R) of ABACUS, text before 3.11: 119 lattice vectors, 52 rows"),
    "text.xz": ("abacus-matrix", "S(R) of ABACUS, text before 3.11: 119 lattice vectors, 52 rows"),
    "text-3.11": ("abacus-matrix", "H(R) of ABACUS, text since 3.11: 9 lattice vectors, 52 rows"),
    "binary": ("abacus-matrix", "matrix of ABACUS, binary: 119 lattice vectors, 52 rows"),
    "binary.gz": ("abacus-matrix", "matrix of ABACUS, binary: 119 lattice vectors, 52 rows"),
    "npz": ("abacus-matrix", "S(R) of ABACUS, NPZ: 119 lattice vectors, 52 rows"),
    "ours": (
        "blocks",
        "Si2, 2 atoms: H0 (10 edges, n_spin 4, complex128), H (10 edges, n_spin 4, complex128), "
        "S (10 edges, n_spin 4, complex128)",
    ),
    "sample": ("published-sample", "Si-1: 2 atoms, 4 edges, 1 k-points"),
    "checkpoint": ("published-checkpoint", "2 tensors of 17 numbers"),
    "salt.cif": ("structure", "NaCl, 2 atoms"),
    "deeph": ("deeph", "Si2, 2 atoms: hamiltonian.h5, overlap.h5"),
    "deeph/POSCAR": ("structure", "Si2, 2 atoms"),
    "model": ("model", "nextham ensemble 1: 2 networks"),
    "model/weights.safetensors": ("model", "nextham ensemble 1: 2 networks"),
    "published": ("published-model", "model_range0_nextham.pth.tar"),
    "run": ("abacus-run", "Si2, 2 atoms: OUT.x/data-SR"),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds(folder, name):
    found = identify(folder / name)
    assert (found.kind, found.facts) == CASES[name]


def test_bundled_run():
    assert identify(sample("Si-1")).facts == "Si2, 2 atoms: hrs0_nao.csr.xz, hrs1_nao.csr.xz, srs1_nao.csr.xz"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("Ga_gga_8au_100Ry_2s2p2d1f.orb.xz", "orb", "orbitals 2s2p2d1f of Ga, cut off at 8 Bohr"),
        ("Ga.upf.xz", "upf", "pseudopotential of Ga with 13 valence electrons"),
    ],
)
def test_basis_files(shared, name, kind, facts):
    found = identify(shared / "data" / "basis" / name)
    assert (found.kind, found.facts) == (kind, facts)


def test_every_kind_has_a_case():
    # A dataset is told in test_dataset.py.
    assert {kind for kind, _ in CASES.values()} | {"orb", "upf", "dataset", "packed-sample"} == set(KINDS)


@pytest.mark.shared
def test_packed_sample(shared):
    found = identify(shared / "data" / "packed" / "LiH-1.npz.xz")
    assert (found.kind, found.facts) == ("packed-sample", "H0, H and S of one calculation, single precision")


class Harmful:
    def __reduce__(self):
        return (print, ("code from a file was run",))


def test_what_is_nothing(folder, tmp_path):
    def write(data):
        (tmp_path / "x").write_bytes(data)
        return tmp_path / "x"

    def saved(content):
        torch.save(content, tmp_path / "x")
        return tmp_path / "x"

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "basis").mkdir()
    (tmp_path / "basis" / "Si.upf.xz").write_text("")
    text = (folder / "text.xz").read_bytes()
    for path, sentence in (
        (lambda: tmp_path / "absent", "cannot be read: No such file"),
        (lambda: write(b""), "the file is empty"),
        (
            lambda: write(b"some words\n"),
            "is nothing known; known are: ABACUS sparse matrix .text, binary or NPZ.; STRU",
        ),
        (lambda: write(bytes(range(256))), "is nothing known"),
        (lambda: write(text[:100]), "damaged or cut short"),
        (lambda: write(b"STEP: 0\n"), "the header should be|ends where"),
        (lambda: write((folder / "npz").read_bytes()[:500]), "is an archive"),
        (lambda: write((folder / "ours").read_bytes()[:500]), "damaged or cut short"),
        (lambda: saved([1, 2]), "neither a published sample nor a published checkpoint"),
        (lambda: saved([Harmful()]), "code is never run"),
        (lambda: tmp_path / "other.h5", "not one of block matrices"),
        (lambda: folder / "deeph" / "overlap.h5", "one matrix of a DeepH folder: give the folder"),
        (lambda: tmp_path / "empty", "is a folder of nothing known; known are"),
        (lambda: tmp_path / "basis", "is a folder of orbital or pseudopotential files: `nextham basis check` says"),
    ):
        with pytest.raises(FileError, match=sentence) as caught:
            identify(path())
        assert "\n" not in str(caught.value)


def test_foreign_models(folder, tmp_path):
    for content in ('{"architectures": []}', '{"format": "other"}', "{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(FileError, match="of a model of nextham"):
            identify(tmp_path)
