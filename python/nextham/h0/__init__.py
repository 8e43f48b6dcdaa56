"""H of step zero and S from the structure, orbitals and pseudopotentials alone.

`build_h0` makes both, `stream_h0` writes both to a file where they do not fit the memory; their pieces are
`overlap_and_kinetic`, `nonlocal_potential` and `local_potential`.
`position_matrix` makes the matrix elements of x, y and z.
"""

from nextham.h0.build import AtomicFiles, Pieces, build_h0, build_pieces
from nextham.h0.local import local_potential
from nextham.h0.nonlocal_part import nonlocal_potential
from nextham.h0.position import position_matrix
from nextham.h0.streaming import stream_h0
from nextham.h0.two_center import TwoCenterTable, orbital_graph, overlap_and_kinetic

__all__ = [
    "AtomicFiles",
    "Pieces",
    "TwoCenterTable",
    "build_h0",
    "build_pieces",
    "local_potential",
    "nonlocal_potential",
    "orbital_graph",
    "overlap_and_kinetic",
    "position_matrix",
    "stream_h0",
]
