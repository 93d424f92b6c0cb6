"""The panel's three views as empty figures, and the parts that fill them: `Picture` takes both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from .bundle import Bundle
from .captions import SMALL, caption, name_axis, name_loss, name_surface
from .curves import band_plateaus, mark_ball
from .drawing import (
    BALL,
    BALL_COLOR,
    BOX,
    FONT,
    INK,
    STEM,
    SURFACE,
    ball_arrays,
    camera,
    path_arrays,
    pick_ball_colors,
    pick_colors,
    stem_arrays,
    style_path,
    surface_arrays,
)
from .figures import PLAIN_AXIS
from .folds import Fold
from .landscapes import Landscape, Surface
from .levels import Level
from .marks import FOLD, PLATEAU, fold_arrays, key_trace, plateau_arrays
from .plateaus import Plateau
from .projection import Projection
from .scales import Scale, log_axis, span_decades
from .screen import Facts
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
    panes = {"surface": surface_pane(names), "beside": surface_pane(names)}
    panes["curve"] = curve_pane(names, name_loss(own.runs if own else ()))
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
        figure.add_scatter3d(**style_path(name, color), **nothing, uid=part("trajectory", i))
        figure.add_trace(key_trace(name, color).update(uid=part("key", i)))
        figure.add_scatter3d(**STEM, **nothing, **group, uid=part("error", i), meta="ink", showlegend=alone)
        figure.add_trace(go.Mesh3d(ball, **nothing, **group, uid=part("ball", i)))
    figure.add_scatter3d(**PLATEAU, **nothing)
    figure.add_scatter3d(**FOLD, **nothing, meta="ink")
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
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        hover = f"step %{{x}}<br>off by ×%{{y:.3g}}<extra>{name}</extra>"
        style = {"mode": "lines", "line": {"width": 1.5, "color": color}, "yaxis": "y2", "hovertemplate": hover}
        figure.add_scatter(**style, name="factor", x=[], y=[], uid=part("factor", i))
    for i in range(len(names)):
        mark = {"mode": "markers", "marker": mark_ball(i, len(names)), "hoverinfo": "skip", "uid": part("step", i)}
        figure.add_scatter(**mark, name="step", x=[], y=[])
    figure = _lay_small(figure, title, "step").update_layout(hovermode="x", xaxis={"anchor": "y2"})
    strip: dict[str, Any] = SMALL_AXIS | {"domain": [0.0, 0.2], "type": "log", "tickvals": [1, 2, 10, 100, 1e4]}
    figure.update_layout(yaxis={"domain": [0.34, 1.0], "exponentformat": "power"}, yaxis2=strip)
    title_place = {"x": 0, "y": 0.21, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return figure.add_annotation(title_place, text="surface off by ×", showarrow=False, font={"size": 10})


def fit_pane(names: Sequence[str] = ("",)) -> go.Figure:
    """The function to be learned, and the answer of each network."""
    dashes = {"width": 2, "dash": "dash", "color": INK}
    figure = go.Figure(go.Scatter(name="target", x=[], y=[], mode="lines", meta="ink", line=dashes))
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        line = {"width": 2.5, "color": color}
        figure.add_scatter(name=name or "network", x=[], y=[], mode="lines", line=line, uid=part("network", i))
    learned = {"width": 2, "dash": "dot", "color": BALL_COLOR}
    figure.add_scatter(name="level", x=[], y=[], mode="lines", line=learned, uid="level")
    legend = LEGEND | {"orientation": "v", "y": 0.99, "x": 0.01, "yanchor": "top"}
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


def surface_parts(
    surface: Surface | Landscape, projection: Projection, scale: Scale, *, min_support: float, pane: str = "surface"
) -> Parts:
    """The mesh, and the axes around it."""
    axis = scale.axis() | {"type": "log" if scale.log else "linear"}
    return {
        f"{pane}_surface": surface_arrays(surface, scale, min_support),
        f"{pane}_layout": {
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


def path_parts(
    bundle: Bundle,
    projection: Projection,
    height: Float[np.ndarray, " n_steps"],
    scale: Scale,
    plateaus: Sequence[Plateau],
    *,
    pane: str = "surface",
) -> Parts:
    """The trajectories, and where the only one lies still; heights of the surface that are not known yet are nan."""
    parts: Parts = {
        f"{pane}_{part('trajectory', i)}": path_arrays(bundle, projection, height, scale, rows)
        for i, rows in enumerate(bundle.rows)
    }
    marked = plateaus if len(bundle.runs) == 1 else ()
    return parts | {f"{pane}_plateau": plateau_arrays(bundle, projection, scale, marked)}


def fold_parts(landscape: Landscape | None, scale: Scale, folds: Sequence[Fold], *, pane: str = "surface") -> Parts:
    """Where the surface can show only one of two losses."""
    nothing = {"x": np.empty(0), "y": np.empty(0), "z": np.empty(0), "text": []}
    return {f"{pane}_fold": fold_arrays(landscape, scale, folds) if landscape else nothing}


def ball_parts(
    bundle: Bundle,
    projection: Projection,
    surface: Surface | Landscape,
    height: Float[np.ndarray, " n_steps"],
    scale: Scale,
    rows: Sequence[int],
    *,
    pane: str = "surface",
) -> Parts:
    """The ball of each run on its stem, at a row of each."""
    extent = np.array([np.ptp(surface.x), np.ptp(surface.y)])
    parts: Parts = {}
    for i, row in enumerate(rows):
        point, true = projection.path[row], float(bundle.loss[row])
        ball = ball_arrays(point, true, extent, scale)
        ball["customdata"] = np.tile([float(bundle.step[row]), true], (len(ball["x"]), 1))
        parts[f"{pane}_{part('error', i)}"] = stem_arrays(point, true, float(height[row]))
        parts[f"{pane}_{part('ball', i)}"] = ball
    return parts


def title_parts(around: Survey, sigma: float | str, landscape: Landscape | None, *, pane: str = "surface") -> Parts:
    """What is drawn, and how far it is from the run once that is known."""
    name = name_surface(around.bundle, plane=around.plane, k=around.k, sigma=sigma)
    return {f"{pane}_layout": {"title.text": caption(landscape) if landscape else f"{name}<br>{SMALL.format('…')}"}}


def factor_parts(bundle: Bundle, facts: Facts | None) -> Parts:
    """The strip under the curve: how far the surface is off at each step; empty while that is not known."""
    known = facts.fit.factor if facts else np.full(len(bundle), np.nan)
    top = np.log10(max(2.0, float(np.max(known[np.isfinite(known)], initial=1.0))))
    parts: Parts = {"curve_layout": {"yaxis2.range": [-0.02 * top, 1.05 * top]}}
    for i, rows in enumerate(bundle.rows):
        parts[f"curve_{part('factor', i)}"] = {"x": bundle.step[rows], "y": known[rows]}
    return parts


def curve_parts(curves: Sequence[Curve], plateaus: Sequence[Plateau], n_steps: int | None) -> Parts:
    """The steps and losses of each run so far; `n_steps` holds the axis while a run still grows."""
    level = np.array([[plateau.level, plateau.level, np.nan] for plateau in plateaus])
    ends = np.array([[plateau.start, plateau.end, np.nan] for plateau in plateaus])
    axis: dict[str, Any] = {"yaxis.type": "linear", "yaxis.dtick": None, "yaxis.autorange": True}
    losses = np.concatenate([loss for _, loss in curves])
    if len(losses) and losses.min() > 0:
        ticks = log_axis(span_decades(losses.min(), losses.max()))
        axis |= {"yaxis.type": "log", "yaxis.dtick": ticks.get("dtick")}
    axis |= {"xaxis.autorange": True} if n_steps is None else {"xaxis.range": [0, n_steps]}
    bands = band_plateaus(plateaus) if len(curves) == 1 else []
    axis |= {"shapes": bands}
    lines = {f"curve_{part('loss', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}
    return lines | {"curve_plateau": {"x": ends.ravel(), "y": level.ravel()}, "curve_layout": axis}


def step_parts(curves: Sequence[Curve]) -> Parts:
    """Where the balls are on the curves."""
    return {f"curve_{part('step', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}


def fit_parts(
    x: np.ndarray, target: np.ndarray, answers: Sequence[np.ndarray], step: int, level: Level | None = None
) -> Parts:
    """The target, the answer of each network at a step, and what it is stuck on at a plateau."""
    title = "the network" if len(answers) == 1 else "the networks"
    lines: Parts = {f"fit_{part('network', i)}": {"x": x, "y": answer} for i, answer in enumerate(answers)}
    words = {"title.text": f"<b>{title} at step {step}</b>"}
    learned = level.values if level else np.empty(0)
    lines["fit_level"] = {
        "x": x[: len(learned)],
        "y": learned,
        "name": level.name if level else "",
        "showlegend": bool(level),
    }
    return lines | {"fit_target": {"x": x, "y": target}, "fit_layout": words}
