import lzma

import numpy as np
import pytest
from basis_files import orb_text, upf_text

from nextham.cli import main
from nextham.io.basis_directory import read_orbitals, read_pseudopotentials, survey
from nextham.io.errors import FileError


@pytest.fixture
def directory(tmp_path):
    shells = [(0, lambda r: np.exp(-(r**2))), (1, lambda r: r * np.exp(-(r**2)))]
    (tmp_path / "Si_a_1s1p.orb").write_text(orb_text("Si", shells, 6, 0.1))
    (tmp_path / "Si_b.upf.xz").write_bytes(lzma.compress(upf_text("Si", dr=0.1).encode()))
    (tmp_path / "S_a_1s.orb").write_text(orb_text("S", shells[:1], 7, 0.1))
    (tmp_path / "H.UPF").write_text(upf_text("H", 1.0, dr=0.1))
    for name in ("README", "Silicon.orb", "si.orb", "Xx.upf"):
        (tmp_path / name).write_text("no file of an element")
    return tmp_path


def test_directory(directory):
    orbitals, pseudopotentials = read_orbitals(directory, np.array([14, 16])), read_pseudopotentials(directory, [1, 14])
    assert {z: orb.shells for z, orb in orbitals.items()} == {14: (0, 1), 16: (0,)}
    assert {z: pseudo.valence for z, pseudo in pseudopotentials.items()} == {1: 1.0, 14: 4.0}
    with pytest.raises(FileError, match=r"there is no pseudopotential file for S \(a name like S\.upf\)"):
        read_pseudopotentials(directory, [14, 16])
    (directory / "H_other.upf").write_text("")
    with pytest.raises(FileError, match=r"there are 2 pseudopotential files for H: H\.UPF, H_other\.upf"):
        read_pseudopotentials(directory, [1])
    (directory / "C.upf").write_text(upf_text("Si"))
    with pytest.raises(FileError, match=r"C\.upf: expected a pseudopotential of C, got that of Si"):
        read_pseudopotentials(directory, [6])
    with pytest.raises(FileError, match="cannot be read"):
        survey(directory / "absent")


def test_survey(directory):
    hydrogen, silicon, sulfur = survey(directory)
    assert (hydrogen.number, silicon.number, sulfur.number) == (1, 14, 16)
    assert silicon.problems == ()
    assert hydrogen.orbitals is None and hydrogen.pseudopotential.valence == 1
    assert sulfur.pseudopotential is None and sulfur.orbitals.radius_cutoff == 7
    assert [len(x.problems) for x in (hydrogen, sulfur)] == [1, 1]
    (carbon,) = survey(directory, [6])
    assert len(carbon.problems) == 2


def test_check(directory, capsys):
    assert main(["basis", "check", str(directory), "--elements", "Si"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row == ["Si", "1s1p", "6", "100", "4", "0", "no", "no"]
    assert main(["basis", "check", str(directory)]) == 1
    printed = capsys.readouterr().out
    assert "there is no orbital file for H" in printed and "there is no pseudopotential file for S " in printed
    (directory / "empty").mkdir()
    assert main(["basis", "check", str(directory / "empty")]) == 1
    assert "there is no .orb or .upf file of an element" in capsys.readouterr().err
    assert main(["basis", "check", str(directory), "--elements", "Qq"]) == 1
    assert "expected an element, got 'Qq'" in capsys.readouterr().err
