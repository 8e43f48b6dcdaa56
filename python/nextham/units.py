"""Units of the files and of this package: Å and eV inside, ABACUS's own Bohr and Rydberg at the border."""

__all__ = ["BOHR", "PUBLISHED_RYDBERG", "RYDBERG", "SYMBOLS", "atomic_number"]

BOHR = 0.529177
"""Å per Bohr as ABACUS has it (CODATA differs in the seventh digit)."""

RYDBERG = 13.605698
"""eV per Rydberg as ABACUS has it."""

PUBLISHED_RYDBERG = 13.6056980659
"""eV per Rydberg as the published NextHAM data were converted with."""

SYMBOLS = tuple(
    """X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr
    Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au
    Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts
    Og""".split()
)
"""SYMBOLS[Z] is the symbol of element Z (SYMBOLS[0] is a placeholder)."""


def atomic_number(symbol: str) -> int:
    """Returns Z of an element symbol, upper or lower case.

    Raises:
        ValueError: not an element.
    """
    name = symbol.strip().capitalize()
    if name not in SYMBOLS[1:]:
        raise ValueError(f"symbol: expected an element, got {symbol!r}")
    return SYMBOLS.index(name)
