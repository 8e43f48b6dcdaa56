"""grid_integrals against a loop over points and pairs with the orbitals themselves."""

import harness
import pytest
import scipy.special
import torch

from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.ops.grid_integrals import grid_integrals, reference

STEP = torch.tensor([[0.5, 0.1, 0.0], [-0.1, 0.45, 0.1], [0.05, 0.0, 0.6]], dtype=torch.float64)
BRICKS = torch.tensor([[-1, 0, 2, 5, 4, 7], [4, 0, 2, 1, 1, 1], [0, -6, 0, 3, 9, 2]])
N_POINTS = 140 + 1 + 54
STARTS = torch.tensor([0, 3, 3, 5])
SPECIES = torch.tensor([0, 1, 0, 1, 1])
CENTRES = torch.tensor(
    [[0.5137, 0.1, 1.2], [0.9, 1.1, 2.8141], [9.0, 0.0, 0.0], [1.0, -1.8, 0.0161], [0.3, 0.2, 0.1]], dtype=torch.float64
)
CENTRES[4] = torch.tensor([0, 0, 1], dtype=torch.float64) @ STEP  # an atom on a point
DEGREES = torch.tensor([[0, 0, 1, -1, -1], [0, 1, 2, 2, 3]])
SHELLS = "0,0,1;0,1,2,2,3"
SIZES = (5, 21)
# The first two pairs add to one block, as images do; the last brick leaves a pair out.
PAIRS = torch.tensor([[0, 0, 0], [2, 2, 0], [0, 1, 25], [1, 1, 130], [0, 0, 571], [1, 1, 571]])
PAIR_STARTS = torch.tensor([0, 4, 4, 6])
SIZE = 571 + 441 + 3
SPACING = 0.02
# Cubics on intervals, of any value: what lies between is the op's business.
ROWS = torch.tensor([0, 100, 230])
TABLE = harness.random(230, 4, 5, seed=3)
WEIGHT = harness.random(N_POINTS, seed=4)


def arguments(**changed):
    given = {"weight": WEIGHT, "centres": CENTRES, "species": SPECIES, "starts": STARTS, "pairs": PAIRS}
    given |= {"pair_starts": PAIR_STARTS, "bricks": BRICKS, "step": STEP, "table": TABLE, "rows": ROWS}
    return {**given, "degrees": DEGREES, "spacing": SPACING, "size": SIZE, **changed}


def plain(weight, centres, table, step):
    tables = (ROWS, BRICKS, STARTS, SPECIES, PAIRS, PAIR_STARTS)
    return reference.grid_integrals(weight, centres, table, step, *tables, 1 / SPACING, SIZE, SHELLS, 47)


def orbital(z, shell, m, d):
    """One orbital at one vector, its harmonic by scipy."""
    l, r = int(DEGREES[z, shell]), float(d.norm())
    row = int(r / SPACING)
    if row >= int(ROWS[z + 1] - ROWS[z]):
        return 0.0
    c, t = TABLE[int(ROWS[z]) + row, :, shell].tolist(), r / SPACING - row
    polar = float(torch.arccos(d[2] / r)) if r else 0.0
    azimuth = float(torch.atan2(d[1], d[0]))
    y = scipy.special.sph_harm_y(l, abs(m), polar, azimuth)
    sign = (-1) ** m * 2**0.5
    real = y.real if m == 0 else sign * (y.real if m > 0 else y.imag)
    return sum(x * t**k for k, x in enumerate(c)) * r**l * real


def test_reference_is_the_definition():
    expected, at = torch.zeros(SIZE, dtype=torch.float64), 0
    for c, brick in enumerate(BRICKS.tolist()):
        values = [[] for _ in range(int(STARTS[c + 1] - STARTS[c]))]
        size = brick[3] * brick[4] * brick[5]
        for i in torch.cartesian_prod(*(torch.arange(f, f + s) for f, s in zip(brick[:3], brick[3:], strict=True))):
            for k, of_atom in enumerate(values):
                z, d = int(SPECIES[STARTS[c] + k]), i.to(torch.float64) @ STEP - CENTRES[STARTS[c] + k]
                shells = [s for s in range(5) if DEGREES[z, s] >= 0]
                of_atom.append([orbital(z, s, m, d) for s in shells for m in range(-DEGREES[z, s], DEGREES[z, s] + 1)])
        phi = [torch.tensor(v, dtype=torch.float64) for v in values]
        for a, b, offset in PAIRS[PAIR_STARTS[c] : PAIR_STARTS[c + 1]].tolist():
            block = torch.einsum("p,pa,pb->ab", WEIGHT[at : at + size], phi[a], phi[b])
            expected[offset : offset + block.numel()] += block.flatten()
        at += size
    harness.assert_close(plain(WEIGHT, CENTRES, TABLE, STEP), expected, 1e-11)
    assert (expected != 0).sum() > 900


