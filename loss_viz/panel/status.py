"""The panel's numbers as HTML: the readout above the surface, and the curve of errors below the σ slider."""

from collections.abc import Sequence
from html import escape

import numpy as np

from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.report import PlateauSummary, variance_row, write_factor
from loss_viz.figures.live import ViewState
from loss_viz.settings import POST_SIGMA

WIDTH, HEIGHT, PAD = 236, 54, 6  # of the curve, in pixels


def format_readout(view: ViewState, plateaus: PlateauSummary, rows: Sequence[int]) -> str:
    """Return the numbers at the ball and those of the landscape; "…" stands for those not yet known.

    Args:
        view: surface on screen.
        plateaus: plateaus of its runs.
        rows: row of the ball on each run.
    """
    run_set, projection, report, rows = view.run_set, view.projection, view.report, list(rows)
    steps, losses = run_set.step[rows].tolist(), [f"{loss:.3g}" for loss in run_set.loss[rows]]
    if len(rows) == 1:
        tiles = [(f"loss at step {steps[0]}", losses[0], ""), ("plateau", *_format_plateau(plateaus, steps[0]))]
    else:
        places = zip(run_set.names, losses, steps, strict=True)
        tiles = [(name, loss, f"step {step}") for name, loss, step in places]
    tiles.append(("error here", write_factor(report.fidelity.factor[rows].max()) if report else "…", ""))
    tiles += report.rows() if report else [("error, median", "…", ""), ("held out", "…", "")]
    tiles.append(("off the plane", f"{projection.off_plane[rows].max() / projection.diagonal:.1%}", ""))
    tiles.append(variance_row(projection))
    texts = (map(escape, tile) for tile in tiles)
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{comment}</small></dd></div>" for name, value, comment in texts)
    warnings = (f"<p>{escape(warning)}</p>" for warning in (report.warnings if report else ()))
    return f"<dl>{''.join(cells)}</dl>{''.join(warnings)}"


def _format_plateau(plateaus: PlateauSummary, step: int) -> tuple[str, str]:
    """Return the loss of the plateau at a step, or of the longest one, and a comment."""
    plateau = plateaus.find(step)
    if plateau is None:
        return "none", ""
    comment = "now" if plateau.start <= step <= plateau.end else f"{plateau.start} – {plateau.end}"
    fit = f", {plateau.fit.name} ({plateau.fit.loss:.3g})" if plateau.fit else ""
    return f"{plateau.level:.3g}", comment + fit


def draw_width_errors(curve: SigmaCurve, sigma: float | str, *, ends: tuple[float, float]) -> str:
    """Return an SVG curve of the held-out error of fixed bandwidths along the σ slider.

    Args:
        curve: from `sigma_curve`.
        sigma: current bandwidth.
        ends: log10 of the ends of the slider.

    Example:
        >>> curve = SigmaCurve(np.array([0.01, 0.1]), np.array([0.1, 0.4]), 0.05, 0.03)
        >>> "auto ×1.12" in draw_width_errors(curve, "auto", ends=(-2.5, 0.0))
        True
    """
    known = np.isfinite(curve.error)
    highest = max(float(np.max(curve.error[known], initial=curve.auto)), 1e-9)

    def place(value: float, error: float) -> tuple[float, float]:
        x = (np.log10(value) - ends[0]) / (ends[1] - ends[0])
        return PAD + x * (WIDTH - 2 * PAD), HEIGHT - PAD - error / highest * (HEIGHT - 2 * PAD)

    points = [place(value, error) for value, error in zip(curve.sigma[known], curve.error[known], strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    auto, (post, _) = place(curve.best, curve.auto)[1], place(POST_SIGMA, 0.0)
    shapes = [
        f"<line x1='{PAD}' x2='{WIDTH - PAD}' y1='{auto:.1f}' y2='{auto:.1f}' class='lossviz-auto'/>",
        f"<line x1='{post:.1f}' x2='{post:.1f}' y1='0' y2='{HEIGHT}' class='lossviz-post'/>",
        f"<polyline points='{line}'/>",
    ]
    best = float(10 ** np.nanmin(curve.error))
    text = f"auto {write_factor(10**curve.auto)}, best fixed {write_factor(best)}"
    if not isinstance(sigma, str):
        error = float(np.interp(np.log10(sigma), np.log10(curve.sigma[known]), curve.error[known]))
        x, y = place(sigma, error)
        shapes.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4'/>")
        text = f"here {write_factor(10**error)}, {text}"
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='error against σ'>{''.join(shapes)}</svg>"
    return f"<div title='dashed: auto; dotted: the post’s 0.06'>held-out error: {text}{svg}</div>"
