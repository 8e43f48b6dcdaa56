import dataclasses
import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import harness
import numpy as np
import pytest
import torch

from bench import picture, record, timing
from bench.__main__ import main, max_rel_diff, operations
from bench.bench_model import CASES, IMPLEMENTATIONS, problem, published, reference
from bench.published import PublishedEnsemble
from bench.published.layers import segment_softmax
from nextham.model.config import NextHAMConfig
from nextham_kernels import result_memory
from nextham_kernels.loading import loaded

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    *("op", "case", "direction", "impl", "device", "dtype", "threads", "median_s", "q20_s", "q80_s"),
    *("gb_per_s", "gflop_per_s", "ceiling_gb_per_s", "ceiling_gflop_per_s", "peak_mb"),
    *("competitor", "competitor_median_s", "competitor_peak_mb", "speedup", "max_rel_diff", "versions", "commit"),
}
TINY = ["model", "--case", "tiny", "--impl", "reference", "--no-save", "--json", "--repeats", "2", "--threads", "1"]

KNOWN = f"expected one of {', '.join(IMPLEMENTATIONS)}"


class FakeTime:
    """A clock whose every reading is prescribed."""

    def __init__(self, readings):
        self.readings = list(readings)

    def __call__(self):
        return self.readings.pop(0)


def run(*arguments):
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def one_thread():
    with harness.threads(1):
        yield


def test_the_command_prints_lines_and_nothing_else():
    done = run(*TINY, "--direction", "train", "--against", "published")
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(text) for text in done.stdout.splitlines()]
    assert list(line) == record.KEYS and set(line) == KEYS
    assert (line["op"], line["case"], line["direction"]) == ("model", "tiny", "train")
    assert (line["impl"], line["competitor"], line["threads"]) == ("reference", "published", 1)
    assert 0 < line["q20_s"] <= line["median_s"] <= line["q80_s"]
    assert line["speedup"] == pytest.approx(line["competitor_median_s"] / line["median_s"])
    assert 0 < line["max_rel_diff"] < 1e-4
    assert line["ceiling_gb_per_s"] > 0 and line["ceiling_gflop_per_s"] > 0 and line["peak_mb"] > 0
    assert line["gflop_per_s"] is None and line["gb_per_s"] is None
    assert line["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert line["versions"]["kernels"].split() == sorted(op for op, on in loaded().items() if on["cpu"] == "cpp")


def test_without_a_competitor(capsys, one_thread):
    assert main(TINY) == 0
    (line,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert list(line) == record.KEYS
    assert [line[key] for key in ("competitor", "competitor_median_s", "speedup", "max_rel_diff")] == [None] * 4


def test_the_table_and_the_saved_lines(capsys, one_thread, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    arguments = [word for word in TINY if word not in ("--no-save", "--json")]
    assert main([*arguments, "--against", "reference,reference", "--networks", "4"]) == 0
    screen = capsys.readouterr().out.splitlines()
    assert screen[0].split()[:3] == ["case", "direction", "impl"] and len(screen) == 3
    (saved,) = tmp_path.rglob("*.jsonl")
    assert saved.name == "model.jsonl" and saved.parent.name == record.device_name(torch.device("cpu"))
    lines = [json.loads(text) for text in saved.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["tiny/4-networks"] * 2 and set(lines[0]) == KEYS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model", "--case", "si3"], f"--case: expected one of {', '.join(CASES)}, got 'si3'"),
        (["model", "--direction", "up"], "--direction: expected one of forward, train, got 'up'"),
        (
            ["model", "--against", "published,tuned"],
            f"--against: {KNOWN}, got 'tuned'",
        ),
        (["model", "--impl", "tuned"], f"--impl: {KNOWN}, got 'tuned'"),
        (["model", "--repeats", "0"], "--threads, --repeats: expected at least 1"),
        (["modle"], "invalid choice: 'modle'"),
        ([], "the following arguments are required: op"),
    ],
)
def test_a_wrong_option_is_a_sentence_and_exit_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and not printed.out


def test_results_that_differ_stop_the_run(capsys, one_thread):
    assert main([*TINY, "--against", "published", "--tolerance", "1e-12"]) == 1
    printed = capsys.readouterr()
    assert "reference and published differ by" in printed.err and not printed.out


def test_operations_are_the_files_of_the_folder():
    assert operations() == sorted(p.stem[len("bench_") :] for p in (ROOT / "bench").glob("bench_*.py"))
    assert "model" in operations()


def test_max_rel_diff():
    expected = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2)}
    assert max_rel_diff(expected, expected) == 0
    assert max_rel_diff({"a": torch.tensor([1.0, -3.0]), "b": torch.zeros(2)}, expected) == 0.25
    assert max_rel_diff({"a": expected["a"], "b": torch.full((2,), 1e-30)}, expected) > 1
    with pytest.raises(ValueError, match=r"names differ: \['b'\]"):
        max_rel_diff({"a": expected["a"]}, expected)
    with pytest.raises(ValueError, match=r"a: shapes \(3,\) and \(2,\)"):
        max_rel_diff({"a": torch.zeros(3), "b": torch.zeros(2)}, expected)


