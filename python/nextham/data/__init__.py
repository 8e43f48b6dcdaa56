"""Real samples that ship with the package."""

from pathlib import Path

__all__ = ["sample"]


def sample(name: str = "Si-1") -> Path:
    """Returns the folder of a bundled ABACUS run.

    It holds `STRU`, `hrs0_nao.csr.xz` (H of step zero), `hrs1_nao.csr.xz` (converged H), `srs1_nao.csr.xz` (S) and
    `info.json` (Fermi energy in eV and settings); PBE, spin-orbit coupling, 100 Ry.

    Raises:
        ValueError: no such sample; the sentence lists those there are.
    """
    folder = Path(__file__).parent
    names = sorted(p.name for p in folder.iterdir() if (p / "STRU").is_file())
    if name not in names:
        raise ValueError(f"name: expected one of {', '.join(names)}, got {name!r}")
    return folder / name
