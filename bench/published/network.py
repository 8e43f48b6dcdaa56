"""The published network and its ensemble; the module names are those of the published parameters."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import e3nn
import torch
from e3nn import o3
from torch import Tensor, fx, nn

from bench.published.layers import (
    Depthwise,
    Heads,
    LayerNorm,
    Linear,
    even_first,
    gate,
    perceptron,
    segment_softmax,
)
from nextham.model.config import NextHAMConfig

__all__ = ["PublishedEnsemble", "PublishedNetwork", "compiled_by"]


@contextmanager
def compiled_by(mode: str) -> Iterator[None]:
    """Sets how e3nn runs the code it generates: `eager` (its default since torch 2.10) or `script` (before)."""
    before = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode=mode)
    try:
        with warnings.catch_warnings():
            # torch 2.10 deprecates TorchScript, and says so at every call.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            yield
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)


class RadialWeights(nn.Module):
    """Radial basis [e, c] → weights of the depthwise product [e, p u]."""

    def __init__(self, config: NextHAMConfig, n_weights: int) -> None:
        super().__init__()
        self.net = perceptron([config.n_radial, *config.radial_widths, n_weights], norm_eps=1e-5, last_bias=False)
        self.offset = nn.Parameter(torch.zeros(n_weights))

    def forward(self, radial: Tensor) -> Tensor:
        """Returns [e, p u]."""
        return self.net(radial) + self.offset


class Activation(nn.Module):
    """The parts of a message: depthwise product with radial weights; linear map and gate of it."""

    def __init__(self, config: NextHAMConfig) -> None:
        super().__init__()
        self.dtp = Depthwise(config.hidden_irreps, config.harmonics_irreps, shared=False)
        self.dtp_rad = RadialWeights(config, self.dtp.tp.weight_numel)
        self.gate = gate(config.hidden_irreps)
        self.lin = Linear(self.dtp.irreps_out, self.gate.irreps_in)


class Value(nn.Module):
    """Depthwise product with shared weights, then a linear map to all heads."""

    def __init__(self, config: NextHAMConfig, irreps_heads: o3.Irreps) -> None:
        super().__init__()
        self.dtp = Depthwise(config.hidden_irreps, config.harmonics_irreps, shared=True)
        self.lin = Linear(self.dtp.irreps_out, irreps_heads)

    def forward(self, x: Tensor, harmonics: Tensor) -> Tensor:
        """Returns [e, irreps_heads]."""
        return self.lin(self.dtp(x, harmonics))


class Attention(nn.Module):
    """Graph attention of one layer; the last layer has no node output."""

    def __init__(self, config: NextHAMConfig, irreps_edge: o3.Irreps, last: bool) -> None:
        super().__init__()
        irreps, n_heads = config.hidden_irreps, config.n_heads
        irreps_heads = even_first(o3.Irreps([(n_heads * mul, ir) for mul, ir in irreps]))[0].simplify()
        self.n_alpha = config.alpha_scalars
        self.merge_src = Linear(irreps, irreps)
        self.merge_dst = Linear(irreps, irreps, bias=False)
        self.pre_lin = Linear(irreps + irreps + irreps, irreps)
        self.sep_act = Activation(config)
        self.sep_alpha = Linear(self.sep_act.dtp.irreps_out, o3.Irreps([(n_heads * self.n_alpha, "0e")]))
        self.sep_value = Value(config, irreps_heads)
        self.lin_alpha = perceptron([config.n_radial + self.n_alpha, *config.alpha_widths, n_heads], norm_eps=1e-6)
        self.heads = Heads(irreps_heads, n_heads)
        self.edge_proj = Linear(irreps_heads, irreps_edge)
        self.proj = None if last else Linear(irreps_heads, irreps)

    def forward(
        self, node: Tensor, edge: Tensor, src: Tensor, dst: Tensor, harmonics: Tensor, radial: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Returns node features [n, irreps] (or None) and edge features [e, irreps_edge]."""
        message = self.pre_lin(torch.cat([self.merge_src(node)[src], self.merge_dst(node)[dst], edge], 1))
        product = self.sep_act.dtp(message, harmonics, self.sep_act.dtp_rad(radial))
        scalars = self.sep_alpha(product)[:, : self.n_alpha]
        alpha = self.lin_alpha(torch.cat([radial, scalars], 1))  # [e, h]
        value = self.sep_value(self.sep_act.gate(self.sep_act.lin(product)), harmonics)
        value = self.heads.split(value)
        projected = self.edge_proj(self.heads.merge(alpha[:, :, None] * value))
        if self.proj is None:
            return None, projected
        weighted = self.heads.merge(segment_softmax(alpha, dst, len(node))[:, :, None] * value)
        attended = weighted.new_zeros(len(node), weighted.shape[1]).index_add(0, dst, weighted)
        return self.proj(attended), projected


