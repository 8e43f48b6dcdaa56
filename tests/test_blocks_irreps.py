"""blocks_irreps against loops with explicit Pauli matrices, and by how blocks transform."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.ops.blocks_irreps import SPINS, block_irreps, blocks_to_irreps, irreps_to_blocks, reference

PUBLISHED = (0, 0, 0, 0, 1, 1, 2, 2, 3)
CASES = {"small": (0, 1), "unsorted": (2, 0, 1, 0), "published": PUBLISHED}
COLUMNS = (1, 0, 0)  # another atom's shells
PAULI = torch.tensor(  # 1, σ_y, σ_z, σ_x: the scalar and the vector in e3nn's order
    [[[1, 0], [0, 1]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]], dtype=torch.complex128
)


def inputs(case, spinor, n_edges=harness.EDGES, columns=None):
    sizes = [sum(2 * l + 1 for l in shells) for shells in (CASES[case], columns or CASES[case])]
    real = harness.random(n_edges, 4 if spinor else 1, *sizes)
    return real + 1j * harness.random(*real.shape, seed=1) if spinor else real


def all_places(dim):
    return torch.arange(dim)


def some_places(dim, width):
    """A third of the components goes nowhere, the others anywhere in a wider row."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randperm(width, generator=generator)[:dim]
    return torch.where(torch.rand(dim, generator=generator) < 0.3, -1, places)


def definition(x, shells, spinor, columns=None):
    """H of one edge rebuilt from its irreps, term by term: Σ x_LM C(l₁l₂L) (× C(L1J) σ/√2)."""
    sizes = [sum(2 * l + 1 for l in of) for of in (shells, columns or shells)]
    if spinor:
        x = torch.complex(*x.chunk(2))
    blocks = torch.zeros(4 if spinor else 1, *sizes, dtype=x.dtype)
    values, row = iter(x), 0
    for l1 in shells:
        column = 0
        for l2 in columns or shells:
            here = blocks[:, row : row + 2 * l1 + 1, column : column + 2 * l2 + 1]
            degrees = range(abs(l1 - l2), l1 + l2 + 1)
            for l in degrees:
                for m in range(2 * l + 1):
                    term = next(values) * o3.wigner_3j(l1, l2, l, dtype=torch.float64)[:, :, m]
                    if spinor:
                        here += torch.einsum("st,ij->stij", PAULI[0] / 2**0.5, term).flatten(0, 1)
                    else:
                        here += term
            for l in degrees if spinor else ():
                for j in range(abs(l - 1), l + 2):
                    for m in range(2 * j + 1):
                        couple = o3.wigner_3j(l, 1, j, dtype=torch.float64)[:, :, m]
                        orbital = o3.wigner_3j(l1, l2, l, dtype=torch.float64)
                        term = next(values) * torch.einsum("ijk,kv->vij", orbital, couple)
                        here += torch.einsum("vst,vij->stij", PAULI[1:] / 2**0.5, term).flatten(0, 1)
            column += 2 * l2 + 1
        row += 2 * l1 + 1
    assert next(values, None) is None
    return blocks


@pytest.mark.parametrize("columns", [None, COLUMNS])
@pytest.mark.parametrize("spinor", [False, True])
@pytest.mark.parametrize("case", ["small", "unsorted"])
def test_reference_is_the_definition(case, spinor, columns):
    shells = CASES[case]
    x = harness.random(3, block_irreps(shells, spinor, columns).dim)
    expected = torch.stack([definition(row, shells, spinor, columns) for row in x])
    spin, places = "spinor" if spinor else "none", all_places(x.shape[1])
    found = reference.irreps_to_blocks(x, places, shells, columns or shells, spin)
    harness.assert_close(torch.view_as_complex(found) if spinor else found, expected)
    harness.assert_close(irreps_to_blocks(x, shells, spinor, columns), expected)


