"""Where to put the ink: scales, colours and the traces from which figures are made."""

from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale, unlabel_rgb
from scipy.spatial import ConvexHull

from .diagnostics import fidelity
from .landscapes import Landscape, Surface
from .projection import Projection
from .scales import BALL_RADIUS, LINE_LIFT, Scale
from .trajectory import Run

COLORSCALE = "Viridis"
PATH_COLOR = "#e8112d"
BALL_COLOR = "#ff8c1a"
INK = "#22303c"
GRID = "#dfe5ea"
FONT = {"family": "Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif", "size": 13, "color": INK}

# How far towards white the surface is painted where no step of the run is near it, and the root of `support` that
# sets how soon: 16 makes the colour fade over four times the width that `support` has.
PALEST = 0.65
FADE_ROOT = 16

BOX = {"x": 1.15, "y": 1.15, "z": 0.75}
LIGHT = {"ambient": 0.8, "diffuse": 0.45, "specular": 0.08, "roughness": 0.9, "fresnel": 0.05}

SMALL = "<span style='font-size:12px'>{}</span>"
SURFACE_HOVER = "PC1 %{x:.3g}, PC2 %{y:.3g}<br>surface %{z:.4g}<extra></extra>"
PATH_HOVER = (
    "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<br>surface %{customdata[2]:.4g}"
    "<br>PC1 %{x:.3g}, PC2 %{y:.3g}, off the plane by %{customdata[3]:.3g}<extra></extra>"
)


SURFACE = {"name": "surface", "lighting": LIGHT, "hovertemplate": SURFACE_HOVER}
PATH = {"name": "trajectory", "mode": "lines", "line": {"color": PATH_COLOR, "width": 7}, "hovertemplate": PATH_HOVER}
STEM = {"name": "error", "mode": "lines", "line": {"color": INK, "width": 4}, "hoverinfo": "skip"}
BALL = {
    "name": "ball",
    "color": BALL_COLOR,
    "lighting": {"ambient": 0.65, "diffuse": 0.6, "specular": 0.3, "roughness": 0.4},
}


def find_row(run: Run, step: int | None) -> int:
    """The recorded row closest to a training step; the last one for None.

    Raises:
        ValueError: the step lies outside the run.
    """
    if step is None:
        return len(run) - 1
    first, last = int(run.step[0]), int(run.step[-1])
    if not first <= step <= last:
        raise ValueError(f"`step` must lie within the run, from {first} to {last}; got {step}. None is the last one.")
    return int(np.abs(run.step - step).argmin())


def surface_trace(landscape: Landscape, scale: Scale) -> go.Mesh3d:
    """The surface, coloured by loss and paler where it extrapolates.

    A mesh, because `go.Surface` has one colour value a vertex and cannot fade by a second one.
    """
    arrays = surface_arrays(landscape, scale)
    rgba = arrays.pop("rgba") / 255
    on_white = np.rint(255 * (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])).astype(int)
    return go.Mesh3d(SURFACE, **arrays, vertexcolor=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in on_white.tolist()])


def surface_arrays(surface: Surface | Landscape, scale: Scale) -> dict[str, np.ndarray]:
    """Vertices, triangles and colours of the mesh.

    The fourth colour value tells how much of the colour is left over the paper, from 255 on the path to pale far
    from it. Cells with a corner whose loss is not finite are left open.
    """
    x, y = np.meshgrid(surface.x, surface.y)
    triangles = _triangulate(*surface.loss.shape)
    triangles = triangles[np.isfinite(surface.loss.ravel()[triangles]).all(axis=1)]
    rgb = _lookup_colors()[np.rint(255 * scale.fraction(surface.loss)).astype(int)]
    rgba = np.concatenate([rgb, 255 * (1 - paleness(surface)[..., None])], axis=-1)
    rgba = np.rint(rgba).astype(np.uint8).reshape(-1, 4)
    return {"x": x.ravel(), "y": y.ravel(), "z": surface.loss.ravel(), **_corners(triangles), "rgba": rgba}


def path_trace(landscape: Landscape, scale: Scale) -> go.Scatter3d:
    """The run at its true losses, raised by `LINE_LIFT` of the axis; the hover shows the true ones."""
    return go.Scatter3d(PATH, **path_arrays(landscape.run, landscape.projection, landscape.path_height, scale))


