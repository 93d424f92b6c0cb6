"""What is marked on a trajectory: its plateaus, its folds, and its name in the legend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from .bundle import Bundle
from .drawing import INK
from .folds import Fold
from .landscapes import Landscape
from .plateaus import Plateau
from .projection import Projection
from .scales import LINE_LIFT, Scale

PLATEAU: dict[str, Any] = {
    "name": "plateau",
    "mode": "lines",
    "line": {"color": "#ffdcb0", "width": 16},  # opaque: Plotly draws what is translucent over all the rest
    "hoverinfo": "skip",
    "showlegend": False,
}
FOLD = {
    "name": "fold",
    "mode": "lines+markers",
    "line": {"color": INK, "width": 4},
    "marker": {"color": INK, "size": 2},
    "hovertemplate": "%{text}<extra></extra>",
    "showlegend": False,
}


def key_trace(name: str, color: str) -> go.Scatter3d:
    """The line of a run in the legend: one whose colour changes along the way would be black there."""
    place = {"x": [None], "y": [None], "z": [None]}
    line = {"color": color, "width": 7}
    return go.Scatter3d(
        **place,
        name=name or "trajectory",
        mode="lines",
        line=line,
        legendgroup=name or "trajectory",
        hoverinfo="skip",
        showlegend=True,
    )


def plateau_trace(landscape: Landscape, scale: Scale, plateaus: Sequence[Plateau]) -> go.Scatter3d:
    """The stretches of the only run on which it lies still, as a broad band under its line."""
    return go.Scatter3d(PLATEAU, **plateau_arrays(landscape.bundle, landscape.projection, scale, plateaus))


def plateau_arrays(
    bundle: Bundle, projection: Projection, scale: Scale, plateaus: Sequence[Plateau]
) -> dict[str, np.ndarray]:
    """The points of the first run between the ends of each plateau; a gap of nan between two."""
    rows = bundle.rows[0]
    step, loss = bundle.step[rows], scale.lift(bundle.loss[rows], LINE_LIFT / 2)
    parts = [np.empty((0, 3))]
    for plateau in plateaus:
        on = (step >= plateau.start) & (step <= plateau.end)
        parts += [np.column_stack([projection.path[rows][on], loss[on]]), np.full((1, 3), np.nan)]
    x, y, z = np.concatenate(parts).T
    return {"x": x, "y": y, "z": z}


def fold_trace(landscape: Landscape, scale: Scale, folds: Sequence[Fold]) -> go.Scatter3d:
    """At each fold an upright line between the two losses of one place, of which the surface can show one."""
    return go.Scatter3d(FOLD, **fold_arrays(landscape, scale, folds))


def fold_arrays(landscape: Landscape, scale: Scale, folds: Sequence[Fold]) -> dict[str, Any]:
    """Both ends of each of these lines, and the words for them."""
    points, words = [np.empty((0, 3))], []
    for fold in folds:
        here, there = (_find_point(landscape, scale, *place) for place in _list_places(fold))
        points += [np.stack([here, [here[0], here[1], there[2]], [np.nan] * 3])]
        words += [f"fold: steps {fold.step} and {fold.other_step} differ by ×{fold.factor:.3g}"] * 3
    x, y, z = np.concatenate(points).T
    return {"x": x, "y": y, "z": z, "text": words}


def _list_places(fold: Fold) -> tuple[tuple[int, int], tuple[int, int]]:
    return (fold.run, fold.step), (fold.other_run, fold.other_step)


def _find_point(landscape: Landscape, scale: Scale, run: int, step: int) -> Float[np.ndarray, " 3"]:
    rows = landscape.bundle.rows[run]
    row = rows.start + int(np.searchsorted(landscape.bundle.step[rows], step))
    return np.append(landscape.path[row], scale.lift(landscape.path_loss[row : row + 1], LINE_LIFT))
