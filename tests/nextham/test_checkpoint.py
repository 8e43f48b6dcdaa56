"""Our checkpoints: exact round trips, and one sentence for whatever is wrong with the files."""

import dataclasses
import json

import harness
import pytest
import torch
from safetensors.torch import load_file, save_file

from nextham.io.errors import FileError
from nextham.model import Ensemble, NextHAMConfig, load, load_any, save

CONFIG = NextHAMConfig(
    hidden="4x0e+2x1o",
    l_max=1,
    n_layers=2,
    n_radial=4,
    radial_widths=(4,),
    alpha_widths=(4,),
    alpha_scalars=2,
    tracegrad_forms=4,
    tracegrad_forms_last=4,
    tracegrad_widths=(3, 3),
    trace_widths=(3,),
    ranges=((0.0, 1.0), (1.0, 3.0)),
    shells=(0, 1),
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    save(Ensemble(CONFIG), tmp_path / "model")
    return tmp_path / "model"


def change(folder, **changes):
    """Writes the weights anew with some parameters replaced, or without them (None)."""
    tensors = {**load_file(folder / "weights.safetensors"), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "weights.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    ensemble = Ensemble(dataclasses.replace(CONFIG, target="scalar+vector")).to(dtype)
    save(ensemble, tmp_path / "deep" / "er")
    again = load(tmp_path / "deep" / "er")
    assert again.config == ensemble.config and again.dtype == dtype
    for (name, a), (_, b) in zip(ensemble.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(p.requires_grad for p in again.parameters())


def test_saving_again_replaces(folder):
    ensemble = Ensemble(dataclasses.replace(CONFIG, n_layers=1))
    save(ensemble, folder)
    assert load(folder).config.n_layers == 1


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(1), expected)


def test_load_any(folder, tmp_path):
    assert load_any(folder).config == CONFIG
    with harness.raises(FileError, f"{tmp_path}: expected a model folder: config.json, or model_range0_*.pth.tar"):
        load_any(tmp_path)


def test_parameters(folder):
    name = "networks.1.layers.0.norm_node.weight"
    weight = load_file(folder / "weights.safetensors")[name]
    where = f"{folder / 'weights.safetensors'}: parameter {name}"
    for replacement, sentence in (
        (weight[1:].clone(), f"{where}: expected shape [6], got [5]"),
        (weight.long(), f"{where}: expected floating-point numbers, got torch.int64"),
        (weight * float("nan"), f"{where}: expected finite numbers, got NaN or infinity"),
        (None, f"{where} is missing"),
    ):
        change(folder, **{name: replacement})
        with harness.raises(FileError, sentence):
            load(folder)
    change(folder, **{name: weight, "colour": weight.clone()})
    with harness.raises(FileError, "weights.safetensors: parameter colour is unexpected"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_truncated_weights(folder, kept):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with harness.raises(FileError, f"{path}: truncated or no safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{\n "format": ', "config.json, line 2: no JSON"),
        (b"\xff\xfe\x00", "config.json: no JSON: not a text file"),
        (b"[1, 2]", 'config.json: expected {"format": "nextham ensemble 1", "config": {...}}'),
        (b'{"format": "nextham ensemble 9", "config": {}}', "config.json: expected {"),
        (b'{"format": "nextham ensemble 1", "config": {}}', "config.json: config: setting 'hidden' is missing"),
    ],
)
def test_config(folder, text, sentence):
    (folder / "config.json").write_bytes(text)
    with harness.raises(FileError, sentence):
        load(folder)


def test_config_of_another_network(folder):
    content = json.loads((folder / "config.json").read_text())
    content["config"]["hidden"] = "5x0e+2x1o"
    (folder / "config.json").write_text(json.dumps(content))
    with harness.raises(FileError, "parameter networks.0.embed.weight: expected shape"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with harness.raises(FileError, f"{name}: no such file; a model folder holds config.json and weights.safetensors"):
        load(folder)


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with harness.raises(FileError, "cannot be written"):
        save(Ensemble(CONFIG), tmp_path / "file" / "model")
