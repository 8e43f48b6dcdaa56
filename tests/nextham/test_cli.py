"""The commands, run as a user runs them, on the bundled sample."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from nextham.bands import BandStructure
from nextham.blocks import Blocks
from nextham.cli import COMMANDS, main
from nextham.cli.argument_types import digits, finite, memory_size, natural, positive
from nextham.cli.sources import open_source
from nextham.data import sample
from nextham.io.csr import read_csr, write_blocks
from nextham.model import Ensemble, NextHAMConfig, save

SI = sample("Si-1")
FEW_K = ("--points", "8", "--mesh", "2", "2", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network with the published block layout."""
    torch.manual_seed(0)
    config = NextHAMConfig(
        hidden="8x0e+4x1o+4x1e+2x2e", l_max=2, n_layers=2, n_heads=2, n_radial=8, radial_widths=(8,), alpha_scalars=4,
        alpha_widths=(8,), tracegrad_forms=8, tracegrad_forms_last=8, tracegrad_widths=(8, 8), trace_widths=(8,),
        target="scalar",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    save(Ensemble(config), folder)
    return folder


@pytest.fixture(scope="module")
def predicted(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    arguments = ["--h0", f"{SI}/hrs0_nao.csr.xz", "--overlap", f"{SI}/srs1_nao.csr.xz", "--model", str(model)]
    assert main(["predict", f"{SI}/STRU", *arguments, "-o", str(out)]) == 0
    return out


def test_predict_within_a_memory_budget(model, predicted, tmp_path, capsys):
    arguments = ["--h0", f"{SI}/hrs0_nao.csr.xz", "--overlap", f"{SI}/srs1_nao.csr.xz", "--model", str(model)]
    arguments = ["predict", f"{SI}/STRU", *arguments, "-o", str(tmp_path), "--memory-budget"]
    assert main([*arguments, "3 kB"]) == 1
    assert "memory_budget: expected at least " in capsys.readouterr().err
    assert main([*arguments, "5MB"]) == 0
    found, expected = (open_source(folder).read("H").data for folder in (tmp_path, predicted))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("2e9", 2 * 10**9),
        ("12k", 12_000),
        ("7b", 7),
    ],
)
def test_memory_size(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "much", "-1GB", "0", "1.2.3MB", "4 PB", "1i"])
def test_no_memory_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 4GB or 500MB, got"):
        memory_size(text)


def test_predict_writes_what_it_says(predicted):
    summary = json.loads((predicted / "summary.json").read_text())
    assert (summary["atoms"], summary["orbitals"], summary["edges_of_the_network"]) == (2, 26, 212)
    assert set(summary["seconds"]) == {"reading the matrices", "loading the model", "predicting", "writing"}
    assert summary["peak_memory_mb"] > 10
    ours, csr = open_source(predicted), open_source(predicted / "hrs1_nao.csr")
    H, H0 = ours.read("H"), ours.read("H0")
    delta = H - H0
    assert 1e-6 < np.abs(delta.data).max() < 1e3
    assert np.abs(delta.within(6.0, 99.0).data).max() < 1e-15  # the networks end at 6 Å
    text = csr.read("H").on(H.graph)
    # Eight digits behind the point of the mantissa, largest elements of some 10 eV.
    np.testing.assert_allclose(text.data, H.data, rtol=2e-8, atol=2e-9)


def test_predict_writes_a_hermitian_matrix_unless_raw(model, predicted, tmp_path):
    arguments = ["--h0", f"{SI}/hrs0_nao.csr.xz", "--overlap", f"{SI}/srs1_nao.csr.xz", "--model", str(model)]
    assert main(["predict", f"{SI}/STRU", *arguments, "--raw", "-o", str(tmp_path)]) == 0
    ours, raw = open_source(predicted).read("H"), open_source(tmp_path).read("H")
    assert ours.hermitian_error() == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert raw.hermitian_error() == summary["not_hermitian_by_eV"] > 1e-6
    np.testing.assert_array_equal(raw.symmetrised().data, ours.data)


