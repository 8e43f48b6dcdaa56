"""S, T, projections and the position matrix of Gaussian orbitals in self-made files against PySCF's integrals."""

import numpy as np
import pytest
from basis_files import orb_text, upf_text
from gaussian_orbitals import RADIUS, SHELLS, radial
from pyscf import gto

from nextham.basis import Basis
from nextham.h0 import nonlocal_potential, overlap_and_kinetic, position_matrix
from nextham.io.basis_directory import read_orbitals, read_pseudopotentials
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS

POSITIONS = np.array([[11.0, 12.0, 13.0], [12.6, 11.2, 14.4], [9.5, 13.1, 12.2]])  # Bohr
NUMBERS = np.array([14, 1, 14])
STRUCTURE = Structure(25 * np.eye(3), POSITIONS * BOHR, NUMBERS, (False, False, False))

PROJECTORS = {1: ((0, 1.5),), 14: ((1, 1.4), (0, 1.3), (2, 1.7), (1, 2.2))}
"""Atomic number → (l, exponent) of each projector."""

D = {1: np.array([[2.0]]), 14: np.diag([1.5, -3.0, 2.5, -1.0])}
D[14][0, 3] = D[14][3, 0] = 0.4


def molecule(shells):
    """PySCF's molecule with one contraction per shell, each alone in its basis so that their order is ours."""
    atoms = [[SYMBOLS[z], place] for z, place in zip(NUMBERS, POSITIONS, strict=True)]
    basis = {SYMBOLS[z]: [[l, [exponent, 1.0]] for l, exponent in shells[z]] for z in shells}
    return gto.M(atom=atoms, basis=basis, unit="Bohr", spin=None, verbose=0)


def order(mol, shells):
    """Where our functions are among PySCF's: there shells of an atom come by l, and p is x, y, z."""
    places, start = [], 0
    for z in NUMBERS:
        by_degree = sorted(range(len(shells[z])), key=lambda i: shells[z][i][0])
        own = {}
        for i in by_degree:
            l = shells[z][i][0]
            own[i] = start + (np.array([1, 2, 0]) if l == 1 else np.arange(2 * l + 1))
            start += 2 * l + 1
        places += [own[i] for i in range(len(shells[z]))]
    assert start == mol.nao
    return np.concatenate(places)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basis")
    for z, shells in SHELLS.items():
        functions = [(l, radial(l, exponent)) for l, exponent in shells]
        (folder / f"{SYMBOLS[z]}_gaussian.orb").write_text(orb_text(SYMBOLS[z], functions, RADIUS[z]))
        betas = [(l, None, lambda r, l=l, a=a: r * radial(l, a)(r)) for l, a in PROJECTORS[z]]
        (folder / f"{SYMBOLS[z]}.upf").write_text(upf_text(SYMBOLS[z], 1.0, betas, D[z], radius=4.8))
    return read_orbitals(folder, SHELLS), read_pseudopotentials(folder, SHELLS)


def dense(matrix):
    """The matrix of the molecule: all lattice vectors but 0 are empty."""
    assert not matrix.graph.R.any()
    return matrix.to_dense([0.0, 0.0, 0.0]).real


def test_overlap_kinetic_energy_and_position(files):
    mol = molecule(SHELLS)
    index = np.ix_(order(mol, SHELLS), order(mol, SHELLS))
    overlap, kinetic = overlap_and_kinetic(STRUCTURE, files[0])
    assert overlap.basis == Basis({z: [l for l, _ in shells] for z, shells in SHELLS.items()})
    np.testing.assert_allclose(dense(overlap), mol.intor("int1e_ovlp")[index], rtol=0, atol=1e-9)
    np.testing.assert_allclose(dense(kinetic) / RYDBERG, 2 * mol.intor("int1e_kin")[index], rtol=0, atol=3e-7)
    for found, expected in zip(position_matrix(STRUCTURE, files[0]), mol.intor("int1e_r"), strict=True):
        np.testing.assert_allclose(dense(found) / BOHR, expected[index], rtol=0, atol=3e-8)


def test_nonlocal_potential(files):
    """Σ ⟨φ|β⟩ D ⟨β|φ⟩ with PySCF's overlaps between two molecules."""
    orbitals, projectors = molecule(SHELLS), molecule(PROJECTORS)
    cross = gto.intor_cross("int1e_ovlp", orbitals, projectors)
    cross = cross[np.ix_(order(orbitals, SHELLS), order(projectors, PROJECTORS))]
    strength, start = np.zeros((projectors.nao,) * 2), 0
    for z in NUMBERS:
        first = start + np.cumsum([0, *(2 * l + 1 for l, _ in PROJECTORS[z])])
        for n, k in np.argwhere(D[z]):
            for m in range(2 * PROJECTORS[z][n][0] + 1):
                strength[first[n] + m, first[k] + m] = D[z][n, k]
        start = first[-1]
    found = nonlocal_potential(STRUCTURE, *files)
    np.testing.assert_allclose(dense(found) / RYDBERG, cross @ strength @ cross.T, rtol=0, atol=1e-8)
