import gzip
import lzma

import numpy as np
import pytest
from basis_files import upf_text

from nextham.io.basis_directory import read_pseudopotentials
from nextham.io.errors import FileError
from nextham.io.upf import PUBLISHED_VALENCE, electron_count, read_upf, read_valence
from nextham.structure import Structure
from nextham.units import SYMBOLS

UPF = """\
<UPF version="2.0.1">
<PP_INFO>
z_valence and element are words that may stand here, and so are & and <
</PP_INFO>
<PP_HEADER
comment=""
   element="Si "
z_valence="    4.00"
l_max='2'/>
<PP_MESH>
</PP_MESH>
</UPF>
"""


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize(
    "text", [UPF, UPF.replace("\n", " "), UPF.replace('"', "'").replace("='2.0", '="2.0"><x y=\'')]
)
def test_read_valence(tmp_path, pack, text):
    (tmp_path / "any.name").write_bytes(pack(text.encode()))
    assert read_valence(tmp_path / "any.name") == (14, 4.0)


@pytest.mark.shared
def test_published_pseudopotentials(shared):
    paths = sorted(shared.glob("data/basis/*.upf.xz"))
    assert dict(map(read_valence, paths)) == PUBLISHED_VALENCE
    assert [SYMBOLS[read_valence(path)[0]] for path in paths] == [path.name.split(".")[0] for path in paths]


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("2.0.1", "3.0", None, "expected a pseudopotential of UPF version 2 .*, got something else"),
        ('<UPF version="2.0.1">', "<PP_HEADER>", None, "expected .* UPF version 2 .*, got an older UPF format"),
        ("<PP_HEADER", "<PP_HEAD", None, "there is no complete PP_HEADER"),
        ("l_max='2'/>\n", "", None, "there is no complete PP_HEADER"),
        ('z_valence="', 'zv="', 5, "the PP_HEADER has no `z_valence`"),
        ("Si ", "Xx", 7, "expected an element, got 'Xx'"),
        ("    4.00", "four", 8, "expected a number for z_valence, got 'four'"),
        ("    4.00", "15", 8, "z_valence of Si must lie between 0 and 14, got 15"),
    ],
)
def test_mistakes_have_a_sentence(tmp_path, old, new, line, sentence):
    assert old in UPF
    (tmp_path / "a.upf").write_text(UPF.replace(old, new, 1))
    with pytest.raises(FileError, match=sentence) as caught:
        read_valence(tmp_path / "a.upf")
    assert caught.value.line == line


def test_truncated_files(tmp_path):
    for n in range(UPF.index("/>")):
        (tmp_path / "a.upf").write_text(UPF[:n])
        with pytest.raises(FileError):
            read_valence(tmp_path / "a.upf")


def test_electron_count():
    structure = Structure(np.eye(3), np.zeros((3, 3)), np.array([31, 33, 31]))
    assert electron_count(structure, PUBLISHED_VALENCE) == 13 + 5 + 13
    assert electron_count(structure, {31: 3.0, 33: 5.0}) == 11.0
    with pytest.raises(ValueError, match=r"valences: no number of valence electrons for As$"):
        electron_count(structure, {31: 3.0})


def gaussian(exponent):
    return lambda r: r * np.exp(-exponent * r**2)


BETAS = [(0, 0.5, gaussian(1.0)), (1, 0.5, gaussian(2.0)), (1, 1.5, gaussian(3.0)), (0, 0.5, gaussian(0.7))]
D = np.diag([1.0, -2.0, -3.0, 4.0])
D[0, 3] = D[3, 0] = 0.25


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("spin_orbit", [True, False])
def test_read_upf(tmp_path, pack, spin_orbit):
    betas = [(l, j if spin_orbit else None, beta) for l, j, beta in BETAS]
    text = upf_text(betas=betas, d=D, dr=0.02, core=np.cos if spin_orbit else None, local=np.sin, rho=np.tanh)
    (tmp_path / "any.name").write_bytes(pack(text.encode()))
    found = read_upf(tmp_path / "any.name")
    r = 0.02 * np.arange(301)
    assert (found.number, found.valence, found.functional, found.spin_orbit) == (14, 4.0, "PBE", spin_orbit)
    assert (found.l, found.j) == ((0, 1, 1, 0), (0.5, 0.5, 1.5, 0.5) if spin_orbit else None)
    np.testing.assert_allclose(found.r, r, atol=1e-12)
    np.testing.assert_allclose(found.local, np.sin(r), rtol=1e-14)
    np.testing.assert_allclose(found.r_beta, [beta(r) for _, _, beta in BETAS], rtol=1e-14)
    np.testing.assert_array_equal(found.d, D)
    np.testing.assert_allclose(found.rho, np.tanh(r), rtol=1e-14)
    if spin_orbit:
        np.testing.assert_allclose(found.core, np.cos(r), rtol=1e-14)
    else:
        assert found.core is None


