"""projector_product against a loop, and its kernel against its reference."""

import harness
import pytest
import torch

from nextham_kernels.ops.projector_product import projector_product, reference

# Projectors, orbitals of either side, matrices D.
CASES = {"one": (1, 1, 1, 1), "silicon": (34, 13, 13, 4), "mixed": (9, 27, 4, 2)}
ROWS = (7, 6)


def inputs(case, n_results=harness.EDGES, dtype=torch.float64):
    """Results of 0 to 4 pairs each; three quarters of D are zero."""
    c, a, b, k = CASES[case]
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 5, (n_results,), generator=generator)
    pairs = torch.stack([torch.randint(0, n, (int(counts.sum()),), generator=generator) for n in ROWS], dim=1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    strength = harness.random(k, c, c, seed=2) * (torch.rand(k, c, c, generator=generator) < 0.25)
    tensors = (harness.random(ROWS[0], c, a), harness.random(ROWS[1], c, b, seed=1), strength)
    return [*(t.to(dtype) for t in tensors), pairs, starts]


def test_reference_is_the_definition():
    left, right, strength, pairs, starts = inputs("mixed")
    expected = torch.zeros(len(starts) - 1, 2, 27, 4, dtype=torch.float64)
    for e in range(len(starts) - 1):
        for i, j in pairs[starts[e] : starts[e + 1]].tolist():
            for k in range(2):
                expected[e, k] += left[i].T @ strength[k] @ right[j]
    assert (starts.diff() == 0).any() and expected.any()
    harness.assert_close(projector_product(left, right, strength, pairs, starts), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype):
    harness.assert_as_exact_as_reference(projector_product, reference.projector_product, inputs(case, dtype=dtype))


def test_instruction_sets_agree(instruction_set):
    for case in ("silicon", "mixed"):
        given = inputs(case, 40)
        harness.assert_close(projector_product(*given), reference.projector_product(*given))


@pytest.mark.triton
@pytest.mark.parametrize("case", ["one", "mixed"])
def test_gpu_kernel(case):
    names = ("left", "right", "strength", "pairs", "starts")
    harness.assert_gpu_kernel(
        "projector_product",
        lambda **x: projector_product(*x.values()),
        lambda **x: reference.projector_product(*x.values()),
        dict(zip(names, inputs(case, 5), strict=True)),
    )


def test_threads_agree():
    harness.assert_threads_agree(lambda: [projector_product(*inputs("silicon", 60))])


def test_what_lies_behind_a_row_does_not_matter():
    """The kernel reads some numbers of the next row, which it must not use."""
    left, right, strength, pairs, starts = inputs("mixed")
    alone = projector_product(left, right, strength, torch.zeros_like(pairs), starts)
    left[1:], right[1:] = torch.nan, torch.inf
    harness.assert_close(projector_product(left, right, strength, torch.zeros_like(pairs), starts), alone)


def test_backward():
    left, right, strength, pairs, starts = inputs("mixed")
    harness.assert_same_gradients(
        lambda **x: projector_product(*x.values(), pairs, starts),
        lambda **x: reference.projector_product(*x.values(), pairs, starts),
        {"left": left, "right": right, "strength": strength},
    )


def test_gradcheck():
    left, right, strength, pairs, starts = inputs("one", 3)
    harness.gradcheck(lambda *x: projector_product(*x, pairs, starts), left, right, strength)


def test_contract():
    left, right, strength, pairs, starts = inputs("mixed")
    assert projector_product(left, right, strength, pairs[:0], starts[:1]).shape == (0, 2, 27, 4)
    strided = left.transpose(1, 2).contiguous().transpose(1, 2)
    given = (right, strength, pairs, starts)
    harness.assert_close(projector_product(strided, *given), projector_product(left, *given))
    torch.library.opcheck(torch.ops.nextham.projector_product, (harness.leaf(left), *given))
    with harness.raises(ValueError, "right: expected shape [m, c, b] with c = 9, got [6, 8, 4]"):
        projector_product(left, right[:, 1:], strength, pairs, starts)
    with harness.raises(ValueError, "pairs[:, 1]: expected 0 <= index < 6"):
        projector_product(left, right, strength, pairs + torch.tensor([0, 2]), starts)
    with harness.raises(ValueError, f"starts: expected to count up from 0 to {len(pairs)}"):
        projector_product(left, right, strength, pairs, starts + 1)
    with harness.raises(TypeError, "pairs: expected dtype int64, got int32"):
        projector_product(left, right, strength, pairs.int(), starts)
