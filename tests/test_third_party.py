"""`bench.third_party` on a small model of e3nn modules in place of a package's."""

import json

import harness
import pytest
import torch

from bench import record, third_party
from bench.bench_network import CASES, EnergyModel


def small(kinds, edges, dtype):
    return EnergyModel(CASES["tiny"]), lambda model, positions: model(positions, kinds, edges), "e3nn"


@pytest.fixture
def small_box(monkeypatch):
    positions, kinds, edges = third_party.box(torch.float64)
    near = (edges < 8).all(0)
    monkeypatch.setattr(
        third_party, "box", lambda dtype: (positions[:8].to(dtype), kinds[:8], edges[:, near].contiguous())
    )
    monkeypatch.setitem(third_party.MODELS, "small", small)
    default = torch.get_default_dtype()
    with harness.threads(1):
        yield int(near.sum())
    torch.set_default_dtype(default)


def test_a_model_is_compared_and_timed(small_box, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert third_party.main(["small", "--dtype", "float64", "--threads", "1", "--repeats", "1"]) == 0
    (stored,) = tmp_path.glob("*/third_party.jsonl")
    lines = [json.loads(line) for line in stored.read_text().splitlines()]
    assert [line["direction"] for line in lines] == ["forces", "train"]
    for line in lines:
        assert set(record.KEYS) <= line.keys() and line["case"] == f"small-{small_box}"
        assert 0 < line["max_rel_diff"] < 1e-6 and line["speedup"] > 0
    printed = capsys.readouterr().out
    assert "0 left as they are" in printed and "forces: relative difference" in printed


def test_box():
    positions, kinds, edges = third_party.box(torch.float32)
    assert positions.shape == (64, 3) and positions.dtype == torch.float32 and kinds.max() == 3
    distance = (positions[edges[0]] - positions[edges[1]]).norm(dim=1)
    assert distance.max() < third_party.CUTOFF and (edges[0] != edges[1]).all()
