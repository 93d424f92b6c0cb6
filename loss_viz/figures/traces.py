"""Plotly traces of the surface, the trajectories, the balls, plateaus and folds, and the arrays behind them.

The `*_arrays` functions take one run set, projection and surface, so that the panel can also draw what it has before a
landscape is complete; the `*_traces` functions wrap them for the figures of a landscape.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int, UInt8
from plotly.colors import sample_colorscale, unlabel_rgb
from scipy.spatial import ConvexHull, Delaunay

from loss_viz.diagnostics.folds import Fold
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.diagnostics.report import assess
from loss_viz.figures.level_lines import level_arrays
from loss_viz.figures.loss_axis import BALL_RADIUS, CASING_LIFT, LINE_LIFT, Scale
from loss_viz.figures.style import (
    BALL,
    BOX,
    BURIED,
    COLORSCALE,
    DARK,
    FADE_ROOT,
    FOLD,
    LEVEL_NOTE,
    LEVELS,
    LUMINANCE,
    MAX_FADE,
    PLATEAU,
    STEM,
    SURFACE,
    TEXT_COLOR,
    pick_ball_colors,
    pick_colors,
    style_casing,
    style_path,
)
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.landscapes.mesh import triangulate
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import RunSet

SHADOW_SIZE, SHADOW_DEPTH = 1.8, 0.6  # radius, to that of the ball; how dark it is in the middle
EMPTY: dict[str, list] = {"x": [None], "y": [None], "z": [None]}


def landscape_traces(
    landscape: Landscape, scale: Scale, step: int | None, mesh: Mapping[str, np.ndarray]
) -> list[go.Mesh3d | go.Scatter3d]:
    """Return the traces of a landscape: surface, runs, plateaus of a single run, folds, keys of several runs.

    `mesh` is what `surface_arrays` returns for it.

    Raises:
        ValueError: if the step lies outside all runs.
    """
    run_set, report = landscape.run_set, assess(landscape)
    several = len(run_set.runs) > 1
    traces = [surface_trace(mesh), *run_traces(landscape, scale, step)]
    if not several and report.plateaus[0]:
        arrays = plateau_arrays(run_set, landscape.projection, scale, report.plateaus[0])
        traces.append(go.Scatter3d(PLATEAU, **arrays))
    if report.folds:
        traces.append(go.Scatter3d(FOLD, **fold_arrays(landscape, scale, report.folds)))
    buried = buried_arrays(run_set, landscape.projection, landscape, scale)
    if np.isfinite(buried["z"]).any():
        traces.append(go.Scatter3d(BURIED, **buried))
    names = run_set.names if several else ()
    return traces + [key_trace(name, color) for name, color in zip(names, pick_colors(len(names)), strict=True)]


def surface_trace(mesh: Mapping[str, np.ndarray]) -> go.Mesh3d:
    """Return the surface, colored by loss, paler where it extrapolates and open where its support is too low.

    `go.Surface` has one color value per vertex, so it could not fade by a second one; a mesh can.
    """
    arrays = dict(mesh)
    colors = np.rint(_on_white(arrays.pop("rgba"))).astype(int).tolist()
    return go.Mesh3d(SURFACE, **arrays, vertexcolor=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colors])


def _on_white(rgba: Float[np.ndarray, "n 4"] | UInt8[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3"]:
    return rgba[:, :3] * (rgba[:, 3:] / 255) + 255 - rgba[:, 3:].astype(float)


def is_on_dark(rgba: UInt8[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Return where lines on surfaces of these colors are to be white."""
    return _on_white(rgba) @ LUMINANCE < DARK


def name_levels(
    landscape: Landscape, scale: Scale, mesh: Mapping[str, np.ndarray], eye: Mapping[str, float]
) -> tuple[go.Scatter3d, list[dict[str, Any]]]:
    """Return the level lines of the surface, dark or white as the surface below is bright or dark, and their names.

    The names are annotations of the scene: the surface would cut into words of a trace.
    """
    arrays = level_arrays(landscape, mesh, scale, landscape.path, landscape.path_loss, eye)
    lines, names = arrays["levels"], arrays["level_names"]
    colors = np.where(is_on_dark(lines.pop("rgba")), "white", TEXT_COLOR).tolist()
    places = zip(names["x"], names["y"], scale.draw(names["z"]), names["text"], strict=True)
    notes = [LEVEL_NOTE | {"x": x, "y": y, "z": z, "text": text} for x, y, z, text in places]
    return go.Scatter3d(LEVELS, **lines).update(line={"color": colors}), notes


