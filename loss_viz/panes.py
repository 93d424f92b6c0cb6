"""The panel's three views as empty figures, and the parts that fill them: `Picture` takes both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from .diagnostics import fidelity
from .drawing import (
    BALL,
    BOX,
    FONT,
    INK,
    PATH,
    PATH_COLOR,
    SMALL,
    STEM,
    SURFACE,
    ball_arrays,
    camera,
    caption,
    name_surface,
    path_arrays,
    pc_title,
    stem_arrays,
    surface_arrays,
    write_factor,
)
from .figures import BALL_MARKER, PLAIN_AXIS
from .landscapes import Landscape, Surface
from .plateaus import Plateau
from .projection import Projection
from .scales import Scale, log_axis
from .surveys import Survey
from .trajectory import Run

Parts = dict[str, dict[str, Any]]

CLEAR = "rgba(0,0,0,0)"
PAPER = {
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "font": FONT | {"size": 12},
    "hovermode": "closest",
    "modebar": {"bgcolor": CLEAR, "remove": ["lasso2d", "select2d", "autoScale2d", "resetCameraLastSave3d"]},
}
LEGEND = {"orientation": "h", "x": 0.01, "y": 0.01, "font": {"size": 11}, "bgcolor": CLEAR, "itemdoubleclick": False}
SMALL_AXIS = {"zeroline": False, "tickfont": {"size": 10}, "title": {"font": {"size": 11}, "standoff": 6}}
BALL_HOVER = "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<extra></extra>"


def surface_pane() -> go.Figure:
    """Surface, trajectory, error and ball, without a point yet."""
    nothing: dict[str, list] = {"x": [], "y": [], "z": []}
    figure = go.Figure(
        [
            go.Mesh3d(SURFACE, **nothing, showlegend=True),
            go.Scatter3d(PATH, **nothing),
            go.Scatter3d(STEM, **nothing, meta="ink"),
            go.Mesh3d(BALL, **nothing, hovertemplate=BALL_HOVER, showlegend=True),
        ]
    )
    figure.update_scenes(
        xaxis=PLAIN_AXIS, yaxis=PLAIN_AXIS, zaxis=PLAIN_AXIS, aspectmode="manual", aspectratio=BOX, uirevision="keep"
    )
    figure.update_scenes(zaxis={"title": {"text": "loss"}, "exponentformat": "power"})
    title = {"x": 0.5, "font": {"size": 13}}
    return figure.update_layout(PAPER, title=title, legend=LEGEND, margin={"l": 0, "r": 0, "t": 44, "b": 0})


def curve_pane() -> go.Figure:
    """The loss against the step, its plateaus and the ball's place on it."""
    step_hover = "step %{x}<br>loss %{y:.4g}<extra></extra>"
    figure = go.Figure(
        [
            go.Scatter(
                name="loss", x=[], y=[], mode="lines", line={"width": 2, "color": PATH_COLOR}, hovertemplate=step_hover
            ),
            go.Scatter(
                name="plateau",
                x=[],
                y=[],
                mode="lines",
                meta="ink",
                line={"width": 1.5, "dash": "dot", "color": INK},
                hoverinfo="skip",
            ),
            go.Scatter(name="step", x=[], y=[], mode="markers", marker=BALL_MARKER, hoverinfo="skip"),
        ]
    )
    return _lay_small(figure, "training loss", "step").update_layout(hovermode="x").update_yaxes(exponentformat="power")


def fit_pane() -> go.Figure:
    """The function to be learned, and the network's answer."""
    figure = go.Figure(
        [
            go.Scatter(
                name="target", x=[], y=[], mode="lines", meta="ink", line={"width": 2, "dash": "dash", "color": INK}
            ),
            go.Scatter(name="network", x=[], y=[], mode="lines", line={"width": 2.5, "color": PATH_COLOR}),
        ]
    )
    legend = LEGEND | {"y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"}
    return _lay_small(figure, "the network", "x").update_layout(showlegend=True, legend=legend)


