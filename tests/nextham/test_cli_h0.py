"""`nextham h0` and `nextham predict --basis`, on self-made files and against ABACUS."""

import json

import numpy as np
import pytest
import torch
from basis_files import orb_text, upf_text
from gaussian_orbitals import RADIUS, SHELLS, radial

from nextham.basis import Basis
from nextham.cli import main
from nextham.cli.sources import open_source
from nextham.data import sample
from nextham.h0 import AtomicFiles, build_h0, position_matrix
from nextham.io.csr import read_blocks
from nextham.io.hdf5_pieces import PieceWriter
from nextham.io.position_file import read_position
from nextham.io.structure_file import read_structure
from nextham.model import Ensemble, NextHAMConfig, save
from nextham.units import SYMBOLS

POSCAR = """silane without three of its hydrogens
1.0
5.0 0.2 0.0
0.0 5.2 0.3
0.4 0.0 5.4
Si H
1 1
Direct
0.1 0.2 0.3
0.4 0.45 0.5
"""
BETAS = {1: ((0, 0.5, 1.5),), 14: ((0, 0.5, 1.3), (1, 0.5, 1.6), (1, 1.5, 1.4))}


def write_files(folder):
    """Orbital and pseudopotential files of two elements."""
    for z, shells in SHELLS.items():
        functions = [(l, radial(l, exponent)) for l, exponent in shells]
        (folder / f"{SYMBOLS[z]}_gaussian.orb").write_text(orb_text(SYMBOLS[z], functions, RADIUS[z]))
        betas = [(l, j, lambda r, l=l, a=a: r * radial(l, a)(r)) for l, j, a in BETAS[z]]
        (folder / f"{SYMBOLS[z]}.upf").write_text(upf_text(SYMBOLS[z], {1: 1.0, 14: 4.0}[z], betas))