def test_a_result_that_is_not_a_number_is_no_agreement():
    assert max_rel_diff({"a": torch.tensor([1.0, torch.nan])}, {"a": torch.ones(2)}) == float("inf")


def test_quantiles():
    found = timing.quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert found.median == 3.5 and found.q20 == pytest.approx(2.0) and found.q80 == pytest.approx(5.0)
    assert timing.quantiles([7.0]) == (7.0, 7.0, 7.0)


def test_interleaved_takes_turns_and_alternates_the_order():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    clock = timing.WallClock(FakeTime([0, 1, 10, 12, 20, 24, 30, 31, 40, 41, 50, 59]))
    assert timing.interleaved(runs, clock, repeats=3) == {"a": [1, 1, 1], "b": [2, 4, 9]}
    assert called == ["a", "b", "b", "a", "a", "b"]


def test_interleaved_stops_when_its_time_is_spent():
    clock = timing.WallClock(FakeTime(np.arange(100.0)))
    assert len(timing.interleaved({"a": lambda: None}, clock, budget=8.0)["a"]) == 8
    assert len(timing.interleaved({"a": lambda: None}, clock, budget=0.0)["a"]) == 5
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        timing.interleaved({}, clock, repeats=0)


def test_a_long_run_is_timed_once():
    def timed(clock, names="a"):
        runs = {name: timing.Timed(lambda: 7, clock) for name in names}
        assert [run() for run in runs.values()] == [7] * len(names)
        return runs

    def clock(*times):
        return timing.WallClock(FakeTime(times))

    one = clock(0, 30)
    assert timing.warm(timed(one), one)["a"] == [30]
    one = clock(0, 30, 30, 60, 60, 85)
    assert timing.warm(timed(one), one, repeats=1)["a"] == [25]
    one = clock(*(5.0 * np.arange(100)))
    assert timing.warm(timed(one), one)["a"] == [5] * 5
    one = clock(*(30.0 * np.arange(100)))
    both = timing.warm(timed(one, "ab"), one)
    assert len(both["a"]) == len(both["b"]) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from the kernel's pages")
def test_peak_memory_counts_what_a_run_holds_at_once():
    megabytes = 10**6 // 8

    def run():
        held = torch.ones(40 * megabytes, dtype=torch.float64)
        more = torch.ones(60 * megabytes, dtype=torch.float64)
        return (held[:1] + more[:1]).item()

    result, peak = timing.peak_memory(run, torch.device("cpu"))
    assert result == 2 and 95 < peak < 115


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from the kernel's pages")
def test_peak_memory_counts_results_that_an_earlier_run_left():
    like = torch.zeros(1, dtype=torch.float64)
    for _ in range(2):
        peak = timing.peak_memory(lambda: result_memory.zeros(like, (5 * 10**6,)).sum(), torch.device("cpu"))[1]
        assert 38 < peak < 50


def test_ceilings_are_those_of_a_machine(one_thread):
    found = timing.ceilings(torch.device("cpu"), repeats=2)
    assert 0.1 < found.gb_per_s < 1000 and 0.1 < found.gflop_per_s < 10000


def test_segment_softmax():
    x = torch.tensor([[0.0, 900.0], [1.0, -1.0], [2.0, 901.0]])
    found = segment_softmax(x, torch.tensor([0, 2, 0]), 3)
    expected = torch.softmax(x[[0, 2]], 0)
    assert torch.allclose(found[[0, 2]], expected) and torch.equal(found[1], torch.ones(2))


@pytest.mark.parametrize(("direction", "residual"), [("forward", 0.2), ("train", 0.2), ("train", 0.0)])
def test_published_and_reference_agree(direction, residual):
    made = problem("tiny", torch.float64, torch.device("cpu"), Namespace(networks=1))
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, tracegrad_residual=residual))
    expected = published(made)[direction]()
    assert all(value.abs().max() > 0 for value in expected.values())
    # e3nn's constants are rounded to float32.
    assert max_rel_diff(reference(made)[direction](), expected) < 2e-5


