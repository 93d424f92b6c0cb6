"""Empty figures, and the arrays that update them, for the panel and the HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from loss_viz.diagnostics.folds import Fold, find_folds
from loss_viz.diagnostics.plateaus import Plateau, PolynomialFit
from loss_viz.diagnostics.report import PlateauSummary, Report
from loss_viz.figures.captions import SMALL, caption, name_axis, name_loss, name_surface
from loss_viz.figures.curves import band_plateaus
from loss_viz.figures.loss_axis import Scale, log_axis, span_decades
from loss_viz.figures.style import (
    BALL,
    BALL_COLOR,
    BOX,
    FOLD,
    FONT,
    PLAIN_AXIS,
    PLATEAU,
    STEM,
    SURFACE,
    TEXT_COLOR,
    mark_ball,
    pick_ball_colors,
    pick_colors,
    style_path,
)
from loss_viz.figures.traces import (
    ball_arrays,
    camera,
    fold_arrays,
    key_trace,
    path_arrays,
    plateau_arrays,
    stem_arrays,
    surface_arrays,
)
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import RunSet

CLICK_REACH = 0.08  # of the path's diagonal: a click on the surface so near to the path means the path


@dataclass(frozen=True, eq=False)
class ViewState:
    """The surface that is on screen, and the one beside it. Heights under the run that are not known yet are nan."""

    run_set: RunSet
    projection: Projection
    surface: Surface
    height: Float[np.ndarray, " n_steps"]
    scale: Scale
    landscape: Landscape | None = None
    beside: Landscape | None = None
    report: Report | None = None

    def find_step(self, point: dict[str, Any]) -> int | None:
        """The training step that a click means; None where it is on nothing that has one."""
        if point["pane"] == "fit":
            return None
        trace, _, which = point["trace"].partition("-")
        if trace in ("surface", "ball"):
            seen = self.beside.projection if self.beside and point["pane"] == "beside" else self.projection
            distance = np.linalg.norm(seen.path - [point["x"], point["y"]], axis=1)
            row = int(distance.argmin())
            return int(self.run_set.step[row]) if distance[row] <= CLICK_REACH * seen.diagonal else None
        if trace not in ("trajectory", "loss", "step", "factor"):
            return None
        return int(self.run_set.step[self.run_set.starts[int(which or 0)] + point["index"]])


Updates = dict[str, dict[str, Any]]

Curve = tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]  # steps and losses

CLEAR = "rgba(0,0,0,0)"

PAPER = {
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "font": FONT | {"size": 12},
    "hovermode": "closest",
    "modebar": {"bgcolor": CLEAR, "remove": ["lasso2d", "select2d", "autoScale2d", "resetCameraLastSave3d"]},
}

LIVE_LEGEND = {
    "orientation": "h",
    "x": 0.01,
    "y": 0.01,
    "font": {"size": 11},
    "bgcolor": CLEAR,
    "itemdoubleclick": False,
}

SMALL_AXIS = {"zeroline": False, "tickfont": {"size": 10}, "title": {"font": {"size": 11}, "standoff": 6}}

BALL_HOVER = "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<extra></extra>"


def trace_key(name: str, run: int) -> str:
    """What a trace of one of several runs is called among the parts: `ball`, `ball-1`, `ball-2`, ..."""
    return f"{name}-{run}" if run else name


def build_templates(own: RunSet | None = None) -> dict[str, go.Figure]:
    """The views of a panel by name: for runs that are there, or for the one that it will train."""
    names = own.names if own and len(own.runs) > 1 else ("",)
    panes = {"surface": surface_template(names), "beside": surface_template(names)}
    panes["curve"] = curve_template(names, name_loss(own.runs if own else ()))
    return panes if own and not all(run.task for run in own.runs) else panes | {"fit": fit_template(names)}


def surface_template(names: Sequence[str] = ("",)) -> go.Figure:
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
        figure.add_scatter3d(**style_path(name, color), **nothing, uid=trace_key("trajectory", i))
        figure.add_trace(key_trace(name, color).update(uid=trace_key("key", i)))
        figure.add_scatter3d(**STEM, **nothing, **group, uid=trace_key("error", i), meta="ink", showlegend=alone)
        figure.add_trace(go.Mesh3d(ball, **nothing, **group, uid=trace_key("ball", i)))
    figure.add_scatter3d(**PLATEAU, **nothing)
    figure.add_scatter3d(**FOLD, **nothing, meta="ink")
    figure.update_scenes(
        xaxis=PLAIN_AXIS, yaxis=PLAIN_AXIS, zaxis=PLAIN_AXIS, aspectmode="manual", aspectratio=BOX, uirevision="keep"
    )
    figure.update_scenes(zaxis={"title": {"text": "loss"}, "exponentformat": "power"})
    title = {"x": 0.5, "font": {"size": 13}}
    return figure.update_layout(PAPER, title=title, legend=LIVE_LEGEND, margin={"l": 0, "r": 0, "t": 44, "b": 0})


def curve_template(names: Sequence[str] = ("",), title: str = "training loss") -> go.Figure:
    """The loss of each run against the step, their plateaus and the balls' places."""
    figure = go.Figure()
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        hover = f"step %{{x}}<br>loss %{{y:.4g}}<extra>{name}</extra>"
        line = {"width": 2, "color": color}
        figure.add_scatter(
            name="loss", x=[], y=[], mode="lines", line=line, hovertemplate=hover, uid=trace_key("loss", i)
        )
    dots = {"width": 1.5, "dash": "dot", "color": TEXT_COLOR}
    figure.add_scatter(name="plateau", x=[], y=[], mode="lines", meta="ink", line=dots, hoverinfo="skip")
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        hover = f"step %{{x}}<br>off by ×%{{y:.3g}}<extra>{name}</extra>"
        style = {"mode": "lines", "line": {"width": 1.5, "color": color}, "yaxis": "y2", "hovertemplate": hover}
        figure.add_scatter(**style, name="factor", x=[], y=[], uid=trace_key("factor", i))
    for i in range(len(names)):
        mark = {"mode": "markers", "marker": mark_ball(i, len(names)), "hoverinfo": "skip", "uid": trace_key("step", i)}
        figure.add_scatter(**mark, name="step", x=[], y=[])
    figure = _lay_small(figure, title, "step").update_layout(hovermode="x", xaxis={"anchor": "y2"})
    strip: dict[str, Any] = SMALL_AXIS | {"domain": [0.0, 0.2], "type": "log", "tickvals": [1, 2, 10, 100, 1e4]}
    figure.update_layout(yaxis={"domain": [0.34, 1.0], "exponentformat": "power"}, yaxis2=strip)
    title_place = {"x": 0, "y": 0.21, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return figure.add_annotation(title_place, text="surface off by ×", showarrow=False, font={"size": 10})


def fit_template(names: Sequence[str] = ("",)) -> go.Figure:
    """The function to be learned, and the answer of each network."""
    dashes = {"width": 2, "dash": "dash", "color": TEXT_COLOR}
    figure = go.Figure(go.Scatter(name="target", x=[], y=[], mode="lines", meta="ink", line=dashes))
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        line = {"width": 2.5, "color": color}
        figure.add_scatter(name=name or "network", x=[], y=[], mode="lines", line=line, uid=trace_key("network", i))
    learned = {"width": 2, "dash": "dot", "color": BALL_COLOR}
    figure.add_scatter(name="level", x=[], y=[], mode="lines", line=learned, uid="level")
    legend = LIVE_LEGEND | {"orientation": "v", "y": 0.99, "x": 0.01, "yanchor": "top"}
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


def surface_update(
    surface: Surface | Landscape, projection: Projection, scale: Scale, *, min_support: float, pane: str = "surface"
) -> Updates:
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


def camera_update(surface: Surface, scale: Scale) -> Updates:
    """The first place of the camera; it is the user's from then on."""
    return {"surface_layout": {"scene.camera": camera(surface, scale, distance=1.22)}}


def path_update(
    run_set: RunSet,
    projection: Projection,
    height: Float[np.ndarray, " n_steps"],
    scale: Scale,
    plateaus: Sequence[Plateau],
    *,
    pane: str = "surface",
) -> Updates:
    """The trajectories, and where the only one lies still; heights of the surface that are not known yet are nan."""
    parts: Updates = {
        f"{pane}_{trace_key('trajectory', i)}": path_arrays(run_set, projection, height, scale, rows)
        for i, rows in enumerate(run_set.rows)
    }
    marked = plateaus if len(run_set.runs) == 1 else ()
    return parts | {f"{pane}_plateau": plateau_arrays(run_set, projection, scale, marked)}


def fold_update(landscape: Landscape | None, scale: Scale, folds: Sequence[Fold], *, pane: str = "surface") -> Updates:
    """Where the surface can show only one of two losses."""
    nothing = {"x": np.empty(0), "y": np.empty(0), "z": np.empty(0), "text": []}
    return {f"{pane}_fold": fold_arrays(landscape, scale, folds) if landscape else nothing}


def ball_update(
    run_set: RunSet,
    projection: Projection,
    surface: Surface | Landscape,
    height: Float[np.ndarray, " n_steps"],
    scale: Scale,
    rows: Sequence[int],
    *,
    pane: str = "surface",
) -> Updates:
    """The ball of each run on its stem, at a row of each."""
    extent = np.array([np.ptp(surface.x), np.ptp(surface.y)])
    parts: Updates = {}
    for i, row in enumerate(rows):
        point, true = projection.path[row], float(run_set.loss[row])
        ball = ball_arrays(point, true, extent, scale)
        ball["customdata"] = np.tile([float(run_set.step[row]), true], (len(ball["x"]), 1))
        parts[f"{pane}_{trace_key('error', i)}"] = stem_arrays(point, true, float(height[row]))
        parts[f"{pane}_{trace_key('ball', i)}"] = ball
    return parts


def title_update(
    sampling: Sampling, sigma: float | str, landscape: Landscape | None, *, pane: str = "surface"
) -> Updates:
    """What is drawn, and how far it is from the run once that is known."""
    name = name_surface(sampling.run_set, plane=sampling.plane, k=sampling.k, sigma=sigma)
    return {f"{pane}_layout": {"title.text": caption(landscape) if landscape else f"{name}<br>{SMALL.format('…')}"}}


def factor_update(run_set: RunSet, report: Report | None) -> Updates:
    """The strip under the curve: how far the surface is off at each step; empty while that is not known."""
    known = report.fit.factor if report else np.full(len(run_set), np.nan)
    top = np.log10(max(2.0, float(np.max(known[np.isfinite(known)], initial=1.0))))
    parts: Updates = {"curve_layout": {"yaxis2.range": [-0.02 * top, 1.05 * top]}}
    for i, rows in enumerate(run_set.rows):
        parts[f"curve_{trace_key('factor', i)}"] = {"x": run_set.step[rows], "y": known[rows]}
    return parts


def curve_update(curves: Sequence[Curve], plateaus: Sequence[Plateau], n_steps: int | None) -> Updates:
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
    lines = {f"curve_{trace_key('loss', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}
    return lines | {"curve_plateau": {"x": ends.ravel(), "y": level.ravel()}, "curve_layout": axis}


def step_update(curves: Sequence[Curve]) -> Updates:
    """Where the balls are on the curves."""
    return {f"curve_{trace_key('step', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}


def fit_update(
    x: np.ndarray, target: np.ndarray, answers: Sequence[np.ndarray], step: int, level: PolynomialFit | None = None
) -> Updates:
    """The target, the answer of each network at a step, and what it is stuck on at a plateau."""
    title = "the network" if len(answers) == 1 else "the networks"
    lines: Updates = {f"fit_{trace_key('network', i)}": {"x": x, "y": answer} for i, answer in enumerate(answers)}
    words = {"title.text": f"<b>{title} at step {step}</b>"}
    learned = level.values if level else np.empty(0)
    lines["fit_level"] = {
        "x": x[: len(learned)],
        "y": learned,
        "name": level.name if level else "",
        "showlegend": bool(level),
    }
    return lines | {"fit_target": {"x": x, "y": target}, "fit_layout": words}


def update_all(
    frame: ViewState, sampling: Sampling, settings: Mapping[str, Any], plateau_summary: PlateauSummary, *, first: bool
) -> Updates:
    """All parts of a frame but the balls.

    Args:
        frame: what is to be on screen.
        sampling: planes and grid of its surface.
        settings: of the panel.
        plateau_summary: where the runs lie still.
        first: whether the camera is still to be placed.
    """
    run_set, scale, low = frame.run_set, frame.scale, settings["min_support"]
    parts = merge_updates(
        surface_update(frame.surface, frame.projection, scale, min_support=low),
        path_update(run_set, frame.projection, frame.height, scale, plateau_summary.plateaus),
        fold_update(frame.landscape, scale, frame.report.folds if frame.report else ()),
        factor_update(run_set, frame.report),
        title_update(sampling, settings["sigma"], frame.landscape),
        camera_update(frame.surface, scale) if first else {},
    )
    if (land := frame.beside) is None:
        return parts
    return merge_updates(
        parts,
        surface_update(land, land.projection, scale, min_support=low, pane="beside"),
        path_update(run_set, land.projection, land.path_height, scale, plateau_summary.plateaus, pane="beside"),
        fold_update(land, scale, find_folds(land), pane="beside"),
        title_update(land.sampling, settings["sigma"], land, pane="beside"),
    )


def merge_updates(*several: Updates) -> Updates:
    """Parts of one picture in one; those with a name in common are put together."""
    joined: Updates = {}
    for parts in several:
        for name, values in parts.items():
            joined[name] = joined.get(name, {}) | values
    return joined


def summarize(run_set: RunSet, plateaus: Sequence[Plateau]) -> str:
    """The picture in words, for those who do not see it."""
    runs = "; ".join(
        f"{name or 'a run'} of {len(run)} steps, from loss {run.loss[0]:.3g} to {run.loss[-1]:.3g}"
        for name, run in zip(run_set.names, run_set.runs, strict=True)
    )
    sticky = "".join(
        f" It lies on a plateau at loss {plateau.level:.3g} from step {plateau.start} to {plateau.end}."
        for plateau in plateaus
        if len(run_set.runs) == 1
    )
    return f"Loss landscape of {runs}.{sticky}"
