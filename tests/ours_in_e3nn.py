"""Plugin that runs e3nn's own tests on our modules: they stand in e3nn's places before the tests import them.

pip download e3nn==0.6.0 --no-binary :all: --no-deps && tar xf e3nn-0.6.0.tar.gz && cd e3nn-0.6.0
PYTHONPATH=CHECKOUT:CHECKOUT/tests pytest -p ours_in_e3nn tests/o3 tests/nn

At the end it prints a table: what passes in each file, in how many of these tests e3nn also compiles the module by
TorchScript, which is passed over, and which fail. `docs/moving_from_e3nn.md` holds that table.
"""

import collections
import os

import e3nn.util.test
import pytest
from e3nn import nn as e3nn_nn
from e3nn import o3

from nextham_kernels import nn

build = nn.TensorProduct.__init__


def build_as_e3nn(*args: object, **kwargs: object) -> None:
    """e3nn asserts that paths fit."""
    try:
        build(*args, **kwargs)
    except ValueError as error:
        raise AssertionError(error) from error


nn.TensorProduct.__init__ = build_as_e3nn
for name in nn.__all__:
    for package in (o3, e3nn_nn):
        if hasattr(package, name):
            setattr(package, name, getattr(nn, name))

scripted: set[str] = set()
"""Files and tests that ask for TorchScript."""


def pass_over(function: object, *_: object, **__: object) -> object:
    """Our modules call operators that TorchScript cannot compile from Python; torch.compile takes them."""
    scripted.add(os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0])
    return function


e3nn.util.test.assert_auto_jitable = pass_over


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    counts: dict[str, collections.Counter] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome == "skipped" or report.when == "call":
                row = counts.setdefault(report.nodeid.split("::")[0], collections.Counter())
                row[outcome] += 1
                row["scripted"] += report.nodeid in scripted
    columns = ("passed", "failed", "skipped", "scripted")
    terminalreporter.write_line(f"| e3nn's tests | {' | '.join(columns)} |\n|---|---|---|---|---|")
    for file, row in sorted(counts.items()):
        terminalreporter.write_line(f"| `{file}` | {' | '.join(str(row[c]) for c in columns)} |")
    total = sum(counts.values(), collections.Counter())
    terminalreporter.write_line(f"| all | {' | '.join(str(total[c]) for c in columns)} |")
