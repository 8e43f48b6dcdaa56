"""The network once more, in e3nn's modules and without a line of ours: the golden numbers of `data/network.npz`.

    python tests/nextham/independent_network.py

writes them anew. Weights are normal numbers from a frozen generator seeded by the parameter's published name, so that
the file holds inputs and outputs only. Everything is float64, e3nn's constants too (its default dtype is set before its
modules are made).
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

FILE = Path(__file__).parent / "data" / "network.npz"

# Settings by the names of NextHAMConfig.
CASES = {
    "spinor": {
        "hidden": "6x0e+4x1o+2x1e+2x2e",
        "l_max": 3,
        "n_layers": 3,
        "n_heads": 2,
        "cutoff": 3.2,
        "n_radial": 8,
        "radial_stop": 5.0,
        "radial_widths": (8, 8),
        "alpha_scalars": 5,
        "alpha_widths": (8, 8),
        "tracegrad_forms": 12,
        "tracegrad_forms_last": 10,
        "tracegrad_widths": (9, 9, 7),
        "tracegrad_residual": 0.2,
        "trace_widths": (11, 10),
        "ranges": ((0.0, 1.0), (1.0, 3.0)),
        "decay": 0.2,
        "shells": (0, 1),
        "spinor": True,
        "target": "uu",
        "norm": "published",
        "norm_floor": 1.0,
    },
    "spinless": {
        "hidden": "4x0e+2x0o+4x1o+2x1e+2x2e+2x2o",
        "l_max": 2,
        "n_layers": 2,
        "n_heads": 3,
        "cutoff": 3.2,
        "n_radial": 8,
        "radial_stop": 5.0,
        "radial_widths": (8,),
        "alpha_scalars": 3,
        "alpha_widths": (8,),
        "tracegrad_forms": 12,
        "tracegrad_forms_last": 10,
        "tracegrad_widths": (7,),
        "tracegrad_residual": 0.0,
        "trace_widths": (11,),
        "ranges": ((0.0, 2.5),),
        "decay": 0.0,
        "shells": (0, 0, 1, 2),
        "spinor": False,
        "target": "scalar",
        "norm": "floor",
        "norm_floor": 0.5,
    },
}


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Parameter `network:published name`: N(0, 1/fan-in) or so, around 1 for the weights of norms."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if ".affine_weight" in name or (len(shape) == 1 and name.endswith(tuple(f".{i}.weight" for i in (1, 4, 7)))):
        return torch.tensor(1 + 0.1 * normal)
    return torch.tensor(normal * (1.0 if "fctp.weight" in name else 0.3 if "weight" in name else 0.1))


def even_first(irreps: o3.Irreps) -> tuple[o3.Irreps, list[int]]:
    """Sorted by l, even parity first; and the place of each old block."""
    order = sorted(range(len(irreps)), key=lambda i: (irreps[i].ir.l, -irreps[i].ir.p))
    return o3.Irreps([irreps[i] for i in order]), [order.index(i) for i in range(len(irreps))]


class IndependentNetwork:
    """One network of the ensemble, after the formulas alone."""

    def __init__(self, config: dict, number: int) -> None:
        self.c, self.number, self.parameters = config, number, {}
        self.hidden = o3.Irreps(config["hidden"])
        self.harmonics = o3.Irreps.spherical_harmonics(config["l_max"])
        self.output = block_irreps(config["shells"], config["spinor"])
        self.n0 = self.hidden[0].mul
        found = [
            (i, j, mul, ir)
            for i, (mul, ir_x) in enumerate(self.hidden)
            for j, (_, ir_y) in enumerate(self.harmonics)
            for ir in ir_x * ir_y
            if ir in self.hidden
        ]
        self.product_irreps, place = even_first(o3.Irreps([(mul, ir) for _, _, mul, ir in found]))
        instructions = [(i, j, place[p], "uvu", True) for p, (i, j, _, _) in enumerate(found)]
        self.products = {
            shared: o3.TensorProduct(
                self.hidden,
                self.harmonics,
                self.product_irreps,
                instructions,
                irrep_normalization="component",
                path_normalization="none",
                internal_weights=False,
                shared_weights=shared,
            )
            for shared in (True, False)
        }
        gated = o3.Irreps([b for b in self.hidden if b.ir != o3.Irrep("0e")])
        silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
        self.gate_module = e3nn_nn.Gate(f"{self.n0}x0e", [silu], f"{gated.num_irreps}x0e", [sigmoid], gated)
        self.gate_irreps = o3.Irreps(f"{self.n0 + gated.num_irreps}x0e") + gated
        self.head_irreps, _ = even_first(o3.Irreps([(config["n_heads"] * mul, ir) for mul, ir in self.hidden]))
        self.last = o3.Irreps(f"{self.n0}x0e") + self.output.sort().irreps.simplify()

    def w(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self.parameters:
            self.parameters[name] = weight(f"{self.number}:{name}", shape).requires_grad_()
        return self.parameters[name]

    def linear(self, x: torch.Tensor, name: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps, bias=True):
        module = o3.FullyConnectedTensorProduct(
            irreps_in,
            "1x0e",
            irreps_out,
            irrep_normalization="component",
            path_normalization="none",
            internal_weights=False,
            shared_weights=True,
        )
        y = module(x, torch.ones(len(x), 1), self.w(f"{name}.tp.weight", module.weight_numel)).clone()
        n = 0
        for (mul, ir), s in zip(irreps_out, irreps_out.slices(), strict=True):
            if bias and ir == o3.Irrep("0e"):
                y[:, s] += self.w(f"{name}.bias.{n}", mul)
                n += 1
        return y

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weights, biases = (
            self.w(f"{name}.affine_weight", self.hidden.num_irreps),
            self.w(f"{name}.affine_bias", self.n0),
        )
        blocks, channels = [], []
        for (mul, ir), s in zip(self.hidden, self.hidden.slices(), strict=True):
            block = x[:, s].reshape(-1, mul, ir.dim)
            blocks.append(block - block.mean(1, keepdim=True) if ir == o3.Irrep("0e") else block)
            channels.append(blocks[-1].pow(2).mean(2))
        floor = self.c["norm_floor"] if self.c["norm"] == "floor" else 0.0
        whole = floor**2 * torch.cat(channels, 1).mean(1)
        out = [b / (c.mean(1) + whole + 1e-5).sqrt()[:, None, None] for b, c in zip(blocks, channels, strict=True)]
        scaled, start = [], 0
        for block in out:
            scaled.append((block * weights[start : start + block.shape[1], None]).flatten(1))
            start += block.shape[1]
        scaled[0] = scaled[0] + biases
        return torch.cat(scaled, 1)

    def mlp(self, x: torch.Tensor, name: str, widths: tuple[int, ...], eps: float | None, last_bias=True):
        number, n_in = 0, x.shape[1]
        for i, n_out in enumerate(widths):
            if i and eps is not None:
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + eps).sqrt()
                x = x * self.w(f"{name}.{number}.weight", n_in) + self.w(f"{name}.{number}.bias", n_in)
                number += 1
            if i:
                x = x * torch.sigmoid(x)
                number += 1
            x = x @ self.w(f"{name}.{number}.weight", n_out, n_in).T
            if last_bias or i < len(widths) - 1:
                x = x + self.w(f"{name}.{number}.bias", n_out)
            number, n_in = number + 1, n_out
        return x

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        blocks = dict(zip([b.ir for b in self.gate_irreps], self.gate_irreps.slices(), strict=True))
        return self.gate_module(torch.cat([x[:, blocks[b.ir]] for b in self.gate_module.irreps_in], 1))

    def scale_heads(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        n, columns = self.c["n_heads"], []
        for (mul, ir), s in zip(self.head_irreps, self.head_irreps.slices(), strict=True):
            columns.append((x[:, s].reshape(len(x), n, -1) * a[:, :, None]).reshape(len(x), mul * ir.dim))
        return torch.cat(columns, 1)

    def attention(self, node, edge, g, name, edge_irreps, with_node):
        c, h = self.c, self.hidden
        source, target = (
            self.linear(node, f"{name}.merge_src", h, h),
            self.linear(node, f"{name}.merge_dst", h, h, False),
        )
        message = self.linear(torch.cat([source[g["src"]], target[g["dst"]], edge], 1), f"{name}.pre_lin", h + h + h, h)
        n_paths = self.products[True].weight_numel
        radial = self.mlp(g["radial"], f"{name}.sep_act.dtp_rad.net", (*c["radial_widths"], n_paths), 1e-5, False)
        radial = radial + self.w(f"{name}.sep_act.dtp_rad.offset", n_paths)
        product, t = self.product_irreps, self.products[False](message, g["harmonics"], radial)
        scalars = o3.Irreps(f"{c['n_heads'] * c['alpha_scalars']}x0e")
        a = self.linear(t, f"{name}.sep_alpha", product, scalars)[:, : c["alpha_scalars"]]
        a = self.mlp(torch.cat([g["radial"], a], 1), f"{name}.lin_alpha", (*c["alpha_widths"], c["n_heads"]), 1e-6)
        v = self.gate(self.linear(t, f"{name}.sep_act.lin", product, self.gate_irreps))
        v = self.products[True](v, g["harmonics"], self.w(f"{name}.sep_value.dtp.tp.weight", n_paths))
        v = self.linear(v, f"{name}.sep_value.lin", product, self.head_irreps)
        edge = self.linear(self.scale_heads(v, a), f"{name}.edge_proj", self.head_irreps, edge_irreps)
        if not with_node:
            return None, edge
        into = (g["dst"][:, None] == g["dst"][None]).to(a)
        soft = a.exp() / (into @ a.exp())
        collected = torch.zeros(len(node), self.head_irreps.dim)
        for e, n in enumerate(g["dst"].tolist()):
            collected[n] += self.scale_heads(v, soft)[e]
        return self.linear(collected, f"{name}.proj", self.head_irreps, h), edge

    def __call__(self, h0: torch.Tensor, g: dict) -> dict[str, torch.Tensor]:
        c, h, out, invariants = self.c, self.hidden, {}, []
        edge = self.linear(h0, "input_rs", self.output, h, bias=False)
        node = edge[g["onsite"]]
        for k in range(c["n_layers"]):
            last, name = k == c["n_layers"] - 1, f"blocks.{k}"
            node = self.norm(node, f"{name}.norm_1")
            normed, irreps = self.norm(edge, f"{name}.norm_edge"), self.last if last else h
            update, edge = self.attention(node, normed, g, f"{name}.ga", irreps, not last)
            if not last:
                x = self.norm(update + node, f"{name}.norm_2")
                y = self.gate(self.linear(x, f"{name}.ffn.fctp_1", h, self.gate_irreps))
                node = x + self.linear(y, f"{name}.ffn.fctp_2", h, h)
                out[f"layer{k}/node"] = node
            out[f"layer{k}/edge"] = edge
            x = edge[:, : self.n0] if last else edge
            irreps, n_forms = (
                (o3.Irreps(f"{self.n0}x0e"), c["tracegrad_forms_last"]) if last else (h, c["tracegrad_forms"])
            )
            forms = o3.FullyConnectedTensorProduct(
                irreps, irreps, f"{n_forms}x0e", internal_weights=False, shared_weights=True
            )
            name = f"edge_feature_nonlin_block.{k}"
            q = forms(x, x, self.w(f"{name}.fctp.weight", forms.weight_numel))
            z = self.mlp(q, f"{name}.nonlinear_layers", c["tracegrad_widths"], 1e-6)
            out[f"tracegrad{k}/invariants"] = z
            invariants.append(z)
            if c["tracegrad_residual"] and not last:
                (gradient,) = torch.autograd.grad(z.sum(), x, create_graph=True)
                out[f"tracegrad{k}/gradient"] = gradient
                ratio = edge.norm(dim=1, keepdim=True) / (gradient.norm(dim=1, keepdim=True) + 1e-5)
                edge = edge + c["tracegrad_residual"] * ratio.detach() * gradient
        lo, hi = c["ranges"][self.number]
        inside = (g["distance"] >= lo) & (g["distance"] < hi)
        window = inside * torch.exp(-c["decay"] * g["distance"])
        out["output"] = self.linear(edge, "edge_lin", self.last, self.output) * window[:, None]
        head = (*c["trace_widths"], len(c["shells"]) ** 2)
        trace = self.mlp(torch.cat(invariants, 1), "nonlinear_layers_for_norm_reg", head, None)
        out["trace"] = trace * inside[:, None]
        return out


def block_irreps(shells: tuple[int, ...], spinor: bool) -> o3.Irreps:
    """All pairs of shells; with spin L, then L ⊗ 1e, real and imaginary."""
    irreps = o3.Irreps("")
    for a in shells:
        for b in shells:
            coupled = list(o3.Irrep(a, (-1) ** a) * o3.Irrep(b, (-1) ** b))
            if spinor:
                coupled += [ir for orbital in coupled for ir in orbital * o3.Irrep("1e")]
            irreps = irreps + o3.Irreps([(1, ir) for ir in coupled])
    return irreps + irreps if spinor else irreps


def geometry(config: dict, positions: np.ndarray, cell: np.ndarray) -> dict[str, torch.Tensor]:
    """Every pair within the cutoff, in the order of a plain loop."""
    src, dst, vector = [], [], []
    for shift in np.ndindex(3, 3, 3):
        for i, a in enumerate(positions):
            for j, b in enumerate(positions):
                r = b - a + (np.array(shift) - 1) @ cell
                if np.linalg.norm(r) < config["cutoff"]:
                    src.append(i), dst.append(j), vector.append(r)
    vector = torch.tensor(np.array(vector))
    distance = vector.norm(dim=1)
    n, stop = config["n_radial"], config["radial_stop"]
    centres = torch.linspace(0, stop, n)
    return {
        "src": torch.tensor(src),
        "dst": torch.tensor(dst),
        "vector": vector,
        "distance": distance,
        "onsite": torch.tensor([next(e for e, d in enumerate(distance) if d == 0 and src[e] == i) for i in range(3)]),
        "harmonics": o3.spherical_harmonics(
            o3.Irreps.spherical_harmonics(config["l_max"]), vector[:, [1, 2, 0]], True, "component"
        ),
        "radial": torch.exp(-((distance[:, None] - centres) ** 2) / (2 * (0.5 * stop / n) ** 2)),
    }


def golden() -> dict[str, np.ndarray]:
    """Inputs and outputs of every case; what goes through layer norms is stored in full precision."""
    cell = np.array([[4.1, 0.1, 0.0], [0.3, 3.9, 0.2], [-0.2, 0.1, 4.3]])
    positions = np.array([[0.1, 0.2, 0.3], [1.9, 2.1, 0.4], [2.2, 0.3, 2.0]])
    arrays = {"cell": cell, "positions": positions}
    for case, config in CASES.items():
        g = geometry(config, positions, cell)
        dim = block_irreps(config["shells"], config["spinor"]).dim
        h0 = torch.tensor(np.random.default_rng(1).standard_normal((len(g["src"]), dim)))
        arrays |= {f"{case}/{name}": g[name].numpy() for name in ("src", "dst", "vector")}
        arrays[f"{case}/h0"] = h0.numpy().astype(np.float32)
        for number in range(len(config["ranges"])):
            network = IndependentNetwork(config, number)
            results = network(h0.float().double(), g)
            arrays |= {f"{case}/{number}/{name}": value.detach().numpy() for name, value in results.items()}
            loss(results["output"], results["trace"]).backward()
            arrays[f"{case}/{number}/gradients"] = np.array(
                [measures(f"{number}:{name}", network.parameters[name].grad) for name in sorted(network.parameters)]
            )
            arrays[f"{case}/{number}/parameters"] = np.array(sorted(network.parameters))
    return arrays


def loss(output: torch.Tensor, trace: torch.Tensor) -> torch.Tensor:
    """Something whose gradients are stored."""
    return output.square().sum() + trace.square().sum()


def measures(name: str, gradient: torch.Tensor) -> tuple[float, float]:
    """The norm of a gradient and its inner product with other normal numbers: two numbers that say much."""
    return float(gradient.norm()), float((gradient * weight(f"direction {name}", tuple(gradient.shape))).sum())


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    np.savez_compressed(FILE, **golden())
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")