def path_arrays(
    run: Run, projection: Projection, height: Float[np.ndarray, " n_steps"], scale: Scale
) -> dict[str, np.ndarray]:
    """The line of the run over the plane, and what its hover tells."""
    details = np.column_stack([run.step, run.loss, height, projection.off_plane])
    x, y = projection.path.T
    return {"x": x, "y": y, "z": scale.lift(run.loss, LINE_LIFT), "customdata": details}


def ball_traces(landscape: Landscape, scale: Scale, row: int) -> list[go.Scatter3d | go.Mesh3d]:
    """The stem from the true loss at `row` to the surface, and the ball that rests on the true loss."""
    x, y = landscape.path[row]
    true, height = landscape.path_loss[row], landscape.path_height[row]
    hover = (
        f"step {landscape.run.step[row]}<br>true loss {true:.4g}<br>surface {height:.4g}"
        f"<br>PC1 {x:.3g}, PC2 {y:.3g}, off the plane by {landscape.off_plane[row]:.3g}<extra></extra>"
    )
    extent = np.array([np.ptp(landscape.x), np.ptp(landscape.y)])
    return [
        go.Scatter3d(STEM, **stem_arrays(landscape.path[row], true, height)),
        go.Mesh3d(BALL, **ball_arrays(landscape.path[row], true, extent, scale), hovertemplate=hover),
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
    return go.Scatter3d(name="loss", x=[None], y=[None], z=[None], mode="markers", marker=marker, hoverinfo="skip")


def paleness(surface: Surface | Landscape) -> Float[np.ndarray, "n_y n_x"]:
    """How far each point is painted towards the paper, from 0 on the path to `PALEST` far from it."""
    return PALEST * (1 - surface.support ** (1 / FADE_ROOT))


def camera(landscape: Surface | Landscape, scale: Scale, *, distance: float) -> dict[str, Any]:
    """The corner of the box from which the surface rises away from the eye, so that its walls hide nothing."""
    heights = scale.fraction(landscape.loss)
    along_x = (heights * np.linspace(-1, 1, len(landscape.x))).sum()
    along_y = (heights * np.linspace(-1, 1, len(landscape.y))[:, None]).sum()
    eye = {"x": -1.2 if along_x > 0 else 1.2, "y": -1.35 if along_y > 0 else 1.35, "z": 0.95}
    eye = {axis: distance * place for axis, place in eye.items()}
    return {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.12}}


def caption(landscape: Landscape) -> str:
    """Two lines: what is drawn, and how far it is from the run."""
    fit = fidelity(landscape)
    median, p90, start = map(write_factor, (fit.median, fit.p90, fit.start))
    headline = name_surface(landscape.run, plane=landscape.plane, k=landscape.k, sigma=landscape.sigma)
    return f"{headline}<br>{SMALL.format(f'error under the path: median {median}, p90 {p90}, start {start}')}"


def name_surface(run: Run, *, plane: str, k: int, sigma: float | str) -> str:
    """One line: the target, the planes and the settings that matter for them."""
    settings = {"local": f", k = {k}, σ = {sigma}", "parallel": f", σ = {sigma}"}
    target = f"{run.task.name}, " if run.task else ""
    return f"<b>{target}{plane} {'planes' if plane in settings else 'plane'}</b>{settings.get(plane, '')}"


def write_factor(factor: float) -> str:
    """A factor of fidelity in three digits."""
    return f"×{factor:.2f}" if factor < 10 else f"×{factor:.3g}"


def pc_title(plane: Landscape | Projection, axis: int) -> str:
    """Name of a picture axis with its share of the variance."""
    return f"PC{axis + 1} ({plane.explained_variance_ratio[axis]:.1%})"


def layout(height: int) -> dict[str, Any]:
    """What all figures share: paper, letters, and no button that sends data anywhere."""
    return {
        "height": height,
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "modebar": {"remove": ["sendChartToCloud"]},
        "hoverlabel": {"font": {"family": FONT["family"]}},
    }


def pick_colors(n: int) -> list[str]:
    """Colours for `n` curves, told apart in greys too."""
    return [PATH_COLOR] if n == 1 else sample_colorscale(COLORSCALE, np.linspace(0, 0.85, n).tolist())


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
    polar, around = np.meshgrid(np.linspace(0, np.pi, 11)[1:-1], np.linspace(0, 2 * np.pi, 18, endpoint=False))
    ring = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    points = np.concatenate([[[0.0, 0.0, -1.0]], ring.reshape(-1, 3), [[0.0, 0.0, 1.0]]])
    triangles = ConvexHull(points).simplices
    inward = np.linalg.det(points[triangles]) < 0
    triangles[inward] = triangles[inward, ::-1]
    return points, triangles