def surface_arrays(surface: Surface | Landscape, scale: Scale, min_support: float = 0.0) -> dict[str, np.ndarray]:
    """Return vertices, triangles and `rgba` colors of the mesh, with an opacity from 255 on the path to pale far away.

    Cells are left open if a corner has a loss that is not finite, or less than `min_support`.
    """
    x, y = np.meshgrid(surface.x, surface.y)
    triangles = triangulate(*surface.loss.shape)
    shown = np.isfinite(surface.loss) & (surface.support >= min_support)
    triangles = triangles[shown.ravel()[triangles].all(axis=1)]
    rgb = _lookup_colors()[np.rint(255 * scale.fraction(surface.loss)).astype(int)]
    rgba = np.concatenate([rgb, 255 * (1 - fade(surface)[..., None])], axis=-1)
    rgba = np.rint(rgba).astype(np.uint8).reshape(-1, 4)
    return {"x": x.ravel(), "y": y.ravel(), "z": surface.loss.ravel(), **_corners(triangles), "rgba": rgba}


def fade(surface: Surface | Landscape) -> Float[np.ndarray, "n_y n_x"]:
    """Return how far each point is blended with white, from 0 on the path to `MAX_FADE` far from it."""
    return MAX_FADE * (1 - surface.support ** (1 / FADE_ROOT))


def run_traces(landscape: Landscape, scale: Scale, step: int | None) -> list[go.Scatter3d | go.Mesh3d]:
    """Return trajectory, error and ball of each run, in one legend group, and then the casings of the trajectories.

    Raises:
        ValueError: if the step lies outside all runs.
    """
    run_set, n_runs = landscape.run_set, len(landscape.runs)
    colors = zip(pick_colors(n_runs), pick_ball_colors(n_runs), strict=True)
    balls, traces = run_set.nearest_rows(step), []
    for name, (color, ball_color), rows, row in zip(run_set.names, colors, run_set.rows, balls, strict=True):
        arrays = path_arrays(run_set, landscape.projection, landscape, scale, rows)
        shade = arrays.pop("line.color")
        path = go.Scatter3d(style_path(name, color), **arrays).update(line={"color": shade})
        for trace in (path, *ball_traces(landscape, scale, row, ball_color)):
            traces.append(trace.update(legendgroup=path.name, showlegend=False))
    for name, rows in zip(run_set.names, run_set.rows, strict=True):
        arrays = casing_arrays(run_set, landscape.projection, landscape, scale, rows)
        traces.append(go.Scatter3d(style_casing(name), **arrays))
    return traces


def path_arrays(
    run_set: RunSet, projection: Projection, landscape: Landscape | None, scale: Scale, rows: slice
) -> dict[str, np.ndarray]:
    """Return the line of one run, `LINE_LIFT` of the axis above its true losses, with hover values and shades."""
    details = path_details(run_set, projection, landscape)[rows]
    place = _lift_path(run_set, projection, landscape, scale, rows, LINE_LIFT)
    return place | {"customdata": details, "line.color": error_shade(details[:, 4])}


def casing_arrays(
    run_set: RunSet, projection: Projection, landscape: Landscape | None, scale: Scale, rows: slice
) -> dict[str, np.ndarray]:
    """Return the line below that of one run, `CASING_LIFT` of the axis above its true losses."""
    return _lift_path(run_set, projection, landscape, scale, rows, CASING_LIFT)


def _lift_path(
    run_set: RunSet, projection: Projection, landscape: Landscape | None, scale: Scale, rows: slice, share: float
) -> dict[str, np.ndarray]:
    """Return the points of one run a share of the axis above its true losses, nan outside the picture."""
    x, y = projection.path[rows].T
    z = scale.lift(run_set.loss[rows], share)
    if landscape:
        z = np.where(is_inside(landscape, projection.path[rows]), z, np.nan)
    return {"x": x, "y": y, "z": z}


