"""Training: the recipe, what a run writes, and that a killed run goes on bit for bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.linalg
import torch
from block_cases import real_matrices

from nextham.cli import main
from nextham.compact_target import CompactTarget
from nextham.data import bundled_model
from nextham.dataset import Dataset, check_sample, join, write_part
from nextham.io.errors import FileError
from nextham.kspace import eigenvectors_at
from nextham.losses import LossSettings, total_loss
from nextham.metrics import gauge_mae
from nextham.model import Ensemble, NextHAMConfig, load, predict_delta, save_published
from nextham.train import Trainer, TrainingError, TrainSettings, read_settings, settings_to_yaml
from nextham.train.parallel import Processes
from nextham.train.record import read_history
from nextham.train.samples import BandSolver, SampleStore, packed_batches
from nextham.train.settings import KPointSettings, OptimizerSettings, settings_from_dict
from nextham.train.state import read_checkpoint
from nextham.train.step import Readout, batch_losses, errors_of, predict_batch
from nextham.train.trainer import learning_rate

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "hidden": "4x0e+2x1o+1x2e", "l_max": 2, "n_layers": 2, "n_heads": 2, "cutoff": 4.0, "n_radial": 6,
    "radial_widths": [6], "alpha_scalars": 3, "alpha_widths": [6], "tracegrad_forms": 5, "tracegrad_forms_last": 4,
    "tracegrad_widths": [6, 6], "trace_widths": [6], "ranges": [[0.0, 1.0], [1.0, 4.0]], "shells": [0, 0, 1, 1, 2],
    "target": "scalar", "norm": "floor",
}  # fmt: skip


def write_data(folder):
    """Four small samples: the silicon of the package with edges below 4.5 Å, labels scaled by different factors."""
    matrices, parts = real_matrices(), []
    s = matrices["S"].spinless()
    for i, factor in enumerate((1.0, 0.8, 1.2, 0.5)):
        h0 = matrices["H0"]
        delta = matrices["H"].on(h0.graph) - h0
        sample = {"H0": h0, "H": h0 + delta * factor, "S": s}
        facts = check_sample(sample, True, 6.93)
        small = {name: m.within(0, 4.5 if name != "S" else 99.0) for name, m in sample.items()}
        write_part(folder, f"s{i}", small, {**facts, "source": f"made {i}"}, None)
        parts.append(folder / f"s{i}.h5")
    join(folder / "data.h5", parts, {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder / "data.h5"


def settings_of(data, folder, **more):
    content = {
        "data": str(data), "output": str(folder), "model": TINY,
        "split": {"validation": 0.0, "test": 0.0, "validation_only": ["s3"]},
        "loss": {"padded_slots": False},
        "optimizer": {"epochs": 2, "warmup_epochs": 1, "ema": 0.9, "structures": 2},
        "run": {"precision": "double", "tensorboard": False},
    }  # fmt: skip
    for key, value in more.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    return settings_from_dict(content)


# --- settings


def test_published_recipe_is_the_default():
    s = TrainSettings()
    assert (s.loss.low, s.loss.rest, s.loss.coupling, s.loss.trace) == (2e-4, 1e-4, 1.5e-4, 0.2)
    assert s.loss.padded_slots and not s.loss.squares and s.optimizer.squares_after == 130
    o = s.optimizer
    assert (o.lr, o.min_lr, o.warmup_lr, o.warmup_epochs, o.epochs) == (5e-4, 1e-5, 1e-6, 5, 100)
    assert (o.structures, o.clip, o.weight_decay, o.ema, o.output_scale) == (1, 0, 0, 0, 1)
    assert (s.kpoints.per_step, s.kpoints.mesh) == (1, 4) and s.model == {}


def test_settings_of_yaml(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("data: a.h5\noptimizer: {lr: 1e-3, epochs: 7}\nkpoints: {window: [-5, 5]}\n")
    s = read_settings(path)
    assert (s.optimizer.lr, s.optimizer.epochs, s.kpoints.window) == (1e-3, 7, (-5.0, 5.0))
    assert s.data == str(tmp_path / "a.h5")
    again = tmp_path / "again.yaml"
    again.write_text(settings_to_yaml(s))
    assert read_settings(again) == s


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimiser: {lr: 1}", "optimiser: unknown setting"),
        ("optimizer: {lr: fast}", "optimizer.lr: expected float, got 'fast'"),
        ("optimizer: {epochs: 0}", "optimizer.epochs: expected 1 or more, got 0"),
        ("optimizer: 3", "optimizer: expected settings, got 3"),
        ("run: {tensorboard: 1}", "run.tensorboard: expected bool, got 1"),
        ("kpoints: {source: some}", "kpoints.source: expected 'fresh' or 'stored'"),
        ("loss: {low: -1}", "settings: expected weights of at least 0"),
        ("a: [", "line 1: no YAML"),
        ("- a", "expected settings such as"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, sentence):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(FileError) as error:
        read_settings(tmp_path / "t.yaml")
    assert sentence in str(error.value)


def test_recipes_are_one_but_for_what_they_say():
    whole, no_h0, no_k = (read_settings(ROOT / "recipes" / f"{name}.yaml") for name in ("whole", "no-h0", "no-k"))
    assert (
        NextHAMConfig.from_dict({**NextHAMConfig().to_dict(), **whole.model}).hidden
        == load(bundled_model()).config.hidden
    )
    assert no_h0.model == {**whole.model, "reads": "elements"} and no_k.kpoints.per_step == 0
    assert replace(no_h0, model=whole.model, output=whole.output) == whole
    assert replace(no_k, loss=whole.loss, kpoints=whole.kpoints, output=whole.output) == whole
    assert read_settings(ROOT / "recipes" / "small-crystals.yaml").start_from.endswith("runs/whole/best")


def test_learning_rate():
    o = OptimizerSettings()
    assert learning_rate(o, 0) == 1e-6 and learning_rate(o, 5) < 5e-4
    assert learning_rate(o, 2.5) == pytest.approx(1e-6 + (5e-4 - 1e-6) / 2)
    assert learning_rate(o, 50) == pytest.approx((5e-4 + 1e-5) / 2) and learning_rate(o, 100) == pytest.approx(1e-5)


def test_packed_batches():
    edges = {"a": 5, "b": 5, "c": 20, "d": 1, "e": 1}
    assert packed_batches("abcde", edges, 2, 0) == [("a", "b"), ("c", "d"), ("e",)]
    assert packed_batches("abcde", edges, 9, 11) == [("a", "b"), ("c",), ("d", "e")]
    assert packed_batches("abcde", edges, 1, 3) == [(x,) for x in "abcde"]


# --- samples and steps


@pytest.fixture(scope="module")
def store(data):
    torch.manual_seed(1)
    ensemble = Ensemble(NextHAMConfig.from_dict({**NextHAMConfig().to_dict(), **TINY})).double()
    return SampleStore(Dataset(data), ensemble, KPointSettings(), 10**9), ensemble


def test_eigenvectors_are_those_of_kspace(data):
    matrices = Dataset(data).read("s1")
    k = np.array([[0.1, 0.37, -0.2], [0.0, 0.5, 0.1]])
    epsilon, c = BandSolver(matrices["H"], matrices["S"]).at(k)
    h, s = (matrices[name].spinor().to_dense(k) for name in ("H", "S"))
    np.testing.assert_allclose(epsilon[1], scipy.linalg.eigh(h[1], s[1], eigvals_only=True), atol=1e-9)
    assert np.abs(c.conj().swapaxes(1, 2) @ s @ c - np.eye(52)).max() < 1e-9
    assert np.abs(h @ c - s @ c * epsilon[:, None]).max() < 1e-8


@pytest.mark.parametrize("target", ["uu", "scalar", "scalar+vector"])
def test_readout_is_the_correction(target):
    config = NextHAMConfig.from_dict({**NextHAMConfig().to_dict(), **TINY, "target": target})
    ensemble = Ensemble(config).double()
    irreps = torch.randn(3, config.block_irreps.dim, dtype=torch.float64)
    blocks = ensemble.correction(irreps).flatten(2)
    found = Readout(ensemble)(irreps)
    if found.ndim == 2:
        zero = torch.zeros_like(found)
        found = torch.stack([found, zero, zero, found], 1).to(blocks.dtype)
    torch.testing.assert_close(found, blocks, rtol=1e-12, atol=1e-12)


def test_step_is_the_padded_loss(store, data):
    """One structure of a batch of two against the loss of its own padded prediction, and errors against the metrics."""
    samples, ensemble = store
    readout = Readout(ensemble)
    rng = np.random.default_rng(0)
    pair = [samples["s0"], samples["s2"]]
    targets = [sample.target_at(KPointSettings(per_step=2), rng) for sample in pair]
    settings = LossSettings(0.2, 0.1, 0.3)
    with torch.no_grad():
        losses = batch_losses(ensemble, readout, pair, targets, settings)
    matrices = Dataset(data).read("s2")
    h0, h = matrices["H0"], matrices["H"]
    delta = predict_delta(ensemble, h0)
    kpoints = targets[1].kpoints.numpy()
    epsilon, vectors = eigenvectors_at(h, matrices["S"], kpoints)
    low = np.arange(epsilon.shape[1])[None].repeat(2, 0) < samples.dataset.samples["s2"].n_low
    whole = CompactTarget.from_blocks(h - h0, matrices["S"], None, ensemble.config.shells)
    whole = whole.with_bands(kpoints, vectors, low)
    alone = total_loss(
        torch.from_numpy(delta.padded(ensemble.config.shells)).flatten(2),
        torch.zeros(whole.trace_shape, dtype=torch.float64), whole, settings,
    )  # fmt: skip
    assert float(losses[1].hamiltonian) == pytest.approx(float(alone.hamiltonian), rel=1e-8)
    ours = errors_of(pair[1], predict_batch(ensemble, readout, pair, with_trace=False)[1][0])
    report = gauge_mae(h0 + delta, h, matrices["S"])
    assert ours.mae == pytest.approx(report.mae_meV, rel=1e-8) and ours.mu == pytest.approx(report.mu_eV, rel=1e-8)
    for i, name in enumerate(("0-1 Å", "1-2 Å", "2-4 Å", "4-6 Å")):
        expected = report.by_distance.get(name, (0.0, 0))
        assert ours.counts[i] == expected[1]
        assert ours.sums[i] == pytest.approx(expected[0] * expected[1], rel=1e-8)
    of_h0 = errors_of(pair[1], None)
    assert of_h0.mae == pytest.approx(gauge_mae(h0, h, matrices["S"]).mae_meV, rel=1e-8)


def test_stored_eigenvectors_are_used(store, tmp_path):
    """Those that came with a sample, and the same loss as with fresh ones at their k-point."""
    samples, ensemble = store
    matrices, k = samples.dataset.read("s0"), np.array([[0.1, 0.2, 0.3]])
    _, c = eigenvectors_at(matrices["H"], matrices["S"], k)
    facts = {**check_sample(matrices, None, 6.93), "source": "made", "kpoints": k, "eigenvectors": c.swapaxes(1, 2)}
    write_part(tmp_path, "one", matrices, facts, None)
    join(tmp_path / "d.h5", [tmp_path / "one.h5"], {})
    stored = SampleStore(Dataset(tmp_path / "d.h5"), ensemble, KPointSettings(source="stored"), 10**9)["one"]
    target = stored.target_at(KPointSettings(per_step=2), np.random.default_rng(0))
    np.testing.assert_array_equal(target.kpoints, np.repeat(k, 2, axis=0))
    fresh = samples["s0"].target.with_bands(k, c, np.arange(52)[None] < facts["n_low"])
    prediction, trace = torch.zeros(len(stored.src), 13**2).double(), torch.zeros(fresh.trace_shape).double()
    settings = LossSettings(0.2, 0.1, 0.3)
    loss = [total_loss(prediction, trace, t, settings).hamiltonian for t in (target, fresh)]
    torch.testing.assert_close(*loss, rtol=1e-10, atol=0)


def test_the_gauge_is_augmented(data, store):
    """The network reads H0 + c S; label and loss stay."""
    _, ensemble = store
    sample = SampleStore(Dataset(data), ensemble, KPointSettings(), 10**9, overlap=True)["s0"]
    matrices = Dataset(data).read("s0")
    shifted = matrices["H0"].shift_gauge(matrices["S"], 0.7).within(0.0, 4.0)
    expected = ensemble.irreps_of_blocks(torch.from_numpy(shifted.padded(ensemble.config.shells)))
    torch.testing.assert_close(sample.in_gauge(0.7).h0, expected)
    assert sample.in_gauge(0.7).target is sample.target


def test_memory_is_bounded(data, store):
    _, ensemble = store
    small = SampleStore(Dataset(data), ensemble, KPointSettings(), 1)
    first = small["s0"]
    assert small["s0"] is first and small["s1"] is not None
    assert small["s0"] is not first and small.used == small["s0"].nbytes()


def test_windows_and_stored_bands_are_checked(data, store):
    _, ensemble = store
    sample = SampleStore(Dataset(data), ensemble, KPointSettings(), 10**9)["s0"]
    target = sample.target_at(KPointSettings(window=(-5, 5)), np.random.default_rng(0))
    epsilon, _ = sample.solver.at(target.kpoints.numpy())
    np.testing.assert_array_equal(target.low, np.abs(epsilon - 6.93) <= 5)
    with pytest.raises(ValueError, match=r"^kpoints.source: sample s0 came without eigenvectors"):
        SampleStore(Dataset(data), ensemble, KPointSettings(source="stored"), 10**9)["s0"]


def test_damaged_numbers_are_named_by_their_sample(data, store, tmp_path):
    damaged = tmp_path / "damaged.h5"
    shutil.copy(data, damaged)
    with h5py.File(damaged, "a") as file:
        next(iter(file["samples/s1/matrices/H0/half"].values()))[3] = math.nan
    _, ensemble = store
    with pytest.raises(ValueError, match=r"^sample s1: hamiltonian: contains numbers that are not finite"):
        SampleStore(Dataset(damaged), ensemble, KPointSettings(), 10**9)["s1"]


# --- runs


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of four epochs without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = settings_of(data, folder, optimizer={"epochs": 4, "lr": 3e-3})
    said = []
    trainer = Trainer(settings)
    trainer.run(say=said.append)
    return trainer, said


def test_a_run_learns_and_writes(whole):
    trainer, said = whole
    lines = read_history(trainer.folder / "history.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    found = [line for line in lines if line["kind"] == "validation"]
    assert [s["step"] for s in steps] == list(range(1, 9)) and len(said) == len(found) == 4
    assert set(found[0]["samples"]) == {"s3"} and set(found[0]["ranges"]) == {"0-1 Å", "2-4 Å", "4-6 Å"}
    assert all(math.isfinite(s["total"]) and s["edges_per_s"] > 0 for s in steps)
    assert np.mean([s["hamiltonian"] for s in steps[-2:]]) < np.mean([s["hamiltonian"] for s in steps[:2]])
    assert trainer.best == min(v["mae_meV"] for v in found)
    best = load(trainer.folder / "best").double()
    matrices = trainer.dataset.read("s3")
    h0 = matrices["H0"]
    error = gauge_mae(h0 + predict_delta(best, h0), matrices["H"], matrices["S"]).mae_meV
    assert error == pytest.approx(trainer.best, rel=1e-9)  # the running mean is what is kept


def test_the_same_folder_is_not_overwritten(whole):
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(whole[0].settings)


def same_state(a, b):
    a, b = read_checkpoint(a), read_checkpoint(b)
    for name in ("step", "epoch", "batch", "best", "worse"):
        assert a[name] == b[name], name
    for name in a["weights"]:
        assert torch.equal(a["weights"][name], b["weights"][name]), name
    assert all(torch.equal(x, y) for x, y in zip(a["mean"], b["mean"], strict=True))
    for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(x[name], y[name]) for name in x)


def without_speed(path):
    return [{k: v for k, v in line.items() if k != "edges_per_s"} for line in read_history(path)]


def test_resumed_run_is_the_same(whole, data, tmp_path):
    """Stopped in the middle of an epoch, with another checkpoint before it."""
    settings = settings_of(data, tmp_path / "part", optimizer={"epochs": 4, "lr": 3e-3}, run={"stop_after_steps": 3})
    Trainer(settings).run(say=str)
    Trainer(replace(settings, run=replace(settings.run, stop_after_steps=0)), resume=True).run(say=str)
    same_state(tmp_path / "part" / "checkpoint.pth", whole[0].checkpoint)
    assert without_speed(tmp_path / "part" / "history.jsonl") == without_speed(whole[0].folder / "history.jsonl")
    with pytest.raises(
        ValueError, match=r"^optimizer\.\w+: a resumed run keeps its settings, \S+ became \S+; to go on"
    ):
        Trainer(settings_of(data, tmp_path / "part"), resume=True)
    fewer = tmp_path / "fewer.h5"
    shutil.copy(data, fewer)
    with h5py.File(fewer, "a") as file:
        del file["samples/s1"]
    with pytest.raises(ValueError, match=r"^data: a resumed run keeps its samples, .*fewer.h5 has others"):
        Trainer(replace(settings, data=str(fewer)), resume=True)


def command(*words):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return [sys.executable, "-m", *words], environment


def test_killed_run_goes_on(whole, data, tmp_path):
    """A real process, killed with SIGKILL at any moment after its first checkpoint; then --resume."""
    settings = settings_of(
        data, tmp_path / "killed", optimizer={"epochs": 4, "lr": 3e-3}, run={"checkpoint_minutes": 1e-9}
    )
    path = tmp_path / "train.yaml"
    path.write_text(settings_to_yaml(settings))
    words, environment = command("nextham.cli.train", str(path))
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "killed" / "checkpoint.pth"
    limit = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.exists()
    interrupted = read_checkpoint(checkpoint)["step"]
    assert 1 <= interrupted <= 8
    result = subprocess.run([*words, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"resumed after step {interrupted}" in result.stdout
    same_state(checkpoint, whole[0].checkpoint)
    assert without_speed(tmp_path / "killed" / "history.jsonl") == without_speed(whole[0].folder / "history.jsonl")
    assert (tmp_path / "killed" / "history.png").stat().st_size > 1000


def test_two_processes_are_one(whole, data, tmp_path):
    """torchrun with gloo: the same losses as one process with the same batches, to rounding."""
    settings = settings_of(data, tmp_path / "two", optimizer={"epochs": 4, "lr": 3e-3})
    path = tmp_path / "train.yaml"
    path.write_text(settings_to_yaml(settings))
    words, environment = command(
        "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "nextham.cli.train", str(path)
    )
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    ours, one = (read_history(f / "history.jsonl") for f in (tmp_path / "two", whole[0].folder))
    assert len(ours) == len(one) == 12
    for a, b in zip(ours, one, strict=True):
        names = ("total", "hamiltonian", "trace", "gradient") if a["kind"] == "step" else ("mae_meV",)
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=1e-7), (a["step"], name)


def test_processes_exchange_where_they_compute(monkeypatch):
    """Without a GPU: what torch is asked for. gloo on the CPU; NCCL, each process on a GPU of its own, on GPUs."""
    asked = []
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: asked.append((*a, *k.values())))
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not Processes("cpu").first and asked == [("gloo",)]
    asked.clear()
    assert Processes("cuda").rank == 3 and asked == [1, ("nccl", torch.device("cuda", 1))]
    with pytest.raises(ValueError, match=r"^run.device: expected cuda, each of 4 processes takes a GPU, got cuda:0"):
        Processes("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"^run.device: process 2 of this machine finds no GPU of its own"):
        Processes("cuda")


def test_running_mean(data, tmp_path):
    """mean ← d · mean + (1 − d) · weights with d = min(ema, (1 + n)/(10 + n)) behind step n, from the first weights."""
    settings = settings_of(data, tmp_path, optimizer={"ema": 0.15})
    trainer = Trainer(settings)
    expected = [p.detach().clone() for p in trainer.parameters]
    for n, names in enumerate(trainer._batches(0)):
        trainer._step(names, 0.0)
        decay = min(0.15, (1 + n) / (10 + n))
        expected = [decay * m + (1 - decay) * p.detach() for m, p in zip(expected, trainer.parameters, strict=True)]
        trainer.step += 1
    assert n == 1
    for ours, theirs in zip(trainer.mean, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    before = [p.detach().clone() for p in trainer.parameters]
    kept = [m.clone() for m in trainer.mean]
    with trainer.averaged():
        assert all(torch.equal(p, m) for p, m in zip(trainer.parameters, kept, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(trainer.parameters, before, strict=True))


def test_not_finite_stops_with_the_sample(data, tmp_path):
    settings = settings_of(data, tmp_path, optimizer={"structures": 3})
    trainer = Trainer(settings)
    sample = trainer.store["s1"]
    sample.target.delta[0] = math.nan
    with pytest.raises(TrainingError, match=r"^the loss of sample s1 is not finite in epoch 1, step 1; .*failure.pth"):
        trainer.run(say=str)
    failure = read_checkpoint(tmp_path / "failure.pth")
    assert sorted(failure["batch_names"]) == ["s0", "s1", "s2"]
    assert np.array(failure["kpoints"]["s1"]).shape == (1, 3)
    assert all(bool(torch.isfinite(w).all()) for w in failure["weights"].values())


def test_early_stop_and_squares(data, tmp_path):
    settings = settings_of(
        data, tmp_path, optimizer={"epochs": 9, "lr": 1e-9, "warmup_lr": 1e-30, "min_lr": 1e-30, "squares_after": 1},
        run={"patience": 2},
    )  # fmt: skip
    said = []
    trainer = Trainer(settings)
    trainer.best = 0.0  # nothing is better
    trainer.run(say=said.append)
    assert said[-1] == "no better validation for 2 times: stopped" and len(said) == 3
    steps = [line for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "step"]
    absolute, squared = (np.mean([x["hamiltonian"] for x in steps if int(x["epoch"]) == epoch]) for epoch in (0, 1))
    assert squared < 0.5 * absolute  # the weights are the same but for 1e-9; errors are below 1 eV


def test_fine_tuning(whole, data, tmp_path):
    start = str(whole[0].folder / "best")
    trainer = Trainer(settings_of(data, tmp_path / "a", model={}, start_from=start))
    assert trainer.ensemble.config == whole[0].ensemble.config
    for name, p in load(start).double().named_parameters():
        assert torch.equal(dict(trainer.ensemble.named_parameters())[name], p)
    other = {"model": {"hidden": "5x0e+2x1o"}, "start_from": start}
    with pytest.raises(ValueError, match=r"^start_from: the weights in .* do not fit"):
        Trainer(settings_from_dict({"data": str(data), "output": str(tmp_path / "b"), **other}))
    with pytest.raises(ValueError, match=r"^model: unknown setting 'hiden'; known are hidden, "):
        Trainer(settings_of(data, tmp_path / "b", model={"hiden": "5x0e"}))


def test_fine_tuning_from_the_published_files(data, tmp_path):
    """Four files as published, weights drawn; one step of all networks."""
    torch.manual_seed(1)
    published = Ensemble(NextHAMConfig())
    save_published(published, tmp_path / "v1")
    settings = settings_of(
        data, tmp_path / "run", model={}, start_from=str(tmp_path / "v1"), optimizer={"structures": 1},
        run={"precision": "single", "stop_after_steps": 1},
    )  # fmt: skip
    trainer = Trainer(replace(settings, model={"target": "scalar"}))
    assert trainer.ensemble.config == replace(NextHAMConfig(), target="scalar")
    for ours, theirs in zip(trainer.ensemble.parameters(), published.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    trainer.run(say=str)
    assert trainer.step == 1 and (tmp_path / "run" / "checkpoint.pth").exists()
    moved = [not torch.equal(a, b) for a, b in zip(trainer.ensemble.parameters(), published.parameters(), strict=True)]
    assert np.mean(moved) > 0.7  # all but the network from 1 to 2 Å, where silicon has no edge


def test_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_of(data, tmp_path, optimizer={"epochs": 1}, run={"tensorboard": True})
    Trainer(settings).run(say=str)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = {"step/total", "step/real", "step/learning_rate", "step/edges_per_s", "validation/ranges/2-4 Å"}
    assert names <= set(events.Tags()["scalars"])


def test_commands(whole, data, tmp_path, capsys):
    assert main(["train", "--print-settings"]) == 0
    assert "warmup_epochs: 5" in capsys.readouterr().out
    assert main(["train"]) == 1 and "settings: expected a YAML file" in capsys.readouterr().err
    folder = str(whole[0].folder)
    words = ["evaluate", f"{folder}/best", f"{folder}/last", "--data", str(data), "--json", str(tmp_path / "e.json")]
    assert main([*words, "--run", folder, "--part", "validation", "--bands", "--mesh", "1"]) == 0
    shown = capsys.readouterr().out
    assert "all structures" in shown and "uu real" in shown and "Si-Si" in shown
    found = json.loads((tmp_path / "e.json").read_text())
    of_h0, best, last = found["gauge"]
    assert (of_h0["label"], best["label"], last["label"]) == ("H0", "best", "last")
    matrices = Dataset(data).read("s3")
    expected = gauge_mae(matrices["H0"], matrices["H"], matrices["S"])
    assert of_h0["samples"]["s3"] == of_h0["mae_meV"] == of_h0["materials"]["Si"] == pytest.approx(expected.mae_meV)
    assert of_h0["groups"]["distance"]["2-4 Å"] == pytest.approx(expected.by_distance["2-4 Å"].mae_meV)
    predicted = (matrices["H0"] + predict_delta(load(whole[0].folder / "best"), matrices["H0"])).symmetrised()
    assert best["mae_meV"] == pytest.approx(gauge_mae(predicted, matrices["H"], matrices["S"]).mae_meV, rel=1e-6)
    assert last["mae_meV"] > 0
    bands = found["bands"]["s3"]["H0"]
    assert bands["max_meV"] >= bands["mean_meV"] > 0 and bands["condition"] > 1 and bands["n_levels"] > 4
    assert main([*words, "--samples", "Xy"]) == 1 and "no sample is called 'Xy'" in capsys.readouterr().err
    assert main(words) == 1 and "give --run" in capsys.readouterr().err


def test_ghost_states_are_counted(data, whole):
    """Levels by dense matrices and pairing by number, at Γ."""
    from nextham.train.evaluation import ghost_states

    matrices = Dataset(data).read("s0")
    found = ghost_states(Dataset(data), "s0", None, mesh=1)
    k = np.zeros((1, 3))
    e0, e = (eigenvectors_at(matrices[name], matrices["S"], k)[0][0] for name in ("H0", "H"))
    mu = gauge_mae(matrices["H0"], matrices["H"], matrices["S"]).mu_eV
    inside = np.abs(e - 6.93) <= 5
    error = 1e3 * np.abs(e0 - mu - e)[inside]
    assert (found.n_levels, found.n_bad) == (inside.sum(), (error > 500).sum())
    assert found.max_meV == pytest.approx(error.max(), rel=1e-6)


def test_bundled_model_beats_h0_on_silicon():
    """The figures of its card: silicon was held out of its training."""
    ensemble, m = load(bundled_model()), real_matrices()
    assert ensemble.config.target == "scalar" and ensemble.config.norm == "floor"
    predicted = (m["H0"] + predict_delta(ensemble, m["H0"])).symmetrised()
    report, of_h0 = (gauge_mae(h, m["H"], m["S"]) for h in (predicted, m["H0"]))
    assert of_h0.mae_meV == pytest.approx(1.5269, abs=1e-4) and report.mae_meV == pytest.approx(1.3555, abs=5e-4)
    for name in ("0-1 Å", "2-4 Å", "4-6 Å"):
        assert report.by_distance[name].mae_meV < of_h0.by_distance[name].mae_meV
