"""What a network is made of: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.blocks_irreps import block_irreps

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["NORMS", "READS", "TARGETS", "NextHAMConfig"]

TARGETS = ("uu", "scalar", "scalar+vector")
NORMS = ("published", "floor")
READS = ("h0", "elements")

_LATER = {"reads": "h0"}
"""Settings that older model folders lack, and what they are there."""


@dataclasses.dataclass(frozen=True)
class NextHAMConfig:
    """Configuration of an ensemble of networks; the defaults are the published one (v1, `materials_ham_soc`).

    Args:
        hidden: irreps of node and edge features, each once, 0e first.
        l_max: largest degree of the spherical harmonics.
        n_layers: layers of each network.
        n_heads: heads of the attention.
        cutoff: edges are shorter than this, Å.
        n_radial: number of Gaussians of the radial basis.
        radial_stop: centre of the last Gaussian, Å.
        radial_widths: hidden widths of the MLP that makes the weights of the depthwise product.
        alpha_scalars: scalars of the message that the attention logits read. The published layout makes as many per
            head and reads the first head's.
        alpha_widths: hidden widths of the MLP of the attention logits.
        tracegrad_forms: quadratic forms of TraceGrad.
        tracegrad_forms_last: the same in the last layer, where only the scalars enter.
        tracegrad_widths: widths of TraceGrad's MLP behind the forms, the last being the number of invariants.
        tracegrad_residual: weight of the TraceGrad update of the edge features; 0 is off.
        trace_widths: hidden widths of the trace head.
        ranges: distance range [lo, hi) of each network, Å.
        decay: the output is multiplied by exp(−decay · |r|), 1/Å.
        shells: l of each shell of the padded orbital layout.
        spinor: blocks with spin (2 × 2 complex) or without.
        target: what of the predicted spinor block corrects H⁽⁰⁾. `uu`: Re ↑↑, added to ↑↑ and ↓↓ (published; not
            equivariant). `scalar`: the spin scalar Re h₀, exactly equivariant. `scalar+vector`: also the part of the
            spin vector that time reversal allows, Im h (spin–orbit coupling), exactly equivariant. Without spin only
            `scalar`.
        norm: `published`, or `floor`, which leaves the rounding noise of symmetry-forbidden components alone.
        norm_floor: the floor of `floor`, relative to the whole feature vector. Noise of 1e-10 in H⁽⁰⁾ of ideal silicon
            changes ΔH by 8e-8 with floor 1, by 4e-5 with 0.3, by 6 % with 0.1, and wholly with the published norm.
        reads: what the networks are given: `h0`, or `elements`, numbers that tell the elements in place of H⁽⁰⁾ (an
            ablation; ΔH is still what they predict).

    Raises:
        ValueError: a setting that makes no network, in one sentence.
    """

    hidden: str = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
    l_max: int = 5
    n_layers: int = 4
    n_heads: int = 4
    cutoff: float = 8.0
    n_radial: int = 64
    radial_stop: float = 10.0
    radial_widths: tuple[int, ...] = (64, 64)
    alpha_scalars: int = 32
    alpha_widths: tuple[int, ...] = (64, 64)
    tracegrad_forms: int = 1024
    tracegrad_forms_last: int = 512
    tracegrad_widths: tuple[int, ...] = (256, 256, 256, 256)
    tracegrad_residual: float = 0.2
    trace_widths: tuple[int, ...] = (512, 512, 512)
    ranges: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 6.0))
    decay: float = 0.2
    shells: tuple[int, ...] = (0, 0, 0, 0, 1, 1, 2, 2, 3)
    spinor: bool = True
    target: str = "uu"
    norm: str = "published"
    norm_floor: float = 1.0
    reads: str = "h0"

    @classmethod
    def published_v1(cls) -> NextHAMConfig:
        """Returns the configuration of the published checkpoints."""
        return cls()

    @classmethod
    def published_v2(cls) -> NextHAMConfig:
        """Returns the later published variant: degrees up to 7, no TraceGrad residual."""
        hidden = "32x0e+16x0o+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e+8x4o+4x5e+4x5o+1x6e+1x6o+1x7e"
        return cls(hidden=hidden, tracegrad_residual=0.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NextHAMConfig:
        """Returns the configuration of a plain dictionary such as `to_dict` gives (JSON's lists are accepted).

        Raises:
            ValueError: an unknown or missing setting, or one that makes no network.
        """
        names, values = [field.name for field in dataclasses.fields(cls)], {**_LATER, **values}
        for name in [*values, *names]:
            if name not in names:
                raise ValueError(f"config: unknown setting {name!r}; known are {', '.join(names)}")
            if name not in values:
                raise ValueError(f"config: setting {name!r} is missing")
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        if isinstance(values["ranges"], tuple):
            values["ranges"] = tuple(tuple(r) if isinstance(r, list) else r for r in values["ranges"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a plain dictionary."""
        return dataclasses.asdict(self)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_kind(field.name, getattr(self, field.name), field.default)
        try:
            hidden = self.hidden_irreps
        except ValueError as error:
            raise ValueError(f"config: hidden: expected irreps such as 8x0e+4x1o, got {self.hidden!r}") from error
        if len({ir for _, ir in hidden}) != len(hidden) or any(mul == 0 for mul, _ in hidden):
            raise ValueError(f"config: hidden: expected each irrep once, got {self.hidden}")
        if not len(hidden) or not hidden[0].ir.is_scalar():
            raise ValueError(f"config: hidden: expected the 0e channels first, got {self.hidden}")
        for name in ("n_layers", "n_heads", "alpha_scalars", "tracegrad_forms", "tracegrad_forms_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"config: {name}: expected at least 1, got {getattr(self, name)}")
        if self.n_radial < 2:
            raise ValueError(f"config: n_radial: expected at least 2, got {self.n_radial}")
        for name in ("radial_widths", "alpha_widths", "tracegrad_widths", "trace_widths"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"config: {name}: expected positive widths, got {getattr(self, name)}")
        for name in ("cutoff", "radial_stop"):
            if not getattr(self, name) > 0:
                raise ValueError(f"config: {name}: expected a positive distance in Å, got {getattr(self, name)}")
        for name in ("decay", "tracegrad_residual", "norm_floor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"config: {name}: expected 0 or a positive number, got {getattr(self, name)}")
        if not 0 <= self.l_max <= 11:
            raise ValueError(f"config: l_max: expected 0 to 11, got {self.l_max}")
        if not self.shells or min(self.shells) < 0:
            raise ValueError(f"config: shells: expected at least one l >= 0, got {self.shells}")
        self._check_ranges()
        if self.target not in TARGETS:
            raise ValueError(f"config: target: expected one of {', '.join(TARGETS)}, got {self.target!r}")
        if not self.spinor and self.target != "scalar":
            raise ValueError(f"config: target: expected 'scalar' without spin, got {self.target!r}")
        if self.norm not in NORMS:
            raise ValueError(f"config: norm: expected one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.reads not in READS:
            raise ValueError(f"config: reads: expected one of {', '.join(READS)}, got {self.reads!r}")

    def _check_ranges(self) -> None:
        ends = [edge for pair in self.ranges for edge in pair]
        if not self.ranges or any(len(pair) != 2 or not pair[0] < pair[1] for pair in self.ranges):
            raise ValueError(f"config: ranges: expected pairs lo < hi in Å, got {self.ranges}")
        if ends != sorted(ends) or ends[0] < 0 or ends[-1] > self.cutoff:
            raise ValueError(
                f"config: ranges: expected ascending ranges that do not overlap, from 0 to the cutoff {self.cutoff} Å,"
                f" got {self.ranges}"
            )

    @property
    def hidden_irreps(self) -> o3.Irreps:
        """Irreps of node and edge features."""
        return irreps_of(self.hidden)

    @property
    def block_irreps(self) -> o3.Irreps:
        """Irreps of the blocks of H⁽⁰⁾ and of the network's output."""
        return block_irreps(self.shells, self.spinor)

    @functools.cached_property
    def block_dim(self) -> int:
        """Dimension of `block_irreps`, which takes e3nn half a millisecond to count."""
        return self.block_irreps.dim

    @property
    def harmonics_irreps(self) -> o3.Irreps:
        """Irreps of the spherical harmonics."""
        return irreps_of("+".join(f"1x{l}{'o' if l % 2 else 'e'}" for l in range(self.l_max + 1)))

    @property
    def n_scalars(self) -> int:
        """Number of 0e channels of the hidden irreps."""
        return self.hidden_irreps[0].mul

    @property
    def floor(self) -> float:
        """The floor that the norms use: 0 for the published norm."""
        return self.norm_floor if self.norm == "floor" else 0.0


def _check_kind(name: str, value: object, default: object) -> None:
    """Checks the type of a setting against that of its default."""
    if isinstance(default, bool) or isinstance(default, str):
        fits = isinstance(value, type(default))
    elif name == "ranges":
        nested = isinstance(value, tuple) and all(isinstance(pair, tuple) for pair in value)
        fits = nested and all(_number(x, (int, float)) for pair in value for x in pair)
    elif isinstance(default, tuple):
        fits = isinstance(value, tuple) and all(_number(x, int) for x in value)
    else:
        fits = _number(value, int if isinstance(default, int) else (int, float))
    if not fits:
        raise ValueError(f"config: {name}: expected something like {default!r}, got {value!r}")


def _number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
