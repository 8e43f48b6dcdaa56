"""superposition against a loop over points and atoms with the functions themselves."""

import harness
import pytest
import torch
from scipy.interpolate import CubicSpline

from nextham_kernels.ops.superposition import reference, superposition

STEP = torch.tensor([[0.5, 0.1, 0.0], [-0.1, 0.45, 0.1], [0.05, 0.0, 0.6]], dtype=torch.float64)
BRICKS = torch.tensor([[-1, 0, 2, 5, 4, 7], [4, 0, 2, 1, 1, 1], [0, -6, 0, 3, 9, 2]])
STARTS = torch.tensor([0, 3, 3, 5])
SPECIES = torch.tensor([0, 1, 0, 1, 1])
CENTRES = torch.tensor(
    [[0.5, 0.1, 1.2], [0.9, 1.1, 2.8], [9.0, 0.0, 0.0], [1.0, -1.8, 0.0], [0.3, 0.2, 0.1]], dtype=torch.float64
)
CENTRES[4] = torch.tensor([0, 0, 1], dtype=torch.float64) @ STEP  # an atom on a point
SPACING = 0.01
ENDS = (2.0, 3.0)


def functions(z, r):
    """V and n of species z with the derivatives of n, smooth where they end."""
    a = (1.1, 0.8)[z]
    fall = (1 - (r / ENDS[z]).square()).clamp_min(0)
    v = -(1 + z) * fall**4
    n = a * fall**5
    slope = -10 * a * fall**4 / ENDS[z] ** 2  # n′/r
    curvature = slope + 80 * a * fall**3 * r.square() / ENDS[z] ** 4
    return torch.stack([v, n, slope, curvature])


def tables():
    parts = []
    for z, end in enumerate(ENDS):
        r = torch.arange(round(end / SPACING) + 1, dtype=torch.float64) * SPACING
        c = torch.from_numpy(CubicSpline(r, functions(z, r).T).c[::-1].copy())  # [4, interval, f]
        parts.append(c.transpose(0, 1) * SPACING ** torch.arange(4, dtype=torch.float64)[:, None])
    rows = torch.tensor([0, len(parts[0]), len(parts[0]) + len(parts[1])])
    return torch.cat(parts), rows


TABLE, ROWS = tables()


def arguments(**changed):
    given = {"centres": CENTRES, "species": SPECIES, "starts": STARTS, "bricks": BRICKS, "step": STEP}
    return {**given, "table": TABLE, "rows": ROWS, "spacing": SPACING, **changed}


def plain(centres, table, step):
    return reference.superposition(centres, table, step, ROWS, BRICKS, STARTS, SPECIES, 1 / SPACING, 5 * 4 * 7 + 1 + 54)


def test_reference_is_the_definition():
    found = plain(CENTRES, TABLE, STEP)
    at = 0
    for c, brick in enumerate(BRICKS.tolist()):
        for i in torch.cartesian_prod(*(torch.arange(f, f + s) for f, s in zip(brick[:3], brick[3:], strict=True))):
            place = (i.to(torch.float64) @ STEP).requires_grad_()
            potential, density = torch.zeros((), dtype=torch.float64), 0 * place.square().sum()
            for k in range(int(STARTS[c]), int(STARTS[c + 1])):
                z = int(SPECIES[k])
                r = (place - CENTRES[k]).square().sum()
                if r < ENDS[z] ** 2:  # of r², which has a derivative at r = 0
                    fall = 1 - r / ENDS[z] ** 2
                    potential = potential - (1 + z) * fall.detach() ** 4
                    density = density + (1.1, 0.8)[z] * fall**5
            (gradient,) = torch.autograd.grad(density, place, create_graph=True)
            hessian = torch.stack([torch.autograd.grad(g, place, retain_graph=True)[0] for g in gradient])
            g = gradient.detach()
            expected = [potential, density.detach(), g @ g, hessian.trace(), g @ hessian @ g]
            torch.testing.assert_close(found[at], torch.stack(expected), rtol=0, atol=2e-6)
            at += 1
    assert at == len(found)
    assert float(found[:, 1].max()) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(dtype):
    inputs = [x.to(dtype) for x in (CENTRES, TABLE, STEP)]
    harness.assert_as_exact_as_reference(
        lambda c, t, s: superposition(**arguments(centres=c, table=t, step=s)), plain, inputs
    )


def test_instruction_sets_agree(instruction_set):
    harness.assert_close(superposition(**arguments()), plain(CENTRES, TABLE, STEP))


@pytest.mark.triton
def test_gpu_kernel():
    indices = {"species": SPECIES, "starts": STARTS, "bricks": BRICKS, "rows": ROWS}
    harness.assert_gpu_kernel(
        "superposition",
        lambda **x: superposition(**x, spacing=SPACING),
        lambda centres, table, step, **_: plain(centres, table, step),
        {"centres": CENTRES, "table": TABLE, "step": STEP, **indices},
    )


def test_threads_agree():
    harness.assert_threads_agree(lambda: [superposition(**arguments())])


def test_backward_and_gradcheck():
    few = arguments(bricks=BRICKS[:1], starts=STARTS[:2], centres=CENTRES[:3], species=SPECIES[:3])
    weights = harness.random(140, 5)

    def loss(centres):
        return (superposition(**{**few, "centres": centres}) * weights).sum()

    torch.autograd.gradcheck(loss, harness.leaf(CENTRES[:3]), atol=1e-4, eps=1e-5)


def test_equivariance():
    rotation = harness.random_rotation()
    expected = superposition(**arguments())
    for turn in (rotation, -rotation):
        harness.assert_close(superposition(**arguments(centres=CENTRES @ turn.T, step=STEP @ turn.T)), expected, 1e-10)


def test_contract():
    none = torch.zeros(0, dtype=torch.int64)
    empty = arguments(
        bricks=none.reshape(0, 6), starts=torch.zeros(1, dtype=torch.int64), species=none, centres=CENTRES[:0]
    )
    assert superposition(**empty).shape == (0, 5)
    strided = CENTRES.repeat(1, 2)[:, ::2][:, :3]
    harness.assert_close(superposition(**arguments(centres=strided)), plain(strided, TABLE, STEP))
    given = (harness.leaf(CENTRES), TABLE, STEP, ROWS, BRICKS, STARTS, SPECIES, 1 / SPACING, 195)
    torch.library.opcheck(torch.ops.nextham.superposition, given)
    for error, sentence, changed in (
        (ValueError, "table: expected shape [row, 4, 4], got [500, 4, 3]", {"table": TABLE[..., :3]}),
        (ValueError, "starts: expected shape [4], got [3]", {"starts": STARTS[1:]}),
        (ValueError, "starts: expected to count up from 0 to 5", {"starts": torch.tensor([0, 3, 2, 5])}),
        (ValueError, "rows: expected to count up from 0 to 500", {"rows": torch.tensor([0, 200, 400])}),
        (ValueError, "species: expected 0 <= index < 2, got 0 to 2", {"species": SPECIES * 2}),
        (ValueError, "bricks: expected at least one point along every axis", {"bricks": BRICKS * 0}),
        (ValueError, "spacing: expected a positive length, got 0.0", {"spacing": 0.0}),
        (TypeError, "step: expected dtype float64 as centres, got float32", {"step": STEP.float()}),
    ):
        with harness.raises(error, sentence):
            superposition(**arguments(**changed))
