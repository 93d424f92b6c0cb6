"""Empty figures and the arrays that update them, for the panel and the HTML page.

`*_template` functions return figures without data. `*_update` functions return `Updates`: for each trace or layout, by
the name `<pane>_<trace>` or `<pane>_layout`, the properties to set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from loss_viz.diagnostics.margin import Margin
from loss_viz.diagnostics.plateaus import Plateau, PolynomialFit
from loss_viz.diagnostics.report import Report, assess
from loss_viz.figures.camera import aim_camera
from loss_viz.figures.captions import SMALL, caption, name_loss, name_surface, plane_axes
from loss_viz.figures.curves import MARGIN_AXIS, MARGIN_STYLE, margin_arrays, plateau_bands
from loss_viz.figures.level_lines import level_arrays
from loss_viz.figures.loss_axis import BALL_RADIUS, LINEAR_AXIS, SHADOW_LIFT, Scale, fit_scale, log_axis
from loss_viz.figures.style import (
    BALL,
    BALL_COLOR,
    BURIED,
    CLEAR,
    FOLD,
    FONT,
    LEVEL_NAMES,
    LEVELS,
    MUTED,
    PLATEAU,
    SCENE,
    SHADOW,
    STEM,
    SURFACE,
    TEXT_COLOR,
    ball_marker,
    pick_ball_colors,
    pick_colors,
    style_casing,
    style_path,
)
from loss_viz.figures.traces import (
    ball_arrays,
    buried_arrays,
    casing_arrays,
    fold_arrays,
    key_trace,
    path_arrays,
    plateau_arrays,
    shadow_arrays,
    surface_arrays,
)
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.planes.local_planes import choose_anchors
from loss_viz.planes.projection import Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet

MAX_OUTPUTS = 2**18  # outputs sent, over all points and steps: 2621 steps for 100 points
LIVE_RADIUS = 1.6 * BALL_RADIUS  # in the panel, where the ball is what the eye follows
MAX_LEVEL = 2**16 - 1  # outputs are sent as 16-bit integers
CLICK_RADIUS = 0.08  # of the path's diagonal: a click on the surface this near to the path selects a step

Updates = dict[str, dict[str, Any]]

Curve = tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]  # steps and losses
PAPER = {
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "font": FONT | {"size": 12},
    "hovermode": "closest",
    "modebar": {"bgcolor": CLEAR, "remove": ["lasso2d", "select2d", "autoScale2d", "resetCameraLastSave3d"]},
}

LIVE_LEGEND = {
    "x": 0.99,
    "xanchor": "right",
    "y": 0.01,
    "yanchor": "bottom",
    "font": {"size": 11},
    "bgcolor": CLEAR,
    "itemdoubleclick": False,
}

CURVE_TICKS = 4  # for more there is no room on the curve, where the margin is drawn below it
SMALL_AXIS = {"zeroline": False, "tickfont": {"size": 10}, "title": {"font": {"size": 11}, "standoff": 6}}
BALL_HOVER = "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<extra></extra>"
EMPTY: dict[str, list] = {"x": [], "y": [], "z": []}
EMPTY_CURVE: dict[str, list] = {"x": [], "y": []}

# Domain of a hidden axis. Plotly takes one of no height for [0, 1], where its drag area would cover the curve and catch
# the clicks meant for it.
NO_ROOM = [0.0, 0.001]


@dataclass(frozen=True, eq=False)
class ViewState:
    """A surface on screen, and optionally a second one beside it.

    Attributes:
        sampling: runs, plane and grid.
        surface: the surface; a first one may have a coarser grid than `sampling`.
        sigma: bandwidth as given.
        scale: the loss axis.
        landscape: the complete landscape; None while the surface under the runs is unknown.
        second: landscape of the same runs, drawn beside it.
    """

    sampling: Sampling
    surface: Surface | Landscape
    sigma: float | str
    scale: Scale
    landscape: Landscape | None = None
    second: Landscape | None = None

    @classmethod
    def of(cls, landscape: Landscape, scale: Scale) -> "ViewState":
        """Return the view of a complete landscape."""
        return cls(landscape.sampling, landscape, landscape.sigma, scale, landscape)

    @property
    def run_set(self) -> RunSet:
        """The runs."""
        return self.sampling.run_set

    @property
    def projection(self) -> Projection:
        """The plane."""
        return self.sampling.projection

    @property
    def shown_runs(self) -> RunSet:
        """The runs with the height that the surface shows as their loss."""
        return self.landscape.run_set if self.landscape else self.run_set

    @property
    def height(self) -> Float[np.ndarray, " n_steps"]:
        """Height of the surface under the runs; nan while unknown."""
        return self.landscape.path_height if self.landscape else np.full(len(self.run_set), np.nan)

    @property
    def report(self) -> Report | None:
        """Report on the landscape, once it is complete."""
        return assess(self.landscape) if self.landscape else None

    def find_step(self, point: dict[str, Any]) -> int | None:
        """Return the training step that a click selects, or None if it hits nothing that has a step."""
        if point["pane"] == "fit":
            return None
        trace, _, run = point["trace"].partition("-")
        if trace in ("surface", "ball"):
            plane = self.second.projection if self.second and point["pane"] == "beside" else self.projection
            distance = np.linalg.norm(plane.path - [point["x"], point["y"]], axis=1)
            row = int(distance.argmin())
            return int(self.run_set.step[row]) if distance[row] <= CLICK_RADIUS * plane.diagonal else None
        if trace not in ("trajectory", "loss", "step", "factor", "margin"):
            return None
        return int(self.run_set.step[self.run_set.starts[int(run or 0)] + point["index"]])


def trace_key(name: str, run: int) -> str:
    """Return the name of the trace of one of several runs: `ball`, `ball-1`, `ball-2`, ..."""
    return f"{name}-{run}" if run else name


def build_templates(own: RunSet | None = None) -> dict[str, go.Figure]:
    """Return the empty panes of a panel by name, for given runs, or for a single run that the panel trains."""
    names = own.names if own and len(own.runs) > 1 else ("",)
    panes = {"surface": surface_template(names), "beside": surface_template(names)}
    panes["curve"] = curve_template(names, name_loss(own.runs if own else ()))
    return panes if own and not all(run.task for run in own.runs) else panes | {"fit": fit_template(names)}


def surface_template(names: Sequence[str] = ("",)) -> go.Figure:
    """Return an empty surface, with trajectory, error and ball of each run, plateaus and folds.

    Args:
        names: names of the runs in the legend; empty for a single one.
    """
    alone = len(names) == 1
    figure = go.Figure(go.Mesh3d(SURFACE, **EMPTY, showlegend=alone))
    figure.add_scatter3d(**LEVELS, **EMPTY)
    figure.add_scatter3d(**LEVEL_NAMES, **EMPTY)
    colors = zip(pick_colors(len(names)), pick_ball_colors(len(names)), strict=True)
    for i, (name, (color, ball_color)) in enumerate(zip(names, colors, strict=True)):
        group, stem = {"legendgroup": "ball" if alone else name}, {"meta": "ink", "showlegend": alone}
        stem |= {} if alone else group
        ball = BALL | {"color": ball_color, "hovertemplate": BALL_HOVER, "showlegend": alone}
        figure.add_scatter3d(**style_path(name, color), **EMPTY, uid=trace_key("trajectory", i))
        figure.add_scatter3d(**style_casing(name), **EMPTY, uid=trace_key("casing", i), meta="paper")
        figure.add_trace(key_trace(name, color).update(uid=trace_key("key", i)))
        figure.add_scatter3d(**STEM, **EMPTY, **stem, uid=trace_key("error", i))
        figure.add_trace(go.Mesh3d(ball, **EMPTY, **group, uid=trace_key("ball", i)))
        figure.add_trace(go.Mesh3d(SHADOW, **EMPTY, **group, uid=trace_key("shadow", i)))
    figure.add_scatter3d(**PLATEAU, **EMPTY)
    figure.add_scatter3d(**FOLD, **EMPTY, meta="ink")
    figure.add_scatter3d(**BURIED, **EMPTY, meta="ink", uid="buried")
    figure.update_scenes(SCENE).update_scenes(zaxis={"title": {"text": "loss"}, "exponentformat": "power"})
    # At the left, below the headline of the panel.
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 40, "l": 8}}
    title = place | {"text": "", "font": {"size": 12}}
    margin = {"l": 0, "r": 0, "t": 24, "b": 0}
    return figure.update_layout(PAPER, title=title, legend=LIVE_LEGEND, margin=margin)


def curve_template(names: Sequence[str] = ("",), title: str = "training loss") -> go.Figure:
    """Return empty loss curves with plateaus and balls, above the factor between surface and loss.

    Below that is the stability margin, which `margin_update` shows.
    """
    figure = go.Figure(_lines("loss", names, width=2.0, hover="loss %{y:.4g}"))
    dots = {"width": 1.5, "dash": "dot", "color": TEXT_COLOR}
    figure.add_scatter(**EMPTY_CURVE, name="plateau", mode="lines", meta="ink", line=dots, hoverinfo="skip")
    figure.add_traces(_lines("factor", names, width=1.5, hover="off by ×%{y:.3g}", yaxis="y2"))
    figure.add_scatter(**EMPTY_CURVE, **MARGIN_STYLE, name="margin", yaxis="y3")
    figure.add_scatter(**EMPTY_CURVE, name="limit", mode="lines", meta="ink", line=dots, hoverinfo="skip", yaxis="y3")
    for i in range(len(names)):
        marker = ball_marker(i, len(names))
        style = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "cliponaxis": False}
        figure.add_scatter(**EMPTY_CURVE, **style, name="step", uid=trace_key("step", i))
    _set_small_layout(figure, title, "step").update_layout(hovermode="x", xaxis={"anchor": "y2"})
    figure.update_layout(title={"x": 0.99, "xanchor": "right"})  # the left belongs to the buttons of the time line
    strip: dict[str, Any] = SMALL_AXIS | {"domain": [0.0, 0.2], "type": "log", "tickvals": [1, 2, 10, 100, 1e4]}
    lowest = SMALL_AXIS | MARGIN_AXIS | {"domain": NO_ROOM, "tickvals": [1, 1000], "visible": False}
    figure.update_layout(yaxis={"domain": [0.34, 1.0], "exponentformat": "power"}, yaxis2=strip, yaxis3=lowest)
    place = {"x": 0, "y": 0.21, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(place, text="surface off by ×", showarrow=False, font={"size": 10})
    place |= {"y": 0.13, "visible": False}
    return figure.add_annotation(place, text="margin: longest stable step ×", showarrow=False, font={"size": 10})


def fit_template(names: Sequence[str] = ("",)) -> go.Figure:
    """Return an empty plot of the target, the output of each network, and a polynomial fit."""
    dashes = {"width": 2, "dash": "dash", "color": TEXT_COLOR}
    figure = go.Figure(go.Scatter(EMPTY_CURVE, name="target", mode="lines", meta="ink", line=dashes))
    figure.add_traces(_lines("network", names, width=2.5))
    dots = {"width": 2, "dash": "dot", "color": BALL_COLOR}
    figure.add_scatter(**EMPTY_CURVE, name="level", mode="lines", line=dots, uid="level")
    figure.add_scatter(**EMPTY_CURVE, name="there", mode="lines", line={"width": 2, "color": MUTED}, uid="there")
    legend = LIVE_LEGEND | {"y": 0.99, "x": 0.01, "xanchor": "left", "yanchor": "top"}
    _set_small_layout(figure, _name_networks(names), "")
    margin = {"l": 34, "r": 6, "t": 24, "b": 20}
    return figure.update_layout(showlegend=len(names) == 1, legend=legend | {"font": {"size": 10}}, margin=margin)


def _lines(key: str, names: Sequence[str], *, width: float, hover: str = "", **style: Any) -> list[go.Scatter]:
    """Return an empty line for each run; without a hover text it has the name of the run in the legend."""
    lines = []
    for i, (name, color) in enumerate(zip(names, pick_colors(len(names)), strict=True)):
        text = {"hovertemplate": f"step %{{x}}<br>{hover}<extra>{name}</extra>"} if hover else {}
        line = {"mode": "lines", "line": {"width": width, "color": color}, "uid": trace_key(key, i)}
        lines.append(go.Scatter(EMPTY_CURVE | style | text | line, name=key if hover else name or key))
    return lines


def _name_networks(networks: Sequence) -> str:
    return "the network" if len(networks) == 1 else "the networks"


def _set_small_layout(figure: go.Figure, title: str, x_title: str) -> go.Figure:
    figure.update_layout(
        PAPER,
        title={"text": f"<b>{title}</b>", "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 12}},
        showlegend=False,
        margin={"l": 48, "r": 8, "t": 28, "b": 34},
        xaxis=SMALL_AXIS,
        yaxis=SMALL_AXIS,
    )
    return figure.update_xaxes(title_text=x_title)


def update_all(
    view: ViewState, plateaus: Sequence[Plateau], *, min_support: float, camera: Mapping[str, Any]
) -> Updates:
    """Return the updates of a view, without the balls.

    Args:
        view: what is to be on screen.
        plateaus: plateaus of the runs; they are drawn for a single run.
        min_support: support below which a surface is left open.
        camera: what `choose_camera` returned for these runs and axes; the page ignores it once the user has turned it.
    """
    surface = _pane_update(view, plateaus, min_support, "surface", camera)
    updates = merge_updates(surface, factor_update(view.run_set, view.report))
    updates["surface_layout"]["scene.camera"] = camera
    if view.second:
        second = ViewState.of(view.second, view.scale)
        updates |= _pane_update(second, plateaus, min_support, "beside", camera)
    return updates


def choose_camera(view: ViewState) -> dict[str, Any]:
    """Return the camera from which most of the runs of a view is seen."""
    place = view.projection.path, view.shown_runs.loss, view.run_set.rows
    return aim_camera(view.surface, view.scale, *place, distance=1.12)


def _pane_update(
    view: ViewState, plateaus: Sequence[Plateau], min_support: float, pane: str, camera: Mapping[str, Any]
) -> Updates:
    buried: dict[str, Any] = dict.fromkeys("xyz", np.empty(0))
    folds: dict[str, Any] = buried | {"text": []}
    if view.landscape:
        folds = fold_arrays(view.landscape, view.scale, assess(view.landscape).folds)
        buried = buried_arrays(view.shown_runs, view.projection, view.landscape, view.scale)
    mesh = surface_arrays(view.surface, view.scale, min_support)
    run = view.projection.path, view.shown_runs.loss
    levels = level_arrays(view.surface, mesh, view.scale, *run, camera["eye"])
    return {
        f"{pane}_buried": buried,
        f"{pane}_surface": mesh,
        **{f"{pane}_{name}": arrays for name, arrays in levels.items()},
        f"{pane}_layout": _scene_update(view),
        f"{pane}_fold": folds,
    } | path_update(view, plateaus, pane=pane)


def _scene_update(view: ViewState) -> dict[str, Any]:
    """Return the title of a surface, and the axes around it."""
    sampling, axis = view.sampling, view.scale.axis()
    name = name_surface(view.run_set, plane=sampling.settings.plane, k=int(sampling.settings.k), sigma=view.sigma)
    x, y = plane_axes(view.projection, view.surface)
    return {
        "title.text": caption(view.landscape) if view.landscape else f"{name}<br>{SMALL.format('…')}",
        "scene.xaxis.range": x["range"],
        "scene.yaxis.range": y["range"],
        "scene.zaxis.title.text": axis.pop("title")["text"],
        **{f"scene.zaxis.{name}": value for name, value in axis.items()},
        "scene.xaxis.title.text": x["title"]["text"],
        "scene.yaxis.title.text": y["title"]["text"],
    }


def path_update(view: ViewState, plateaus: Sequence[Plateau], *, pane: str = "surface") -> Updates:
    """Return the trajectories, and the plateaus of a single run."""
    run_set, projection, scale = view.shown_runs, view.projection, view.scale
    updates = {
        f"{pane}_{trace_key('trajectory', i)}": path_arrays(run_set, projection, view.landscape, scale, rows)
        for i, rows in enumerate(run_set.rows)
    }
    updates |= {
        f"{pane}_{trace_key('casing', i)}": casing_arrays(run_set, projection, view.landscape, scale, rows)
        for i, rows in enumerate(run_set.rows)
    }
    drawn = plateaus if len(run_set.runs) == 1 and run_set is view.run_set else ()
    return updates | {f"{pane}_plateau": plateau_arrays(run_set, projection, scale, drawn)}


def describe_balls(
    run_set: RunSet,
    plateaus: Sequence[Plateau],
    view: ViewState | None = None,
    outputs: Mapping[str, Any] | None = None,
    chosen: Sequence[Int[np.ndarray, " _"]] | None = None,
) -> dict[str, Any]:
    """Return the arrays from which the page draws the balls at any step: see `Balls` in `static/panel.js`.

    Args:
        run_set: the runs.
        plateaus: plateaus of a single run, whose polynomial fits are drawn beside its network.
        view: the surface on screen, if it is that of these runs, or of their first steps.
        outputs: what `encode_outputs` returns.
        chosen: rows of each run to send; all by default.
    """
    rows: Sequence[Any] = [slice(None)] * len(run_set.runs) if chosen is None else chosen
    pairs = list(zip(run_set.runs, rows, strict=True))
    views = {"surface": view, "beside": view and view.second and ViewState.of(view.second, view.scale)}
    return {
        "runs": [{"step": run.step[some], "loss": run.loss[some]} for run, some in pairs],
        "panes": {name: _ball_places(one, rows) for name, one in views.items() if one},
        "plateaus": [_describe_plateau(plateau) for plateau in plateaus] if len(run_set.runs) == 1 else [],
        "outputs": outputs,
    }


def _ball_places(view: ViewState, chosen: Sequence[Any]) -> dict[str, Any]:
    run_set, path, height, scale = view.shown_runs, view.projection.path, view.height, view.scale
    arrays = {"x": path[:, 0], "y": path[:, 1], "loss": run_set.loss, "height": height}
    pairs = list(zip(run_set.rows, chosen, strict=True))
    runs = [{name: values[rows][some] for name, values in arrays.items()} for rows, some in pairs]
    extent = np.array([np.ptp(view.surface.x), np.ptp(view.surface.y)])
    # At (0, 0); its z are fractions of the loss axis above its loss.
    shape = ball_arrays(np.zeros(2), 0.0, extent, Scale(0.0, 1.0, log=False), LIVE_RADIUS)
    shadow = shadow_arrays(extent, LIVE_RADIUS) | {"lift": SHADOW_LIFT, "reach": 2 * LIVE_RADIUS}
    return {"shape": shape, "shadow": shadow, "low": scale.low, "high": scale.high, "log": scale.log, "runs": runs}


def _describe_plateau(plateau: Plateau) -> dict[str, Any]:
    """Return the ends of a plateau, and `level`, the name, loss and values of the fit that it matches."""
    fit, level = plateau.fit, None
    if fit:  # of a level only the loss is known, not the function
        values = fit.values if isinstance(fit, PolynomialFit) else np.empty(0)
        level = {"name": fit.name, "loss": f"{fit.loss:.3g}", "y": values}
    return {"start": plateau.start, "end": plateau.end, "loss": f"{plateau.level:.3g}", "level": level}


def choose_rows(run_set: RunSet, n_most: int) -> list[Int[np.ndarray, " _"]]:
    """Return rows of each run: all, or as many as its share of `n_most`, half by arc length and half by time."""
    share = max(2, n_most // len(run_set.runs))
    return [np.arange(len(run)) if len(run) <= share else choose_anchors(run.weights, share) for run in run_set.runs]


def encode_outputs(run_set: RunSet, chosen: Sequence[Int[np.ndarray, " _"]]) -> dict[str, Any]:
    """Return the outputs of the networks at some rows of each run, as 16-bit levels: much finer than a pixel."""
    task = run_set.runs[0].task
    assert task is not None
    runs, usual = [], []
    for run, rows in zip(run_set.runs, chosen, strict=True):
        outputs = run.predict_rows(rows)
        low, span = float(outputs.min()), float(np.ptp(outputs)) or 1.0
        levels = np.rint(MAX_LEVEL * (outputs - low) / span).astype(np.uint16)
        runs.append({"step": run.step[rows], "levels": levels, "low": low, "unit": span / MAX_LEVEL})
        usual += [outputs.ravel()]
    return {"x": task.to_numpy()[0], "runs": runs, "limits": _choose_limits(task.to_numpy()[1], np.concatenate(usual))}


def _choose_limits(target: np.ndarray, outputs: np.ndarray) -> tuple[float, float]:
    """Return the limits of the axis on which functions are drawn: the target, and nearly all outputs near it.

    Networks that are far off, as in the first steps or in a diverging training, leave the axis.
    """
    span = float(np.ptp(target)) or 1.0
    low, high = np.quantile(outputs, [0.02, 0.98])
    low, high = max(target.min() - span, min(low, target.min())), min(target.max() + span, max(high, target.max()))
    margin = 0.06 * (high - low)
    return float(low - margin), float(high + margin)


def factor_update(run_set: RunSet, report: Report | None = None) -> Updates:
    """Return the factors between surface and loss at each step, below the curves; nan while unknown."""
    factor = report.fidelity.factor if report else np.full(len(run_set), np.nan)
    top = np.log10(max(2.0, float(np.max(factor[np.isfinite(factor)], initial=1.0))))
    updates: Updates = {"curve_layout": {"yaxis2.range": [-0.02 * top, 1.05 * top]}}
    for i, rows in enumerate(run_set.rows):
        updates[f"curve_{trace_key('factor', i)}"] = {"x": run_set.step[rows], "y": factor[rows]}
    return updates


def margin_update(margin: Margin | None) -> Updates:
    """Return the stability margin of a single run below the curves, and room for it; None removes it."""
    shown = margin is not None
    empty = {"x": np.empty(0), "y": np.empty(0)}
    layout = {
        "yaxis.domain": [0.52, 1.0] if shown else [0.34, 1.0],
        "yaxis2.domain": [0.28, 0.4] if shown else [0.0, 0.2],
        "yaxis3.domain": [0.0, 0.13] if shown else NO_ROOM,
        "yaxis3.visible": shown,
        "xaxis.anchor": "y3" if shown else "y2",
        "annotations[0].y": 0.41 if shown else 0.21,
        "annotations[1].visible": shown,
    }
    limit = {"x": margin.step[[0, -1]], "y": np.ones(2)} if margin else empty
    return {
        "curve_margin": margin_arrays(margin) if margin else empty | {"text": []},
        "curve_limit": limit,
        "curve_layout": layout,
    }


def curve_update(curves: Sequence[Curve], plateaus: Sequence[Plateau] = (), n_steps: int | None = None) -> Updates:
    """Return steps and losses of each run so far, and plateaus.

    Args:
        curves: steps and losses of each run.
        plateaus: plateaus to draw.
        n_steps: end of the step axis while a run is being trained.
    """
    level = np.array([[plateau.level, plateau.level, np.nan] for plateau in plateaus])
    ends = np.array([[plateau.start, plateau.end, np.nan] for plateau in plateaus])
    steps = np.concatenate([step for step, _ in curves])
    first, last = (int(steps.min()), int(steps.max())) if n_steps is None else (0, n_steps)
    layout: dict[str, Any] = {"xaxis.autorange": False, "xaxis.range": [first, max(last, first + 1)]}
    layout |= {f"yaxis.{name}": value for name, value in _fit_curve_axis([loss for _, loss in curves]).items()}
    layout["shapes"] = plateau_bands(plateaus) if len(curves) == 1 else []
    lines = {f"curve_{trace_key('loss', i)}": {"x": step, "y": loss} for i, (step, loss) in enumerate(curves)}
    return lines | {"curve_plateau": {"x": ends.ravel(), "y": level.ravel()}, "curve_layout": layout}


def _fit_curve_axis(losses: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the loss axis of curves: logarithmic where all losses are above 0."""
    known = any(np.isfinite(loss).any() for loss in losses)
    scale = fit_scale(losses, log=None) if known else Scale(0.0, 1.0, log=False)
    margin = 0.06 * (scale.high - scale.low)
    axis = log_axis(scale.low, scale.high, CURVE_TICKS) if scale.log else LINEAR_AXIS
    return axis | {"autorange": False, "range": [scale.low - margin, scale.high + margin]}


