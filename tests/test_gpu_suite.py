"""The suite for a GPU, from end to end by the interpreter; what it watches; the engine without host waits."""

import json
import sys
from unittest import mock

import harness
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import bench_model, gpu_suite, watch
from bench.__main__ import parse
from bench.offline import Recorder
from nextham_kernels import loading
from nextham_kernels.loading import gpu_ops, use_interpreter
from nextham_kernels.ops.gate import gate, reference

pytestmark = pytest.mark.triton


def run(tmp_path, *arguments):
    code = gpu_suite.main(["--interpreter", "--output", str(tmp_path / "found.json"), *arguments])
    return code, json.loads((tmp_path / "found.json").read_text())["stages"]


def test_all_stages_run_in_the_interpreter(tmp_path, capsys):
    code, stages = run(tmp_path, "--here")
    assert code == 0
    assert list(stages) == list(gpu_suite.STAGES)
    assert not [stage for stage in stages.values() if "error" in stage or stage.get("errors")]
    kernels = stages["check"]["kernels"]
    assert {"gate.kernel.forward", "norm.kernel.backward", "rotation.kernel.to_nodes_forward"} <= kernels.keys()
    assert all(found["right"] and found["error"] > 0 for found in kernels.values())
    assert stages["ops"]["forward"]["ops"]["gate.kernel.forward"]["calls"] > 0
    assert stages["network"]["train"]["times_published"] > 0
    assert stages["products"]["missing"]["openequivariance"].startswith("openequivariance: its kernels need a GPU")
    printed = capsys.readouterr().out
    assert "right: gate.kernel.forward" in printed and "missing: openequivariance" in printed


NOTES = """
import json, os, signal, sys, time
json.dump({"kernels": {}, "edges": 7, "running": "a.kernel.forward"}, open(sys.argv[1], "w"))
print("last words", flush=True)
"""


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with exit code -11"),
        ("sys.exit(3)", "the process ended with exit code 3"),
        ("time.sleep(60)", "the process stopped after 2 s"),
    ],
)
def test_a_stage_that_dies_leaves_what_it_found(monkeypatch, ends, error):
    monkeypatch.setattr(gpu_suite, "command", lambda *given: [sys.executable, "-c", NOTES + ends, str(given[-1])])
    found = gpu_suite.isolated("network", True, 2.0)
    assert found["error"] == error and found["edges"] == 7 and "last words" in found["traceback"]


def test_the_check_goes_on_without_a_kernel_that_takes_the_device_with_it(monkeypatch, tmp_path, capsys):
    good = {"error": 1e-7, "own": 1e-7, "calls": 1, "failed": "", "right": True}
    asked = []

    def one(name, interpreter, limit, replaced=()):
        asked.append((name, list(replaced)))
        if name != "check":
            return {"seconds": 1}
        kernels = {"good": good} | ({} if len(replaced) < 2 else {"late": good})
        lost = {"running": f"bad{len(replaced)}", "error": "illegal memory access"} if len(replaced) < 2 else {}
        return {"seconds": 1, "kernels": kernels, "errors": {}, **lost}

    monkeypatch.setattr(gpu_suite, "isolated", one)
    code, stages = run(tmp_path, "--only", "check", "network")
    assert code == 1 and set(stages["check"]["wrong"]) == {"bad0", "bad1"}
    assert stages["check"]["kernels"].keys() == {"good", "late", "bad0", "bad1"}
    assert asked == [("check", []), ("check", ["bad0"]), ("check", ["bad0", "bad1"]), ("network", ["bad0", "bad1"])]
    assert stages["network"]["replaced"] == ["bad0", "bad1"]
    assert "FAILED: bad0" in capsys.readouterr().out


def test_a_stage_of_its_own_process(tmp_path):
    code, stages = run(tmp_path, "--only", "ceilings")
    assert code == 0 and stages["ceilings"]["gb_per_s"] > 0


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path):
    _, stages = run(tmp_path, "--minutes", "0", "--only", "ceilings")
    assert stages == {"ceilings": {"left out": "no time left"}}


def test_a_kernel_that_raises_is_named_and_replaced():
    x = harness.random(3, 5).float()

    def broken(name):
        raises = mock.Mock(side_effect=ValueError("out of luck"))
        return raises if name == "gate.kernel.forward" else loading.gpu_kernel(name)

    with use_interpreter(), mock.patch.object(watch.registration, "gpu_kernel", broken):
        found = watch.checked(
            lambda: harness.assert_close(gate(x, "1x0e+1x1o"), reference.gate(x, "1x0e+1x1o", False, 0))
        )
        check = found["gate.kernel.forward"]
        assert check.failed == "ValueError: out of luck" and not check.right(1.0)
        with watch.replaced(["gate.kernel.forward"]):
            gate(x, "1x0e+1x1o")


def test_a_wrong_kernel_is_found():
    x = harness.random(3, 5).float()
    sloppy = mock.Mock(side_effect=lambda *args: loading.gpu_kernel("gate.kernel.forward")(*args) * 1.001)
    with use_interpreter():
        assert watch.checked(lambda: gate(x, "1x0e+1x1o"))["gate.kernel.forward"].right(1e-6)
        with mock.patch.object(watch.registration, "gpu_kernel", lambda name: sloppy):
            found = watch.checked(lambda: gate(x, "1x0e+1x1o"))["gate.kernel.forward"]
    assert not found.right(1e-6) and found.error == pytest.approx(1e-3, rel=0.1)
    assert not watch.Check(float("nan"), 0.0, 1).right(1e-6)


class NoWaiting(TorchDispatchMode):
    """Refuses what a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        words = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select")
        assert not any(word in func._schema.name for word in words), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_inference_on_a_known_geometry_waits_for_nothing(monkeypatch):
    problem = bench_model.problem("tiny", torch.float32, torch.device("cpu"), parse("model", ["--networks", "4"]))
    ensemble = bench_model.ensemble_of(problem)
    # As on a GPU, where what is still checked of indices is checked on the device.
    monkeypatch.setattr("nextham_kernels.ops.edge_layer.check_range", lambda *args: None)
    geometry = ensemble.geometry(problem.src, problem.dst, problem.vector)
    with torch.no_grad(), gpu_ops():
        expected = ensemble.on_geometries(problem.h0, [geometry], with_trace=False).irreps
        with NoWaiting(), Recorder() as calls:
            found = ensemble.on_geometries(problem.h0, [geometry], with_trace=False).irreps
            with harness.raises(AssertionError, "waits for the device"):
                ensemble.geometry(problem.src, problem.dst, problem.vector)
    assert torch.equal(found, expected)
    assert {"nextham::edge_message", "nextham::gram_update"} <= {call.op for call in calls}
    harness.assert_close(
        ensemble(problem.h0, problem.src, problem.dst, problem.vector, with_trace=False).irreps, found, 1e-4
    )
