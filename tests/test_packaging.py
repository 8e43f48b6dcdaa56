"""What is handed to users holds all that building and running needs."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("csrc", "nextham_kernels", "python")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The names in the source distribution of a copy of this project."""
    copy = tmp_path_factory.mktemp("source") / "project"
    copy.mkdir()
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", "--formats", "gztar"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (path,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(path) as tar:
        return copy, {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


def test_source_distribution_has_every_file(archive):
    copy, names = archive
    files = {
        path.relative_to(copy).as_posix()
        for folder in FOLDERS
        for path in (copy / folder).rglob("*")
        if path.is_file() and ".egg-info" not in path.as_posix()
    }
    files |= {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"}
    assert len(files) > 200 and sorted(files - names) == []
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
