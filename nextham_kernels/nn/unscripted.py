"""Says in a sentence that TorchScript cannot compile our modules."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Unscripted"]


class Unscripted:
    """What every module of `nextham_kernels.nn` is too: `torch.jit.script` of it, or of a model with it, is refused."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by `torch.jit.script` in place of its compiler.

        Raises:
            RuntimeError: always.
        """
        name = type(self).__name__
        raise RuntimeError(
            f"torch.jit.script cannot compile {name} of nextham_kernels: use torch.compile, torch.export or "
            "torch.jit.trace, or call nextham_kernels.restore(model) before"
        )
