import re
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham import data
from nextham.io.errors import FileError
from nextham.io.stru import StruFile, write_stru
from nextham.io.structure_file import from_ase, read_structure, to_ase
from nextham.structure import Structure

GAAS = Structure(
    cell=[[0.1, 2.8, 2.8], [2.8, 0.0, 2.9], [2.7, 2.8, 0.0]],
    positions=[[0.1, -0.2, 0.3], [1.5, 1.4, 7.3], [2.0, 0.5, 1.0]],
    numbers=[31, 33, 31],
)

CIF = """\
data_x
_cell_length_a 4
_cell_length_b 5
_cell_length_c 6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


def assert_same(a, b, tolerance):
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_allclose(a.cell, b.cell, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=tolerance)
    assert a.pbc == b.pbc


def write_with_ase(path, format, structure=GAAS):
    import ase.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ase.io.write(path, to_ase(structure), format=format)
    return path


def test_ase_round_trip():
    slab = Structure(GAAS.cell, GAAS.positions, GAAS.numbers, pbc=(True, True, False))
    assert_same(from_ase(to_ase(slab)), slab, 0)


@pytest.mark.parametrize(
    ("name", "format"),
    [("POSCAR", "vasp"), ("a.xyz", "extxyz"), ("a.xsf", "xsf"), ("a.json", "json"), ("a.traj", "traj")],
)
def test_files_of_ase(tmp_path, name, format):
    path = write_with_ase(tmp_path / name, format)
    assert_same(read_structure(path), GAAS, 1e-7)
    renamed = path.rename(tmp_path / "no-name-to-guess-from@1")
    assert_same(read_structure(renamed, format=format), GAAS, 1e-7)


def test_cif(tmp_path):
    path = tmp_path / "a.cif"
    path.write_text(CIF + "Si1 Si 0.5 0.25 0 1.0\nC1 C -0.1 0.5 0.5 1.000(2)\n")
    structure = read_structure(path)
    cell = [[4, 0, 0], [-2.5, 2.5 * np.sqrt(3), 0], [0, 0, 6]]
    np.testing.assert_allclose(structure.cell, cell, atol=1e-12)
    np.testing.assert_allclose(structure.fractional()[0], [0.5, 0.25, 0], atol=1e-12)
    np.testing.assert_array_equal(structure.numbers, [14, 6])
    path.write_text(CIF + "Si1 Si 0.5 0.25 0 ?\n")  # not given: full
    assert read_structure(path).formula() == "Si"


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("Si1 Si 0 0 0 0.5\nGe1 Ge 0 0 0 0.5\n", "0.5 Si, 0.5 Ge"),
        ("Si1 Si 0 0 0 1.0\nGe1 Ge 0.5 0.5 0.5 0.9\n", "0.9 Ge"),
    ],
)
def test_partial_occupancy_is_refused(tmp_path, rows, parts):
    (tmp_path / "a.cif").write_text(CIF + rows)
    with pytest.raises(
        FileError, match=re.escape(f"a site is only partly occupied ({parts}): make an ordered structure")
    ):
        read_structure(tmp_path / "a.cif")


def test_stru_is_known_by_its_content(tmp_path):
    sample = data.sample("Si-1") / "STRU"
    structure = read_structure(sample)
    assert structure.formula() == "Si2"
    (tmp_path / "POSCAR").write_bytes(sample.read_bytes())
    assert_same(read_structure(tmp_path / "POSCAR"), structure, 0)
    write_stru(tmp_path / "a.cif.xz", StruFile.from_structure(structure))
    assert_same(read_structure(tmp_path / "a.cif.xz"), structure, 1e-13)
    (tmp_path / "a.txt").write_text("ATOMIC_SPECIES\nSi 28 Si.upf\n")
    with pytest.raises(FileError, match=r"a\.txt: there is no LATTICE_CONSTANT block"):
        read_structure(tmp_path / "a.txt", format="stru")


def test_quantum_espresso_input_is_no_stru(tmp_path):
    (tmp_path / "a.in").write_text(
        "&SYSTEM\n ibrav=0, nat=1, ntyp=1\n/\nATOMIC_SPECIES\nSi 28.0 Si.upf\nATOMIC_POSITIONS angstrom\n"
        "Si 0.0 0.0 1.0\nCELL_PARAMETERS angstrom\n3.0 0.0 0.0\n0.0 4.0 0.0\n0.0 0.0 5.0\n"
    )
    structure = read_structure(tmp_path / "a.in", format="espresso-in")
    np.testing.assert_allclose(structure.positions, [[0, 0, 1]], atol=1e-12)


def test_structures_without_three_lattice_vectors(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.7\n")
    with pytest.raises(FileError, match=r"expected three lattice vectors \(put a molecule into a box\), got 0$"):
        read_structure(tmp_path / "a.xyz")


def test_unusable_files(tmp_path):
    frame = '1\nLattice="3 0 0 0 3 0 0 0 3"\nH 0 0 0\n'
    for name, text, sentence in (
        ("two.xyz", frame * 2, "expected one structure, got 2"),
        ("dummy.xyz", frame.replace("H", "X"), r"numbers: expected atomic numbers 1...118, got 0"),
        ("element.xyz", frame.replace("H", "Qq"), "ASE cannot read it .*Qq"),
        ("short.xyz", frame.replace("1", "2", 1), "ASE cannot read it"),
        ("letter", "Dear reader,\n", "ASE cannot read it .UnknownFileTypeError"),
        ("empty", "", "the file is empty"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(FileError, match=sentence) as caught:
            read_structure(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_structure(tmp_path / "absent")
    with pytest.raises(FileError, match=r"ASE cannot read it .UnknownFileTypeError: no-format"):
        read_structure(tmp_path / "two.xyz", format="no-format")


@pytest.mark.filterwarnings("ignore")  # ASE's readers warn in many ways and may leave a damaged file open
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["cif", "vasp", "extxyz", "xsf", "json", "res", "gen"]), st.data())
def test_mutilated_files_raise_file_errors_only(tmp_path, format, data):
    path = tmp_path / format
    if not path.exists():
        write_with_ase(path, format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(content)))
        j = i + data.draw(st.sampled_from([0, 1, 10, 40, len(content)]))
        content[i:j] = data.draw(st.sampled_from([b"", b"nan", b"-1", b"\n", b" ", b'"', b"\xff", b"1e999", b"x" * 9]))
    damaged = tmp_path / f"damaged-{format}"
    damaged.write_bytes(content)
    try:
        structure = read_structure(damaged, format=format)
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(structure.positions).all()