def test_predicted_files_are_a_pair(predicted):
    """PyATB reads H and S side by side: the same lattice vectors, the same dimension."""
    H, S = read_csr(predicted / "hrs1_nao.csr"), read_csr(predicted / "srs1_nao.csr")
    assert H.R.tolist() == S.R.tolist()
    assert H.dimension == S.dimension == 52
    assert (predicted / "STRU").read_bytes() == (SI / "STRU").read_bytes()


def test_bands_equal_scipy(tmp_path, capsys):
    assert main(["bands", str(SI), "-o", str(tmp_path / "b"), "--fermi", "6.93", "--points", "8"]) == 0
    bands = BandStructure.from_csv(tmp_path / "b.csv")
    source = open_source(SI)
    H, S = source.read("H"), source.read("S").spinor()
    for k, energies in zip(bands.path.kpoints, bands.eigenvalues, strict=True):
        np.testing.assert_allclose(energies, scipy.linalg.eigvalsh(H.to_dense(k), S.to_dense(k)), atol=1e-8)
    assert bands.efermi == 6.93
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "k-points" in capsys.readouterr().out


def test_levels_at_one_kpoint(tmp_path, capsys):
    assert main(["bands", str(SI), "--kpath", "G", "--levels", "12", "-o", str(tmp_path / "b")]) == 0
    assert "E_F = " in capsys.readouterr().out and (tmp_path / "b.png").is_file()
    near = BandStructure.from_csv(tmp_path / "b.csv")
    assert main(["bands", str(SI), "--kpath", "G", "--fermi", str(near.efermi), "-o", str(tmp_path / "all")]) == 0
    whole = BandStructure.from_csv(tmp_path / "all.csv").eigenvalues
    np.testing.assert_allclose(near.eigenvalues, whole[:, near.first : near.first + 12], rtol=0, atol=2e-9)
    assert main(["bands", str(SI), "--kpath", "GX", "--points", "3", "--levels", "12", "-o", str(tmp_path / "b")]) == 0


def test_bands_over_each_other(predicted, tmp_path, capsys):
    compared = ["--compare", str(predicted), "--compare", f"{SI}:H0"]
    assert main(["bands", str(SI), *compared, "-o", str(tmp_path / "b"), "--kpath", "GX", *FEW_K]) == 0
    assert [(tmp_path / f"b-{i}.csv").is_file() for i in (1, 2, 3)] == [True] * 3
    out = capsys.readouterr().out
    assert out.count("E_F = ") == 3
    assert "8 electrons" in out


