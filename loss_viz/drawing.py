"""Where to put the ink: scales, colours and the traces from which figures are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale, unlabel_rgb

from .diagnostics import fidelity
from .landscapes import Landscape
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

# In shares of the loss axis: the line lies on the surface instead of half inside it, the ball rests on its point.
LINE_LIFT = 0.006
BALL_RADIUS = 0.03
BOX = {"x": 1.15, "y": 1.15, "z": 0.75}
LIGHT = {"ambient": 0.8, "diffuse": 0.45, "specular": 0.08, "roughness": 0.9, "fresnel": 0.05}

PATH_HOVER = (
    "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<br>surface %{customdata[2]:.4g}"
    "<br>PC1 %{x:.3g}, PC2 %{y:.3g}, off the plane by %{customdata[3]:.3g}<extra></extra>"
)


@dataclass(frozen=True)
class Scale:
    """The loss axis: its ends in drawn units, which are log10 of the loss where it is logarithmic."""

    low: float
    high: float
    log: bool

    def draw(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Drawn units of a loss."""
        return np.log10(loss) if self.log else loss

    def lift(
        self, loss: Float[np.ndarray, "*shape"], share: float | Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        """The loss that stands higher on the axis by a share of its length."""
        drawn = self.draw(loss) + share * (self.high - self.low)
        return 10**drawn if self.log else drawn

    def fraction(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Position on the axis for colours and camera, from 0 to 1; a loss that is not finite stands at its end."""
        return np.nan_to_num((self.draw(loss) - self.low) / (self.high - self.low)).clip(0, 1)

    def axis(self) -> dict[str, Any]:
        """Plotly's words for the axis, with room for the ball."""
        room = BALL_RADIUS * (self.high - self.low)
        axis = {"title": {"text": "loss"}, "range": [self.low - room, self.high + 2 * room]}
        return axis | (log_axis(self.high - self.low) if self.log else {})

    def colorbar(self) -> dict[str, Any]:
        """Plotly's words for the colour bar, ticked in losses."""
        bar = {"title": {"text": "loss"}, "thickness": 12, "len": 0.7, "outlinewidth": 0}
        if not self.log:
            return bar
        every = log_axis(self.high - self.low).get("dtick", 1)
        ticks = np.arange(np.ceil(self.low), np.floor(self.high) + 1, every).tolist()
        if len(ticks) > 1:
            return bar | {"tickvals": ticks, "ticktext": [f"10<sup>{tick:.0f}</sup>" for tick in ticks]}
        ticks = np.linspace(self.low, self.high, 5).tolist()
        return bar | {"tickvals": ticks, "ticktext": [f"{10**tick:.2g}" for tick in ticks]}


def log_axis(decades: float) -> dict[str, Any]:
    """Plotly's words for a logarithmic axis: ticks at powers of ten, at most about eight, where there are two."""
    axis: dict[str, Any] = {"type": "log", "exponentformat": "power"}
    return axis | ({"dtick": int(np.ceil(decades / 8))} if decades >= 2 else {})


def fit_scale(landscapes: Sequence[Landscape], *, log: bool) -> Scale:
    """The loss axis on which all of `landscapes` and their runs fit; losses that are not finite are left out."""
    losses = np.concatenate([np.append(land.loss.ravel(), land.path_loss) for land in landscapes])
    losses = losses[np.isfinite(losses)]
    if log:
        require_positive(losses.min())
    low, high = (float(np.log10(end) if log else end) for end in (losses.min(), losses.max()))
    return Scale(low, high if high > low else low + 1.0, log)


def require_positive(loss: float) -> None:
    """Refuse a logarithmic axis for a loss that has no logarithm.

    Raises:
        ValueError: the loss is zero or below.
    """
    if loss <= 0:
        raise ValueError(
            f"A logarithmic axis needs losses above 0, the smallest is {loss:.4g}. Pass log=False for a linear one."
        )


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

    A mesh, because `go.Surface` has one colour value a vertex and cannot fade by a second one. Cells with a corner
    whose loss is not finite are left open.
    """
    x, y = np.meshgrid(landscape.x, landscape.y)
    triangles = _triangulate(*landscape.loss.shape)
    triangles = triangles[np.isfinite(landscape.loss.ravel()[triangles]).all(axis=1)]
    rgb = _lookup_colors()[np.rint(255 * scale.fraction(landscape.loss)).astype(int)]
    pale = paleness(landscape)[..., None]
    rgb = np.rint(rgb * (1 - pale) + 255 * pale).astype(int).reshape(-1, 3)
    return go.Mesh3d(
        name="surface",
        x=x.ravel(),
        y=y.ravel(),
        z=landscape.loss.ravel(),
        i=triangles[:, 0],
        j=triangles[:, 1],
        k=triangles[:, 2],
        vertexcolor=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb.tolist()],
        lighting=LIGHT,
        hovertemplate="PC1 %{x:.3g}, PC2 %{y:.3g}<br>surface %{z:.4g}<extra></extra>",
    )


def path_trace(landscape: Landscape, scale: Scale) -> go.Scatter3d:
    """The run at its true losses, raised by `LINE_LIFT` of the axis; the hover shows the true ones."""
    return go.Scatter3d(
        name="trajectory",
        x=landscape.path[:, 0],
        y=landscape.path[:, 1],
        z=scale.lift(landscape.path_loss, LINE_LIFT),
        mode="lines",
        line={"color": PATH_COLOR, "width": 7},
        customdata=path_details(landscape),
        hovertemplate=PATH_HOVER,
    )


def ball_traces(landscape: Landscape, scale: Scale, row: int) -> list[go.Scatter3d | go.Mesh3d]:
    """The stem from the true loss at `row` to the surface, and the ball that rests on the true loss."""
    x, y = landscape.path[row]
    true, height = landscape.path_loss[row], landscape.path_height[row]
    sphere = _build_sphere()
    stem = go.Scatter3d(
        name="error",
        x=[x, x],
        y=[y, y],
        z=[true, height],
        mode="lines",
        line={"color": INK, "width": 4},
        hoverinfo="skip",
    )
    ball = go.Mesh3d(
        name="ball",
        x=x + BALL_RADIUS * BOX["z"] / BOX["x"] * np.ptp(landscape.x) * sphere[:, 0],
        y=y + BALL_RADIUS * BOX["z"] / BOX["y"] * np.ptp(landscape.y) * sphere[:, 1],
        z=scale.lift(np.full(len(sphere), true), BALL_RADIUS * (1 + sphere[:, 2])),
        alphahull=0,
        color=BALL_COLOR,
        lighting={"ambient": 0.65, "diffuse": 0.6, "specular": 0.3, "roughness": 0.4},
        hovertemplate=f"step {landscape.run.step[row]}<br>true loss {true:.4g}<br>surface {height:.4g}"
        f"<br>PC1 {x:.3g}, PC2 {y:.3g}, off the plane by {landscape.off_plane[row]:.3g}<extra></extra>",
    )
    return [stem, ball]


def colorbar_trace(scale: Scale) -> go.Scatter3d:
    """A trace without points that carries the colour bar, which a mesh of painted vertices cannot."""
    marker = {"color": [scale.low], "cmin": scale.low, "cmax": scale.high, "colorscale": COLORSCALE}
    marker |= {"showscale": True, "colorbar": scale.colorbar()}
    return go.Scatter3d(name="loss", x=[None], y=[None], z=[None], mode="markers", marker=marker, hoverinfo="skip")


def path_details(landscape: Landscape) -> Float[np.ndarray, "n_steps 4"]:
    """Step, true loss, height of the surface and distance off the plane, for the hover."""
    return np.column_stack([landscape.run.step, landscape.path_loss, landscape.path_height, landscape.off_plane])


def paleness(landscape: Landscape) -> Float[np.ndarray, "n_y n_x"]:
    """How far each point is painted towards white, from 0 on the path to `PALEST` far from it."""
    return PALEST * (1 - landscape.support ** (1 / FADE_ROOT))


def camera(landscape: Landscape, scale: Scale, *, distance: float) -> dict[str, Any]:
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
    settings = {"local": f", k = {landscape.k}, σ = {landscape.sigma}", "parallel": f", σ = {landscape.sigma}"}
    target = f"{landscape.run.task.name}, " if landscape.run.task else ""
    planes = "planes" if landscape.plane in settings else "plane"
    median, p90, start = (
        f"×{factor:.2f}" if factor < 10 else f"×{factor:.3g}" for factor in (fit.median, fit.p90, fit.start)
    )
    return (
        f"<b>{target}{landscape.plane} {planes}</b>{settings.get(landscape.plane, '')}<br>"
        f"<span style='font-size:12px'>error under the path: median {median}, p90 {p90}, start {start}</span>"
    )


def pc_title(landscape: Landscape, axis: int) -> str:
    """Name of a picture axis with its share of the variance."""
    return f"PC{axis + 1} ({landscape.explained_variance_ratio[axis]:.1%})"


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


@cache
def _build_sphere() -> Float[np.ndarray, "n 3"]:
    """Points of a unit sphere, poles first and last."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 11)[1:-1], np.linspace(0, 2 * np.pi, 18, endpoint=False))
    ring = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    return np.concatenate([[[0.0, 0.0, -1.0]], ring.reshape(-1, 3), [[0.0, 0.0, 1.0]]])
