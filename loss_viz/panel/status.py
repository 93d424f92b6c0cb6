"""The status line, the figures over the surface, and the curve of held-out errors."""

from collections.abc import Sequence
from html import escape

import numpy as np

from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.report import PlateauSummary, Report, write_factor
from loss_viz.settings import POST_SIGMA
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import RunSet


def write_readout(
    run_set: RunSet, projection: Projection, plateau_summary: PlateauSummary, rows: Sequence[int], report: Report | None
) -> str:
    """The line of figures under the title of the panel, as HTML; those of the surface wait for it."""
    fit, without = (report.fit, report.held_out) if report else (None, None)
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
    step, loss = run_set.step[list(rows)].tolist(), [f"{run_set.loss[row]:.3g}" for row in rows]
    if len(rows) == 1:
        entries = {
            f"loss at step {step[0]}": (loss[0], ""),
            "plateau": _write_plateau(plateau_summary, step[0]),
        } | every
    else:
        entries = {name: (loss[i], f"step {step[i]}") for i, name in enumerate(run_set.names)} | every
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{value} <small>{more}</small></dd></div>"
        for name, (value, more) in entries.items()
    )
    cautions = "".join(f"<p>{escape(caution)}</p>" for caution in (report.cautions if report else ()))
    return f"<dl>{''.join(tiles)}</dl>{cautions}"


def _write_plateau(plateau_summary: PlateauSummary, step: int) -> tuple[str, str]:
    found = plateau_summary.find(step)
    if found is None:
        return "none", ""
    plateau, level = found
    here = "now" if plateau.start <= step <= plateau.end else f"{plateau.start} – {plateau.end}"
    return f"{plateau.level:.3g}", f"{here}, {level.name} ({level.loss:.3g})" if level else here


WIDTH, HEIGHT, PAD = 236, 54, 6


def draw_width_errors(curve: SigmaCurve, sigma: float | str, *, ends: tuple[float, float]) -> str:
    """The held-out error of fixed widths over the slider's range, as an SVG picture in HTML.

    Args:
        curve: as `sigma_curve` measures it.
        sigma: what is chosen now.
        ends: log10 of the slider's ends.

    Example:
        >>> curve = SigmaCurve(np.array([0.01, 0.1]), np.array([0.1, 0.4]), 0.05, 0.03)
        >>> "auto ×1.12" in draw_width_errors(curve, "auto", ends=(-2.5, 0.0))
        True
    """
    known = np.isfinite(curve.error)
    highest = max(float(np.max(curve.error[known], initial=curve.auto)), 1e-9)

    def place(value: float, error: float) -> tuple[float, float]:
        share = (np.log10(value) - ends[0]) / (ends[1] - ends[0])
        return PAD + share * (WIDTH - 2 * PAD), HEIGHT - PAD - error / highest * (HEIGHT - 2 * PAD)

    points = [place(value, error) for value, error in zip(curve.sigma[known], curve.error[known], strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    level, (post, _) = place(curve.best, curve.auto)[1], place(POST_SIGMA, 0.0)
    marks = [
        f"<line x1='{PAD}' x2='{WIDTH - PAD}' y1='{level:.1f}' y2='{level:.1f}' class='lossviz-auto'/>",
        f"<line x1='{post:.1f}' x2='{post:.1f}' y1='0' y2='{HEIGHT}' class='lossviz-post'/>",
        f"<polyline points='{line}'/>",
    ]
    chosen = curve.auto
    if not isinstance(sigma, str):
        chosen = float(np.interp(np.log10(sigma), np.log10(curve.sigma[known]), curve.error[known]))
        x, y = place(sigma, chosen)
        marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4'/>")
    words = f"auto {write_factor(10**curve.auto)}, best fixed {write_factor(float(10 ** np.nanmin(curve.error)))}"
    if not isinstance(sigma, str):
        words = f"here {write_factor(10**chosen)}, {words}"
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='error against σ'>{''.join(marks)}</svg>"
    return f"<div title='dashed: auto; dotted: the post’s 0.06'>held-out error: {words}{svg}</div>"