@pytest.fixture(scope="module")
def basis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basis")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def poscar(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "POSCAR"
    path.write_text(POSCAR)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = NextHAMConfig(
        hidden="8x0e+4x1o+4x1e+2x2e", l_max=2, n_layers=2, n_heads=2, n_radial=8, radial_widths=(8,), alpha_scalars=4,
        alpha_widths=(8,), tracegrad_forms=8, tracegrad_forms_last=8, tracegrad_widths=(8, 8), trace_widths=(8,),
        target="scalar", cutoff=4.5, ranges=((0.0, 2.0), (2.0, 4.0)),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    save(Ensemble(config), folder)
    return folder


@pytest.fixture(scope="module")
def computed(basis, poscar, tmp_path_factory):
    out = tmp_path_factory.mktemp("h0")
    arguments = ["h0", str(poscar), "--basis", str(basis), "--position", "--digits", "12", "-o", str(out)]
    assert main(arguments) == 0
    return out


def test_files_of_h0(computed, basis, poscar, capsys):
    structure = read_structure(poscar)
    files = AtomicFiles.read(basis, structure.numbers)
    h0, overlap = build_h0(structure, files)
    source = open_source(computed)
    assert source.names() == ["H0", "S"] and h0.n_spin == 4
    np.testing.assert_array_equal(source.read("H0").data, h0.data)
    np.testing.assert_array_equal(source.read("S").data, overlap.data)
    shells = Basis({z: [l for l, _ in shells] for z, shells in SHELLS.items()})
    text = read_blocks(computed / "hrs0_nao.csr", structure, shells)
    np.testing.assert_allclose(text.on(h0.graph).data, h0.data, rtol=0, atol=1e-8)
    text = read_blocks(computed / "srs1_nao.csr", structure, shells).spinless()
    np.testing.assert_allclose(text.on(overlap.graph).data, overlap.data, rtol=0, atol=1e-9)
    expected = position_matrix(structure, files.orbitals)
    for found, matrix in zip(read_position(computed / "rr.csr", structure, shells), expected, strict=True):
        np.testing.assert_allclose(found.on(matrix.graph).data, matrix.data, rtol=0, atol=1e-9)
    lists = [
        [line for line in (computed / name).read_text().splitlines() if len(line.split()) == words][:]
        for name, words in (("hrs0_nao.csr", 4), ("srs1_nao.csr", 4), ("rr.csr", 3))
    ]
    vectors = [[tuple(line.split()[:3]) for line in lines if "(" not in line and "." not in line] for lines in lists]
    assert vectors[0] == vectors[1] == vectors[2]
    summary = json.loads((computed / "summary.json").read_text())
    assert (summary["structure"], summary["atoms"], summary["n_spin"]) == ("SiH", 2, 4)
    assert set(summary["seconds"]) == {"reading the files", "H of step zero", "position", "writing"}
    assert main(["bands", str(computed), "--electrons", "5", "--kpath", "GX", "--points", "4", "--mesh", "2", "2", "2",
                 "-o", str(computed / "bands")]) == 0  # fmt: skip
    assert f"{computed.name} H0: E_F = " in capsys.readouterr().out


def test_h0_into_a_file(computed, basis, poscar, tmp_path, capsys):
    """Group by group, within a budget of memory: the matrices of the folder."""
    arguments = ["h0", str(poscar), "--basis", str(basis), "-o", str(tmp_path / "new" / "large.h5")]
    assert main([*arguments, "--memory-budget", "100MB"]) == 0
    assert "memory" in capsys.readouterr().out
    found, expected = open_source(tmp_path / "new" / "large.h5"), open_source(computed)
    for name in ("H0", "S"):
        matrix = expected.read(name)
        np.testing.assert_allclose(found.read(name).on(matrix.graph).data, matrix.data, rtol=0, atol=1e-11)
    assert main([*arguments, "--precision", "single"]) == 0
    assert open_source(tmp_path / "new" / "large.h5").read("H0").data.dtype == np.complex64
    part = tmp_path / "new" / "other.h5.part"
    structure = read_structure(poscar)
    with PieceWriter(part.with_suffix(""), structure, Basis({1: [0], 14: [0]}), None):
        pass  # as a run that was stopped leaves it
    assert main(["bands", f"{part}:H0"]) == 1
    assert "other.h5.part: is incomplete: the run that wrote it" in capsys.readouterr().err
    assert main([*arguments, "--memory-budget", "1kB"]) == 1
    assert "memory_budget: expected at least" in capsys.readouterr().err
    assert main([*arguments, "--position"]) == 1
    assert "position: it is written into a folder" in capsys.readouterr().err
    assert main([*arguments, "--format", "npz"]) == 1
    assert "format, digits: of a folder's matrices" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "folder"), "--precision", "single"]) == 1
    assert "precision: of the numbers of an .h5" in capsys.readouterr().err


def test_predict_computes_what_it_would_read(computed, basis, poscar, model, tmp_path):
    arguments = ["predict", str(poscar), "--model", str(model), "--precision", "double", "-o"]
    given = ["--h0", f"{computed}/hrs0_nao.csr", "--overlap", f"{computed}/srs1_nao.csr", "--orbitals", str(basis)]
    assert main([*arguments, str(tmp_path / "computed"), "--basis", str(basis)]) == 0
    assert main([*arguments, str(tmp_path / "read"), *given]) == 0
    found, expected = (open_source(tmp_path / name).read("H") for name in ("computed", "read"))
    np.testing.assert_allclose(found.on(expected.graph).data, expected.data, rtol=0, atol=1e-6)
    summary = json.loads((tmp_path / "computed" / "summary.json").read_text())
    stages = {"reading the files", "H of step zero", "loading the model", "predicting", "writing"}
    assert set(summary["seconds"]) == stages