def test_compare(tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["--mesh", "2", "2", "2", "--fermi", "6.93", "--json", str(report)]
    assert main(["compare", f"{SI}:H0", str(SI), *arguments]) == 0
    result = json.loads(report.read_text())
    assert 1.0 < result["gauge"]["mae_meV"] < 2.0
    assert 0 < result["overlap"]["smallest"] < 1e-2
    assert result["bands"]["n_levels"] > 0
    assert "gauge MAE" in capsys.readouterr().out
    assert main(["compare", str(SI), str(SI), *arguments]) == 0
    assert json.loads(report.read_text())["gauge"]["mae_meV"] == 0


def test_single_files_with_structure(tmp_path, capsys):
    for name in ("hrs1_nao.csr.xz", "srs1_nao.csr.xz"):
        shutil.copy(SI / name, tmp_path / name)
    h, s = str(tmp_path / "hrs1_nao.csr.xz"), str(tmp_path / "srs1_nao.csr.xz")
    assert main(["bands", h, "--overlap", s, "-o", str(tmp_path / "b"), *FEW_K]) == 1
    assert "has no STRU" in capsys.readouterr().err
    with_structure = ["--structure", f"{SI}/STRU", "-o", str(tmp_path / "b"), *FEW_K]
    assert main(["bands", h, "--overlap", s, *with_structure]) == 0
    assert main(["bands", h, *with_structure]) == 1
    assert "give --overlap" in capsys.readouterr().err


def test_convert_there_and_back(tmp_path, monkeypatch, capsys):
    """CSR → .h5 → .csr.gz, binary, .pth, DeepH: the matrices stay what they were."""
    monkeypatch.chdir(tmp_path)
    H = open_source(SI).read("H")
    assert main(["convert", str(SI), "si.h5"]) == 0
    for output, *options in (["h.csr.gz"], ["h.bin", "--to", "binary"], ["deeph", "--to", "deeph"], ["si.pth"]):
        assert main(["convert", "si.h5:H", output, *options]) == 0
        source = open_source(output, f"{SI}/STRU")
        again = source.read("H")
        scale = np.abs(H.data).max() * (1e-6 if output == "si.pth" else 1e-9)
        np.testing.assert_allclose(again.data, H.on(again.graph).data, rtol=0, atol=scale)
    assert open_source("si.h5").efermi == open_source(SI).efermi == 6.9295483008
    small, large = (tmp_path / "si.h5").stat().st_size, (tmp_path / "si.pth").stat().st_size
    assert large > 20 * small
    assert "(pth, " in capsys.readouterr().out
    assert main(["convert", "si.h5", "si.dat"]) == 1
    assert "give --to h5|pth" in capsys.readouterr().err


def test_overlap_in_a_file_that_does_not_say_what_it_is(tmp_path, capsys):
    """Binary files have no letter: one given as --overlap is S, without Rydberg."""
    h, s, where = f"{SI}/hrs1_nao.csr.xz", str(tmp_path / "s.dat"), ["--fermi", "6.93", "--points", "8"]
    assert main(["convert", f"{SI}:S", s, "--to", "binary"]) == 0
    assert main(["bands", str(SI), "-o", str(tmp_path / "a"), *where]) == 0
    structure = ["--structure", f"{SI}/STRU"]
    assert main(["bands", h, "--overlap", s, *structure, "-o", str(tmp_path / "b"), *where]) == 0
    expected, found = (BandStructure.from_csv(tmp_path / f"{name}.csv") for name in "ab")
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-8)
    assert main(["bands", str(SI), "--overlap", f"{SI}/hrs0_nao.csr.xz", "-o", str(tmp_path / "c"), *where]) == 1
    assert "holds H0, but the overlap S is expected here" in capsys.readouterr().err


def test_collinear_spin_through_the_commands(tmp_path, monkeypatch, capsys):
    """hrs1 and hrs2 beside each other are one matrix, whichever way it comes in and goes out."""
    monkeypatch.chdir(tmp_path)
    source = open_source(SI)
    H = source.read("H")
    H = Blocks.collinear(*(Blocks(H.graph, H.basis, H.channel(s).data.real.copy(), 1) for s in (0, 3)))
    write_blocks(["hrs1_nao.csr", "hrs2_nao.csr"], H, digits=16, threshold=0.0)
    write_blocks("srs1_nao.csr", source.read("S"), letter="S", digits=16)
    shutil.copy(SI / "STRU", "STRU")
    assert main(["convert", ".", "run", "--to", "run", "--digits", "16"]) == 0
    assert main(["convert", "run", "h.csr"]) == 0
    assert "run → 1-h.csr and 2-h.csr (text, 1." in capsys.readouterr().out
    for path in (".", "run", "hrs1_nao.csr", "run/hrs2_nao.csr"):
        again = open_source(path).read("H")
        assert again.n_spin == 2
        np.testing.assert_allclose(again.data, H.on(again.graph).data, rtol=1e-14, atol=2e-9)  # ABACUS's threshold
    spin = ["--fermi", "6.93", "--mesh", "2", "2", "2"]
    assert main(["compare", "run", ".", *spin]) == 0
    assert "down real" in capsys.readouterr().out
    assert main(["bands", "run", "--points", "8", "--fermi", "6.93"]) == 0
    assert BandStructure.from_csv("bands.csv").eigenvalues.shape[0] == 2