def _lay_small(figure: go.Figure, title: str, x_title: str) -> go.Figure:
    figure.update_layout(
        PAPER,
        title={"text": f"<b>{title}</b>", "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 12}},
        showlegend=False,
        margin={"l": 48, "r": 8, "t": 28, "b": 34},
        xaxis=SMALL_AXIS,
        yaxis=SMALL_AXIS,
    )
    return figure.update_xaxes(title_text=x_title)


def surface_parts(surface: Surface, projection: Projection, scale: Scale) -> Parts:
    """The mesh, and the axes around it."""
    axis = scale.axis() | {"type": "log" if scale.log else "linear"}
    return {
        "surface_surface": surface_arrays(surface, scale),
        "surface_layout": {
            "scene.xaxis.range": [float(surface.x[0]), float(surface.x[-1])],
            "scene.yaxis.range": [float(surface.y[0]), float(surface.y[-1])],
            "scene.zaxis.range": axis["range"],
            "scene.zaxis.type": axis["type"],
            "scene.zaxis.dtick": axis.get("dtick"),
            "scene.xaxis.title.text": pc_title(projection, 0),
            "scene.yaxis.title.text": pc_title(projection, 1),
        },
    }


def camera_parts(surface: Surface, scale: Scale) -> Parts:
    """The first place of the camera; it is the user's from then on."""
    return {"surface_layout": {"scene.camera": camera(surface, scale, distance=1.22)}}


def path_parts(run: Run, projection: Projection, height: Float[np.ndarray, " n_steps"], scale: Scale) -> Parts:
    """The trajectory; heights of the surface that are not known yet are nan."""
    return {"surface_trajectory": path_arrays(run, projection, height, scale)}


def ball_parts(
    run: Run, projection: Projection, surface: Surface, height: Float[np.ndarray, " n_steps"], scale: Scale, row: int
) -> Parts:
    """The ball on its stem."""
    point, true = projection.path[row], float(run.loss[row])
    ball = ball_arrays(point, true, np.array([np.ptp(surface.x), np.ptp(surface.y)]), scale)
    ball["customdata"] = np.tile([float(run.step[row]), true], (len(ball["x"]), 1))
    return {
        "surface_error": stem_arrays(point, true, float(height[row])),
        "surface_ball": ball,
    }


def title_parts(around: Survey, sigma: float | str, landscape: Landscape | None) -> Parts:
    """What is drawn, and how far it is from the run once that is known."""
    name = name_surface(around.run, plane=around.plane, k=around.k, sigma=sigma)
    return {"surface_layout": {"title.text": caption(landscape) if landscape else f"{name}<br>{SMALL.format('…')}"}}


def curve_parts(
    step: Int[np.ndarray, " n"], loss: Float[np.ndarray, " n"], plateaus: Sequence[Plateau], n_steps: int | None
) -> Parts:
    """The loss so far; `n_steps` holds the axis while a run still grows."""
    level = np.array([[plateau.level, plateau.level, np.nan] for plateau in plateaus])
    ends = np.array([[plateau.start, plateau.end, np.nan] for plateau in plateaus])
    axis: dict[str, Any] = {"yaxis.type": "linear", "yaxis.dtick": None, "yaxis.autorange": True}
    if len(loss) and loss.min() > 0:
        ticks = log_axis(np.log10(loss.max() / loss.min()))
        axis |= {"yaxis.type": "log", "yaxis.dtick": ticks.get("dtick")}
    axis |= {"xaxis.autorange": True} if n_steps is None else {"xaxis.range": [0, n_steps]}
    return {
        "curve_loss": {"x": step, "y": loss},
        "curve_plateau": {"x": ends.ravel(), "y": level.ravel()},
        "curve_layout": axis,
    }


def fit_parts(x: np.ndarray, target: np.ndarray, answer: np.ndarray, step: int) -> Parts:
    """The target and the network's answer at a step."""
    return {
        "fit_target": {"x": x, "y": target},
        "fit_network": {"x": x, "y": answer},
        "fit_layout": {"title.text": f"<b>the network at step {step}</b>"},
    }


def write_figures(
    run: Run, projection: Projection, plateaus: Sequence[Plateau], row: int, land: Landscape | None
) -> str:
    """The line of figures under the title of the panel, as HTML; those of the surface wait for it."""
    step, loss = int(run.step[row]), run.loss[row]
    here = next((plateau for plateau in plateaus if plateau.start <= step <= plateau.end), None)
    longest = here or max(plateaus, key=lambda plateau: plateau.end - plateau.start, default=None)
    level = f"{longest.level:.3g}" if longest else "none"
    where = "" if longest is None else "now" if here else f"{longest.start} – {longest.end}"
    off = projection.off_plane[row] / projection.diagonal
    fit = fidelity(land) if land else None
    entries = {
        f"loss at step {step}": (f"{loss:.3g}", ""),
        "plateau": (level, where),
        "error here": (write_factor(fit.factor[row]) if fit else "…", ""),
        "error, median": (write_factor(fit.median) if fit else "…", f"p90 {write_factor(fit.p90)}" if fit else ""),
        "off the plane": (f"{off:.1%}", ""),
        "variance": (f"{projection.explained_variance_ratio.sum():.1%}", ""),
    }
    tiles = (
        f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, (value, more) in entries.items()
    )
    return f"<dl>{''.join(tiles)}</dl>"
