"""Networks that do not read H⁽⁰⁾, training without the k-space loss, and the table in which both stand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from block_cases import real_matrices
from test_train import TINY, data, settings_of

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.cli import main
from nextham.graph import neighbour_graph
from nextham.model import Ensemble, NextHAMConfig, predict_delta
from nextham.model.reading import elements_only, what_is_read
from nextham.structure import Structure
from nextham.train import Trainer

__all__ = ["data"]  # the fixture


def test_every_element_has_its_own_numbers():
    """On site, isotropic, and different for any two elements; nothing between atoms."""
    structure = Structure(4.0 * np.eye(3), [[0.0, 0.0, 0.0], [1.9, 2.0, 2.1]], [14, 33])
    h0 = Blocks.zeros(neighbour_graph(structure, 4.5), Basis.published([14, 33]), 4, np.complex128)
    h0.data[:] = np.random.default_rng(0).standard_normal(len(h0.data))
    coded = elements_only(h0)
    onsite, found = h0.graph.onsite(), {}
    for e in range(h0.graph.n_edges):
        uu, ud, du, dd = coded.data[coded.index(np.array([e]))][0]
        assert not ud.any() and not du.any() and np.array_equal(uu, dd)
        if not onsite[e]:
            assert not uu.any()
            continue
        z = int(structure.numbers[h0.graph.src[e]])
        first = 0
        for n, l in enumerate(h0.basis[z], start=1):
            shell = uu[first : first + 2 * l + 1, first : first + 2 * l + 1]
            np.testing.assert_allclose(shell, np.cos(np.pi * n * z / 119) * np.eye(2 * l + 1), atol=1e-15)
            first += 2 * l + 1
        found[z] = uu
    assert set(found) == {14, 33} and np.count_nonzero(found[14]) == len(found[14])
    assert np.diff(np.cos(np.pi * np.arange(1, 119) / 119)).max() < 0  # the first shell tells all elements apart
    assert what_is_read(h0, NextHAMConfig()) is h0


@pytest.mark.parametrize("engine", ["edge_frame", "reference"])
def test_h0_is_not_read(engine):
    """The prediction does not change with H0; it does where H0 is read."""
    torch.manual_seed(0)
    m, config = real_matrices(), NextHAMConfig.from_dict({**NextHAMConfig().to_dict(), **TINY})
    h0 = m["H0"].within(0.0, 4.0)
    for reads in ("h0", "elements"):
        ensemble = Ensemble(dataclasses.replace(config, reads=reads), engine).double()
        a, b = predict_delta(ensemble, h0), predict_delta(ensemble, h0 * 1.1)
        assert np.abs(a.data).max() > 1e-6
        assert np.array_equal(a.data, b.data) == (reads == "elements")


def test_older_folders_read_h0():
    values = NextHAMConfig().to_dict()
    del values["reads"]
    assert NextHAMConfig.from_dict(values).reads == "h0"
    with pytest.raises(ValueError, match=r"^config: reads: expected one of h0, elements, got 'S'"):
        dataclasses.replace(NextHAMConfig(), reads="S")


def test_ablations_of_a_recipe(data, tmp_path, capsys):
    """Three runs that differ in one thing each, and one table."""
    without = {"low": 0.0, "rest": 0.0, "coupling": 0.0, "padded_slots": False}
    changes = {
        "whole": {},
        "no-h0": {"model": {"reads": "elements"}},
        "no-k": {"loss": without, "kpoints": {"per_step": 0}},
    }
    for name, change in changes.items():
        settings = settings_of(data, tmp_path / name, optimizer={"epochs": 1}, **change)
        trainer = Trainer(settings)
        assert (trainer.store["s0"].solver is None) == (name == "no-k")
        trainer.run(say=str)
    words = [f"{tmp_path / name}/best" for name in changes]
    words += ["--data", str(data), "--samples", "s3", "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", *words]) == 0
    shown = capsys.readouterr().out
    assert "no-h0" in shown and "no-k" in shown
    found = {r["label"]: r["mae_meV"] for r in json.loads((tmp_path / "e.json").read_text())["gauge"]}
    assert len(found) == 4 and len(set(found.values())) == 4
    with pytest.raises(ValueError, match=r"^augment.gauge: expected 0 where the networks do not read H0"):
        settings_of(data, tmp_path, model={"reads": "elements"}, augment={"gauge": 1.0})