def test_predict_into_a_file(basis, poscar, model, tmp_path, capsys):
    """From the structure, or from the file of H of step zero: what is predicted in memory."""
    arguments = ["predict", str(poscar), "--model", str(model), "--precision", "double", "-o"]
    assert main([*arguments, str(tmp_path / "folder"), "--basis", str(basis)]) == 0
    assert main(["h0", str(poscar), "--basis", str(basis), "-o", str(tmp_path / "h0.h5")]) == 0
    budget = ["--memory-budget", "100MB"]
    assert main([*arguments, str(tmp_path / "a.h5"), "--basis", str(basis), *budget]) == 0
    assert main([*arguments, str(tmp_path / "b.h5"), "--h0", str(tmp_path / "h0.h5"), *budget]) == 0
    expected = open_source(tmp_path / "folder").read("H")
    for name in ("a.h5", "b.h5"):
        found = open_source(tmp_path / name).read("H")
        np.testing.assert_allclose(found.on(expected.graph).data, expected.data, rtol=0, atol=1e-9)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.h5", "b.h5", "folder", "h0.h5"]
    taken = (tmp_path / "h.h5", tmp_path / "h-h0.h5")
    taken[1].write_bytes((tmp_path / "h0.h5").read_bytes())
    assert main([*arguments, str(taken[0]), "--basis", str(basis)]) == 1
    assert "h-h0.h5: is there already: give it as --h0 in place of --basis" in capsys.readouterr().err
    assert taken[1].read_bytes() == (tmp_path / "h0.h5").read_bytes()
    assert main([*arguments, str(tmp_path / "into"), "--h0", str(tmp_path / "h0.h5")]) == 1
    assert "output: what is predicted from an .h5 of H0 and S is an .h5 too" in capsys.readouterr().err
    (tmp_path / "POSCAR").write_text(POSCAR.replace("0.45", "0.46"))
    for more, sentence in (
        (["--raw", "--basis", str(basis)], "raw: into an .h5 goes the Hermitian part alone"),
        (["--orbitals", "DIR", "--basis", str(basis)], "orbitals: the .h5 of --h0 and the files of --basis say what"),
        (["--digits", "12", "--basis", str(basis)], "format, digits: of a folder's matrices"),
        ([], "give either --h0 FILE.h5, which has S too, or --basis"),
        (["--h0", str(tmp_path / "a.h5" / "x")], "cannot be read"),
    ):
        assert main([*arguments, str(tmp_path / "c.h5"), *more]) == 1
        assert sentence in capsys.readouterr().err
    arguments[1] = str(tmp_path / "POSCAR")
    assert main([*arguments, str(tmp_path / "c.h5"), "--h0", str(tmp_path / "h0.h5")]) == 1
    assert "is not the structure of" in capsys.readouterr().err


