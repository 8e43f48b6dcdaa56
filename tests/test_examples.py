"""The examples in the docstrings of the ops give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import nextham_kernels.ops

OPS = [module.name for module in pkgutil.iter_modules(nextham_kernels.ops.__path__)]
OTHERS = ["acceleration", "loading", "nn", "ops.tensor_product.conv", "ops.tensor_product.linear"]


@pytest.mark.parametrize("op", OPS)
def test_examples(op):
    run_examples(importlib.import_module(f"nextham_kernels.ops.{op}"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_examples(name):
    run_examples(importlib.import_module(f"nextham_kernels.{name}"))


def run_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0, f"{module.__name__}: no example in its contract"
    assert result.failed == 0
