"""Atomic orbitals: which shells an element has, and the component orders in use.

Inside this package the components of a shell l run m = −l … l with the usual real harmonics (e3nn's order). Two other
orders meet us at the border:

- `abacus`: m = 0, 1, −1, 2, −2, …, with a factor (−1)^m for m ≠ 0;
- `deeph` (OpenMX's): p: x, y, z; d: z², x²−y², xy, xz, yz; f: z³, xz², yz², z(x²−y²), xyz, x(x²−3y²), y(3x²−y²), plain
  signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nextham.units import SYMBOLS, atomic_number

__all__ = ["ORDERS", "PUBLISHED_SHELLS_PADDED", "Basis", "order_permutation", "published_slots"]

ORDERS = ("e3nn", "abacus", "deeph")

PUBLISHED_SHELLS_PADDED = (0, 0, 0, 0, 1, 1, 2, 2, 3)
"""The padded layout of the published tensors: 4s 2p 2d 1f, 27 slots."""

_PUBLISHED = {
    (0, 0, 1): "H He",
    (0, 0, 0, 0, 1): "Li Be",
    (0, 0, 1, 1, 2): "B C N O F Ne Al Si P S Cl Ar As Se Br Kr I Xe",
    (0, 0, 0, 0, 1, 1, 2): "Na Mg K Ca Rb Sr Cs Ba",
    (0, 0, 1, 1, 2, 2, 3): "Ga Ge Pd In Sn Sb Te Tl Pb Bi",
    (0, 0, 0, 0, 1, 1, 2, 2, 3): "Sc Ti V Cr Mn Fe Co Ni Cu Zn Y Zr Nb Mo Tc Ru Rh Ag Cd Hf Ta W Re Os Ir Pt Au Hg",
}

# m of each component; e3nn's is −l … l.
_DEEPH_M = {0: (0,), 1: (1, -1, 0), 2: (0, 2, -2, 1, -1), 3: (0, 1, -1, 2, -2, 3, -3)}


class Basis:
    """The shells of every element.

    Args:
        shells: atomic number → l of each shell, ascending, such as `{14: (0, 0, 1, 1, 2)}` for 2s2p1d.

    Raises:
        ValueError: no shells, a negative l, or l not ascending.
    """

    def __init__(self, shells: Mapping[int, Sequence[int]]) -> None:
        self.shells: dict[int, tuple[int, ...]] = {}
        for z, ls in shells.items():
            ls = tuple(int(l) for l in ls)
            if not ls or min(ls) < 0 or list(ls) != sorted(ls):
                raise ValueError(f"shells: expected ascending l >= 0 for {SYMBOLS[z]}, got {ls}")
            self.shells[int(z)] = ls

    @classmethod
    def published(cls, numbers: Iterable[int] | None = None) -> Basis:
        """Returns the published basis: all 68 elements, or those of `numbers`.

        Raises:
            ValueError: an element that the published basis does not have.
        """
        table = {atomic_number(s): ls for ls, symbols in _PUBLISHED.items() for s in symbols.split()}
        if numbers is None:
            return cls(table)
        wanted = dict.fromkeys(int(z) for z in numbers)
        missing = [SYMBOLS[z] for z in wanted if z not in table]
        if missing:
            raise ValueError(f"numbers: the published basis has no orbitals for {', '.join(missing)}")
        return cls({z: table[z] for z in wanted})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.shells == other.shells

    __hash__ = None

    def __repr__(self) -> str:
        return "Basis(" + ", ".join(f"{SYMBOLS[z]}: {self.label(z)}" for z in sorted(self.shells)) + ")"

    def label(self, z: int) -> str:
        """Returns the shells of an element in words, such as `2s2p1d`."""
        ls = self[z]
        return "".join(f"{ls.count(l)}{'spdfghi'[l]}" for l in dict.fromkeys(ls))

    def __getitem__(self, z: int) -> tuple[int, ...]:
        """Returns the shells of an element; ValueError where it has none."""
        if int(z) not in self.shells:
            raise ValueError(f"basis: no orbitals for {SYMBOLS[z]}")
        return self.shells[int(z)]

    def n_orbitals(self, z: int) -> int:
        """Returns the number of orbitals of an element, without spin."""
        return sum(2 * l + 1 for l in self[z])

    def n_orbitals_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the number of orbitals of each atom [n]."""
        table = np.zeros(len(SYMBOLS), dtype=np.int64)
        for z in np.unique(numbers):
            table[z] = self.n_orbitals(z)
        return table[numbers]

    def offsets(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the first orbital of each atom and, last, the total [n + 1]."""
        return np.concatenate([[0], np.cumsum(self.n_orbitals_of(numbers))])


def _component_m(l: int, order: str) -> tuple[int, ...]:
    if order == "e3nn":
        return tuple(range(-l, l + 1))
    if order == "abacus":
        return (0, *(s * m for m in range(1, l + 1) for s in (1, -1)))
    if order == "deeph":
        if l not in _DEEPH_M:
            raise ValueError(f"order: the DeepH order is defined up to f shells, got l = {l}")
        return _DEEPH_M[l]
    raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")


def order_permutation(shells: Sequence[int], order: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns how the components of an atom in another order are made of those in e3nn's order.

    x_order[a] = sign[a] · x_e3nn[index[a]]; the inverse is x_e3nn[index[a]] = sign[a] · x_order[a].

    Args:
        shells: l of each shell of the atom.
        order: `e3nn`, `abacus` or `deeph` (see the module's page).

    Returns:
        index int64 [a] and sign float64 [a].

    Raises:
        ValueError: unknown order, or a DeepH order beyond f.
    """
    index, sign, start = [], [], 0
    for l in shells:
        for m in _component_m(l, order):
            index.append(start + l + m)
            sign.append(-1.0 if order == "abacus" and m % 2 else 1.0)
        start += 2 * l + 1
    return np.array(index, dtype=np.int64), np.array(sign)


def published_slots(shells: Sequence[int], padded: Sequence[int] = PUBLISHED_SHELLS_PADDED) -> np.ndarray:
    """Returns the slot of each orbital of an atom in a padded layout [a].

    The first shell of each l takes the first padded shell of that l, and so on; 2s2p1d fills slots 0, 1, 4…9, 10…14.

    Raises:
        ValueError: more shells of some l than the layout has.
    """
    starts: dict[int, list[int]] = {}
    position = 0
    for l in padded:
        starts.setdefault(l, []).append(position)
        position += 2 * l + 1
    slots: list[int] = []
    used: dict[int, int] = {}
    for l in shells:
        count = used.get(l, 0)
        if count >= len(starts.get(l, [])):
            raise ValueError(f"shells: {tuple(shells)} does not fit into the padded layout {tuple(padded)}")
        slots.extend(range(starts[l][count], starts[l][count] + 2 * l + 1))
        used[l] = count + 1
    return np.array(slots, dtype=np.int64)