def test_forward_in_single_precision():
    harness.assert_as_exact_as_reference(
        lambda w, c, t, s: grid_integrals(**arguments(weight=w, centres=c, table=t, step=s)),
        plain,
        [x.float() for x in (WEIGHT, CENTRES, TABLE, STEP)],
    )


def test_instruction_sets_agree(instruction_set):
    harness.assert_close(grid_integrals(**arguments()), plain(WEIGHT, CENTRES, TABLE, STEP))


def test_many_orbitals(instruction_set):
    """More rows than are multiplied at once, in single precision too."""
    n = 9
    centres = 0.3 * harness.random(n, 3, seed=7)
    species = torch.arange(n) % 2
    sizes = torch.tensor(SIZES)[species]
    pairs = torch.triu_indices(n, n).T
    numbers = sizes[pairs[:, 0]] * sizes[pairs[:, 1]]
    pairs = torch.cat([pairs, (numbers.cumsum(0) - numbers)[:, None]], dim=1)
    bricks = torch.tensor([[-2, -2, -2, 5, 5, 5]])
    one, all_pairs, size = torch.tensor([0, n]), torch.tensor([0, len(pairs)]), int(numbers.sum())
    for dtype, tolerance in ((torch.float64, harness.EXACT), (torch.float32, 2e-5)):
        weight, table = harness.random(125, seed=8).to(dtype), TABLE.to(dtype)
        tables = (ROWS, bricks, one, species, pairs, all_pairs, 1 / SPACING, size, SHELLS, int(sizes.sum()))
        expected = reference.grid_integrals(weight, centres.to(dtype), table, STEP.to(dtype), *tables)
        places = {"centres": centres.to(dtype), "species": species, "starts": one, "bricks": bricks}
        found = grid_integrals(
            **arguments(
                weight=weight, table=table, step=STEP.to(dtype), pairs=pairs, pair_starts=all_pairs, size=size, **places
            )
        )
        harness.assert_close(found, expected, tolerance)


@pytest.mark.triton
def test_gpu_kernel():
    inputs = {"weight": WEIGHT, "centres": CENTRES, "table": TABLE, "step": STEP}
    indices = {"species": SPECIES, "starts": STARTS, "pairs": PAIRS, "pair_starts": PAIR_STARTS, "bricks": BRICKS}
    indices |= {"rows": ROWS, "degrees": DEGREES}
    harness.assert_gpu_kernel(
        "grid_integrals",
        lambda **x: grid_integrals(**x, spacing=SPACING, size=SIZE),
        lambda weight, centres, table, step, **_: plain(weight, centres, table, step),
        inputs | indices,
    )


@pytest.mark.triton
def test_gpu_kernel_of_many_orbitals():
    """More orbitals than a tile of the product has, blocks across its border, bricks and blocks in no order."""
    n, kinds = 9, torch.arange(9) % 2
    sizes = torch.tensor(SIZES)[kinds]
    pairs = torch.triu_indices(n, n).T
    numbers = sizes[pairs[:, 0]] * sizes[pairs[:, 1]]
    offsets = (numbers.cumsum(0) - numbers).flip(0)
    flipped = torch.cat([pairs, (int(numbers.sum()) - numbers.cumsum(0))[:, None]], dim=1)
    assert offsets[-1] == 0
    indices = {"species": kinds.repeat(2), "starts": torch.tensor([0, n, 2 * n]), "pairs": flipped.repeat(2, 1)}
    indices |= {"pair_starts": torch.tensor([0, len(pairs), 2 * len(pairs)]), "size": int(numbers.sum())}
    bricks = torch.tensor([[-2, -2, -2, 3, 3, 5], [1, -2, -2, 2, 2, 1]])
    given = {"weight": harness.random(49, seed=8), "centres": 0.3 * harness.random(n, 3, seed=7).repeat(2, 1)}
    expected = grid_integrals(**arguments(**indices, **given, bricks=bricks))
    with harness.on_gpu() as device:
        moved = arguments(**indices, **given, bricks=bricks)
        moved = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in moved.items()}
        harness.assert_close(grid_integrals(**moved).cpu(), expected)


