"""The published checkpoints: names and shapes against the manifest, both ways, and nothing is ever executed."""

import dataclasses
import pickle

import harness
import pytest
import torch
from test_checkpoint import CONFIG

from nextham.io.errors import FileError
from nextham.model import (
    Ensemble,
    NextHAMConfig,
    load_any,
    load_published,
    published_manifest,
    published_places,
    published_tensors,
    save_published,
)

ONE_PUBLISHED = dataclasses.replace(NextHAMConfig(), ranges=((0.0, 6.0),))


def test_manifest_and_places():
    manifest, places = published_manifest(), published_places(NextHAMConfig())
    assert len(manifest) == 6153
    read = {name for name, (_, used) in manifest.items() if used}
    assert len(read) == 281
    # the biases of imaginary 0e outputs are no more than that: read, and then not used by Re ↑↑
    assert set(places) - read == {f"edge_lin.bias.{k}" for k in range(34, 68)}
    assert read <= set(places) <= set(manifest)


def test_places_cover_every_parameter_once():
    config = NextHAMConfig()
    network = Ensemble(dataclasses.replace(config, ranges=((0.0, 1.0),))).networks[0]
    ours = {name: torch.zeros(p.shape) for name, p in network.named_parameters()}
    for name, place in published_places(config).items():
        part = ours[place.name][place.entries]
        assert tuple(part.shape) == published_manifest()[name][0], name
        part += 1
    assert all(bool((count == 1).all()) for count in ours.values())


def test_published_sizes_round_trip(tmp_path):
    """Whole files of a published size, with what e3nn stores beside the parameters, there and back."""
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, (shape, _) in published_manifest().items()}
    files = []
    for number in range(2):
        extra = {"blocks.0.ga.sep_act.dtp._compiled_main.w": torch.zeros(2), "edge_lin.tp.output_mask": torch.ones(3)}
        files.append(tmp_path / f"model_range{number}_best.pth.tar")
        torch.save({"epoch": 3, "state_dict": {**{k: v + number for k, v in state.items()}, **extra}}, files[-1])
    ensemble, dead = load_published(files, dataclasses.replace(NextHAMConfig(), ranges=((0.0, 2.0), (2.0, 6.0))))
    assert len(dead) == 2 * (6153 - 315)
    assert torch.equal(dead["1:ele_embed.weight"], state["ele_embed.weight"] + 1)
    found = published_tensors(ensemble)
    for name in ("edge_lin.bias.7", "blocks.3.ga.edge_proj.bias.1", "edge_feature_nonlin_block.3.fctp.weight"):
        assert torch.equal(found[f"1:{name}"], state[name] + 1)
    again = save_published(ensemble, tmp_path / "out", dead)
    content = torch.load(again[1], weights_only=True)["state_dict"]
    assert set(content) == set(state)
    assert all(torch.equal(content[name], state[name] + 1) for name in state)


def test_without_the_dead(tmp_path):
    """The published code gets zeros of the right shapes where nothing is read."""
    ensemble = Ensemble(ONE_PUBLISHED)
    files = save_published(ensemble, tmp_path)
    content = torch.load(files[0], weights_only=True)["state_dict"]
    assert {name: tuple(t.shape) for name, t in content.items()} == {n: s for n, (s, _) in published_manifest().items()}
    again, _ = load_published(tmp_path, ONE_PUBLISHED)
    assert all(torch.equal(a, b) for a, b in zip(ensemble.parameters(), again.parameters(), strict=True))


def test_other_settings_with_published_weights(tmp_path):
    files = save_published(Ensemble(ONE_PUBLISHED), tmp_path)
    strict = dataclasses.replace(ONE_PUBLISHED, target="scalar")
    ensemble, _ = load_published(tmp_path, strict)
    assert ensemble.config.target == "scalar"
    state = torch.load(files[0], weights_only=True)["state_dict"]
    torch.save({"state_dict": {**state, "colour": torch.zeros(1)}}, files[0])
    with harness.raises(FileError, f"{files[0]}: parameter colour is unexpected"):
        load_published(tmp_path, strict)
    del state["ele_embed.weight"]
    torch.save({"state_dict": state}, files[0])
    with harness.raises(FileError, f"{files[0]}: parameter ele_embed.weight is missing"):
        load_published(files, strict)


