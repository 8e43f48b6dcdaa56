import gzip
import io
import lzma
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham import data
from nextham.basis import Basis
from nextham.io.errors import FileError
from nextham.io.orb import basis_from_directory, basis_from_stru, read_orb
from nextham.io.stru import StruFile, read_stru, write_stru
from nextham.structure import Structure
from nextham.units import SYMBOLS

MESH, DR = 11, 0.2
PUBLISHED_NAME = "Si_gga_7au_100Ry_2s2p1d.orb"


def radial(l, zeta):
    return np.sin(1 + l + 0.3 * zeta + DR * np.arange(MESH))


def orb_text(element="Si", zetas=(2, 0, 1), order=None):
    """A small orbital file; `order` lists the (l, zeta) in the order of the file."""
    rule = "-" * 75
    lines = [rule, f"Element                     {element}", "Energy Cutoff(Ry)           60"]
    lines += ["Radius Cutoff(a.u.)         2", f"Lmax                        {len(zetas) - 1}"]
    lines += [f"Number of {letter}orbital-->       {n}" for letter, n in zip("SPDF", zetas, strict=False)]
    lines += [rule, "SUMMARY  END", "", f"Mesh                        {MESH}", f"dr                          {DR}"]
    for l, zeta in order or [(l, zeta) for l, n in enumerate(zetas) for zeta in range(n)]:
        lines += ["                Type                   L                   N", f"  0  {l}  {zeta}"]
        values = [f"{x:.14e}" for x in radial(l, zeta)]
        lines += ["  ".join(values[i : i + 4]) for i in range(0, MESH, 4)]
    return "\n".join(lines) + "\n"


def stru_of(tmp_path, numbers, orbitals):
    structure = Structure(np.eye(3) * 5, np.zeros((len(numbers), 3)), np.array(numbers))
    write_stru(tmp_path / "STRU", StruFile.from_structure(structure, orbitals=orbitals))
    return tmp_path / "STRU"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("order", [None, [(2, 0), (0, 1), (0, 0)]])
def test_read_orb(tmp_path, pack, order):
    (tmp_path / "some.file").write_bytes(pack(orb_text(order=order).encode()))
    orb = read_orb(tmp_path / "some.file")
    assert (orb.number, orb.energy_cutoff, orb.radius_cutoff, orb.dr) == (14, 60.0, 2.0, DR)
    assert (orb.shells, orb.zetas) == ((0, 0, 2), (2, 0, 1))
    np.testing.assert_allclose(orb.r[[0, 1, -1]], [0, 0.2, 2.0], rtol=1e-15)
    np.testing.assert_allclose(orb.radial, [radial(0, 0), radial(0, 1), radial(2, 0)], rtol=1e-14)


@pytest.mark.shared
def test_published_orbitals(shared):
    paths = sorted(shared.glob("data/basis/*.orb.xz"))
    assert len(paths) == 29
    for path in paths:
        orb = read_orb(path)
        element, _, radius, cutoff, _ = path.name.split("_")
        assert SYMBOLS[orb.number] == element
        assert (f"{orb.radius_cutoff:g}au", f"{orb.energy_cutoff:g}Ry") == (radius, cutoff)
        assert orb.shells == Basis.published().shells[orb.number]
        norms = (orb.radial**2 * orb.r**2).sum(axis=1) * orb.dr  # the trapezoid rule: both ends vanish
        np.testing.assert_allclose(norms, 1, atol=1e-12)
        assert orb.r[-1] == pytest.approx(orb.radius_cutoff)
        assert not orb.radial[:, -1].any()
    numbers = [read_orb(path).number for path in paths]
    assert basis_from_directory(shared / "data/basis", numbers) == Basis.published(numbers)


@pytest.mark.shared
def test_basis_fits_the_matrices(shared, tmp_path):
    for packed in sorted(shared.glob("data/packed/*.npz.xz")):
        pack = np.load(io.BytesIO(lzma.decompress(packed.read_bytes())))
        (tmp_path / "STRU").write_text(str(pack["stru"]))
        basis = basis_from_stru(tmp_path / "STRU", shared / "data/basis")
        numbers = read_stru(tmp_path / "STRU").structure.numbers
        assert basis.n_orbitals_of(numbers).sum() == pack["n_orb"]
        assert basis == basis_from_stru(tmp_path / "STRU")  # from the names alone


