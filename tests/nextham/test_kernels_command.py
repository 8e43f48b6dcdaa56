"""`nextham kernels compile`: the kernels that it compiles are those that the later run launches."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nextham.cli import kernels, main
from nextham.data import bundled_model, sample
from nextham.graph import neighbour_graph
from nextham.structure import Structure

ROOT = Path(__file__).resolve().parents[2]
SI = sample("Si-1")

PROGRAM = """
import argparse, json, sys
from pathlib import Path

sys.path.insert(0, "tests/nextham")
import test_cli_h0, test_train
from basis_files import orb_text, upf_text
from gaussian_orbitals import RADIUS, SHELLS, radial

from nextham.cli import kernels
from nextham.cli.sources import read_atoms
from nextham.data import bundled_model, sample
from nextham.h0 import AtomicFiles, build_h0
from nextham.io.csr import read_blocks
from nextham.io.structure_file import read_structure
from nextham.model import load_any, predict_delta
from nextham.train import Trainer
from nextham.units import SYMBOLS
from nextham_kernels.ahead import launches

folder, si = Path(sys.argv[1]), sample("Si-1")
found = {}


def compare(name, ahead, later):
    made, wanted = ({(x.key, x.function) for x in launches(work, (9, 0))} for work in (ahead, later))
    found[name] = {"missing": sorted(wanted - made), "more": sorted(made - wanted), "n": len(wanted)}


def given(**more):
    usual = {"basis": None, "orbitals": None, "precision": "single", "model": bundled_model()}
    return argparse.Namespace(**{**usual, **more})


ensemble = load_any(bundled_model())
structure, basis, _ = read_atoms(si / "STRU")
h0 = read_blocks(si / "hrs0_nao.csr.xz", structure, basis, unit="Ry")
compare("read", kernels.prediction(given(structure=si / "STRU")), lambda: predict_delta(ensemble, h0))
compare("pieces", kernels.prediction(given(structure=si / "STRU")), lambda: predict_delta(ensemble, h0, 20_000_000))
double = given(structure=si / "STRU", precision="double")
compare("double", kernels.prediction(double), lambda: predict_delta(ensemble, h0))
ensemble = ensemble.float()

test_cli_h0.write_files(folder)
(folder / "POSCAR").write_text(test_cli_h0.POSCAR)
structure = read_structure(folder / "POSCAR")
files = AtomicFiles.read(folder, structure.numbers)
later = lambda: predict_delta(ensemble, build_h0(structure, files)[0])
compare("basis", kernels.prediction(given(structure=folder / "POSCAR", basis=folder)), later)

test_train.write_data(folder)
settings = test_train.settings_of(folder / "data.h5", folder / "run", optimizer={"epochs": 1})
compare("train", kernels.training(settings), lambda: Trainer(settings).run())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "python", os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("files"))]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.triton
@pytest.mark.parametrize("what", ["read", "pieces", "basis", "train"])
def test_what_is_compiled_is_what_the_run_launches(found, what):
    assert found[what]["n"] > 20 and found[what]["missing"] == []


@pytest.mark.triton
def test_another_precision_has_other_kernels(found):
    assert len(found["double"]["missing"]) > 20


def test_the_small_cell_has_all_pairs_of_elements_in_every_range():
    cell = kernels.small_cell(Structure(9 * np.eye(3), np.arange(9.0).reshape(3, 3), [31, 33, 31]))
    graph = neighbour_graph(cell, 6.0)
    pairs = {tuple(p) for p in cell.numbers[np.stack([graph.src, graph.dst], 1)].tolist()}
    assert pairs == {(31, 31), (31, 33), (33, 31), (33, 33)}
    for low, high in ((0, 1), (1, 2), (2, 4), (4, 6)):
        assert ((graph.distance() >= low) & (graph.distance() < high)).any()


def test_bad_arguments(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["kernels", "compile", str(SI / "STRU")]) == 1
    assert "structure, settings: give either STRUCTURE and --model, or --settings" in capsys.readouterr().err
    assert main(["kernels", "compile", str(SI / "STRU"), "--model", str(bundled_model())]) == 1
    assert "capability: expected one, such as 9.0" in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a compute capability such as 9.0, got '90'"):
        kernels._capability("90")
    assert kernels._capability("10.0") == (10, 0)
