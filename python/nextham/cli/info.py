"""Says what a file or folder is and what it holds, by its content."""

from __future__ import annotations

import argparse

SUMMARY = "what is this file"
EXAMPLES = """\
  nextham info hrs1_nao.csr
  nextham info Si-1 predicted/hamiltonian.h5 STRU Si.upf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham info`."""
    parser.add_argument("path", nargs="+", metavar="FILE", help="files or folders")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham info`."""
    from nextham.io.detect import KINDS, identify

    for path in args.path:
        found = identify(path)
        print(f"{path}: {KINDS[found.kind]}\n  {found.facts}")
    return 0
