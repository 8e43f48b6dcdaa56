"""Named problem sizes."""

from dataclasses import dataclass, field

from nextham.model.config import NextHAMConfig

__all__ = ["MODEL", "ModelCase"]


@dataclass(frozen=True)
class ModelCase:
    """A real H⁽⁰⁾ for the whole network.

    Args:
        sample: an ABACUS run, bundled or beside the checkout.
        supercell: repetitions of its cell.
        cutoff: edges are shorter than this, Å.
        config: the configuration; its ranges are those of one or of all networks (see `bench_model`).
    """

    sample: str
    supercell: tuple[int, int, int] = (1, 1, 1)
    cutoff: float = 8.0
    config: NextHAMConfig = field(default_factory=NextHAMConfig)


TINY = NextHAMConfig(
    hidden="4x0e+3x1o+2x1e+1x2e",
    l_max=2,
    n_layers=2,
    n_heads=2,
    n_radial=8,
    radial_widths=(8, 8),
    alpha_scalars=3,
    alpha_widths=(8, 8),
    tracegrad_forms=9,
    tracegrad_forms_last=5,
    tracegrad_widths=(7, 7),
    trace_widths=(6, 6),
    shells=(0, 0, 1, 1, 2),
)
"""The published network with every size small: seconds to build, no size a multiple of another."""

# The edges are those of H(0) below the cutoff: 42, 212, 1,272, 5,300 and (GaAs) 174.
MODEL = {
    "tiny": ModelCase("Si-1", cutoff=4.5, config=TINY),
    "si2": ModelCase("Si-1"),
    "si12": ModelCase("Si-1", (3, 2, 1)),
    "si50": ModelCase("Si-1", (5, 5, 1)),
    "gaas": ModelCase("GaAs-1"),
}
