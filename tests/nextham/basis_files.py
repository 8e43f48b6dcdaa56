"""Self-made orbital and pseudopotential files: text as ABACUS and ONCVPSP write it, of any radial functions."""

import numpy as np


def rows(values, columns=4):
    words = [f"{x:.16e}" for x in values]
    return "\n".join(" ".join(words[i : i + columns]) for i in range(0, len(words), columns)) + "\n"


def orb_text(element, radials, radius, dr=0.01):
    """An orbital file; `radials` lists (l, R) in the order of the shells, R a function of r in Bohr."""
    mesh = round(radius / dr) + 1
    ls = [l for l, _ in radials]
    head = [f"Element {element}", "Energy Cutoff(Ry) 100", f"Radius Cutoff(a.u.) {radius}", f"Lmax {max(ls)}"]
    head += [f"Number of {'SPDFG'[l]}orbital--> {ls.count(l)}" for l in range(max(ls) + 1)]
    text = "\n".join([*head, f"Mesh {mesh}", f"dr {dr}", ""])
    for i, (l, radial) in enumerate(radials):
        text += f"  Type  L  N\n  0 {l} {i - ls.index(l)}\n" + rows(radial(dr * np.arange(mesh)))
    return text


def upf_text(element="Si", valence=4.0, betas=(), d=None, radius=6.0, dr=0.01, local=None, core=None, rho=None):
    """A pseudopotential file; `betas` lists (l, j or None, r·β as a function of r), d is D in Ry."""
    r = dr * np.arange(round(radius / dr) + 1)
    relativistic = any(j is not None for _, j, _ in betas)
    d = np.eye(len(betas)) if d is None else np.asarray(d)
    local = (lambda r: -2 * valence / np.sqrt(1 + r**2)) if local is None else local
    rho = (lambda r: valence * 4 * np.pi**-0.5 * r**2 * np.exp(-(r**2))) if rho is None else rho
    flag = {True: "T", False: "F"}

    def section(name, values, extra=""):
        return f'<{name} type="real" size="{len(values)}" columns="4"{extra}>\n{rows(values)}</{name}>\n'

    text = '<UPF version="2.0.1">\n<PP_INFO>\n<words & such> z_valence="9"\n</PP_INFO>\n<PP_HEADER\n'
    text += f'element="{element} "\npseudo_type="NC"\nrelativistic="{"full" if relativistic else "scalar"}"\n'
    text += 'is_ultrasoft="F"\nis_paw=".false."\nis_coulomb="F"\n'
    text += f'has_so="{flag[relativistic]}"\ncore_correction="{flag[core is not None]}"\nfunctional="PBE"\n'
    text += f'z_valence="  {valence}"\nnumber_of_proj="{len(betas)}"/>\n'
    text += f"<PP_MESH>\n{section('PP_R', r)}{section('PP_RAB', np.full(len(r), dr))}</PP_MESH>\n"
    text += section("PP_LOCAL", local(r)) + "<PP_NONLOCAL>\n"
    for n, (l, _, beta) in enumerate(betas, start=1):
        text += section(f"PP_BETA.{n}", beta(r), f'\nangular_momentum="{l}"')
    text += section("PP_DIJ", d.reshape(-1)) + "</PP_NONLOCAL>\n"
    if core is not None:
        text += section("PP_NLCC", core(r))
    text += section("PP_RHOATOM", rho(r))
    if relativistic:
        lines = [f'<PP_RELBETA.{n} index="{n}" lll="{l}" jjj="{j}"/>\n' for n, (l, j, _) in enumerate(betas, start=1)]
        text += "<PP_SPIN_ORB>\n" + "".join(lines) + "</PP_SPIN_ORB>\n"
    return text + "</UPF>\n"