def test_local_potential_alone(tmp_path):
    (tmp_path / "a.upf").write_text(upf_text("H", 1.0))
    found = read_upf(tmp_path / "a.upf")
    assert (found.l, found.r_beta.shape, found.d.shape) == ((), (0, 601), (0, 0))


@pytest.mark.shared
def test_published_pseudopotentials_are_complete(shared):
    found = read_pseudopotentials(shared / "data/basis", PUBLISHED_VALENCE)
    assert {z: pseudo.valence for z, pseudo in found.items()} == PUBLISHED_VALENCE
    for z, pseudo in found.items():
        assert pseudo.spin_orbit and pseudo.functional == "PBE"
        assert (pseudo.core is None) == (SYMBOLS[z] in "H Li Na Mg As Se".split())
        # The valence density holds the valence electrons, short of what lies beyond the mesh (As and Se end at 6 Bohr).
        assert pseudo.rho.sum() * pseudo.dr == pytest.approx(pseudo.valence, abs=0.04)
        # Beyond the core the local potential is that of the ion, -2 Z/r.
        assert pseudo.local[-1] * pseudo.r[-1] == pytest.approx(-2 * pseudo.valence, rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'is_ultrasoft="F"',
            'is_ultrasoft="T"',
            "expected a norm-conserving pseudopotential, got one with is_ultrasoft",
        ),
        ('is_paw=".false."', 'is_paw=".TRUE."', "expected a norm-conserving pseudopotential, got one with is_paw"),
        ('is_paw=".false."', 'is_paw="2"', "expected T or F for is_paw, got '2'"),
        ('="NC"', '="1/r"', r"expected a norm-conserving pseudopotential \(pseudo_type NC\), got 1/r"),
        ('functional="PBE"', "", "the PP_HEADER has no `functional`"),
        ("<PP_LOCAL", "<PP_LOCALE", "the section PP_LOCAL is missing"),
        ("</PP_RHOATOM", "</PP_RHO", "the section PP_RHOATOM does not end"),
        ("<PP_NLCC", "<PP_NLC", "the section PP_NLCC is missing"),
        ("<PP_DIJ", "<PP_D", "the section PP_DIJ is missing"),
        ("<PP_BETA.3", "<PP_BETA.33", "the section PP_BETA.3 is missing"),
        ("<PP_RELBETA.2", "<PP_REL.2", "the section PP_RELBETA.2 is missing"),
        ('lll="1" jjj="1.5"', 'lll="2" jjj="1.5"', "PP_RELBETA.3 and PP_BETA.3 have different l"),
        ('jjj="1.5"', 'jjj="1"', "a projector of l = 1 cannot have j = 1"),
        ('number_of_proj="4"', 'number_of_proj="3"', "expected 9 numbers in PP_DIJ, got 16"),
        ("-2.0000000000000000e+00 0.0", "-2 0.5", "couples projectors 2 and 3 of different l or j"),
        ("</PP_LOCAL>", "1.0 </PP_LOCAL>", "expected 601 numbers in PP_LOCAL, got 602"),
        ("</PP_LOCAL>", "nan </PP_LOCAL>", "expected a number for PP_LOCAL, got 'nan'"),
        ("</PP_R>", "7.0 </PP_R>", "expected a uniform radial mesh that starts at 0, got another one"),
    ],
)
def test_mistakes_of_sections_have_a_sentence(tmp_path, old, new, sentence):
    text = upf_text(betas=BETAS, d=D, core=np.cos)
    assert old in text
    (tmp_path / "a.upf").write_text(text.replace(old, new, 1))
    with pytest.raises(FileError, match=sentence):
        read_upf(tmp_path / "a.upf")
