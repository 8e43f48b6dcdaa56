"""Real spherical harmonics on the GPU (Triton).

A lane holds one vector. Degree after degree, (l − m) Q_lm = (2l − 1) z Q_l−1,m − (l + m − 1) r² Q_l−2,m and
(X + iY)^m give the 2l + 1 numbers of the degree, which are joined and written together; only two degrees of Q stay in
registers. The norms N_lm are numbers of the generated source, one kernel for each l_max.

12 + 4 (l_max + 1)² bytes and some 8 (l_max + 1)² flops per vector in float32: bound by writing.
"""

from __future__ import annotations

import functools

import torch
import triton

from nextham_kernels.cost import Cost
from nextham_kernels.generated import module_of
from nextham_kernels.ops.spherical_harmonics.cpu import norms
from nextham_kernels.ops.tensor_product.programs import HEAD
from nextham_kernels.ops.tensor_product.text import LANES, Text


@functools.cache
def _kernel(l_max: int) -> triton.JITFunction:
    norm = norms(l_max, torch.float64)
    text = Text("harmonics", "vector, out, n, N: tl.constexpr", "N")
    text.add(
        "T = vector.dtype.element_ty",
        "row = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)",
        "inside = row < n",
        "b = tl.load(vector + row * 3, mask=inside, other=0.0)",
        "z = tl.load(vector + row * 3 + 1, mask=inside, other=0.0)",
        "a = tl.load(vector + row * 3 + 2, mask=inside, other=0.0)",
        "square = a * a + b * b + z * z",
        "re0 = tl.full((N,), 1.0, dtype=T)",
        "q0_0 = re0",
    )
    for l in range(l_max + 1):
        if l:
            text.add(f"q{l}_{l} = re0")
            text.add("re1 = a" if l == 1 else f"re{l} = re{l - 1} * a - im{l - 1} * b")
            text.add("im1 = b" if l == 1 else f"im{l} = re{l - 1} * b + im{l - 1} * a")
        names: dict[int, str] = {}
        for m in range(l + 1):
            if m < l:
                before = f" - {(l + m - 1) / (l - m)!r} * square * q{l - 2}_{m}" if l - 2 >= m else ""
                text.add(f"q{l}_{m} = {(2 * l - 1) / (l - m)!r} * z * q{l - 1}_{m}{before}")
            text.add(f"scaled = {float(norm[l, m])!r} * q{l}_{m}")
            names[m] = f"y{m}"
            text.add(f"y{m} = scaled * re{m}" if m else "y0 = scaled")
            if m:
                names[-m] = f"x{m}"
                text.add(f"x{m} = scaled * im{m}")
        pointer = f"out + row * {(l_max + 1) ** 2} + {l * l}"
        text.store(pointer, [names[m] for m in range(-l, l + 1)], "inside")
    return module_of("solid_harmonics", HEAD.rstrip() + "\n".join(text.lines) + "\n").harmonics


def forward(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Evaluates the polynomials."""
    out = vector.new_empty(len(vector), (l_max + 1) ** 2)
    if len(vector):
        _kernel(l_max)[(triton.cdiv(len(vector), LANES),)](vector, out, len(vector), N=LANES, num_warps=4)
    return out


def forward_cost(vector: torch.Tensor, l_max: int) -> Cost:
    """Counts `forward`."""
    numbers = (l_max + 1) ** 2
    return Cost(len(vector) * (3 + numbers) * vector.element_size(), 8 * numbers * len(vector))