def test_basis_from_directory(tmp_path):
    for name, zetas in (("Si_a.orb.xz", (2, 2, 1)), ("S.orb", (1, 1)), ("Si_a.orbital", (1,))):
        pack = lzma.compress if name.endswith("xz") else bytes
        (tmp_path / name).write_bytes(pack(orb_text(re.split("[_.]", name)[0], zetas).encode()))
    assert basis_from_directory(tmp_path, np.array([14, 16, 14])) == Basis({14: (0, 0, 1, 1, 2), 16: (0, 1)})
    with pytest.raises(FileError, match=r"there is no orbital file for C \(a name like C_…_2s2p1d.orb\)"):
        basis_from_directory(tmp_path, [6])
    (tmp_path / "Si_b.orb").write_text(orb_text())
    with pytest.raises(FileError, match=r"there are 2 orbital files for Si: Si_a\.orb\.xz, Si_b\.orb"):
        basis_from_directory(tmp_path, [14])
    (tmp_path / "C_a.orb").write_text(orb_text("Si"))
    with pytest.raises(FileError, match=r"C_a\.orb: expected orbitals of C, got those of Si"):
        basis_from_directory(tmp_path, [6])
    with pytest.raises(FileError, match="absent: cannot be read: No such file"):
        basis_from_directory(tmp_path / "absent", [6])


def test_basis_from_stru_reads_the_named_files(tmp_path):
    stru = stru_of(tmp_path, [14, 6, 14], {14: PUBLISHED_NAME, 6: "C_x_1s.orb"})
    # Beside the STRU; the file counts, not the name.
    (tmp_path / PUBLISHED_NAME).write_text(orb_text("Si", (1, 1)))
    (tmp_path / "C_x_1s.orb.gz").write_bytes(gzip.compress(orb_text("C", (2, 1)).encode()))
    assert basis_from_stru(stru) == Basis({14: (0, 1), 6: (0, 0, 1)})
    # In a folder of their own, where all of them must be.
    (tmp_path / "orbitals").mkdir()
    (tmp_path / "orbitals" / PUBLISHED_NAME).write_text(orb_text("Si", (3,)))
    with pytest.raises(FileError, match=r"orbitals/C_x_1s\.orb: the orbital file of C is not there"):
        basis_from_stru(stru, tmp_path / "orbitals")
    (tmp_path / "orbitals" / "C_x_1s.orb").write_text(orb_text("N", (1,)))
    with pytest.raises(FileError, match=r"C_x_1s\.orb: expected orbitals of C, got those of N"):
        basis_from_stru(stru, tmp_path / "orbitals")


def test_basis_from_stru_takes_absent_files_at_their_name(tmp_path):
    assert basis_from_stru(data.sample("Si-1") / "STRU") == Basis.published([14])
    stru = stru_of(tmp_path, [26, 6], {26: "pot/Fe_gga_10au_100.0Ry_10s3p3d2f.orb", 6: "C_1p2s.orb.xz"})
    assert basis_from_stru(stru) == Basis({26: (*[0] * 10, *[1] * 3, *[2] * 3, 3, 3), 6: (0, 0, 1)})
    for name in ("C.orb", "C_gga_2s2q.orb", "C_gga_0s1p.orb", "C_gga_2s2p"):
        with pytest.raises(FileError, match=f"the orbital file {name} is not there, and its name declares no shells"):
            basis_from_stru(stru_of(tmp_path, [6], {6: name}))


def test_basis_from_stru_without_orbital_block(tmp_path):
    assert basis_from_stru(stru_of(tmp_path, [26, 8], None)) == Basis.published([26, 8])
    with pytest.raises(FileError, match=r"no NUMERICAL_ORBITAL block, and .*published basis has no orbitals for U"):
        basis_from_stru(stru_of(tmp_path, [92], None))