def test_info_says_what_a_file_is(model, capsys):
    assert main(["info", str(SI), f"{SI}/hrs1_nao.csr.xz", f"{SI}/STRU", str(model)]) == 0
    out = capsys.readouterr().out
    for words in ("folder of an ABACUS run", "119 lattice vectors, 52 rows", "Si2, 2 atoms", "4 networks"):
        assert words in out
    assert main(["info", f"{SI}/nothing"]) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bands", "nowhere"], "nowhere: cannot be read"),
        (["bands", str(SI), "--kpath", "X"], "kpath: expected auto"),
        (["bands", str(SI), "--levels", "8", "--mesh", "2", "2", "2"], "levels: takes the Fermi level of Γ"),
        (["bands", f"{SI}:H7"], "there is no matrix H7, only H0, H, S"),
        (
            ["bands", str(SI), "--label", "a", "--label", "b"],
            "label: expected at most one for each of 1 matrices, got 2",
        ),
        (["bands", str(SI), "--window", "5", "-5"], "window: expected two ascending energies, got 5 and -5"),
        (["bands", str(SI), "--pseudo", "none"], "none: cannot be read: no such folder"),
        (["bands", f"{SI}:S"], "holds the overlap S here, but a Hamiltonian is expected"),
        (["dos", str(SI), "-o", f"{SI}/STRU/dos"], "is a file, not a folder"),
        (
            ["dos", str(SI), "--mesh", "1", "1", "1", "--threshold", "99"],
            "threshold: at some k-point no eigenvalue of S(k) is above 99",
        ),
        (["compare", f"{SI}:S", str(SI)], "holds the overlap S here, but a Hamiltonian is expected"),
        (["compare", str(SI), str(SI), "--json", str(SI)], "it is a folder, not a file"),
        (["convert", str(SI), ".", "--to", "h5"], "it is a folder, not a file"),
        (["evaluate", "none", "--data", "none"], "none: there is no such dataset"),
        (["demo", "-o", f"{SI}/STRU"], "is a file, not a folder"),
        (["predict", f"{SI}/STRU", "--h0", "none", "--overlap", "none", "--model", "none", "-o", "x"], "none: "),
    ],
)
def test_errors_are_sentences(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_fermi_level_that_is_no_number(tmp_path, capsys):
    for name in ("STRU", "srs1_nao.csr.xz"):
        shutil.copy(SI / name, tmp_path / name)
    (tmp_path / "info.json").write_text('{"efermi_eV": "6.9"}')
    assert main(["convert", f"{tmp_path}:S", str(tmp_path / "s.npz")]) == 1
    assert "info.json: expected a number for efermi_eV, got '6.9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: MATRIX"),
        (["x", "--levels", "0"], "argument --levels: expected a whole number of at least 1, got '0'"),
        (["x", "--mesh", "2", "0", "2"], "argument --mesh: expected a whole number of at least 1, got '0'"),
        (["x", "--fermi", "nan"], "argument --fermi: expected a number, got 'nan'"),
        (["x", "--window", "-1", "high"], "argument --window: expected a number, got 'high'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, sentence, capsys):
    assert main([]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["bands", *arguments])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text"),
    [(digits, "18"), (digits, "-3"), (positive, "0"), (positive, "-1"), (finite, "inf"), (natural, "2.5")],
)
def test_numbers_that_no_argument_takes(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '{text}'"):
        kind(text)


def test_numbers_of_arguments():
    assert (digits("0"), natural("12"), finite("-5"), positive("1e-3")) == (0, 12, -5.0, 1e-3)


def test_info_goes_on_behind_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "empty.csr").write_text("")
    assert main(["info", f"{tmp_path}/empty.csr", f"{SI}/STRU"]) == 1
    out, error = capsys.readouterr()
    assert "empty.csr: the file is empty" in error and "Si2, 2 atoms" in out


