"""PyATB reads our H(R), S(R) and r(R) and finds our bands and velocity matrix elements."""

import numpy as np
import pytest
import torch

from nextham.data import sample
from nextham.h0 import position_matrix
from nextham.io.basis_directory import read_orbitals
from nextham.io.csr import read_blocks, write_blocks
from nextham.io.position_file import write_position
from nextham.io.stru import read_stru
from nextham.kspace import bloch_pairs, solve
from nextham.optics import _dipoles

KPOINTS = np.array([[0.11, 0.23, -0.31], [0.4, 0.05, 0.2]])
OCCUPIED = 8


def velocities(hamiltonian, overlap, position, k):
    """Levels and v_nm = C†[∂H − (ε_n + ε_m)/2 ∂S − i (ε_m − ε_n) d]C at one k-point, with and without d."""
    ((h, s),) = bloch_pairs(hamiltonian, overlap, interatomic=True)
    _, found = next(solve(h, s, k[None], vectors=True))
    levels, c = found.values[0], found.vectors[0]
    gap, mean = levels[None] - levels[:, None], (levels[:, None] + levels[None]) / 2
    results = []
    for dipoles in (_dipoles(hamiltonian, overlap, position), None):
        v = c.mH @ h.derivative(k[None])[0] @ c - mean * (c.mH @ s.derivative(k[None])[0] @ c)
        if dipoles is not None:
            v = v - 1j * gap * torch.stack([c.mH @ d.at(k[None])[0] @ c for d in dipoles])
        results.append(v.numpy())
    return levels.numpy(), gap.numpy(), results


@pytest.mark.shared
@pytest.mark.pyatb
@pytest.mark.parametrize("name", ["Si-1", pytest.param("GaAs-1", marks=pytest.mark.slow)])
def test_velocities_are_those_of_pyatb(shared, name, tmp_path, monkeypatch):
    """Products of them, which have no phases, in windows of transition energy from occupied levels."""
    folder = sample("Si-1") if name == "Si-1" else shared / "data/abacus" / name
    structure = read_stru(folder / "STRU").structure
    position = position_matrix(structure, read_orbitals(shared / "data/basis", structure.numbers))
    names = ("hrs1_nao.csr.xz", "srs1_nao.csr.xz")
    hamiltonian, overlap = (read_blocks(folder / word, structure, position[0].basis) for word in names)
    overlap = overlap.spinless()
    vectors = np.unique(np.concatenate([m.graph.R for m in (hamiltonian, overlap, *position)]), axis=0)
    monkeypatch.chdir(tmp_path)  # PyATB makes a folder Out where it is imported
    from pyatb.init_tb import init_tb

    write_blocks("h.csr", hamiltonian, R=vectors, digits=12)
    write_blocks("s.csr", overlap.with_spin(4), letter="S", R=vectors, digits=12)
    write_position("rr.csr", position, spinor=True, R=vectors, digits=12)
    theirs = init_tb(
        nspin=4, lattice_constant=1.0, lattice_vector=np.array(structure.cell), HR_route="h.csr", HR_unit="Ry",
        SR_route="s.csr", need_rR=True, rR_route="rr.csr", rR_unit="Bohr",
    )  # fmt: skip
    found_levels, found = theirs.tb_solver.get_velocity_matrix(KPOINTS)
    for q, k in enumerate(KPOINTS):
        levels, gap, (exact, approximate) = velocities(hamiltonian, overlap, position, k)
        np.testing.assert_allclose(found_levels[q], levels, rtol=0, atol=1e-4)
        from_occupied = np.arange(len(levels))[:, None] < OCCUPIED
        products = []
        for v in (exact, approximate, found[q]):
            windows = (np.exp(-(((gap - energy) / 0.5) ** 2)) * from_occupied for energy in np.linspace(0.5, 12, 24))
            products.append(np.stack([np.einsum("mn,amn,bmn->ab", w, v, v.conj()) for w in windows]))
        scale = np.abs(products[2]).max()
        assert np.abs(products[0] - products[2]).max() < 1e-5 * scale
        assert np.abs(products[1] - products[2]).max() > 1e-2 * scale  # what the position matrix is for