def buried_arrays(run_set: RunSet, projection: Projection, landscape: Landscape, scale: Scale) -> dict[str, np.ndarray]:
    """Return lines on the surface above the parts of the runs that it hides, with a row of nan after each run."""
    height = landscape.path_height
    with np.errstate(invalid="ignore"):
        above = scale.draw(height) - scale.draw(run_set.loss) > LINE_LIFT * (scale.high - scale.low)
    z = np.where(above & is_inside(landscape, projection.path), scale.lift(height, LINE_LIFT), np.nan)
    ends = [rows.stop for rows in run_set.rows]
    x, y, z = (np.insert(values, ends, np.nan) for values in (*projection.path.T, z))
    return {"x": x, "y": y, "z": z}


def is_inside(landscape: Landscape, points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Return which points lie within the picture, which may show only a part of the runs."""
    x, y = points.T
    inside = (landscape.x[0] <= x) & (x <= landscape.x[-1])
    return inside & (landscape.y[0] <= y) & (y <= landscape.y[-1])


def error_shade(factor: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return how gray a trajectory is: 0 where the surface is exact, 1 where it is off by a factor of 2 or more."""
    return np.nan_to_num(np.log2(factor), posinf=1.0).clip(0, 1)


def path_details(
    run_set: RunSet, projection: Projection, landscape: Landscape | None
) -> Float[np.ndarray, "n_steps 5"]:
    """Return step, true loss, surface, distance off the plane and factor: the hover values of a trajectory.

    Surface and factor are nan without a landscape.
    """
    height = factor = np.full(len(run_set), np.nan)
    if landscape:
        height, factor = landscape.path_height, assess(landscape).fidelity.factor
    return np.column_stack([run_set.step, run_set.loss, height, projection.off_plane, factor])


def ball_traces(landscape: Landscape, scale: Scale, row: int, color: str) -> list[go.Scatter3d | go.Mesh3d]:
    """Return the stem from the true loss at `row` to the surface, and the ball that rests on the true loss."""
    point, true, height = landscape.path[row], landscape.path_loss[row], landscape.path_height[row]
    hover = (
        f"step {landscape.run_set.step[row]}<br>true loss {true:.4g}<br>surface {height:.4g}"
        f", off by ×{assess(landscape).fidelity.factor[row]:.3g}"
        f"<br>at ({point[0]:.3g}, {point[1]:.3g}), off the plane by {landscape.off_plane[row]:.3g}<extra></extra>"
    )
    extent = np.array([np.ptp(landscape.x), np.ptp(landscape.y)])
    if not is_inside(landscape, point[None])[0]:
        true = height = np.nan
    return [
        go.Scatter3d(STEM, **stem_arrays(point, true, height)),
        go.Mesh3d(BALL | {"color": color}, **ball_arrays(point, true, extent, scale), hovertemplate=hover),
    ]


def stem_arrays(point: Float[np.ndarray, " 2"], true: float, height: float) -> dict[str, np.ndarray]:
    """Return the line from the true loss to the surface over a point: the error of the picture."""
    return {"x": point[[0, 0]], "y": point[[1, 1]], "z": np.array([true, height])}


def ball_arrays(
    point: Float[np.ndarray, " 2"],
    true: float,
    extent: Float[np.ndarray, " 2"],
    scale: Scale,
    radius: float = BALL_RADIUS,
) -> dict[str, np.ndarray]:
    """Return a sphere that rests on the true loss at a point of a picture of width and depth `extent`.

    `radius` is a share of the loss axis.
    """
    sphere, triangles = _build_sphere()
    x, y = (point + radius * BOX["z"] * extent / [BOX["x"], BOX["y"]] * sphere[:, :2]).T
    z = scale.lift(np.full(len(sphere), true), radius * (1 + sphere[:, 2]))
    return {"x": x, "y": y, "z": z, **_corners(triangles)}


def shadow_arrays(extent: Float[np.ndarray, " 2"], radius: float = BALL_RADIUS) -> dict[str, np.ndarray]:
    """Return the shadow of a ball at (0, 0), which is to be laid on the surface: a disc that is darkest in the middle.

    Args:
        extent: width and depth of the picture.
        radius: that of the ball, as a share of the loss axis.
    """
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    share = np.linspace(0, 1, 6)[1:]
    disc = np.multiply.outer(share, np.column_stack([np.cos(angle), np.sin(angle)])).reshape(-1, 2)
    disc = np.vstack([np.zeros((1, 2)), disc])
    x, y = (SHADOW_SIZE * radius * BOX["z"] * extent / [BOX["x"], BOX["y"]] * disc).T
    dark = SHADOW_DEPTH * (1 - (disc**2).sum(axis=1)).clip(0) ** 2
    return {"x": x, "y": y, "dark": dark, **_corners(Delaunay(disc).simplices)}


def plateau_arrays(
    run_set: RunSet, projection: Projection, scale: Scale, plateaus: Sequence[Plateau]
) -> dict[str, np.ndarray]:
    """Return the steps of the first run on each plateau, with a row of nan after each."""
    rows = run_set.rows[0]
    step, loss = run_set.step[rows], scale.lift(run_set.loss[rows], LINE_LIFT / 2)
    points = [np.empty((0, 3))]
    for plateau in plateaus:
        on = (step >= plateau.start) & (step <= plateau.end)
        points += [np.column_stack([projection.path[rows][on], loss[on]]), np.full((1, 3), np.nan)]
    x, y, z = np.concatenate(points).T
    return {"x": x, "y": y, "z": z}


def fold_arrays(landscape: Landscape, scale: Scale, folds: Sequence[Fold]) -> dict[str, Any]:
    """Return a vertical line between the two losses of each fold, and its hover text."""
    points, text = [np.empty((0, 3))], []
    for fold in folds:
        here = _find_point(landscape, scale, fold.run, fold.step)
        there = _find_point(landscape, scale, fold.other_run, fold.other_step)
        points += [np.stack([here, [here[0], here[1], there[2]], [np.nan] * 3])]
        text += [f"fold: steps {fold.step} and {fold.other_step} differ by ×{fold.factor:.3g}"] * 3
    x, y, z = np.concatenate(points).T
    return {"x": x, "y": y, "z": z, "text": text}


def _find_point(landscape: Landscape, scale: Scale, run: int, step: int) -> Float[np.ndarray, " 3"]:
    row = landscape.run_set.rows[run].start + landscape.runs[run].nearest_row(step)
    return np.append(landscape.path[row], scale.lift(landscape.path_loss[row : row + 1], LINE_LIFT))


def key_trace(name: str, color: str) -> go.Scatter3d:
    """Return the line of a run in the legend; the key of a line whose color varies would be black."""
    name = name or "trajectory"
    line = {"color": color, "width": 7}
    return go.Scatter3d(EMPTY, name=name, mode="lines", line=line, legendgroup=name, hoverinfo="skip", showlegend=True)


@cache
def _lookup_colors() -> Float[np.ndarray, "256 3"]:
    return np.array([unlabel_rgb(color) for color in sample_colorscale(COLORSCALE, np.linspace(0, 1, 256).tolist())])


def _corners(triangles: Int[np.ndarray, "n_triangles 3"]) -> dict[str, np.ndarray]:
    return dict(zip("ijk", triangles.T, strict=True))


@cache
def _build_sphere() -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "n_triangles 3"]]:
    """Return points on a unit sphere and the triangles of its hull, counterclockwise as seen from outside."""
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, 11)[1:-1], np.linspace(0, 2 * np.pi, 18, endpoint=False))
    ring = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1)
    points = np.concatenate([[[0.0, 0.0, -1.0]], ring.reshape(-1, 3), [[0.0, 0.0, 1.0]]])
    triangles = ConvexHull(points).simplices
    inward = np.linalg.det(points[triangles]) < 0
    triangles[inward] = triangles[inward, ::-1]
    return points, triangles