def test_load_any_takes_a_folder_of_published_files(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model_range0_x.pth.tar")
    with harness.raises(FileError, f"{tmp_path}: expected one file model_range1_*.pth.tar, found 0"):
        load_any(tmp_path)


# --- with small networks, which have no manifest


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(2)
    return save_published(Ensemble(CONFIG), tmp_path)


def rewrite(path, content):
    torch.save(content, path)


def test_small_round_trip(files):
    ensemble, dead = load_published(files, CONFIG)
    torch.manual_seed(2)
    expected = Ensemble(CONFIG)
    assert dead == {}
    assert all(torch.equal(a, b) for a, b in zip(ensemble.parameters(), expected.parameters(), strict=True))
    assert all(p.requires_grad for p in ensemble.parameters())


def test_what_no_manifest_knows_is_dead(files):
    state = torch.load(files[1], weights_only=True)["state_dict"]
    rewrite(files[1], {"state_dict": {**state, "head.0.weight": torch.ones(2)}})
    assert list(load_published(files, CONFIG)[1]) == ["1:head.0.weight"]


def test_parameters(files):
    name = "blocks.1.ga.lin_alpha.0.weight"
    state = torch.load(files[1], weights_only=True)["state_dict"]
    where = f"{files[1]}: parameter {name}"
    for replacement, sentence in (
        (state[name][1:], f"{where}: expected shape [4, 6], got [3, 6]"),
        (state[name] * float("inf"), f"{where}: expected finite numbers, got NaN or infinity"),
        ([1.0], f"{where}: expected floating-point numbers, got list"),
    ):
        rewrite(files[1], {"state_dict": {**state, name: replacement}})
        with harness.raises(FileError, sentence):
            load_published(files, CONFIG)
    del state[name]
    rewrite(files[1], {"state_dict": state})
    with harness.raises(FileError, f"{where} is missing"):
        load_published(files, CONFIG)


class Trap:
    """What a pickle could run."""

    def __reduce__(self):
        return (open, ("trap", "w"))


def test_code_is_refused_and_not_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(files[0], {"state_dict": {}, "module": Trap()})
    function = f"{open.__module__}.open"  # "io" up to Python 3.12, "_io" later
    with harness.raises(
        FileError, f"{files[0]}: holds code ({function}), a pickled module perhaps; only tensors are read"
    ):
        load_published(files, CONFIG)
    rewrite(files[0], Ensemble(CONFIG))
    with harness.raises(FileError, "holds code (nextham.model.ensemble.Ensemble)"):
        load_published(files, CONFIG)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_truncated(files, kept):
    files[1].write_bytes(files[1].read_bytes()[:kept])
    with harness.raises(FileError, f"{files[1]}: truncated or no checkpoint of torch.save"):
        load_published(files, CONFIG)


@pytest.mark.parametrize("content", [b"no checkpoint at all", pickle.dumps([1, 2]), b"\x80\x02}q\x00."])
def test_other_files(files, content):
    files[1].write_bytes(content)
    with harness.raises(FileError, f"{files[1]}: "):
        load_published(files, CONFIG)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"state_dict": [1]}, {"state_dict": {3: torch.ones(1)}}])
def test_no_state(files, content):
    rewrite(files[1], content)
    with harness.raises(FileError, f"{files[1]}: expected a checkpoint with an entry 'state_dict', parameters by name"):
        load_published(files, CONFIG)


def test_files(files, tmp_path):
    assert [f.name for f in files] == ["model_range0_nextham.pth.tar", "model_range1_nextham.pth.tar"]
    with harness.raises(ValueError, "paths: expected 2 files, one per distance range, got 1"):
        load_published(files[:1], CONFIG)
    with harness.raises(ValueError, "paths: expected the file of range 0 at place 0, got model_range1_nextham.pth.tar"):
        load_published(files[::-1], CONFIG)
    with harness.raises(FileError, "missing.pth.tar: no such file"):
        load_published([files[0], tmp_path / "missing.pth.tar"], CONFIG)
    files[1].rename(tmp_path / "model_range0_other.pth.tar")
    with harness.raises(FileError, f"{tmp_path}: expected one file model_range0_*.pth.tar, found 2"):
        load_published(tmp_path, CONFIG)


def test_gradients_by_published_name():
    ensemble = Ensemble(CONFIG)
    ensemble.networks[1].readout.bias.square().sum().backward()
    gradients, values = published_tensors(ensemble, gradients=True), published_tensors(ensemble)
    assert gradients.keys() == values.keys()
    assert all(g.shape == values[name].shape for name, g in gradients.items())
    assert not gradients["0:edge_lin.bias.0"].any()
    assert torch.equal(gradients["1:edge_lin.bias.1"], 2 * values["1:edge_lin.bias.1"])


def test_old_files_of_torch_are_read_too(files):
    """Files that only torch itself can read: its format before 1.6, and tensors that are not contiguous."""
    expected = load_published(files, CONFIG)[0]
    state = torch.load(files[1], weights_only=True)["state_dict"]
    name = "blocks.1.ga.lin_alpha.0.weight"
    for change in ({}, {name: state[name].T.contiguous().T}):
        torch.save({"state_dict": {**state, **change}}, files[1], _use_new_zipfile_serialization=bool(change))
        found = load_published(files, CONFIG)[0]
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_what_was_not_drawn_is_read(files):
    """Loading draws no random numbers, and what it reads belongs to the ensemble alone."""
    before = torch.get_rng_state()
    ensemble = load_published(files, CONFIG)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_contiguous() and p.untyped_storage().size() == 4 * p.numel() for p in ensemble.parameters())