def test_the_published_network_has_one_norm():
    with pytest.raises(ValueError, match="norm: the published network has the norm 'published', got 'floor'"):
        PublishedEnsemble(NextHAMConfig(norm="floor"))


def test_wrong_weights_are_refused():
    config = NextHAMConfig(
        hidden="2x0e+1x1o",
        l_max=1,
        n_layers=1,
        n_heads=1,
        alpha_scalars=1,
        tracegrad_forms_last=2,
        shells=(0,),
        ranges=((0.0, 6.0),),
    )
    ensemble = PublishedEnsemble(config)
    weights = {name: value.detach() for name, value in ensemble.published_parameters().items()}
    with pytest.raises(ValueError, match=r"weights: 0:edge_lin\.bias\.0 is missing"):
        ensemble.load_published({name: v for name, v in weights.items() if name != "0:edge_lin.bias.0"})
    with pytest.raises(ValueError, match=r"weights: 0:edge_lin\.bias\.0: expected shape \(1,\), got \(2,\)"):
        ensemble.load_published(weights | {"0:edge_lin.bias.0": torch.zeros(2)})


@pytest.mark.slow
@pytest.mark.shared
def test_published_network_is_the_published_code(shared):
    folder = shared / "reference"
    spec = importlib.util.spec_from_file_location("prescribed_weights", folder / "weights.py")
    prescribed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prescribed)
    # Network 2 alone, float64, with constants in float64 too.
    torch.set_default_dtype(torch.float64)
    try:
        ensemble = PublishedEnsemble(NextHAMConfig(ranges=((2.0, 4.0),)))
    finally:
        torch.set_default_dtype(torch.float32)
    names = [name[2:] for name in ensemble.published_parameters()]
    used = {name for name, (*_, is_used) in prescribed.MANIFEST.items() if is_used}
    # The biases of the imaginary parts are built, though only real parts are used in the end.
    assert used <= set(names) and {name.split(".")[0] for name in set(names) - used} == {"edge_lin"}
    ensemble.load_published({f"0:{name}": torch.as_tensor(prescribed.weight(name, 2)) for name in names})
    network = ensemble.networks[0]
    seen = {}
    for k, layer in enumerate(network.blocks):

        def note(_layer, _inputs, outputs, k=k):
            seen[f"block{k}/node"], seen[f"block{k}/edge"] = outputs

        layer.register_forward_hook(note)
    for sample in ("si", "gaas"):
        golden = np.load(folder / f"{sample}.npz")
        h0, vector, src, dst = (torch.as_tensor(golden[k]) for k in ("H0_ds", "edge_vec", "edge_src", "edge_dst"))
        own = torch.nonzero((src == dst) & (vector.norm(dim=1) < 1e-6))[:, 0]
        with torch.no_grad():
            irreps, _ = network(h0.double(), vector, src, dst, own[src[own].argsort()])
        found = {f"range2/block{k}/{what}": seen[f"block{k}/{what}"] for k in range(3) for what in ("node", "edge")}
        for name, value in (found | {"edge_ham_range2": irreps}).items():
            expected = torch.as_tensor(golden[name]).double()
            assert (value - expected).abs().max() <= 1e-6 * expected.abs().max(), (sample, name)


def test_picture_of_the_stored_lines(tmp_path, capsys):
    network = [
        {"case": case, "direction": "train", "speedup": speedup}
        for case, speedup in (("si12", 2.0), ("si12/kept", 3.0), ("si2/4-networks", 4.0))
    ]
    products = [
        {"case": f"{case}-1000", "dtype": "float32", "direction": direction, "speedup": 2.0}
        for case in ("a", "b")
        for direction in ("forward", "both", "backward")
    ]
    products.append({"case": "a-20000", "dtype": "float32", "direction": "both", "speedup": 5.0})
    upper, left, right, _ = picture.draw(network, products).axes
    assert [bar.get_width() for bar in upper.patches] == [3.0, 4.0]
    names = [label.get_text() for label in upper.get_yticklabels()]
    assert names == ["training step, 12 Si atoms", "training step, 2 Si atoms, 4 networks"]
    assert [bar.get_width() for bar in left.patches] == [2.0] * 4
    assert [bar.get_width() for bar in right.patches] == [5.0]
    assert picture.main(["-o", str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        picture.main(["--device", "nowhere"])
    assert "device: no stored line of model, tensor_product for 'nowhere'" in capsys.readouterr().err
