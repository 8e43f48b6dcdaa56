"""Builds the pybind11 extension with CMake; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake once and leaves the extension where setuptools expects it."""

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            str(ROOT),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DEXTENSION_FILE_NAME={target.name}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        try:
            subprocess.run(configure, cwd=build, check=True)
        except FileNotFoundError:
            raise SystemExit(
                "CMake 3.22 or newer is needed to build nextham-kernels, and `cmake` was not found."
            ) from None
        subprocess.run(["cmake", "--build", ".", "--parallel", str(os.cpu_count() or 1)], cwd=build, check=True)


setup(
    packages=find_packages(".", include=["nextham_kernels*"]) + find_packages("python"),
    ext_modules=[Extension("nextham_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
