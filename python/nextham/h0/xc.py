"""Which exchange-correlation functional a pseudopotential was made with."""

from __future__ import annotations

__all__ = ["functional_named"]

_NAMES = {"PBE": "pbe", "SLA PW PBX PBC": "pbe", "LDA": "lda", "PZ": "lda", "SLA PZ NOGX NOGC": "lda"}


def functional_named(name: str) -> str:
    """Returns the functional of `nextham_kernels.ops.xc_potential` that a pseudopotential names.

    Raises:
        ValueError: another functional.
    """
    known = _NAMES.get(" ".join(name.replace("-", " ").replace("+", " ").upper().split()))
    if known is None:
        raise ValueError(f"functional: expected PBE or LDA (PZ), got {name!r}")
    return known