class FeedForward(nn.Module):
    """Linear map, gate, linear map."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.gate = gate(irreps)
        self.fctp_1 = Linear(irreps, self.gate.irreps_in)
        self.fctp_2 = Linear(irreps, irreps)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, irreps]."""
        return self.fctp_2(self.gate(self.fctp_1(x)))


class Layer(nn.Module):
    """One layer; the last one has no node path."""

    def __init__(self, config: NextHAMConfig, irreps_edge: o3.Irreps, last: bool) -> None:
        super().__init__()
        irreps = config.hidden_irreps
        self.norm_1 = LayerNorm(irreps)
        self.norm_edge = LayerNorm(irreps)
        self.ga = Attention(config, irreps_edge, last)
        if not last:
            self.norm_2 = LayerNorm(irreps)
            self.ffn = FeedForward(irreps)

    def forward(
        self, node: Tensor, edge: Tensor, src: Tensor, dst: Tensor, harmonics: Tensor, radial: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Returns node features [n, irreps] (or None) and edge features [e, irreps_edge]."""
        normed = self.norm_1(node)
        attended, edge = self.ga(normed, self.norm_edge(edge), src, dst, harmonics, radial)
        if attended is None:
            return None, edge
        x = self.norm_2(attended + normed)
        return x + self.ffn(x), edge


class TraceGrad(nn.Module):
    """Invariants z of x, and the gradient of their sum by autograd."""

    def __init__(self, config: NextHAMConfig, irreps: o3.Irreps, n_forms: int) -> None:
        super().__init__()
        self.fctp = o3.FullyConnectedTensorProduct(irreps, irreps, o3.Irreps([(n_forms, "0e")]))
        self.nonlinear_layers = perceptron([n_forms, *config.tracegrad_widths], norm_eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns z [e, c]."""
        return self.nonlinear_layers(self.fctp(x, x))

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z [e, c] and g = ∂(Σ z)/∂x [e, irreps]; differentiable where gradients are recorded."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if training else x.detach().requires_grad_()
            z = self(x)
            (g,) = torch.autograd.grad(z.sum(), x, create_graph=training)
        return (z, g) if training else (z.detach(), g)


class PublishedNetwork(nn.Module):
    """One network of the ensemble.

    Args:
        config: the configuration; its norm must be the published one.
        span: distance range [lo, hi) of the output, Å.

    Raises:
        ValueError: a configuration that the published code cannot express.
    """

    def __init__(self, config: NextHAMConfig, span: tuple[float, float]) -> None:
        super().__init__()
        if config.norm != "published":
            raise ValueError(f"config: norm: the published network has the norm 'published', got {config.norm!r}")
        irreps, n_layers, widths = config.hidden_irreps, config.n_layers, config.tracegrad_widths
        scalars = o3.Irreps([irreps[0]])
        irreps_last = scalars + config.block_irreps.sort().irreps.simplify()
        self.config, self.span = config, span
        self.harmonics = o3.SphericalHarmonics(config.harmonics_irreps, normalize=True, normalization="component")
        centres = torch.linspace(0, config.radial_stop, config.n_radial)
        self.register_buffer("centres", centres, persistent=False)
        self.sigma = 0.5 * config.radial_stop / config.n_radial
        self.input_rs = Linear(config.block_irreps, irreps, bias=False)
        is_last = [k == n_layers - 1 for k in range(n_layers)]
        self.blocks = nn.ModuleList(Layer(config, irreps_last if last else irreps, last) for last in is_last)
        self.edge_feature_nonlin_block = nn.ModuleList(
            TraceGrad(config, scalars, config.tracegrad_forms_last)
            if last
            else TraceGrad(config, irreps, config.tracegrad_forms)
            for last in is_last
        )
        self.edge_lin = Linear(irreps_last, config.block_irreps)
        self.nonlinear_layers_for_norm_reg = perceptron(
            [n_layers * widths[-1], *config.trace_widths, len(config.shells) ** 2], norm_eps=None
        )

    def forward(self, h0: Tensor, vector: Tensor, src: Tensor, dst: Tensor, onsite: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the correction and the trace head of every edge.

        Args:
            h0: irreps of H⁽⁰⁾ [e, d], eV.
            vector: r = τ_dst + R − τ_src [e, 3], Å.
            src: first atom of each edge [e].
            dst: second atom of each edge [e], where messages are summed.
            onsite: the edge r = 0 of each atom [n].

        Returns:
            irreps of ΔH [e, d], eV, and the trace head [e, s²], both zero outside the range.
        """
        distance = vector.norm(dim=1)
        harmonics = self.harmonics(vector[:, [1, 2, 0]])
        radial = (-0.5 * ((distance[:, None] - self.centres) / self.sigma).square()).exp()
        edge = self.input_rs(h0)
        node = edge[onsite]
        residual, invariants = self.config.tracegrad_residual, []
        for layer, trace_grad in zip(self.blocks, self.edge_feature_nonlin_block, strict=True):
            node, edge = layer(node, edge, src, dst, harmonics, radial)
            if node is None:
                z = trace_grad(edge[:, : self.config.n_scalars])
            elif residual:
                z, g = trace_grad.with_gradient(edge)
                ratio = edge.norm(dim=1, keepdim=True) / (g.norm(dim=1, keepdim=True) + 1e-5)
                edge = edge + residual * ratio.detach() * g
            else:
                z = trace_grad(edge)
            invariants.append(z)
        lo, hi = self.span
        inside = ((distance >= lo) & (distance < hi)).to(distance.dtype)[:, None]
        window = inside * (-self.config.decay * distance).exp()[:, None]
        trace = self.nonlinear_layers_for_norm_reg(torch.cat(invariants, 1))
        return self.edge_lin(edge) * window, trace * inside


def _drop_unread(product: o3.TensorProduct) -> None:
    """Removes the outer products that e3nn emits per path and its optimised einsums do not read.

    TorchScript removes them by itself; run eagerly they would only cost time.
    """
    for module in product.modules():
        if isinstance(module, fx.GraphModule):
            module.graph.eliminate_dead_code()
            module.recompile()


class PublishedEnsemble(nn.Module):
    """The networks of all distance ranges, outputs summed; parameters have the published names.

    Args:
        config: the configuration.
        mode: how e3nn runs its generated code (see `compiled_by`); None is e3nn's default.
    """

    def __init__(self, config: NextHAMConfig, mode: str | None = None) -> None:
        super().__init__()
        with compiled_by(mode or e3nn.get_optimization_defaults()["jit_mode"]):
            self.networks = nn.ModuleList(PublishedNetwork(config, span) for span in config.ranges)
        for module in self.modules():
            if isinstance(module, o3.TensorProduct):
                _drop_unread(module)

    def forward(self, h0: Tensor, vector: Tensor, src: Tensor, dst: Tensor, onsite: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed irreps of ΔH [e, d], eV, and the summed trace heads [e, s²] (see `PublishedNetwork`)."""
        outputs = [network(h0, vector, src, dst, onsite) for network in self.networks]
        irreps, trace = outputs[0]
        for more_irreps, more_trace in outputs[1:]:
            irreps, trace = irreps + more_irreps, trace + more_trace
        return irreps, trace

    def published_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters as `network:name`, such as `2:blocks.0.norm_1.affine_weight`."""
        return {f"{i}:{name}": p for i, net in enumerate(self.networks) for name, p in net.named_parameters()}

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Copies every parameter from a mapping `network:name` → value; names that the network lacks are ignored.

        Raises:
            ValueError: a parameter that is missing or has another shape.
        """
        for name, parameter in self.published_parameters().items():
            if name not in weights:
                raise ValueError(f"weights: {name} is missing")
            if weights[name].shape != parameter.shape:
                raise ValueError(
                    f"weights: {name}: expected shape {tuple(parameter.shape)}, got {tuple(weights[name].shape)}"
                )
            with torch.no_grad():
                parameter.copy_(weights[name])
