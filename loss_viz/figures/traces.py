"""The Plotly traces from which figures are made, and the arrays behind them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale, unlabel_rgb
from scipy.spatial import ConvexHull

from loss_viz.diagnostics.fidelity import compare_heights
from loss_viz.diagnostics.folds import Fold
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.figures.loss_axis import BALL_RADIUS, LINE_LIFT, Scale
from loss_viz.figures.style import (
    BALL,
    BOX,
    COLORSCALE,
    FADE_ROOT,
    FOLD,
    MAX_FADE,
    PLATEAU,
    STEM,
    SURFACE,
    pick_colors,
    style_path,
)
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import RunSet


def surface_trace(landscape: Landscape, scale: Scale, min_support: float = 0.0) -> go.Mesh3d:
    """The surface, coloured by loss and paler where it extrapolates; open where its support is below a threshold.

    A mesh, because `go.Surface` has one colour value a vertex and cannot fade by a second one.
    """
    arrays = surface_arrays(landscape, scale, min_support)
    rgba = arrays.pop("rgba") / 255
    on_white = np.rint(255 * (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])).astype(int)
    return go.Mesh3d(SURFACE, **arrays, vertexcolor=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in on_white.tolist()])


def surface_arrays(surface: Surface | Landscape, scale: Scale, min_support: float = 0.0) -> dict[str, np.ndarray]:
    """Vertices, triangles and colours of the mesh.

    The fourth colour value tells how much of the colour is left over the paper, from 255 on the path to pale far
    from it. Cells with a corner whose loss is not finite, or whose support is below a threshold, are left open.
    """
    x, y = np.meshgrid(surface.x, surface.y)
    triangles = _triangulate(*surface.loss.shape)
    shown = np.isfinite(surface.loss) & (surface.support >= min_support)
    triangles = triangles[shown.ravel()[triangles].all(axis=1)]
    rgb = _lookup_colors()[np.rint(255 * scale.fraction(surface.loss)).astype(int)]
    rgba = np.concatenate([rgb, 255 * (1 - fade(surface)[..., None])], axis=-1)
    rgba = np.rint(rgba).astype(np.uint8).reshape(-1, 4)
    return {"x": x.ravel(), "y": y.ravel(), "z": surface.loss.ravel(), **_corners(triangles), "rgba": rgba}


def path_traces(landscape: Landscape, scale: Scale) -> list[go.Scatter3d]:
    """Each run at its true losses, raised by `LINE_LIFT` of the axis; the hover shows the true ones.

    Its colour drains to grey where the surface is off by a factor of two or more.
    """
    run_set, traces = landscape.run_set, []
    for name, color, rows in zip(run_set.names, pick_colors(len(run_set.runs)), run_set.rows, strict=True):
        arrays = path_arrays(run_set, landscape.projection, landscape.path_height, scale, rows)
        error_shade = arrays.pop("line.color")
        traces.append(go.Scatter3d(style_path(name, color), **arrays).update(line={"color": error_shade}))
    return traces


def path_arrays(
    run_set: RunSet, projection: Projection, height: Float[np.ndarray, " n_steps"], scale: Scale, rows: slice
) -> dict[str, np.ndarray]:
    """The line of one run over the plane, and what its hover tells."""
    x, y = projection.path[rows].T
    details = path_details(run_set, projection, height)[rows]
    z = scale.lift(run_set.loss[rows], LINE_LIFT)
    return {"x": x, "y": y, "z": z, "customdata": details, "line.color": error_shade(details[:, 4])}


def error_shade(factor: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How far the colour of a run has drained: 0 where the surface is right, 1 where it is off by two or more."""
    return np.nan_to_num(np.log2(factor), posinf=1.0).clip(0, 1)


def path_details(
    run_set: RunSet, projection: Projection, height: Float[np.ndarray, " n_steps"]
) -> Float[np.ndarray, "n_steps 5"]:
    """Step, true loss, surface, distance off the plane and factor: what the hover of a run tells."""
    factor = compare_heights(run_set.step, height, run_set.loss).factor
    return np.column_stack([run_set.step, run_set.loss, height, projection.off_plane, factor])


def ball_traces(landscape: Landscape, scale: Scale, row: int, color: str) -> list[go.Scatter3d | go.Mesh3d]:
    """The stem from the true loss at `row` to the surface, and the ball that rests on the true loss."""
    x, y = landscape.path[row]
    true, height = landscape.path_loss[row], landscape.path_height[row]
    hover = (
        f"step {landscape.run_set.step[row]}<br>true loss {true:.4g}<br>surface {height:.4g}"
        f", off by ×{compare_heights(np.zeros(1, int), np.array([height]), np.array([true])).factor[0]:.3g}"
        f"<br>at ({x:.3g}, {y:.3g}), off the plane by {landscape.off_plane[row]:.3g}<extra></extra>"
    )
    extent = np.array([np.ptp(landscape.x), np.ptp(landscape.y)])
    ball = ball_arrays(landscape.path[row], true, extent, scale)
    return [
        go.Scatter3d(STEM, **stem_arrays(landscape.path[row], true, height)),
        go.Mesh3d(BALL | {"color": color}, **ball, hovertemplate=hover),
    ]


