"""The suite for a GPU, from end to end by the interpreter; what it watches; the engine without host waits."""

import json
from unittest import mock

import harness
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import bench_model, gpu_suite, watch
from bench.__main__ import parse
from nextham_kernels import loading
from nextham_kernels.loading import use_interpreter
from nextham_kernels.ops.gate import gate

pytestmark = pytest.mark.triton


def run(tmp_path, *arguments):
    code = gpu_suite.main(["--interpreter", "--output", str(tmp_path / "found.json"), *arguments])
    return code, json.loads((tmp_path / "found.json").read_text())["stages"]


def test_all_stages_run_in_the_interpreter(tmp_path, capsys):
    code, stages = run(tmp_path)
    assert code == 0
    assert list(stages) == [stage.__name__ for stage in gpu_suite.STAGES]
    assert not [stage for stage in stages.values() if "error" in stage]
    kernels = stages["check"]["kernels"]
    assert {"gate.kernel.forward", "norm.kernel.backward", "rotation.kernel.to_nodes_forward"} <= kernels.keys()
    assert all(found["right"] and found["error"] > 0 for found in kernels.values())
    assert stages["ops"]["forward"]["ops"]["gate.kernel.forward"]["calls"] > 0
    assert stages["network"]["train"]["times_published"] > 0
    printed = capsys.readouterr().out
    assert "right: gate.kernel.forward" in printed and "has no GPU kernel" in printed


def test_a_stage_that_fails_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    def broken(suite):
        raise ValueError("out of luck")

    monkeypatch.setattr(gpu_suite, "STAGES", (broken, gpu_suite.ceilings))
    code, stages = run(tmp_path)
    assert code == 0 and stages["broken"]["error"] == "ValueError: out of luck"
    assert stages["ceilings"]["gb_per_s"] > 0
    assert "out of luck" in capsys.readouterr().out


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path):
    _, stages = run(tmp_path, "--minutes", "0", "--only", "ceilings")
    assert stages == {"ceilings": {"left out": "no time left"}}


def test_a_wrong_kernel_is_found():
    x = harness.random(3, 5).float()
    sloppy = mock.Mock(side_effect=lambda *args: loading.gpu_kernel("gate.kernel.forward")(*args) * 1.001)
    with use_interpreter():
        assert watch.checked(lambda: gate(x, "1x0e+1x1o"))["gate.kernel.forward"].right(1e-6)
        with mock.patch.object(watch, "gpu_kernel", lambda name: sloppy):
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
    # As on a GPU: no packed layer, and indices are checked on the device.
    monkeypatch.setattr("nextham.model.ensemble.packable", lambda device: False)
    for module in ("rotation", "attention"):
        monkeypatch.setattr(f"nextham_kernels.ops.{module}.check_range", lambda *args: None)
    geometry = ensemble.geometry(problem.src, problem.dst, problem.vector)
    with torch.no_grad():
        expected = ensemble.on_geometries(problem.h0, [geometry], with_trace=False).irreps
        with NoWaiting():
            found = ensemble.on_geometries(problem.h0, [geometry], with_trace=False).irreps
            with harness.raises(AssertionError, "waits for the device"):
                ensemble.geometry(problem.src, problem.dst, problem.vector)
    assert torch.equal(found, expected)
    harness.assert_close(
        ensemble(problem.h0, problem.src, problem.dst, problem.vector, with_trace=False).irreps, found, 1e-4
    )
