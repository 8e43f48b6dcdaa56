"""The examples in the docstrings of the ops give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import nextham_kernels.ops

OPS = [module.name for module in pkgutil.iter_modules(nextham_kernels.ops.__path__)]


@pytest.mark.parametrize("op", OPS)
def test_examples(op):
    module = importlib.import_module(f"nextham_kernels.ops.{op}")
    result = doctest.testmod(module)
    assert result.attempted > 0, f"{op}: no example in its contract"
    assert result.failed == 0