def stem_arrays(point: Float[np.ndarray, " 2"], true: float, height: float) -> dict[str, np.ndarray]:
    """From the true loss over a point of the picture to the surface there: the error, seen."""
    return {"x": point[[0, 0]], "y": point[[1, 1]], "z": np.array([true, height])}


def ball_arrays(
    point: Float[np.ndarray, " 2"], true: float, extent: Float[np.ndarray, " 2"], scale: Scale
) -> dict[str, np.ndarray]:
    """A sphere that rests on the true loss over a point of a picture that is `extent` wide and deep."""
    sphere, triangles = _build_sphere()
    radius = BALL_RADIUS * BOX["z"] * extent / [BOX["x"], BOX["y"]]
    x, y = (point + radius * sphere[:, :2]).T
    z = scale.lift(np.full(len(sphere), true), BALL_RADIUS * (1 + sphere[:, 2]))
    return {"x": x, "y": y, "z": z, **_corners(triangles)}


def colorbar_trace(scale: Scale) -> go.Scatter3d:
    """A trace without points that carries the colour bar, which a mesh of painted vertices cannot."""
    marker = {"color": [scale.low], "cmin": scale.low, "cmax": scale.high, "colorscale": COLORSCALE}
    marker |= {"showscale": True, "colorbar": scale.colorbar()}
    place = {"x": [None], "y": [None], "z": [None]}
    return go.Scatter3d(name="loss", **place, mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def fade(surface: Surface | Landscape) -> Float[np.ndarray, "n_y n_x"]:
    """How far each point is painted towards the paper, from 0 on the path to `MAX_FADE` far from it."""
    return MAX_FADE * (1 - surface.support ** (1 / FADE_ROOT))


def camera(landscape: Surface | Landscape, scale: Scale, *, distance: float) -> dict[str, Any]:
    """The corner of the box from which the surface rises away from the eye, so that its walls hide nothing."""
    heights = scale.fraction(landscape.loss)
    along_x = (heights * np.linspace(-1, 1, len(landscape.x))).sum()
    along_y = (heights * np.linspace(-1, 1, len(landscape.y))[:, None]).sum()
    eye = {"x": -1.2 if along_x > 0 else 1.2, "y": -1.35 if along_y > 0 else 1.35, "z": 0.95}
    eye = {axis: distance * place for axis, place in eye.items()}
    return {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.12}}


@cache
def _lookup_colors() -> Float[np.ndarray, "256 3"]:
    return np.array([unlabel_rgb(color) for color in sample_colorscale(COLORSCALE, np.linspace(0, 1, 256).tolist())])


def _triangulate(n_rows: int, n_columns: int) -> Int[np.ndarray, "n_triangles 3"]:
    index = np.arange(n_rows * n_columns, dtype=np.int32).reshape(n_rows, n_columns)
    corners = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    a, b, c, d = (corner.ravel() for corner in corners)
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


def _corners(triangles: Int[np.ndarray, "n_triangles 3"]) -> dict[str, np.ndarray]:
    return {axis: triangles[:, i] for i, axis in enumerate("ijk")}


@cache
def _build_sphere() -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "n_triangles 3"]]:
    """Points of a unit sphere, and the triangles of its hull, seen counterclockwise from outside."""
    polar, sampling = np.meshgrid(np.linspace(0, np.pi, 11)[1:-1], np.linspace(0, 2 * np.pi, 18, endpoint=False))
    ring = np.stack([np.sin(polar) * np.cos(sampling), np.sin(polar) * np.sin(sampling), np.cos(polar)], axis=-1)
    points = np.concatenate([[[0.0, 0.0, -1.0]], ring.reshape(-1, 3), [[0.0, 0.0, 1.0]]])
    triangles = ConvexHull(points).simplices
    inward = np.linalg.det(points[triangles]) < 0
    triangles[inward] = triangles[inward, ::-1]
    return points, triangles


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
    return go.Scatter3d(PLATEAU, **plateau_arrays(landscape.run_set, landscape.projection, scale, plateaus))


def plateau_arrays(
    run_set: RunSet, projection: Projection, scale: Scale, plateaus: Sequence[Plateau]
) -> dict[str, np.ndarray]:
    """The points of the first run between the ends of each plateau; a gap of nan between two."""
    rows = run_set.rows[0]
    step, loss = run_set.step[rows], scale.lift(run_set.loss[rows], LINE_LIFT / 2)
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
    rows = landscape.run_set.rows[run]
    row = rows.start + int(np.searchsorted(landscape.run_set.step[rows], step))
    return np.append(landscape.path[row], scale.lift(landscape.path_loss[row : row + 1], LINE_LIFT))
