import dataclasses
import gzip
import io
import lzma
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextham import data
from nextham.io.errors import FileError
from nextham.io.stru import COORDINATES, Species, StruFile, read_stru, write_stru
from nextham.structure import Structure
from nextham.units import BOHR, SYMBOLS

FULL = """\
# a title
LATTICE_CONSTANT 2.0 // Bohr

ATOMIC_SPECIES
Fe1 55.845 Fe_ONCV.upf upf201 // label; mass; pseudo_file; type
Ni_up 58.693 pots//Ni.upf
ox  15.999 O.upf
# blank lines and comments anywhere

NUMERICAL_ORBITAL
Fe_gga_8au_100Ry_4s2p2d1f.orb //the orbitals
Ni.orb
O_gga_7au_100Ry_2s2p1d.orb
NUMERICAL_DESCRIPTOR
jle.orb

ATOMIC_POSITIONS
Direct //Cartesian or Direct
Fe1 // label
1.5 // magnetisation
3
-0.1 0.2 1.3 0 1 0//flags
0.5 0.5 0.5 m 1 0 1 mag 1.0 2.0 -2.0 velocity 0.1 -0.2 3e-4
.25 0. +5e-1 magmom 2 angle1 90 angle2 90 lambda 0.5 sc 1 2 3
Ni_up #none of this
0.5
0
ox
-0.25
1
0.1 0.2 0.3

LATTICE_VECTORS
4.0 0.0 0.0 // v1
1.0 5.0 0.0
0.5 0.25 6.0 # v3
"""

CELL = np.array([[4.0, 0, 0], [1, 5, 0], [0.5, 0.25, 6]]) * 2.0 * BOHR
DIRECT = np.array([[-0.1, 0.2, 1.3], [0.5, 0.5, 0.5], [0.25, 0, 0.5], [0.1, 0.2, 0.3]])