def test_species_of_one_element_share_their_shells(tmp_path):
    stru = stru_of(tmp_path, [26, 27], {26: "Fe_1s.orb", 27: "Co_2s.orb"})
    text = stru.read_text().replace("Co.upf", "Fe.upf").replace("Co_2s", "Fe_2s")
    stru.write_text(text.replace("Co ", "Fe_up ").replace("\nCo\n", "\nFe_up\n"))
    with pytest.raises(FileError, match=r"two species of Fe have different shells, \(0,\) and \(0, 0\)"):
        basis_from_stru(stru)
    stru.write_text(stru.read_text().replace("\n1\n0 0 0\n", "\n0\n", 1))  # a species without atoms has no say
    assert basis_from_stru(stru) == Basis({26: (0, 0)})


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("Element ", "Elements ", None, "the header has no `Element` line"),
        ("Element                     Si", "Element Xx", 2, "expected an element, got 'Xx'"),
        ("Cutoff(Ry)           60", "Cutoff(Ry) 6O", 3, r"expected a number for Energy Cutoff\(Ry\), got '6O'"),
        (
            "Cutoff(a.u.)         2",
            "Cutoff(a.u.) 3",
            12,
            "11 points 0.2 Bohr apart do not end at the radius cutoff of 3",
        ),
        ("Lmax                        2", "Lmax 1", 8, "`Number of Dorbital` of 1 does not fit Lmax of 1"),
        ("Lmax                        2", "Lmax 3", None, "the header has no `Number of Forbital` line"),
        ("Lmax                        2", "Lmax 12", 5, "expected Lmax of 0 to 9, got 12"),
        ("Sorbital-->       2", "Sorbital--> 1", 24, "the header announces 2 orbitals, the file has 3"),
        ("Sorbital-->       2", "Sorbital--> 2.0", 6, "expected an integer for Number of Sorbital, got '2.0'"),
        ("Mesh                        11", "Mesh -1", 12, "-1 points 0.2 Bohr apart do not end"),
        ("Mesh                        11", "Mesh 10", 15, "expected 10 values of R for l = 0, zeta 0, got 11"),
        ("  0  0  1", "  0  0  0", 20, "orbital l = 0, zeta 0 is not in the header, or stands twice"),
        ("  0  0  1", "  0  0", 20, "expected the three integers of `Type L N`"),
        (f"{radial(0, 1)[0]:.14e}", "nan", 21, "expected a number for the radial function, got 'nan'"),
    ],
)
def test_mistakes_have_a_sentence(tmp_path, old, new, line, sentence):
    text = orb_text()
    assert old in text
    (tmp_path / "a.orb").write_text(text.replace(old, new, 1))
    with pytest.raises(FileError, match=sentence) as caught:
        read_orb(tmp_path / "a.orb")
    assert caught.value.line == line


def test_other_and_truncated_files(tmp_path):
    path = tmp_path / "a.orb"
    path.write_text("Hello\n")
    with pytest.raises(FileError, match="this is no orbital file: there is no `Type L N` line"):
        read_orb(path)
    lines = orb_text().splitlines(keepends=True)
    for n in range(1, len(lines)):
        path.write_text("".join(lines[:n]))
        with pytest.raises(FileError):
            read_orb(path)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutilated_files_raise_file_errors_only(tmp_path, data):
    parts = re.split(r"(\s+)", orb_text())
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, 60) | st.integers(0, len(parts) - 1))
        j = i + data.draw(st.sampled_from([0, 1, 1, 2, 5, 1000]))
        parts[i:j] = [data.draw(st.sampled_from(["nan", "-1", "0", "1", "1e999", "Type", "é", "9" * 12, "\n", ""]))]
    (tmp_path / "a.orb").write_text("".join(parts) + "\n", encoding="utf-8")
    try:
        orb = read_orb(tmp_path / "a.orb")
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert orb.radial.shape == (len(orb.shells), len(orb.r))
        assert np.isfinite(orb.radial).all()