def test_threads_agree():
    harness.assert_threads_agree(lambda: [grid_integrals(**arguments())])


def test_backward_and_gradcheck():
    """The table's cubics do not join, so positions are moved by less than any point is from an end."""
    few = {"bricks": BRICKS[2:], "starts": torch.tensor([0, 2]), "species": SPECIES[3:]}
    few |= {"pairs": PAIRS[4:], "pair_starts": torch.tensor([0, 2])}
    grad = harness.random(SIZE)

    def loss(weight, centres):
        return (grid_integrals(**arguments(weight=weight, centres=centres, **few)) * grad).sum()

    inputs = harness.leaf(WEIGHT[:54]), harness.leaf(CENTRES[3:] + 1e-3)
    torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-3, rtol=1e-5)
    harness.assert_same_gradients(
        lambda weight, table: grid_integrals(**arguments(weight=weight, table=table)),
        lambda weight, table: plain(weight, CENTRES, table, STEP),
        {"weight": WEIGHT, "table": TABLE},
    )


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(improper):
    rotation = harness.random_rotation()
    turned, sign = (-rotation, -1) if improper else (rotation, 1)
    found = grid_integrals(**arguments(centres=CENTRES @ turned.T, step=STEP @ turned.T))
    start = grid_integrals(**arguments())
    d = wigner_d(rotation, 3)
    matrices = [
        torch.block_diag(*(sign ** int(l) * d[int(l)] for l in DEGREES[z] if l >= 0)) for z in range(len(DEGREES))
    ]
    for z_a, z_b, offset in ((0, 0, 0), (0, 1, 25), (1, 1, 130), (1, 1, 571)):
        n_a, n_b = SIZES[z_a], SIZES[z_b]
        before, after = (x[offset : offset + n_a * n_b].reshape(n_a, n_b) for x in (start, found))
        # Distances move by rounding errors, and the cubics do not join.
        harness.assert_close(after, matrices[z_a] @ before @ matrices[z_b].T, 1e-10)


def test_contract():
    none = torch.zeros(0, dtype=torch.int64)
    empty = {"bricks": none.reshape(0, 6), "starts": torch.zeros(1, dtype=torch.int64), "species": none}
    empty |= {"pairs": none.reshape(0, 3), "pair_starts": torch.zeros(1, dtype=torch.int64)}
    assert not grid_integrals(**arguments(weight=WEIGHT[:0], centres=CENTRES[:0], **empty)).any()
    strided = WEIGHT.repeat_interleave(2)[::2]
    harness.assert_close(grid_integrals(**arguments(weight=strided)), plain(WEIGHT, CENTRES, TABLE, STEP))
    tables = (CENTRES, TABLE, STEP, ROWS, BRICKS, STARTS, SPECIES, PAIRS, PAIR_STARTS, 1 / SPACING, SIZE, SHELLS, 47)
    torch.library.opcheck(torch.ops.nextham.grid_integrals, (harness.leaf(WEIGHT), *tables))
    for error, sentence, changed in (
        (ValueError, "weight: expected one number for each point of the bricks, got 194", {"weight": WEIGHT[1:]}),
        (ValueError, "table: expected shape [row, 4, s], got [230, 3, 5]", {"table": TABLE[:, 1:]}),
        (ValueError, "degrees: expected l from 0 to 6, or -1, got 4 to 7", {"degrees": DEGREES.abs() + 4}),
        (ValueError, "pairs: expected two atoms of the brick, the first not behind the second", {"pairs": PAIRS + 1}),
        (ValueError, "pairs: expected blocks inside the result of 900 numbers", {"size": 900}),
        (ValueError, "pair_starts: expected to count up from 0 to 6", {"pair_starts": PAIR_STARTS - 1}),
        (ValueError, "starts: expected shape [4], got [2]", {"starts": STARTS[:2]}),
        (ValueError, "species: expected 0 <= index < 2, got 0 to 2", {"species": SPECIES * 2}),
        (ValueError, "bricks: expected at least one point along every axis", {"bricks": BRICKS * 0}),
        (ValueError, "spacing: expected a positive length, got -1.0", {"spacing": -1.0}),
        (TypeError, "weight: expected dtype float32 or float64, got int64", {"weight": WEIGHT.long()}),
    ):
        with harness.raises(error, sentence):
            grid_integrals(**arguments(**changed))