def test_spins_are_what_the_page_says():
    """Each part, by the matrices of spin: Re ↑↑, Re h₀/√2, and (H + σ_y H* σ_y)/2."""
    x = harness.random(3, block_irreps((0, 1), True).dim)
    whole = irreps_to_blocks(x, (0, 1), True).unflatten(1, (2, 2))
    sigma_y = PAULI[1]
    reversed_ = torch.einsum("st,etuab,uv->esvab", sigma_y, whole.conj(), sigma_y)
    one = torch.eye(2, dtype=torch.complex128)[None, :, :, None, None]
    for spin, expected in {
        "uu": one * whole[:, :1, :1].real,
        "scalar": one * (whole[:, :1, :1] + whole[:, 1:, 1:]).real / 2,
        "scalar+vector": (whole + reversed_) / 2,
        "spinor": whole,
    }.items():
        found = irreps_to_blocks(x, (0, 1), True, spin=spin)
        harness.assert_close(found, expected.flatten(1, 2), what=spin)
        if spin in ("uu", "scalar"):
            assert torch.equal(found[:, 0], found[:, 3]) and not found[:, 1:3].any() and not found.imag.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spinor", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, spinor, dtype):
    shells = CASES[case]
    blocks = inputs(case, spinor, columns=COLUMNS).to(dtype.to_complex() if spinor else dtype)
    dim = block_irreps(shells, spinor, COLUMNS).dim
    places, width = some_places(dim, dim + 7), dim + 7
    real = torch.view_as_real(blocks) if spinor else blocks
    complex_ = torch.view_as_complex if spinor else lambda x: x
    harness.assert_as_exact_as_reference(
        lambda b: blocks_to_irreps(complex_(b), shells, COLUMNS, places, width),
        lambda b: reference.blocks_to_irreps(b, places, shells, COLUMNS, width),
        [real],
    )
    x = harness.random(harness.EDGES, width).to(dtype)
    for spin in SPINS if spinor else ("none",):
        harness.assert_as_exact_as_reference(
            lambda x, spin=spin: real_of(irreps_to_blocks(x, shells, spinor, COLUMNS, places, asked(spin))),
            lambda x, spin=spin: reference.irreps_to_blocks(x, places, shells, COLUMNS, spin),
            [x],
        )


def asked(spin):
    return "spinor" if spin == "none" else spin


def real_of(x):
    return torch.view_as_real(x) if x.is_complex() else x


def test_instruction_sets_agree(instruction_set):
    blocks = inputs("unsorted", True, columns=COLUMNS)
    x = blocks_to_irreps(blocks, CASES["unsorted"], COLUMNS)
    places = all_places(x.shape[1])
    expected = reference.blocks_to_irreps(torch.view_as_real(blocks), places, CASES["unsorted"], COLUMNS, x.shape[1])
    harness.assert_close(x, expected)
    harness.assert_close(irreps_to_blocks(x, CASES["unsorted"], True, COLUMNS), blocks)


def test_threads_change_nothing():
    blocks = inputs("published", True, 100)
    harness.assert_threads_agree(lambda: [blocks_to_irreps(blocks, PUBLISHED)])


