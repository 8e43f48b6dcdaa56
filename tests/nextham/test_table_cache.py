"""The cache of tables: what is kept, what is computed anew, and several processes at once."""

import multiprocessing
import os

import numpy as np
import pytest

from nextham.h0 import table_cache
from nextham.h0.radial import Radial
from nextham.h0.table_cache import cache_folder, cached_table, table_key
from nextham.h0.two_center import TwoCenterTable

TABLE = np.arange(12.0).reshape(4, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTHAM_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def counted(calls):
    def build():
        calls.append(1)
        return TABLE

    return build


def gaussian(exponent):
    r = 0.01 * np.arange(401)
    return Radial((0,), (r * np.exp(-exponent * r**2))[None], 0.01)


def test_a_table_is_built_once(folder):
    calls = []
    for _ in range(3):
        found = cached_table("name", "key", counted(calls))
        np.testing.assert_array_equal(found, TABLE)
        assert found.dtype == TABLE.dtype
    assert len(calls) == 1
    assert [path.name for path in folder.iterdir()] == ["name-key.table"]


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "words"])
def test_a_damaged_file_is_built_anew(folder, damage):
    calls = []
    cached_table("name", "key", counted(calls))
    path = folder / "name-key.table"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes({"empty": b"", "cut": bytes(content[:-8]), "bit": bytes(content), "words": b"no table"}[damage])
    for _ in range(2):
        np.testing.assert_array_equal(cached_table("name", "key", counted(calls)), TABLE)
    assert len(calls) == 2


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NEXTHAM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nextham"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "nextham"
    monkeypatch.setenv("NEXTHAM_CACHE", "")
    assert cache_folder() is None
    calls = []
    for _ in range(2):
        cached_table("name", "key", counted(calls))
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_keeps_nothing(folder):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    calls = []
    for _ in range(2):
        np.testing.assert_array_equal(cached_table("name", "key", counted(calls)), TABLE)
    assert len(calls) == 2


def test_an_interrupted_write_leaves_nothing(folder, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    np.testing.assert_array_equal(cached_table("name", "key", counted([])), TABLE)
    assert not list(folder.iterdir())


def test_the_key_is_all_that_a_table_depends_on(folder, monkeypatch):
    other = TABLE.copy()
    other[2, 1] = np.nextafter(other[2, 1], 9)
    words = [[TABLE], [other], [TABLE.T], [TABLE.astype(np.float32)], [TABLE, (0, 1)], [TABLE, (0,)], [TABLE, 0.02]]
    keys = {table_key(word) for word in words}
    monkeypatch.setattr(table_cache, "VERSION", 99)
    assert len(keys | {table_key([TABLE])}) == len(words) + 1
    for left, right, powers in (
        (1.0, 1.0, (0,)),
        (1.0, 1.1, (0,)),
        (1.1, 1.0, (0,)),
        (1.0, 1.0, (0, 1)),
        (1.0, 1.0, (0,)),
    ):
        TwoCenterTable(gaussian(left), gaussian(right), powers)
    assert len(list(folder.iterdir())) == 4


def write(exponent):
    return float(TwoCenterTable(gaussian(1.0), gaussian(exponent))._table.sum())


def test_several_processes_share_the_folder(folder):
    exponents = [1.0, 1.5] * 4
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(write, exponents)
    assert found == [write(exponent) for exponent in exponents]
    assert len(list(folder.iterdir())) == 2