quick = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(tmp_path, text, name="STRU"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def assert_same(a, b, tolerance=1e-13):
    assert (a.species, a.coordinate, a.words, a.other_blocks) == (b.species, b.coordinate, b.words, b.other_blocks)
    assert a.lattice_constant == b.lattice_constant
    np.testing.assert_array_equal(a.structure.numbers, b.structure.numbers)
    np.testing.assert_allclose(a.structure.cell, b.structure.cell, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.structure.positions, b.structure.positions, rtol=0, atol=tolerance)


def test_everything_a_stru_may_say(tmp_path):
    stru = read_stru(written(tmp_path, FULL))
    assert stru.species == (
        Species("Fe1", 26, 3, 55.845, "Fe_ONCV.upf", "Fe_gga_8au_100Ry_4s2p2d1f.orb", 1.5, "upf201"),
        Species("Ni_up", 28, 0, 58.693, "pots//Ni.upf", "Ni.orb", 0.5),
        Species("ox", 8, 1, 15.999, "O.upf", "O_gga_7au_100Ry_2s2p1d.orb", -0.25),
    )
    assert (stru.coordinate, stru.lattice_constant) == ("Direct", 2.0)
    assert stru.other_blocks == {"NUMERICAL_DESCRIPTOR": ("jle.orb",)}
    np.testing.assert_allclose(stru.structure.cell, CELL, rtol=1e-15)
    np.testing.assert_allclose(stru.structure.positions, DIRECT @ CELL, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(stru.structure.numbers, [26, 26, 26, 8])
    assert stru.structure.pbc == (True, True, True)


def test_words_behind_the_coordinates(tmp_path):
    stru = read_stru(written(tmp_path, FULL))
    assert stru.words[2] == {
        "mag": (2.0,),
        "angle1": (90.0,),
        "angle2": (90.0,),
        "lambda": (0.5,),
        "sc": (1.0, 2.0, 3.0),
    }
    np.testing.assert_array_equal(stru.moves, [[0, 1, 0], [1, 0, 1], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(stru.velocities, [[0, 0, 0], [0.1, -0.2, 3e-4], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(stru.moments, [[0, 0, 1.5], [1, 2, -2], [0, 2, 0], [0, 0, -0.25]], atol=1e-15)
    turned = read_stru(written(tmp_path, FULL.replace("mag 1.0 2.0 -2.0", "mag 1.0 2.0 -2.0 angle1 180")))
    np.testing.assert_allclose(turned.moments[1], [0, 0, -3], atol=1e-15)  # the angles win, as in ABACUS
    assert read_stru(written(tmp_path, re.sub("velocity.*", "", FULL))).velocities is None


@pytest.mark.parametrize(
    ("coordinate", "unit", "centre"),
    [
        ("Cartesian", 2.0 * BOHR, (0, 0, 0)),
        ("Cartesian_au", BOHR, (0, 0, 0)),
        ("Cartesian_angstrom", 1.0, (0, 0, 0)),
        ("Cartesian_angstrom_center_xy", 1.0, (1, 1, 0)),
        ("Cartesian_angstrom_center_xz", 1.0, (1, 0, 1)),
        ("Cartesian_angstrom_center_yz", 1.0, (0, 1, 1)),
        ("Cartesian_angstrom_center_xyz", 1.0, (1, 1, 1)),
    ],
)
def test_coordinate_kinds(tmp_path, coordinate, unit, centre):
    half = np.array([5.5, 5.25, 6.0]) * BOHR  # (v1 + v2 + v3) / 2, times the lattice constant 2
    stru = read_stru(written(tmp_path, FULL.replace("\nDirect ", f"\n{coordinate} ")))
    np.testing.assert_allclose(stru.structure.positions, DIRECT * unit + half * centre, rtol=0, atol=1e-14)


def test_round_trip_of_everything(tmp_path):
    stru = read_stru(written(tmp_path, FULL))
    write_stru(tmp_path / "copy", stru)
    assert_same(read_stru(tmp_path / "copy"), stru)
    text = (tmp_path / "copy").read_text()
    write_stru(tmp_path / "copy", read_stru(tmp_path / "copy"))
    again = (tmp_path / "copy").read_text()
    assert len(again.splitlines()) == len(text.splitlines())
    for word, other in zip(again.split(), text.split(), strict=True):
        # The last digit is that of the processor's linear algebra.
        assert word == other or float(word) == pytest.approx(float(other), abs=1e-14)


def test_compressed_and_foreign_bytes(tmp_path):
    plain = read_stru(written(tmp_path, FULL))
    content = FULL.replace("# a title", "# \u6676").encode("gbk").replace(b"\n", b"\r\n")
    for name, packed in (("a", content), ("b", gzip.compress(content)), ("c", lzma.compress(content))):
        (tmp_path / name).write_bytes(packed)
        assert_same(read_stru(tmp_path / name), plain)


def test_bundled_sample():
    stru = read_stru(data.sample("Si-1") / "STRU")
    assert stru.structure.formula() == "Si2"
    assert stru.species == (Species("Si", 14, 2, 28.085, "Si.upf", "Si_gga_7au_100Ry_2s2p1d.orb"),)
    assert not stru.structure.wrapped()[1].any()
    np.testing.assert_allclose(stru.structure.cell[0], [0.0291143628, 2.7537172329, 2.7500969405], rtol=1e-6)
    np.testing.assert_allclose(stru.structure.positions[1], [1.4370501658, 1.3917663672, 1.4317869900], rtol=1e-6)


@pytest.mark.shared
def test_samples(shared, tmp_path):
    texts = {path.parent.name: path.read_text() for path in shared.glob("data/abacus/*/STRU")}
    for packed in shared.glob("data/packed/*.npz.xz"):
        texts[packed.name] = str(np.load(io.BytesIO(lzma.decompress(packed.read_bytes())))["stru"])
    assert len(texts) == 50
    for name, text in texts.items():
        stru = read_stru(written(tmp_path, text, name))
        # The samples share one layout: Cartesian, flags 0 0 0, in units of 1.889726125 Bohr.
        rows = [line.split() for line in text.splitlines()]
        atoms = np.array([row[:3] for row in rows if len(row) == 6], dtype=np.float64)
        cell = np.array([row for row in rows if len(row) == 3 and "." in row[0]], dtype=np.float64)
        np.testing.assert_allclose(stru.structure.positions, atoms * 1.889726125 * 0.529177, rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(stru.structure.cell, cell * 1.889726125 * 0.529177, rtol=1e-14, atol=1e-15)
        assert not stru.moves.any()
        assert not stru.moments.any()
        assert [s.label for s in stru.species] == [SYMBOLS[z] for z in stru.structure.species()]
        assert not stru.structure.wrapped()[1].any(), f"{name} is said to be wrapped"
        write_stru(tmp_path / "copy", stru)
        assert_same(read_stru(tmp_path / "copy"), stru)


finite = st.floats(-20, 20).map(lambda x: round(x, 9))


@st.composite
def strus(draw):
    n_species = draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(0, 4), min_size=n_species, max_size=n_species).filter(any))
    numbers = draw(st.lists(st.integers(1, 118), min_size=n_species, max_size=n_species, unique=True))
    n = sum(counts)
    cell = np.diag(draw(st.lists(st.floats(1, 60), min_size=3, max_size=3)))
    cell += np.tril(np.reshape(draw(st.lists(st.floats(-0.5, 0.5), min_size=9, max_size=9)), (3, 3)), -1)
    cell = cell[:, draw(st.permutations([0, 1, 2]))]
    positions = np.reshape(draw(st.lists(finite, min_size=3 * n, max_size=3 * n)), (n, 3))
    words = draw(
        st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "m": st.tuples(*[st.sampled_from([0.0, 1.0])] * 3),
                    "v": st.tuples(finite, finite, finite),
                    "mag": st.one_of(st.tuples(finite), st.tuples(finite, finite, finite)),
                    "angle1": st.tuples(finite),
                    "sc": st.tuples(finite),
                },
            ),
            min_size=n,
            max_size=n,
        )
    )
    species = tuple(
        Species(f"{SYMBOLS[z]}{i}", z, count, draw(st.floats(1, 300)), f"{SYMBOLS[z]}.upf", None, draw(finite))
        for i, (z, count) in enumerate(zip(numbers, counts, strict=True))
    )
    structure = Structure(cell, positions, np.repeat(numbers, counts))
    return StruFile(structure, species, "Direct", draw(st.floats(0.1, 30)), tuple(words))


@quick
@given(strus(), st.sampled_from(COORDINATES))
def test_round_trip_of_any_structure(tmp_path, stru, coordinate):
    stru = dataclasses.replace(stru, coordinate=coordinate)
    write_stru(tmp_path / "STRU", stru)
    assert_same(read_stru(tmp_path / "STRU"), stru, tolerance=1e-10)


def test_from_structure_groups_species(tmp_path):
    structure = Structure(np.eye(3) * 5, np.arange(12).reshape(4, 3) / 3, np.array([8, 26, 8, 26]))
    stru = StruFile.from_structure(structure, orbitals={8: "O.orb", 26: "Fe.orb"}, coordinate="Cartesian_angstrom")
    assert [(s.label, s.n_atoms, s.pseudo, s.orbital) for s in stru.species] == [
        ("O", 2, "O.upf", "O.orb"),
        ("Fe", 2, "Fe.upf", "Fe.orb"),
    ]
    assert stru.species[1].mass == pytest.approx(55.845)
    np.testing.assert_array_equal(stru.structure.positions, structure.positions[[0, 2, 1, 3]])
    write_stru(tmp_path / "STRU", stru)
    assert_same(read_stru(tmp_path / "STRU"), stru)
    with pytest.raises(ValueError, match=r"pseudos: no file for Fe$"):
        StruFile.from_structure(structure, pseudos={8: "O.upf"})


def test_arguments_are_checked():
    structure = Structure(np.eye(3) * 5, np.zeros((1, 3)), np.array([14]))
    species = (Species("Si", 14, 1, 28.085),)
    for change, sentence in (
        ({"species": (Species("Ge", 32, 1, 72.6),)}, "species: expected the elements of the structure"),
        ({"words": ({}, {})}, "words: expected one entry for each of 1 atoms, got 2"),
        ({"coordinate": "direct"}, "coordinate: expected one of Direct, .*, got 'direct'"),
        ({"lattice_constant": 0.0}, "lattice_constant: expected a positive length in Bohr, got 0.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            StruFile(**{"structure": structure, "species": species} | change)


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("ATOMIC_SPECIES", "", None, "there is no ATOMIC_SPECIES block"),
        ("LATTICE_CONSTANT 2.0", "", None, "there is no LATTICE_CONSTANT block"),
        ("LATTICE_VECTORS", "LATTICE_PARAMETERS", None, "no LATTICE_VECTORS block: `latname` of the INPUT file"),
        ("ATOMIC_POSITIONS", "", None, "there is no ATOMIC_POSITIONS block"),
        ("NUMERICAL_DESCRIPTOR", "ATOMIC_SPECIES", 14, "second ATOMIC_SPECIES block; the first is in line 4"),
        ("CONSTANT 2.0", "CONSTANT", 2, "expected the lattice constant, got nothing"),
        ("CONSTANT 2.0", "CONSTANT -2", 2, "expected a positive lattice constant, got -2.0"),
        ("CONSTANT 2.0", "CONSTANT nan", 2, "expected a number for the lattice constant, got 'nan'"),
        ("Fe1 55.845 Fe_ONCV.upf upf201", "Fe1", 5, "expected `label mass pseudopotential-file`, got 'Fe1'"),
        ("55.845", "5_5", 5, "expected a number for the mass, got '5_5'"),
        ("Fe1 55.845", "Fe_empty 55.845", 5, "species 'Fe_empty' is an empty one"),
        ("ox  15.999 O.upf", "ox 15.999 oxygen.upf", None, None),  # the orbital file still tells
        ("Ni.orb\n", "", 10, "expected one orbital file for each of 3 species, got 2"),
        ("Direct", "Directly", 18, "expected one of Direct, .*, got 'Directly'"),
        (
            "Ni_up #none of this\n",
            "Ni\n",
            25,
            "expected the label Ni_up .*, got 'Ni'; are there really 3 atoms of Fe1?",
        ),
        ("\n3\n", "\n2\n", 24, r"expected the label Ni_up .*, got '\.25 0\. .*'; are there really 2 atoms of Fe1\?"),
        ("\n3\n", "\n4\n", 25, "expected three numbers for a position, got 1"),
        ("\n3\n", "\n-3\n", 21, "expected a number of Fe1 atoms, got -3"),
        ("\n3\n", "\n3.5\n", 21, "expected an integer for the number of Fe1 atoms, got '3.5'"),
        ("1.5 // mag", "much // mag", 20, "expected a number for the magnetisation, got 'much'"),
        ("0.1 0.2 0.3", "0.1 0.2", 31, "expected three numbers for a position, got 2"),
        ("0.1 0.2 0.3\n", "", 31, "the block ends where atom 1 of 1 of ox was expected"),
        ("0.1 0.2 0.3\n", "0 0 0\n1 1 1\n", 32, "expected the end after 1 atoms of ox, got '1 1 1'"),
        ("0.1 0.2 0.3", "0.1 0.2 0.3 0 1", 31, "expected 3 numbers for `m` after the coordinates, got 2"),
        ("0.1 0.2 0.3", "0.1 0.2 0.3 0 1 2", 31, "expected three flags 0 or 1, got 0 1 2"),
        ("0.1 0.2 0.3", "0.1 0.2 0.3 spin 1", 31, "expected one of m, v, .* after the coordinates, got 'spin'"),
        ("0.1 0.2 0.3", "0.1 0.2 0.3 mag 1 2", 31, "expected 1 or 3 numbers for `mag` after the coordinates, got 2"),
        ("0.1 0.2 0.3", "0.1 0.2 0.3 v 1 2 3 vel 1 2 3", 31, "`v` stands twice in this row"),
        ("1.0 5.0 0.0\n", "", 33, "expected three lattice vectors, got 2 rows"),
        ("1.0 5.0 0.0", "1.0 5.0", 35, "expected three numbers for a lattice vector, got 2"),
        ("1.0 5.0 0.0", "1.0 5.0 0,0", 35, "expected a number for a lattice vector, got '0,0'"),
        ("1.0 5.0 0.0", "1.0 5.0 1e400", 35, "the number for a lattice vector is out of range: 1e400"),
        ("1.0 5.0 0.0", "1.0 0.0 0.0", 33, "cell: the three lattice vectors span no volume"),
    ],
)
def test_mistakes_have_a_sentence(tmp_path, old, new, line, sentence):
    assert old in FULL
    path = written(tmp_path, FULL.replace(old, new, 1))
    if sentence is None:
        read_stru(path)
        return
    with pytest.raises(FileError, match=sentence) as caught:
        read_stru(path)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{path}, line {line}: " if line else f"{path}: ")


def test_unknown_element(tmp_path):
    text = FULL.replace("O_gga_7au", "x_gga_7au").replace("O.upf", "o.upf")
    with pytest.raises(FileError, match="line 7: neither the label 'ox' nor the names of its files begin with an elem"):
        read_stru(written(tmp_path, text))


def test_label_and_files_of_different_elements(tmp_path):
    text = FULL.replace("O.upf", "Si.upf")
    with pytest.raises(FileError, match=r"line 7: the label and the files of a species name different elements: .*Si"):
        read_stru(written(tmp_path, text))


def test_unreadable_files(tmp_path):
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_stru(tmp_path / "absent")
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_stru(tmp_path)
    for name, content, sentence in (
        ("empty", b" \n", "the file is empty"),
        ("binary", FULL.encode() + b"\0", "expected a text file, got binary content"),
        ("short.xz", lzma.compress(FULL.encode())[:-20], "the compressed file is damaged or cut short"),
        ("short.gz", gzip.compress(FULL.encode())[:-20], "the compressed file is damaged or cut short"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=sentence):
            read_stru(tmp_path / name)


words = st.sampled_from(["nan", "-1", "0", "1e999", "m", "Direct", "ATOMIC_POSITIONS", "é", "//", "9" * 12, "0x1", ""])


@quick
@given(st.data())
def test_mutilated_files_raise_file_errors_only(tmp_path, data):
    parts = re.split(r"(\s+)", FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(parts) - 1))
        j = i + data.draw(st.sampled_from([0, 1, 1, 2, 5, 1000]))
        parts[i:j] = [data.draw(words)]
    try:
        stru = read_stru(written(tmp_path, "".join(parts) + "\n"))
    except FileError as error:
        assert "\n" not in str(error)
    else:
        assert len(stru.words) == stru.structure.n_atoms > 0