@pytest.mark.parametrize("spinor", [False, True])
def test_double_backward(spinor):
    """Every derivative by name, of the square of either direction, so that second ones are not zero."""
    dim = block_irreps(CASES["small"], spinor, COLUMNS).dim
    places, width = some_places(dim, dim + 2), dim + 2

    def twice(function):
        def derivative(x):
            (grad,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
            return grad

        return derivative

    complex_ = torch.view_as_complex if spinor else lambda b: b
    for spin in SPINS if spinor else ("none",):
        harness.assert_same_gradients(
            lambda x, spin=spin: twice(
                lambda x: real_of(irreps_to_blocks(x, CASES["small"], spinor, COLUMNS, places, asked(spin)))
            )(x),
            lambda x, spin=spin: twice(lambda x: reference.irreps_to_blocks(x, places, CASES["small"], COLUMNS, spin))(
                x
            ),
            {"x": harness.random(3, width)},
        )
    harness.assert_same_gradients(
        lambda b: twice(lambda b: blocks_to_irreps(complex_(b), CASES["small"], COLUMNS, places, width))(b),
        lambda b: twice(lambda b: reference.blocks_to_irreps(b, places, CASES["small"], COLUMNS, width))(b),
        {"b": real_of(inputs("small", spinor, 3, COLUMNS))},
    )


@pytest.mark.parametrize("spinor", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, spinor):
    shells, blocks = CASES[case], inputs(case, spinor)
    x = blocks_to_irreps(blocks, shells)
    assert x.dtype == torch.float64 and x.shape == (harness.EDGES, block_irreps(shells, spinor).dim)
    harness.assert_close(irreps_to_blocks(x, shells, spinor), blocks)


def test_published_layout():
    irreps = block_irreps(PUBLISHED, True)
    assert irreps.dim == 5832
    assert irreps[: len(irreps) // 2] == irreps[len(irreps) // 2 :]
    assert str(irreps[:4]) == "1x0e+1x1e+1x0e+1x1e"
    assert block_irreps(PUBLISHED, False).dim == 729


@pytest.mark.parametrize("spinor", [False, True])
@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equivariance(case, inversion, spinor):
    """H → (D ⊗ U) H (D ⊗ U)†, with parity (−1)^l of each orbital and none of the spin."""
    shells, blocks, rotation = CASES[case], inputs(case, spinor, 3), harness.random_rotation(1)
    matrices = wigner_d(rotation, max(shells))
    d = torch.block_diag(*(matrices[l] * ((-1) ** l if inversion else 1) for l in shells)).to(blocks.dtype)
    turned = d @ blocks @ d.T
    if spinor:
        u = harness.spin_representation(rotation)
        turned = torch.einsum("xs,estab,yt->exyab", u, turned.unflatten(1, (2, 2)), u.conj()).flatten(1, 2)
    representation = harness.representation(block_irreps(shells, spinor), rotation, inversion)
    expected = blocks_to_irreps(blocks, shells) @ representation.T
    harness.assert_close(blocks_to_irreps(turned, shells), expected)


def test_spin_scalar():
    """uu = dd is the scalar √2 uu alone; time reversal of a Hermitian spinor keeps h₀ real."""
    same = harness.random(1, 1, 4, 4) + 0j
    blocks = torch.cat([same, 0 * same, 0 * same, same], dim=1)
    x = blocks_to_irreps(blocks, (0, 1))
    spinless = blocks_to_irreps(2**0.5 * same.real, (0, 1))
    assert float(x.norm()) == pytest.approx(float(spinless.norm()))


@pytest.mark.parametrize("spinor", [False, True])
def test_backward(spinor):
    """Both directions are linear: the gradient of ⟨c, f(x)⟩ is c again, found by applying f to unit vectors."""
    shells = CASES["small"]
    dim = block_irreps(shells, spinor).dim
    matrix = irreps_to_blocks(torch.eye(dim, dtype=torch.float64), shells, spinor).flatten(1)
    x = harness.random(2, dim).requires_grad_()
    blocks = irreps_to_blocks(x, shells, spinor)
    (grad,) = torch.autograd.grad(blocks.abs().square().sum(), x)
    harness.assert_close(grad, 2 * ((x.detach().to(matrix.dtype) @ matrix) @ matrix.mH).real)


@pytest.mark.parametrize("spinor", [False, True])
def test_gradcheck(spinor):
    shells = (1,)
    blocks = inputs("small", spinor, 1)[:, :, 1:, 1:]
    harness.gradcheck(lambda b: blocks_to_irreps(b, shells), blocks)
    x = harness.random(1, block_irreps(shells, spinor).dim)
    harness.gradcheck(lambda x: irreps_to_blocks(x, shells, spinor), x)


def test_contract():
    shells = CASES["small"]
    blocks, x = inputs("small", True), harness.random(2, block_irreps(shells, True).dim)
    assert blocks_to_irreps(blocks[:0], shells).shape == (0, 128)
    assert irreps_to_blocks(x[:0], shells, True).shape == (0, 4, 4, 4)
    harness.assert_close(blocks_to_irreps(blocks.mT.contiguous().mT, shells), blocks_to_irreps(blocks, shells))
    assert blocks_to_irreps(blocks.to(torch.complex64), shells).dtype == torch.float32
    assert irreps_to_blocks(x.float(), shells, True).dtype == torch.complex64
    with harness.raises(ValueError, "blocks: expected shape [e, 4, 9, 9], got [17, 4, 4, 4]"):
        blocks_to_irreps(blocks, (0, 1, 2))
    with harness.raises(ValueError, "blocks: expected shape [e, 1, 4, 4], got [17, 2, 4, 4]"):
        blocks_to_irreps(blocks[:, :2].real, shells)
    with harness.raises(TypeError, "blocks: expected dtype complex64 or complex128, got float64"):
        blocks_to_irreps(blocks.real, shells)
    with harness.raises(TypeError, "blocks: expected dtype float32 or float64, got complex128"):
        blocks_to_irreps(blocks[:, :1], shells)
    with harness.raises(ValueError, "x: expected shape [e, 128]"):
        irreps_to_blocks(x[:, 1:], shells, True)
    with harness.raises(ValueError, "shells: expected at least one l >= 0, got ()"):
        irreps_to_blocks(x, (), True)
    with harness.raises(ValueError, "column_shells: expected at least one l >= 0, got (-1,)"):
        irreps_to_blocks(x, shells, True, (-1,))
    with harness.raises(ValueError, "spin: expected one of spinor, uu, scalar, scalar+vector, got 'up'"):
        irreps_to_blocks(x, shells, True, spin="up")
    with harness.raises(ValueError, "width: expected 128 without places, got 100"):
        blocks_to_irreps(blocks, shells, width=100)
    with harness.raises(ValueError, "places: expected shape [128], got [127]"):
        irreps_to_blocks(x, shells, True, places=torch.arange(127))
    with harness.raises(ValueError, "places: expected -1 <= index < 128, got 1 to 128"):
        irreps_to_blocks(x, shells, True, places=torch.arange(1, 129))
    with harness.raises(TypeError, "places: expected dtype int64, got int32"):
        irreps_to_blocks(x, shells, True, places=torch.arange(128, dtype=torch.int32))
    real = torch.view_as_real(blocks)
    torch.library.opcheck(
        torch.ops.nextham.blocks_to_irreps, (harness.leaf(real), torch.arange(128), [0, 1], [0, 1], 128)
    )
    torch.library.opcheck(
        torch.ops.nextham.irreps_to_blocks, (harness.leaf(x), torch.arange(128), [0, 1], [0, 1], "uu")
    )


@pytest.mark.triton
@pytest.mark.parametrize("columns", [None, COLUMNS])
@pytest.mark.parametrize("spin", ["none", *SPINS])
def test_gpu_kernel(spin, columns):
    shells = CASES["small"]
    spinor, columns = spin != "none", columns or shells
    blocks = inputs("small", spinor, 9, columns)
    blocks = torch.view_as_real(blocks) if spinor else blocks
    dim = block_irreps(shells, spinor, columns).dim
    places = some_places(dim, dim + 5)
    places[3] = places[places >= 0][0]  # two components at one place
    width = dim + 5
    settings = list(shells), list(columns)
    if spin in ("none", "spinor"):
        harness.assert_gpu_kernel(
            "blocks_to_irreps blocks_to_irreps_backward",
            lambda blocks, places: torch.ops.nextham.blocks_to_irreps(blocks, places, *settings, width).square(),
            lambda blocks, places: reference.blocks_to_irreps(blocks, places, *settings, width).square(),
            {"blocks": blocks, "places": places},
            second=spin == "none",
        )
    harness.assert_gpu_kernel(
        "irreps_to_blocks irreps_to_blocks_backward",
        lambda x, places: torch.ops.nextham.irreps_to_blocks(x, places, *settings, spin),
        lambda x, places: reference.irreps_to_blocks(x, places, *settings, spin),
        {"x": harness.random(9, width), "places": places},
    )
