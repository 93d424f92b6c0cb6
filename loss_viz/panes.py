"""The panel's three views as empty figures, and the parts that fill them: `Picture` takes both."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from .bundle import Bundle
from .diagnostics import fidelity
from .drawing import (
    BALL,
    BOX,
    FONT,
    INK,
    SMALL,
    STEM,
    SURFACE,
    ball_arrays,
    camera,
    caption,
    name_axis,
    name_loss,
    name_surface,
    path_arrays,
    pick_ball_colors,
    pick_colors,
    stem_arrays,
    style_path,
    surface_arrays,
    write_factor,
)
from .figures import PLAIN_AXIS, mark_ball
from .landscapes import Landscape, Surface
from .plateaus import Plateau
from .projection import Projection
from .scales import Scale, log_axis
from .surveys import Survey

Parts = dict[str, dict[str, Any]]
Curve = tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]  # steps and losses

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


def part(name: str, run: int) -> str:
    """What a trace of one of several runs is called among the parts: `ball`, `ball-1`, `ball-2`, ..."""
    return f"{name}-{run}" if run else name


def build_panes(own: Bundle | None = None) -> dict[str, go.Figure]:
    """The views of a panel by name: for runs that are there, or for the one that it will train."""
    names = own.names if own and len(own.runs) > 1 else ("",)
    panes = {"surface": surface_pane(names), "curve": curve_pane(names, name_loss(own.runs if own else ()))}
    return panes if own and not all(run.task for run in own.runs) else panes | {"fit": fit_pane(names)}


def surface_pane(names: Sequence[str] = ("",)) -> go.Figure:
    """Surface, and trajectory, error and ball of each run, without a point yet.

    Args:
        names: of the runs, as the legend shows them; empty for a single one.
    """
    nothing: dict[str, list] = {"x": [], "y": [], "z": []}
    alone = len(names) == 1
    figure = go.Figure(go.Mesh3d(SURFACE, **nothing, showlegend=alone))
    colors = zip(pick_colors(len(names)), pick_ball_colors(len(names)), strict=True)
    for i, (name, (color, ball_color)) in enumerate(zip(names, colors, strict=True)):
        group = {} if alone else {"legendgroup": name}
        ball = BALL | {"color": ball_color, "hovertemplate": BALL_HOVER, "showlegend": alone}
        figure.add_scatter3d(**style_path(name, color), **nothing, **group, uid=part("trajectory", i))
        figure.add_scatter3d(**STEM, **nothing, **group, uid=part("error", i), meta="ink", showlegend=alone)
        figure.add_trace(go.Mesh3d(ball, **nothing, **group, uid=part("ball", i)))
    figure.update_scenes(
        xaxis=PLAIN_AXIS, yaxis=PLAIN_AXIS, zaxis=PLAIN_AXIS, aspectmode="manual", aspectratio=BOX, uirevision="keep"
    )
    figure.update_scenes(zaxis={"title": {"text": "loss"}, "exponentformat": "power"})
    title = {"x": 0.5, "font": {"size": 13}}
    return figure.update_layout(PAPER, title=title, legend=LEGEND, margin={"l": 0, "r": 0, "t": 44, "b": 0})


def curve_pane(names: Sequence[str] = ("",), title: str = "training loss") -> go.Figure:
    """The loss of each run against the step, their plateaus and the balls' places."""
    figure = go.Figure()
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        hover = f"step %{{x}}<br>loss %{{y:.4g}}<extra>{name}</extra>"
        line = {"width": 2, "color": color}
        figure.add_scatter(name="loss", x=[], y=[], mode="lines", line=line, hovertemplate=hover, uid=part("loss", i))
    dots = {"width": 1.5, "dash": "dot", "color": INK}
    figure.add_scatter(name="plateau", x=[], y=[], mode="lines", meta="ink", line=dots, hoverinfo="skip")
    for i in range(len(names)):
        mark = {"mode": "markers", "marker": mark_ball(i, len(names)), "hoverinfo": "skip", "uid": part("step", i)}
        figure.add_scatter(**mark, name="step", x=[], y=[])
    return _lay_small(figure, title, "step").update_layout(hovermode="x").update_yaxes(exponentformat="power")


def fit_pane(names: Sequence[str] = ("",)) -> go.Figure:
    """The function to be learned, and the answer of each network."""
    dashes = {"width": 2, "dash": "dash", "color": INK}
    figure = go.Figure(go.Scatter(name="target", x=[], y=[], mode="lines", meta="ink", line=dashes))
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        line = {"width": 2.5, "color": color}
        figure.add_scatter(name=name or "network", x=[], y=[], mode="lines", line=line, uid=part("network", i))
    legend = LEGEND | {"y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"}
    title = "the network" if len(names) == 1 else "the networks"
    return _lay_small(figure, title, "x").update_layout(showlegend=len(names) == 1, legend=legend)


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
            "scene.zaxis.type": axis["type"],
            "scene.zaxis.autorange": False,  # which Plotly sets when the type changes and losses are below 1
            "scene.zaxis.range": axis["range"],
            "scene.zaxis.dtick": axis.get("dtick"),
            "scene.xaxis.title.text": name_axis(projection, 0),
            "scene.yaxis.title.text": name_axis(projection, 1),
        },
    }


