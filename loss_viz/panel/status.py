"""The panel's numbers: those at the ball and of the landscape, and the errors of fixed bandwidths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.headlines import rate_fidelity
from loss_viz.diagnostics.report import PlateauSummary, variance_row, write_factor
from loss_viz.figures.live import ViewState


def list_tiles(view: ViewState, plateaus: PlateauSummary, rows: Sequence[int]) -> dict[str, Any]:
    """Return `tiles`, each name, value and comment; `warnings`; and `chip`, the fidelity in words.

    "…" stands for numbers not yet known.

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
    return {
        "tiles": [list(tile) for tile in tiles],
        "warnings": list(report.warnings) if report else [],
        "chip": rate_fidelity(report.fidelity)._asdict() if report else None,
    }


def _format_plateau(plateaus: PlateauSummary, step: int) -> tuple[str, str]:
    """Return the loss of the plateau at a step, or of the longest one, and a comment."""
    plateau = plateaus.find(step)
    if plateau is None:
        return "none", ""
    comment = "now" if plateau.start <= step <= plateau.end else f"{plateau.start} – {plateau.end}"
    fit = f", {plateau.fit.name} ({plateau.fit.loss:.3g})" if plateau.fit else ""
    return f"{plateau.level:.3g}", comment + fit


def width_error_arrays(curve: SigmaCurve, sigma: float | str) -> dict[str, Any]:
    """Return the held-out errors of fixed bandwidths, in decades, with a sentence about the current one.

    Args:
        curve: from `sigma_curve`.
        sigma: current bandwidth.

    Example:
        >>> curve = SigmaCurve(np.array([0.01, 0.1]), np.array([0.1, 0.4]), 0.05, 0.03)
        >>> width_error_arrays(curve, "auto")["text"]
        'held-out error: auto ×1.12, best fixed ×1.26'
    """
    known = np.isfinite(curve.error)
    text = f"auto {write_factor(10**curve.auto)}, best fixed {write_factor(float(10 ** np.nanmin(curve.error)))}"
    if not isinstance(sigma, str):
        error = float(np.interp(np.log10(sigma), np.log10(curve.sigma[known]), curve.error[known]))
        text = f"here {write_factor(10**error)}, {text}"
    arrays = {"sigma": curve.sigma[known].tolist(), "error": curve.error[known].tolist(), "auto": float(curve.auto)}
    return arrays | {"text": f"held-out error: {text}"}