def test_h0_or_basis(basis, poscar, model, capsys):
    for more in ([], ["--h0", "a"], ["--basis", str(basis), "--h0", "a", "--overlap", "b"]):
        assert main(["predict", str(poscar), "--model", str(model), "-o", "x", *more]) == 1
        assert capsys.readouterr().err.strip().endswith("give either --h0 and --overlap, or --basis")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("Si.upf", None, "there is no pseudopotential file for Si (a name like Si.upf)"),
        ("H_gaussian.orb", None, "there is no orbital file for H (a name like H_…_2s2p1d.orb)"),
        ("H_gaussian.orb", ("Element H", "Element He"), "expected orbitals of H, got those of He"),
        ("Si.upf", ('is_ultrasoft="F"', 'is_ultrasoft="T"'), "got one with is_ultrasoft"),
        ("Si.upf", ('is_paw=".false."', 'is_paw=".true."'), "got one with is_paw"),
        ("Si.upf", ("</PP_LOCAL>", "</PP_LOCA>"), "the section PP_LOCAL does not end"),
        ("H_gaussian.orb", ("dr 0.01", "dr 0.02"), "points 0.02 Bohr apart do not end at the radius cutoff"),
    ],
)
def test_files_that_cannot_be_used(basis, poscar, tmp_path, name, change, sentence, capsys):
    for file in basis.iterdir():
        text = file.read_text()
        if file.name == name:
            if change is None:
                continue
            assert change[0] in text
            text = text.replace(*change)
        (tmp_path / file.name).write_text(text)
    assert main(["h0", str(poscar), "--basis", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in printed and printed.startswith(f"nextham: {tmp_path}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("0.4 0.45 0.5", "1.1 0.2 0.3"), "structure: atoms 0 and 1 are at the same place (0.000 Å apart)"),
        (("Si H", "Si U"), "there is no orbital file for U (a name like U_…_2s2p1d.orb)"),
        (("0.4 0.0 5.4", "5.0 5.4 0.3"), "cell: the three lattice vectors span no volume"),
    ],
)
def test_structures_that_cannot_be(basis, tmp_path, change, sentence, capsys):
    assert change[0] in POSCAR
    (tmp_path / "POSCAR").write_text(POSCAR.replace(*change))
    assert main(["h0", str(tmp_path / "POSCAR"), "--basis", str(basis), "-o", str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_output_that_cannot_be_written(basis, poscar, model, tmp_path, capsys):
    """Said before anything is computed: by the commands that compute long."""
    (tmp_path / "taken").write_text("")
    for output in ("taken", "taken/inside"):
        for command in (["h0", "--basis", str(basis)], ["predict", "--basis", str(basis), "--model", str(model)]):
            assert main([command[0], str(poscar), *command[1:], "-o", str(tmp_path / output)]) == 1
            said = f"nextham: {tmp_path}/{output}: cannot be written: {tmp_path}/taken is a file, not a folder\n"
            assert capsys.readouterr().err == said
    (tmp_path / "folder.h5").mkdir()
    for command in (["h0", "--basis", str(basis)], ["predict", "--basis", str(basis), "--model", str(model)]):
        for output, sentence in (("taken/a.h5", "taken is a file, not a folder"), ("folder.h5", "it is a folder")):
            assert main([command[0], str(poscar), *command[1:], "-o", str(tmp_path / output)]) == 1
            said = capsys.readouterr().err
            assert sentence in said and said.count("\n") == 1
    assert main(["bands", str(sample("Si-1")), "-o", str(tmp_path / "taken" / "bands")]) == 1
    assert "taken is a file, not a folder" in capsys.readouterr().err


def test_a_file_of_unknown_format(basis, tmp_path, capsys):
    (tmp_path / "letter.dat").write_text("Dear reader,\n")
    assert main(["h0", str(tmp_path / "letter.dat"), "--basis", str(basis), "-o", str(tmp_path / "out")]) == 1
    assert "expected a STRU, or what name or content tell: POSCAR" in capsys.readouterr().err


def test_an_atom_outside_an_open_box(basis, tmp_path, capsys):
    """ABACUS's files cannot say it."""
    head = '1\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 pbc="{}"\nH -0.3 1 1\n'
    (tmp_path / "open.xyz").write_text(head.format("F T T"))
    assert main(["h0", str(tmp_path / "open.xyz"), "--basis", str(basis), "-o", str(tmp_path / "out")]) == 1
    assert "atom 0 lies outside the cell along lattice vector 1, where" in capsys.readouterr().err
    (tmp_path / "open.xyz").write_text(head.format("T F F"))
    assert main(["h0", str(tmp_path / "open.xyz"), "--basis", str(basis), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.shared
def test_h0_is_that_of_abacus(shared, tmp_path):
    run, report = sample("Si-1"), tmp_path / "report.json"
    assert main(["h0", f"{run}/STRU", "--basis", str(shared / "data/basis"), "-o", str(tmp_path / "h0")]) == 0
    assert main(["compare", f"{tmp_path}/h0:H0", f"{run}:H0", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["gauge"]["mae_meV"] < 0.001 and found["bands"]["max_meV"] < 1
