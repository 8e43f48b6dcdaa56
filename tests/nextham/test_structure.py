import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number

CELL = np.array([[5.4, 0.1, 0.0], [0.3, 5.2, -0.2], [0.0, 0.4, 6.1]])


def test_wrapped_moves_by_whole_lattice_vectors():
    positions = np.array([[-0.3, 1.2, 0.5], [2.7, -0.1, 0.9], [0.0, 1.0, 0.25]]) @ CELL
    structure = Structure(CELL, positions, [14, 14, 8])
    wrapped, shifts = structure.wrapped()
    assert shifts.tolist() == [[-1, 1, 0], [2, -1, 0], [0, 1, 0]]
    np.testing.assert_allclose(wrapped.positions + shifts @ CELL, positions, atol=1e-13)
    assert wrapped.fractional().min() > -1e-12
    assert wrapped.fractional().max() < 1


def test_rounding_noise_below_zero_is_zero():
    structure = Structure(CELL, np.array([[-1e-15, 0.5, 0.5]]) @ CELL, [14])
    assert not structure.wrapped()[1].any()


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=5))
def test_wrapped_is_idempotent(fractional):
    once, _ = Structure(CELL, np.array(fractional) @ CELL, [1] * len(fractional)).wrapped()
    twice, shifts = once.wrapped()
    assert not shifts.any()
    np.testing.assert_array_equal(once.positions, twice.positions)


def test_open_directions_are_not_wrapped():
    """A molecule that sticks out of its box stays whole."""
    molecule = np.array([[-0.1, 1.3, 0.5], [0.1, -0.2, 0.5]])
    structure = Structure(CELL, molecule @ CELL, [6, 8], (False, True, False))
    wrapped, shifts = structure.wrapped()
    np.testing.assert_array_equal(shifts, [[0, 1, 0], [0, -1, 0]])
    np.testing.assert_allclose(wrapped.fractional(), molecule - shifts, atol=1e-12)
    with pytest.raises(ValueError, match="structure: atom 0 lies outside the cell along lattice vector 1, where"):
        structure.require_inside()
    Structure(CELL, molecule @ CELL, [6, 8]).require_inside()
    Structure(CELL, (molecule + np.array([0.2, 0, 0])) @ CELL, [6, 8], (False, True, False)).require_inside()


def test_supercell_repeats_atoms_in_blocks():
    structure = Structure(CELL, [[0.1, 0.2, 0.3], [2.0, 2.0, 2.0]], [14, 8])
    large = structure.supercell(2, 1, 3)
    assert large.formula() == "Si6O6"
    assert large.numbers.tolist() == [14, 8] * 6
    np.testing.assert_allclose(large.positions[2] - large.positions[0], CELL[2])
    np.testing.assert_allclose(large.positions[6] - large.positions[0], CELL[0])
    np.testing.assert_allclose(np.linalg.det(large.cell), 6 * np.linalg.det(CELL))


def test_permuted_and_species():
    structure = Structure(CELL, np.eye(3), [8, 14, 8])
    turned = structure.permuted([1, 0, 2])
    assert turned.species() == [14, 8]
    np.testing.assert_array_equal(turned.positions[0], structure.positions[1])
    with pytest.raises(ValueError, match="permutation of 3 atoms"):
        structure.permuted([0, 0, 1])


@pytest.mark.parametrize(
    ("cell", "positions", "numbers", "sentence"),
    [
        (np.eye(2), np.zeros((1, 3)), [1], r"cell: expected shape \(3, 3\)"),
        (np.ones((3, 3)), np.zeros((1, 3)), [1], "no volume"),
        (np.eye(3), np.zeros((2, 3)), [1], "positions: expected shape"),
        (np.eye(3), [[np.nan, 0, 0]], [1], "finite"),
        (np.eye(3), np.zeros((1, 3)), [0], "atomic numbers"),
    ],
)
def test_bad_input_says_what_is_wrong(cell, positions, numbers, sentence):
    with pytest.raises(ValueError, match=sentence):
        Structure(cell, positions, numbers)


def test_symbols():
    assert (SYMBOLS[14], SYMBOLS[83], SYMBOLS[118]) == ("Si", "Bi", "Og")
    assert atomic_number("ga") == 31
    with pytest.raises(ValueError, match="'Xx'"):
        atomic_number("Xx")
