"""The GPU kernels generated for products: every mode, both kinds of weights, the fused forms, graphs, files on disk."""

import os
import subprocess
import sys

import harness
import pytest
import torch

from nextham_kernels import generated
from nextham_kernels.ops.tensor_product import lanes, product, programs, reference, tensor_product
from nextham_kernels.ops.tensor_product.conv import edge_orders, tensor_product_conv
from nextham_kernels.ops.tensor_product.linear import _reference as linear_reference
from nextham_kernels.ops.tensor_product.linear import tensor_product_linear

pytestmark = pytest.mark.triton

ROWS = 5
SINGLE = product(
    "3x0e+2x1o",
    "3x0e+2x1o",
    "3x0e+3x1o+2x1e+4x2e+3x0e+2x1o+1x0o",
    [
        (0, 0, 0, "uvu", True),
        (0, 0, 0, "uuu", False),  # to the same block
        (0, 1, 1, "uvu", True),
        (1, 0, 1, "uvv", False),
        (1, 1, 2, "uuu", True),
        (1, 1, 3, "uvuv", True),
        (1, 1, 3, "uvuv", False),
        (0, 0, 4, "uvu<v", True),
        (0, 1, 5, "uvv", True),
    ],
)
MIXES = product(
    "3x0e+2x1o",
    "3x0e+2x1o",
    "4x1o+5x1e+3x0e+1x0e+2x2e",
    [
        (0, 1, 0, "uvw", True),
        (1, 0, 0, "uvw", True),
        (1, 1, 1, "u<vw", True),
        (1, 1, 2, "uuw", True),
        (0, 0, 3, "uuw", False),
        (1, 1, 4, "uuu", True),
    ],
)
# One channel of harmonics, multiplicities that fill no power of two, more lanes than a tile, both operands' lanes.
HARMONICS = product(
    "10x1o+130x0e",
    "1x0e+1x1o",
    "10x1o+10x0e+130x1o+10x1e",
    [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", True), (0, 1, 3, "uvu", False)],
)
SWEEP = product(
    "9x1o+3x0e",
    "1x0e+1x1o",
    "9x1o+9x0e+3x1o",
    [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", False), (1, 1, 2, "uvu", True)],
)
WIDE = product(
    "1x0e+1x1o",
    "20x1o",
    "20x1o+20x1e+18x1o",
    [(0, 0, 0, "uvv", True), (1, 0, 1, "uvv", True), (0, 0, 2, "uvw", True)],
)


def inputs(paths, shared, n=ROWS):
    weight = (paths.n_weights,) if shared else (n, paths.n_weights)
    shapes = {"x": (n, paths.dims[0]), "y": (n, paths.dims[1]), "weight": weight}
    return {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("paths", [SINGLE, MIXES, HARMONICS, WIDE], ids=["single", "mixes", "harmonics", "wide"])
def test_gpu_kernel(paths, shared):
    harness.assert_gpu_kernel(
        "tensor_product tensor_product_backward",
        lambda x, y, weight: tensor_product(x, y, weight, paths),
        lambda x, y, weight: reference.tensor_product(x, y, weight, paths.word),
        inputs(paths, shared, 37 if paths is WIDE else ROWS),
        float32=2e-6,
    )


def test_second_derivatives():
    paths = product("2x1o", "1x0e+1x1o", "2x1o+3x0e", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvw", True)])
    harness.assert_gpu_kernel(
        "tensor_product tensor_product_backward",
        lambda x, y, weight: tensor_product(x, y, weight, paths),
        lambda x, y, weight: reference.tensor_product(x, y, weight, paths.word),
        inputs(paths, False),
        float32=2e-6,
        second=True,
    )


@pytest.mark.parametrize("wanted", ["x", "y", "weight"])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_some(shared, wanted):
    for paths in (SINGLE, MIXES):
        given = inputs(paths, shared)
        chosen = {wanted: given.pop(wanted)}
        with harness.on_gpu() as device:
            moved = {name: t.to(device) for name, t in given.items()}
            leaf = harness.leaf(chosen[wanted].to(device))
            found = torch.autograd.grad(tensor_product(**moved, **{wanted: leaf}, product=paths).sum(), leaf)[0]
        leaf = harness.leaf(chosen[wanted])
        plain = reference.tensor_product(**given, **{wanted: leaf}, word=paths.word)
        harness.assert_close(found.cpu(), torch.autograd.grad(plain.sum(), leaf)[0])


def test_many_paths_are_several_kernels():
    out = [(3, l, 1 if l % 2 else -1) for l in range(1, 5)]
    instructions = [(i, j, k, "uvu", True) for i in range(3) for j in range(3) for k, (_, l, _) in enumerate(out)]
    irreps = "+".join(f"3x{l}{'o' if p < 0 else 'e'}" for _, l, p in out)
    parities = {0: -1, 1: 1, 2: -1}
    kept = [
        (i, j, k, *rest)
        for i, j, k, *rest in instructions
        if abs(i + 1 - j) <= out[k][1] <= i + 1 + j and parities[i] * (-1) ** j == out[k][2]
    ]
    paths = product("3x1o+3x2e+3x3o", "1x0e+1x1o+1x2e", irreps, kept)
    needs = (True, True, True)
    with harness.on_gpu():
        assert len(programs.backward(paths.word, False, needs).kernels) > 1
    harness.assert_gpu_kernel(
        "tensor_product tensor_product_backward",
        lambda x, y, weight: tensor_product(x, y, weight, paths),
        lambda x, y, weight: reference.tensor_product(x, y, weight, paths.word),
        inputs(paths, False, 3),
        float32=2e-6,
    )


def test_no_rows():
    for shared in (True, False):
        with harness.on_gpu() as device:
            given = {name: harness.leaf(t.to(device)) for name, t in inputs(SINGLE, shared, 0).items()}
            out = tensor_product(**given, product=SINGLE)
            assert out.shape == (0, SINGLE.dims[2])
            grads = torch.autograd.grad(out.sum(), list(given.values()))
        assert all(not g.any() and g.shape == t.shape for g, t in zip(grads, given.values(), strict=True))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("paths", [SWEEP, WIDE], ids=["fused", "unfused"])
def test_convolution(paths, shared):
    n_edges = 23
    rows = torch.tensor([0, 1, 1, 1, 3, 4])[torch.arange(n_edges) * 5 % 6]  # nothing ends at 2
    cols = torch.arange(n_edges) * 7 % 6  # of seven nodes
    graph = {"rows": rows, "cols": cols}
    weight = (paths.n_weights,) if shared else (n_edges, paths.n_weights)
    shapes = {"x": (7, paths.dims[0]), "y": (n_edges, paths.dims[1]), "weight": weight}
    given = {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    harness.assert_gpu_kernel(
        "tensor_product_conv tensor_product_conv_backward",
        lambda x, y, weight, rows, cols: tensor_product_conv(x, y, weight, rows, cols, 5, paths),
        lambda x, y, weight, rows, cols: reference.tensor_product_conv(
            x, y, weight, rows, cols, *edge_orders(rows, cols), 5, paths.word
        ),
        given | graph,
        float32=2e-6,
    )


@pytest.mark.parametrize(("shared", "unread"), [(True, False), (False, False), (False, True)])
def test_with_a_linear_map(shared, unread):
    first = product(
        "5x0e+4x1o",
        "1x0e+1x1o",
        "5x0e+4x0e+4x1o+4x1e",
        [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 0, 2, "uvu", False), *[(1, 1, 3, "uvu", True)] * unread],
    )
    paths = [(0, 0, 0, "uvw", True), (1, 0, 0, "uvw", True), (2, 0, 1, "uvw", True)]
    second = product(first.irreps_out, "1x0e", "7x0e+18x1o", paths)
    assert programs.linear_fuses(first.word, second.word, shared) != (shared or unread)
    given = inputs(first, shared) | {"linear_weight": harness.random(second.n_weights, seed=9)}
    harness.assert_gpu_kernel(
        "tensor_product_linear tensor_product_linear_backward",
        lambda x, y, weight, linear_weight: tensor_product_linear(x, y, weight, linear_weight, first, second),
        lambda x, y, weight, linear_weight: linear_reference(x, y, weight, linear_weight, first.word, second.word),
        given,
        float32=2e-6,
    )


def test_pairs_have_numbers_of_their_own():
    for term in lanes.terms(SINGLE):
        pairs = []
        for c in range(term.lanes):
            for s in range(term.steps):
                if not term.triangle or eval(term.exists(str(c), str(s))):
                    pairs.append(eval(term.pair(str(c), str(s))))
        assert sorted(pairs) == list(range(len(pairs))), term.mode


CONCURRENT = """
from nextham_kernels.generated import module_of
print(module_of("test", "VALUE = 7\\n").VALUE)
"""


def test_processes_write_the_same_module_at_the_same_time(tmp_path):
    environment = os.environ | {"NEXTHAM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CONCURRENT]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate()[0] for run in runs] == ["7\n"] * 3
    files = list((tmp_path / "cache").glob("*.py"))
    assert len(files) == 1
    files[0].write_text("VALUE = 8\n")  # something else wrote there
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "7\n"


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEXTHAM_CACHE", str(tmp_path / "file"))
    generated.folder.cache_clear()
    assert generated.folder().is_dir() and generated.folder() != tmp_path / "file"
    generated.folder.cache_clear()


def test_the_sum_over_rows_is_shared_out_whatever_the_rows_own_weights(monkeypatch):
    first = product("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvu", True)])
    second = product("2x0e", "1x0e", "3x0e", [(0, 0, 0, "uvw", True)])
    tiles = []
    with harness.on_gpu() as device:
        from nextham_kernels.ops.tensor_product import kernel

        monkeypatch.setattr(kernel, "_run", lambda program, calls, x: tiles.extend(calls))
        monkeypatch.setattr(kernel, "PARTS", 24)
        given = [t.to(device) for t in inputs(first, False, 500).values()]
        arguments = (*given, harness.random(second.n_weights).to(device), first.word, second.word)
        kernel.backward_linear(harness.random(500, 3).to(device), *arguments, [True] * 4)
    (runs,) = [n for k, n, _ in tiles if k.weights]
    assert runs == 4  # 24 numbers for six weights