def test_output_that_nobody_reads_or_that_is_ascii():
    run = [sys.executable, "-c", "import sys; from nextham.cli import main; sys.exit(main(['optics', '--help']))"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(run, env=ascii_only, capture_output=True, text=True, check=True)
    assert "--max-energy" in shown.stdout and not shown.stderr
    run[2] = "import sys; from nextham.cli import main; sys.exit(main(['train', '--print-settings']))"
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdout.close()
        assert not writer.stderr.read()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"examples:\n  nextham {command}" in capsys.readouterr().out


def test_kernels_are_listed(capsys):
    assert main(["info", "--kernels"]) == 0
    out = capsys.readouterr().out
    assert "GPU: " in out
    (line,) = (line for line in out.splitlines() if "gate" in line.split())
    assert line.split()[1::2] == ["gate", "cpp", "triton", "triton", "reference"]  # and its derivatives
    assert main(["info"]) == 1
    assert "expected files or folders, or --kernels" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
@pytest.mark.parametrize("command", ["predict", "train"])
def test_a_gpu_that_is_not_there(command, model, tmp_path, capsys):
    (tmp_path / "train.yaml").write_text(f"data: {tmp_path}/data.h5\noutput: {tmp_path}/run\n")
    files = ["--h0", f"{SI}/hrs0_nao.csr.xz", "--overlap", f"{SI}/srs1_nao.csr.xz", "--model", str(model)]
    arguments = {
        "predict": [f"{SI}/STRU", *files, "-o", str(tmp_path / "out")],
        "train": [str(tmp_path / "train.yaml")],
    }[command]
    assert main([command, *arguments, "--device", "cuda"]) == 1
    err = capsys.readouterr().err
    assert "device: cuda was asked for, but torch" in err and "finds no CUDA device" in err
    assert main([command, *arguments, "--device", "tpu"]) == 1
    assert "device: expected cpu, cuda or cuda:N, got 'tpu'" in capsys.readouterr().err


def test_version_says_which_kernels_are_loaded(capsys):
    assert main(["--version"]) == 0
    assert "number_text: cpp on cpu" in capsys.readouterr().out


def test_help_is_quick_to_import():
    """The command line loads no network, plotting or file library before it needs one."""
    code = "import sys; from nextham.cli import parser; parser(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert not {"torch", "e3nn", "matplotlib", "h5py", "ase", "rich", "scipy"} & set(out.stdout.split())


def test_density_of_states(tmp_path, capsys):
    arguments = ["--mesh", "3", "3", "3", "--fermi", "6.88", "--window", "-14", "300", "--step", "0.5", "-o"]
    assert main(["dos", str(SI), *arguments, str(tmp_path / "new" / "dos")]) == 0
    assert "tetrahedron, mesh 3 x 3 x 3; " in capsys.readouterr().out
    table = np.loadtxt(tmp_path / "new" / "dos.csv", delimiter=",", skiprows=4)
    assert table[-1, 2] == pytest.approx(52) and (tmp_path / "new" / "dos.png").stat().st_size > 10_000
    np.testing.assert_allclose(table[:, 3:].sum(1), table[:, 1], atol=1e-7)
    assert main(["dos", str(SI), "--window", "1", "0"]) == 1
    assert "window: expected two ascending energies" in capsys.readouterr().err


def test_optics(tmp_path, capsys):
    arguments = ["--mesh", "3", "3", "3", "--fermi", "6.88", "--threshold", "1e-6", "-o", str(tmp_path / "optics")]
    assert main(["optics", str(SI), *arguments]) == 0
    out = capsys.readouterr().out
    assert "position matrix elements at bond centres" in out and "electrons in the sum rule up to 10 eV" in out
    table = np.loadtxt(tmp_path / "optics.csv", delimiter=",", skiprows=3)
    assert table.shape == (500, 17) and 1e6 < table[:, 1].max() < 1e7
    assert (tmp_path / "optics.png").stat().st_size > 10_000
    assert main(["optics", f"{SI}/hrs1_nao.csr.xz", "--structure", f"{SI}/STRU", "--fermi", "0"]) == 1
    assert "overlap: " in capsys.readouterr().err
    assert main(["optics", str(SI), "--step", "11"]) == 1
    assert "step: expected between 0 and 10 eV, got 11" in capsys.readouterr().err
