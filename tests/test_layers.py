"""Who may import whom, read off the syntax trees (CONVENTIONS.md, Layout)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS, STACK = ROOT / "nextham_kernels", ROOT / "python" / "nextham"

# What each part of the stack may import from the others; a part always may import from itself.
BELOW = {
    "units": set(),
    "structure": {"units"},
    "basis": {"units"},
    "data": set(),
    "device": set(),
    "graph": {"units", "structure", "basis"},
    "blocks": {"units", "structure", "basis", "graph"},
}
BELOW["block_layouts"] = {*BELOW["blocks"], "blocks"}  # the type alone
BELOW["blocks"] = {*BELOW["blocks"], "block_layouts"}
BELOW["io"] = {*BELOW["blocks"], "blocks"}
BELOW["model"] = {*BELOW["blocks"], "blocks", "io"}
BELOW["h0"] = {*BELOW["blocks"], "blocks", "block_layouts", "io"}
BELOW["kspace"] = {*BELOW["blocks"], "blocks"}
BELOW["kpath"] = {"structure"}
BELOW["fermi"] = {*BELOW["kspace"], "kspace"}
BELOW["levels"] = {*BELOW["fermi"], "fermi"}
BELOW["loss_target"] = BELOW["metrics"] = {*BELOW["kspace"], "kspace"}
BELOW["compact_target"] = {*BELOW["loss_target"], "loss_target"}
BELOW["losses"] = {"loss_target", "compact_target"}
BELOW["dataset"] = {*BELOW["blocks"], "blocks", "io", "kspace", "loss_target", "metrics"}
BELOW["train"] = {"device", *BELOW["dataset"], *BELOW["losses"], "dataset", "losses", "model", "fermi"}
BELOW["figure"], BELOW["tetrahedra"] = set(), set()
BELOW["dos"] = BELOW["optics"] = {*BELOW["fermi"], "fermi", "tetrahedra"}
BELOW["spectra_plot"] = {"dos", "figure", "optics"}
BELOW["bands"] = {"blocks", "fermi", "io", "kpath", "kspace", "levels"}
BELOW["bands_plot"] = {"bands", "figure", "metrics"}
BELOW["cli"] = {*BELOW}

# What is too heavy to load when a package is imported (they are imported where they are used).
HEAVY = {"ase", "h5py", "matplotlib", "rich", "safetensors", "seekpath", "sisl", "vesin", "triton", "cupy"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(STACK).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(STACK), ids=lambda p: str(p.relative_to(STACK)))
def test_stack(path):
    here = part(path)
    if here == "__init__":
        return
    assert here in BELOW, f"{here}: say in this table what it may import"
    allowed = BELOW[here] | {here}
    for name in imports(path):
        words = name.split(".")
        assert words[0] not in ("bench", "tests"), f"{path.name} imports {name}"
        if words[0] == "nextham" and len(words) > 1:
            assert words[1] in allowed or words[1] in ("__version__",), f"{here} may not import {name}"
        assert words[0] == "__future__" or not any(w.startswith("_") and w != "__version__" for w in words), (
            f"{path.name} imports private {name}"
        )


@pytest.mark.parametrize("path", sources(KERNELS), ids=lambda p: str(p.relative_to(KERNELS)))
def test_kernels(path):
    for name in imports(path):
        assert name.split(".")[0] not in ("nextham", "bench", "tests"), f"{path} imports {name}"
        if path.name == "reference.py":
            assert not name.startswith(("triton", "cupy")), f"{path} imports {name}"
        if path.name == "reference.py" and name.startswith("nextham_kernels"):
            assert name.startswith(("nextham_kernels.clebsch_gordan", "nextham_kernels.edge_layout")), (
                f"{path} imports {name}"
            )
        if name.endswith((".kernel", ".cuda")) and name.startswith("nextham_kernels"):
            assert path.name in ("kernel.py", "cuda.py"), (
                f"{path}: GPU kernels are imported by loading.gpu_kernel alone"
            )
        if "._C" in name:
            assert path.name == "loading.py", f"{path}: only loading.py opens the compiled library"


@pytest.mark.parametrize("path", sources(KERNELS) + sources(STACK), ids=lambda p: p.stem)
def test_nothing_heavy_at_import(path):
    if path.name in ("kernel.py", "cuda.py"):
        return  # imported when first used
    heavy = {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
    assert not heavy, f"{path} imports {heavy} at its top"


@pytest.mark.parametrize("path", sources(KERNELS) + sources(STACK), ids=lambda p: p.stem)
def test_files_are_small(path):
    most = 600 if path.name in ("kernel.py", "cuda.py") else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most, f"{path}: more than one idea?"
