"""Pictures of densities of states and optical spectra, drawn without matplotlib's global state."""

from __future__ import annotations

import os

from nextham.dos import DensityOfStates
from nextham.figure import empty_figure
from nextham.optics import Optics

__all__ = ["plot_dos", "plot_optics"]


def plot_dos(
    dos: DensityOfStates,
    path: str | os.PathLike[str],
    window: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Draws the density of states against E − E_F (eV), its parts in colours; collinear spin down points down.

    Args:
        dos: without a Fermi level, energies are drawn as they are.
        path: file to write, such as `dos.png`, with 300 dots per inch.
        window: energies to show, eV, on the scale of the abscissa; by default all.
        title: above the picture.
    """
    figure, (axes,) = empty_figure(5.6, 3.8)
    energies = dos.energies - (dos.efermi or 0.0)
    for spin, sign in zip(range(len(dos.total)), (1, -1), strict=False):
        axes.plot(energies, sign * dos.total[spin], color="black", linewidth=1.0, label="" if spin else "total")
        for i, (name, values) in enumerate(dos.projected.items()):
            axes.plot(energies, sign * values[spin], color=f"C{i % 10}", linewidth=0.9, label="" if spin else name)
    shown = (energies >= window[0]) & (energies <= window[1]) if window else energies == energies
    largest = float(dos.total[:, shown].max(initial=0.0)) or 1.0
    down = -1.05 * largest if len(dos.total) == 2 else 0.0
    axes.set(xlim=window or (energies[0], energies[-1]), ylim=(down, 1.05 * largest), title=title)
    axes.set(ylabel="electrons / (eV cell)")
    if dos.efermi is None:
        axes.set_xlabel("E (eV)")
    else:
        axes.set_xlabel("E − E$_F$ (eV)")
        axes.axvline(0, color="0.5", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
    axes.axhline(0, color="0.5", linewidth=0.6, zorder=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=300)


def plot_optics(optics: Optics, path: str | os.PathLike[str], title: str = "") -> None:
    """Draws Re σ (10⁶ S/m) and ε₂ of xx, yy, zz against the photon energy, and says what the approximation is.

    Args:
        optics: the spectrum.
        path: file to write, such as `optics.png`, with 300 dots per inch.
        title: above the picture.
    """
    figure, (above, below) = empty_figure(5.6, 5.0, rows=2)
    epsilon = optics.epsilon2()
    for c, (name, look) in enumerate((("xx", "-"), ("yy", "--"), ("zz", ":"))):
        above.plot(optics.energies, optics.conductivity[:, c, c].real / 1e6, look, color=f"C{c}", label=name)
        below.plot(optics.energies, epsilon[:, c, c].real, look, color=f"C{c}")
    above.set(ylabel="Re σ (10$^6$ S/m)", xlim=(0, optics.energies[-1]), title=title)
    below.set(ylabel="ε$_2$", xlabel="photon energy (eV)")
    above.legend(frameon=False)
    figure.supxlabel(optics.method, fontsize=7, color="0.4")
    figure.savefig(path, dpi=300)
