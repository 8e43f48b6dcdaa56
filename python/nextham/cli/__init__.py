"""The `nextham` command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = (
    "h0",
    "predict",
    "bands",
    "dos",
    "optics",
    "compare",
    "convert",
    "info",
    "kernels",
    "basis",
    "dataset",
    "train",
    "evaluate",
    "demo",
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; each command is a module of this package."""
    top = argparse.ArgumentParser(
        prog="nextham",
        description="Kohn-Sham Hamiltonians: predict them, look at their bands, compare and convert them.",
        epilog="`nextham COMMAND --help` shows examples.",
    )
    top.add_argument("--version", action="store_true", help="print the version and which kernels are loaded")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"nextham.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog="examples:\n" + module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for an error (one sentence on stderr), 2 for wrong usage."""
    for stream in (sys.stdout, sys.stderr):  # Å, ₂ and the like must not end a command where text is ASCII
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    top = parser()
    args = top.parse_args(argv)
    if args.version:
        from nextham_kernels import __version__
        from nextham_kernels.loading import loaded

        print(f"nextham-kernels {__version__}")
        for name, kernels in loaded().items():
            print(f"  {name}: " + ", ".join(f"{kernel} on {device}" for device, kernel in kernels.items()))
        return 0
    if args.command is None:
        top.print_help()
        return 2
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("nextham: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nextham … | head` has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        # What the package says about its input; anything else is our mistake and keeps its traceback.
        if args.debug:
            raise
        print(f"nextham: {error}", file=sys.stderr)
        return 1
