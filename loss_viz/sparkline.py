"""A curve as small as a word: what each place of the σ slider costs."""

import numpy as np

from .captions import write_factor
from .kernels import POST_SIGMA
from .sigmas import SigmaCurve

WIDTH, HEIGHT, PAD = 236, 54, 6


def draw_costs(curve: SigmaCurve, sigma: float | str, *, ends: tuple[float, float]) -> str:
    """The held-out error of fixed widths over the slider's range, as an SVG picture in HTML.

    Args:
        curve: as `sigma_curve` measures it.
        sigma: what is chosen now.
        ends: log10 of the slider's ends.

    Example:
        >>> curve = SigmaCurve(np.array([0.01, 0.1]), np.array([0.1, 0.4]), 0.05, 0.03)
        >>> "auto ×1.12" in draw_costs(curve, "auto", ends=(-2.5, 0.0))
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
