"""What ships with the package: real samples, and a small trained model."""

from pathlib import Path

__all__ = ["bundled_model", "sample"]


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


def bundled_model() -> Path:
    """Returns the folder of the trained model; its MODEL.md says on what it was trained, what it gives and its limits.

    Silicon was held out of its training.
    """
    return Path(__file__).parent / "small-crystals"
