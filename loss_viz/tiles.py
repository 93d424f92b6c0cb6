"""The line of figures over the panel's picture, and what to keep in mind before it."""

from collections.abc import Sequence
from html import escape

from .bundle import Bundle
from .captions import write_factor
from .projection import Projection
from .screen import Facts, Stays


def write_figures(
    bundle: Bundle, projection: Projection, stays: Stays, rows: Sequence[int], facts: Facts | None
) -> str:
    """The line of figures under the title of the panel, as HTML; those of the surface wait for it."""
    fit, without = (facts.fit, facts.held_out) if facts else (None, None)
    off = projection.off_plane[list(rows)].max() / projection.diagonal
    every = {
        "error here": (write_factor(fit.factor[list(rows)].max()) if fit else "…", ""),
        "error, median": (write_factor(fit.median) if fit else "…", f"p90 {write_factor(fit.p90)}" if fit else ""),
    }
    if without or not fit:
        every["held out"] = (write_factor(without.median), f"p90 {write_factor(without.p90)}") if without else ("…", "")
    every |= {
        "off the plane": (f"{off:.1%}", ""),
        "variance": (f"{projection.explained_variance_ratio.sum():.1%}", "no measure of fidelity"),
    }
    step, loss = bundle.step[list(rows)].tolist(), [f"{bundle.loss[row]:.3g}" for row in rows]
    if len(rows) == 1:
        entries = {f"loss at step {step[0]}": (loss[0], ""), "plateau": _write_plateau(stays, step[0])} | every
    else:
        entries = {name: (loss[i], f"step {step[i]}") for i, name in enumerate(bundle.names)} | every
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{value} <small>{more}</small></dd></div>"
        for name, (value, more) in entries.items()
    )
    cautions = "".join(f"<p>{escape(caution)}</p>" for caution in (facts.cautions if facts else ()))
    return f"<dl>{''.join(tiles)}</dl>{cautions}"


def _write_plateau(stays: Stays, step: int) -> tuple[str, str]:
    found = stays.find(step)
    if found is None:
        return "none", ""
    plateau, level = found
    here = "now" if plateau.start <= step <= plateau.end else f"{plateau.start} – {plateau.end}"
    return f"{plateau.level:.3g}", f"{here}, {level.name} ({level.loss:.3g})" if level else here
