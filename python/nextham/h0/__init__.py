"""H of step zero and S from the structure, orbitals and pseudopotentials alone: so far what two-center integrals give.

`overlap_and_kinetic` makes S and the kinetic energy, `nonlocal_potential` the projectors' part of the pseudopotentials,
`position_matrix` the matrix elements of x, y and z.
"""

from nextham.h0.nonlocal_part import nonlocal_potential
from nextham.h0.position import position_matrix
from nextham.h0.two_center import TwoCenterTable, orbital_graph, overlap_and_kinetic

__all__ = ["TwoCenterTable", "nonlocal_potential", "orbital_graph", "overlap_and_kinetic", "position_matrix"]
