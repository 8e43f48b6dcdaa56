"""Named problem sizes."""

from dataclasses import dataclass, field

from nextham.model.config import NextHAMConfig
from nextham_kernels.clebsch_gordan import irreps_of

__all__ = [
    "EDGE_PRODUCT",
    "MODEL",
    "NETWORK",
    "TENSOR_PRODUCT",
    "EdgeProductCase",
    "ModelCase",
    "NetworkCase",
    "ProductCase",
]


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

# The edges are those of H(0) below the cutoff: 42, 212, 1,272, 5,300, 50,880 and (GaAs) 174.
MODEL = {
    "tiny": ModelCase("Si-1", cutoff=4.5, config=TINY),
    "si2": ModelCase("Si-1"),
    "si4": ModelCase("Si-1", (2, 1, 1)),
    "si12": ModelCase("Si-1", (3, 2, 1)),
    "si50": ModelCase("Si-1", (5, 5, 1)),
    "si480": ModelCase("Si-1", (10, 8, 3)),
    "gaas": ModelCase("GaAs-1"),
}


@dataclass(frozen=True)
class ProductCase:
    """A tensor product of this field.

    Args:
        irreps_1: features.
        irreps_2: the second operand, mostly harmonics.
        irreps_out: the result's irreps; for 'uvu' those that are kept, each path having channels of its own.
        mode: 'uvu' (weights of each row) or 'uvw'.
        shared: one set of weights for all rows.
    """

    irreps_1: str
    irreps_2: str
    irreps_out: str
    mode: str = "uvu"
    shared: bool = False

    def instructions(self) -> tuple[str, list[tuple]]:
        """Returns the irreps of the result and e3nn's instructions, sorted by result as the models do."""
        first, second, out = (irreps_of(i) for i in (self.irreps_1, self.irreps_2, self.irreps_out))
        pairs = [(i, j) for i in range(len(first)) for j in range(len(second))]
        if self.mode == "uvw":
            found = [(i, j, k) for i, j in pairs for k in range(len(out)) if out[k].ir in first[i].ir * second[j].ir]
            return self.irreps_out, [(*path, "uvw", True) for path in found]
        keep = {ir for _, ir in out}
        found = [(i, j, ir) for i, j in pairs for ir in first[i].ir * second[j].ir if ir in keep]
        found = sorted(found, key=lambda path: path[2])
        blocks = "+".join(f"{first[i].mul}x{ir}" for i, _, ir in found)
        return blocks, [(i, j, k, "uvu", True) for k, (i, j, _) in enumerate(found)]


def harmonics(l_max: int) -> str:
    """Returns the irreps of the spherical harmonics up to a degree."""
    return "+".join(f"1x{l}{'eo'[l % 2]}" for l in range(l_max + 1))


def _both(mul: int, l_max: int) -> str:
    return "+".join(f"{mul}x{l}{p}" for l in range(l_max + 1) for p in "eo")


# HamGNN's default features; its harmonics go up to l = 5 (255 paths) or, for f electrons, 6 (298 paths).
_HAMGNN = "64x0e+64x0o+32x1o+16x1e+12x2o+25x2e+18x3o+9x3e+4x4o+9x4e+4x5o+4x5e+2x6e"
_NEXTHAM = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
_DEEPH = "64x0e+32x1o+16x2e+8x3o+8x4e"
_DIFFDOCK = "10x1o+10x1e+48x0e+48x0o"

TENSOR_PRODUCT = {
    "mace-medium": ProductCase("128x0e+128x1o", harmonics(3), "128x0e+128x1o+128x2e"),
    "mace-large": ProductCase("128x0e+128x1o+128x2e", harmonics(3), "128x0e+128x1o+128x2e+128x3o"),
    "nequip-lips": ProductCase(_both(32, 2), harmonics(2), _both(32, 2)),
    "nequip-aspirin": ProductCase(_both(64, 1), harmonics(1), _both(64, 1)),
    "nequip-toluene": ProductCase(_both(64, 2), harmonics(2), _both(64, 2)),
    "nequip-benzene": ProductCase(_both(64, 3), harmonics(3), _both(64, 3)),
    "sevennet-l3i5": ProductCase("128x0e+64x1e+32x2e+32x3e", "1x0e+1x1e+1x2e+1x3e", "128x0e+64x1e+32x2e+32x3e"),
    "diffdock-l1": ProductCase(_DIFFDOCK, harmonics(1), _DIFFDOCK, "uvw"),
    "diffdock-l2": ProductCase(_DIFFDOCK, harmonics(2), _DIFFDOCK, "uvw"),
    "deeph-e3": ProductCase(_DEEPH, harmonics(5), _DEEPH, "uvw", shared=True),
    "hamgnn": ProductCase(_HAMGNN, harmonics(6), _HAMGNN),
    "nextham": ProductCase(_NEXTHAM, harmonics(5), _NEXTHAM),
    "single-110": ProductCase("128x1e", "1x1e", "128x0e"),
    "single-222": ProductCase("128x2e", "1x2e", "128x2e"),
    "single-533": ProductCase("128x5e", "1x3e", "128x3e"),
    "single-747": ProductCase("128x7e", "1x4e", "128x7e"),
    "single-777": ProductCase("128x7e", "1x7e", "128x7e"),
}


@dataclass(frozen=True)
class NetworkCase:
    """A NequIP-like energy model on a box of atoms.

    Args:
        hidden: irreps of the nodes; the first block is 0e.
        l_max: largest degree of the harmonics.
        n_layers: message-passing steps.
        n_atoms: atoms along each side of the box.
        cutoff: edges are shorter than this, Å.
    """

    hidden: str
    l_max: int
    n_layers: int = 4
    n_atoms: int = 3
    cutoff: float = 4.5


NETWORK = {
    "tiny": NetworkCase("4x0e+4x0o+3x1e+3x1o", 1, n_layers=2, n_atoms=2),
    "nequip-l1": NetworkCase("32x0e+32x0o+32x1e+32x1o", 1, n_atoms=5),
    "nequip-l2": NetworkCase(_both(32, 2), 2, n_atoms=4),
    "nequip-l3": NetworkCase(_both(64, 3), 3, n_layers=3),
}


@dataclass(frozen=True)
class EdgeProductCase:
    """A product with the harmonics of edges and a linear map behind it.

    Args:
        irreps_in: features, and the irreps that the product keeps.
        l_max: largest degree of the harmonics.
        irreps_out: result.
    """

    irreps_in: str
    l_max: int
    irreps_out: str


EDGE_PRODUCT = {
    "mace-medium": EdgeProductCase("128x0e+128x1o", 3, "128x0e+128x1o"),
    "nequip-l2": EdgeProductCase(_both(32, 2), 2, _both(32, 2)),
    "deeph-e3": EdgeProductCase(_DEEPH, 5, _DEEPH),
    "nextham": EdgeProductCase(_NEXTHAM, 5, _NEXTHAM),
}