def camera_parts(surface: Surface, scale: Scale) -> Parts:
    """The first place of the camera; it is the user's from then on."""
    return {"surface_layout": {"scene.camera": camera(surface, scale, distance=1.22)}}


def path_parts(bundle: Bundle, projection: Projection, height: Float[np.ndarray, " n_steps"], scale: Scale) -> Parts:
    """The trajectories; heights of the surface that are not known yet are nan."""
    return {
        f"surface_{part('trajectory', i)}": path_arrays(bundle, projection, height, scale, rows)
        for i, rows in enumerate(bundle.rows)
    }


def ball_parts(
    bundle: Bundle,
    projection: Projection,
    surface: Surface,
    height: Float[np.ndarray, " n_steps"],
    scale: Scale,
    rows: Sequence[int],
) -> Parts:
    """The ball of each run on its stem, at a row of each."""
    extent = np.array([np.ptp(surface.x), np.ptp(surface.y)])
    parts: Parts = {}
    for i, row in enumerate(rows):
        point, true = projection.path[row], float(bundle.loss[row])
        ball = ball_arrays(point, true, extent, scale)
        ball["customdata"] = np.tile([float(bundle.step[row]), true], (len(ball["x"]), 1))
        parts[f"surface_{part('error', i)}"] = stem_arrays(point, true, float(height[row]))
        parts[f"surface_{part('ball', i)}"] = ball
    return parts


def title_parts(around: Survey, sigma: float | str, landscape: Landscape | None) -> Parts:
    """What is drawn, and how far it is from the run once that is known."""
    name = name_surface(around.bundle, plane=around.plane, k=around.k, sigma=sigma)
    return {"surface_layout": {"title.text": caption(landscape) if landscape else f"{name}<br>{SMALL.format('…')}"}}


def curve_parts(curves: Sequence[Curve], plateaus: Sequence[Plateau], n_steps: int | None) -> Parts:
    """The steps and losses of each run so far; `n_steps` holds the axis while a run still grows."""
    level = np.array([[plateau.level, plateau.level, np.nan] for plateau in plateaus])
    ends = np.array([[plateau.start, plateau.end, np.nan] for plateau in plateaus])
    axis: dict[str, Any] = {"yaxis.type": "linear", "yaxis.dtick": None, "yaxis.autorange": True}
    losses = np.concatenate([loss for _, loss in curves])
    if len(losses) and losses.min() > 0:
        ticks = log_axis(np.log10(losses.max() / losses.min()))
        axis |= {"yaxis.type": "log", "yaxis.dtick": ticks.get("dtick")}
    axis |= {"xaxis.autorange": True} if n_steps is None else {"xaxis.range": [0, n_steps]}
    lines = {f"curve_{part('loss', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}
    return lines | {"curve_plateau": {"x": ends.ravel(), "y": level.ravel()}, "curve_layout": axis}


def step_parts(curves: Sequence[Curve]) -> Parts:
    """Where the balls are on the curves."""
    return {f"curve_{part('step', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}


def fit_parts(x: np.ndarray, target: np.ndarray, answers: Sequence[np.ndarray], step: int) -> Parts:
    """The target, and the answer of each network at a step."""
    title = "the network" if len(answers) == 1 else "the networks"
    lines = {f"fit_{part('network', i)}": {"x": x, "y": answer} for i, answer in enumerate(answers)}
    words = {"title.text": f"<b>{title} at step {step}</b>"}
    return lines | {"fit_target": {"x": x, "y": target}, "fit_layout": words}


def write_figures(
    bundle: Bundle, projection: Projection, plateaus: Sequence[Plateau], rows: Sequence[int], land: Landscape | None
) -> str:
    """The line of figures under the title of the panel, as HTML; those of the surface wait for it."""
    fit = fidelity(land) if land else None
    off = projection.off_plane[list(rows)].max() / projection.diagonal
    every = {
        "error here": (write_factor(fit.factor[list(rows)].max()) if fit else "…", ""),
        "error, median": (write_factor(fit.median) if fit else "…", f"p90 {write_factor(fit.p90)}" if fit else ""),
        "off the plane": (f"{off:.1%}", ""),
        "variance": (f"{projection.explained_variance_ratio.sum():.1%}", ""),
    }
    step, loss = bundle.step[list(rows)].tolist(), [f"{bundle.loss[row]:.3g}" for row in rows]
    if len(rows) == 1:
        entries = {f"loss at step {step[0]}": (loss[0], ""), "plateau": _write_plateau(plateaus, step[0])} | every
    else:
        entries = {name: (loss[i], f"step {step[i]}") for i, name in enumerate(bundle.names)} | every
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{value} <small>{more}</small></dd></div>"
        for name, (value, more) in entries.items()
    )
    return f"<dl>{''.join(tiles)}</dl>"


def _write_plateau(plateaus: Sequence[Plateau], step: int) -> tuple[str, str]:
    here = next((plateau for plateau in plateaus if plateau.start <= step <= plateau.end), None)
    longest = here or max(plateaus, key=lambda plateau: plateau.end - plateau.start, default=None)
    if longest is None:
        return "none", ""
    return f"{longest.level:.3g}", "now" if here else f"{longest.start} – {longest.end}"
