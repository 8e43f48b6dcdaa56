import gzip
import lzma

import numpy as np
import pytest

from nextham.io.errors import FileError
from nextham.io.upf import PUBLISHED_VALENCE, electron_count, read_valence
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