def fit_update(
    x: np.ndarray,
    target: np.ndarray,
    output: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
) -> Updates:
    """Return the target, the output of a network in training, and the limits of the axis, if it is to stay as it is."""
    network = {} if output is None else {"fit_network": {"x": x, "y": output}}
    axis = {"yaxis.autorange": limits is None} | ({"yaxis.range": list(limits)} if limits else {})
    return network | {"fit_target": {"x": x, "y": target}, "fit_layout": axis}


def merge_updates(*several: Updates) -> Updates:
    """Return one set of updates; properties of the same trace are merged."""
    merged: Updates = {}
    for updates in several:
        for name, properties in updates.items():
            merged[name] = merged.get(name, {}) | properties
    return merged


def summarize(run_set: RunSet, plateaus: Sequence[Plateau]) -> str:
    """Return the picture in words, for screen readers."""
    runs = "; ".join(_describe_run(name, run) for name, run in zip(run_set.names, run_set.runs, strict=True))
    sentences = [
        f" It lies on a plateau at loss {plateau.level:.3g} from step {plateau.start} to {plateau.end}."
        for plateau in plateaus
        if len(run_set.runs) == 1
    ]
    return f"Loss landscape of {runs}.{''.join(sentences)}"


def _describe_run(name: str, run: Run) -> str:
    if len(run) == 1:
        return f"{name or 'a model'} of loss {run.loss[0]:.3g}"
    n_steps = run.step[-1] - run.step[0]
    return f"{name or 'a run'} of {n_steps:,} steps, from loss {run.loss[0]:.3g} to {run.loss[-1]:.3g}"
