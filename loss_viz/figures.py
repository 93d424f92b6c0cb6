"""The window: landscapes and runs as Plotly figures, returned and never shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .bundle import find_rows, name_runs
from .drawing import (
    BALL_COLOR,
    BOX,
    COLORSCALE,
    GRID,
    PATH_HOVER,
    ball_traces,
    camera,
    caption,
    colorbar_trace,
    layout,
    name_axis,
    name_loss,
    name_run,
    paleness,
    path_details,
    path_traces,
    pick_ball_colors,
    pick_colors,
    surface_trace,
)
from .landscapes import Landscape
from .scales import Scale, fit_scale, log_axis, require_positive
from .trajectory import Run

PLAIN_AXIS = {
    "backgroundcolor": "rgba(0,0,0,0)",
    "gridcolor": GRID,
    "zeroline": False,
    "tickfont": {"size": 11},
    "title": {"font": {"size": 12}},
    "nticks": 6,
}
LEGEND = {"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.6)", "itemsizing": "constant"}
BALL_MARKER = {"size": 13, "color": BALL_COLOR, "line": {"color": "white", "width": 2}}


def surface_figure(*landscapes: Landscape, step: int | None = None, log: bool = False, height: int = 560) -> go.Figure:
    """The landscape as a surface, with the trajectory and the ball on it.

    The red line and the ball stand at the run's **true** losses, wherever the surface is; the thin stem from there
    to the surface is the error of the picture. Where no step of the run is near, the surface extrapolates and is
    paler. Several landscapes stand side by side on one scale of loss. What it does not show: see `Landscape`.

    Args:
        landscapes: one or more.
        step: the training step at which the ball lies, and those of all runs; the last one by default.
        log: draw the loss on a logarithmic axis.
        height: of the figure, in pixels; it is as wide as its cell.

    Returns:
        A Plotly figure with four traces for each landscape, surface, trajectory, error and ball, and one for the
        colour bar; with several runs the last three come once for each, and a legend tells them apart. The line is
        drawn 0.6 % of the axis above its losses and the ball rests on its own, so that neither is buried in the
        surface.

    Raises:
        ValueError: no landscape, a step outside the run, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = surface_figure(lv.landscape(run, resolution=9, progress=False), step=30)
        >>> [trace.name for trace in figure.data]
        ['surface', 'trajectory', 'error', 'ball', 'loss']
    """
    if not landscapes:
        raise ValueError("`surface_figure` needs at least one landscape. Pass what `loss_viz.landscape` returns.")
    scale = fit_scale([loss for land in landscapes for loss in (land.loss, land.path_loss)], log=log)
    n = len(landscapes)
    figure = make_subplots(cols=n, specs=[[{"type": "scene"}] * n], horizontal_spacing=0.01)
    for column, land in enumerate(landscapes, start=1):
        for trace in (surface_trace(land, scale), *run_traces(land, scale, step)):
            figure.add_trace(trace, row=1, col=column)
        figure.update_scenes(
            xaxis={"title": {"text": name_axis(land.projection, 0)}, "range": [land.x[0], land.x[-1]]},
            yaxis={"title": {"text": name_axis(land.projection, 1)}, "range": [land.y[0], land.y[-1]]},
            row=1,
            col=column,
        )
        figure.add_annotation(
            text=caption(land),
            x=(column - 0.5) / n,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="center",
            yanchor="bottom",
            showarrow=False,
        )
    figure.add_trace(colorbar_trace(scale), row=1, col=n)
    figure.update_scenes(
        xaxis=PLAIN_AXIS,
        yaxis=PLAIN_AXIS,
        zaxis=PLAIN_AXIS,
        aspectmode="manual",
        aspectratio=BOX,
        camera=camera(landscapes[-1], scale, distance=1.0 if n == 1 else 1.15),
        uirevision="keep",
    )
    figure.update_scenes(zaxis=scale.axis())
    return figure.update_layout(layout(height), legend=LEGEND, margin={"l": 0, "r": 0, "t": 56, "b": 8}).update_layout(
        showlegend=len(landscapes[0].runs) > 1
    )


def run_traces(landscape: Landscape, scale: Scale, step: int | None) -> list[go.Scatter3d | go.Mesh3d]:
    """Trajectory, error and ball of each run; a click on a name in the legend hides all three.

    Raises:
        ValueError: a step outside all runs.
    """
    rows, colors = landscape.bundle.find_rows(step), pick_ball_colors(len(landscape.runs))
    traces = []
    for path, row, color in zip(path_traces(landscape, scale), rows, colors, strict=True):
        of_one = [path, *ball_traces(landscape, scale, row, color)]
        for trace in of_one:
            trace.update(legendgroup=path.name, showlegend=trace is path)
        traces += of_one
    return traces


def contour_figure(landscape: Landscape, *, step: int | None = None, log: bool = True, height: int = 520) -> go.Figure:
    """The same landscape from above: contours of the loss, the path and the ball; paler where it extrapolates.

    Args:
        landscape: what to draw.
        step: the training step at which the ball lies; the last one by default.
        log: space the contours evenly in log10 of the loss.
        height: of the figure, in pixels.

    Raises:
        ValueError: a step outside the run, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = contour_figure(lv.landscape(run, resolution=9, progress=False))
        >>> [trace.name for trace in figure.data]
        ['surface', 'extrapolated', 'trajectory', 'ball']
    """
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
    bundle = landscape.bundle
    balls = bundle.find_rows(step)
    details = path_details(bundle, landscape.projection, landscape.path_height)
    grid = {"x": landscape.x, "y": landscape.y}
    figure = go.Figure()
    figure.add_contour(
        name="surface",
        **grid,
        z=scale.draw(landscape.loss),
        customdata=landscape.loss,
        zmin=scale.low,
        zmax=scale.high,
        ncontours=30,
        colorscale=COLORSCALE,
        colorbar=scale.colorbar(),
        line={"width": 0.7, "color": "rgba(255,255,255,0.5)"},
        hovertemplate="at (%{x:.3g}, %{y:.3g})<br>surface %{customdata:.4g}<extra></extra>",
    )
    # Plotly lays every heatmap beneath every contour, so the veil is a contour too.
    figure.add_contour(
        name="extrapolated",
        **grid,
        z=paleness(landscape),
        zmin=0,
        zmax=1,
        contours={"coloring": "heatmap"},
        line={"width": 0},
        colorscale=[[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,1)"]],
        showscale=False,
        hoverinfo="skip",
    )
    for i, (name, rows) in enumerate(zip(bundle.names, bundle.rows, strict=True)):
        line = {"mode": "lines", "line": {"color": pick_colors(len(balls))[i], "width": 2.5}}
        ball = {"mode": "markers", "marker": mark_ball(i, len(balls))}
        for heading, style, chosen in ((name or "trajectory", line, rows), ("ball", ball, balls[i : i + 1])):
            figure.add_scatter(
                **style,
                name=heading,
                x=landscape.path[chosen, 0],
                y=landscape.path[chosen, 1],
                meta=name,
                customdata=details[chosen],
                hovertemplate=PATH_HOVER,
                legendgroup=name,
                showlegend=style is line,
            )
    for i, (axis, ends) in enumerate((("xaxis", landscape.x[[0, -1]]), ("yaxis", landscape.y[[0, -1]]))):
        words: dict[str, Any] = {"title": {"text": name_axis(landscape.projection, i)}, "range": ends.tolist()}
        figure.update_layout({axis: words | {"showgrid": False, "zeroline": False}})
    title = {"text": caption(landscape), "x": 0.5, "font": {"size": 13}}
    figure.update_layout(layout(height), title=title, legend=LEGEND, margin={"t": 72, "r": 8})
    return figure.update_layout(showlegend=len(bundle.runs) > 1)


def loss_curve_figure(*runs: Run, step: int | None = None, log: bool = True, height: int = 380) -> go.Figure:
    """The training loss of one or more runs against the step, on a logarithmic axis as in the post.

    Args:
        runs: one or more.
        step: mark this training step on each curve.
        log: draw the loss on a logarithmic axis.
        height: of the figure, in pixels.

    Raises:
        ValueError: no run, a step outside a run, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> figure = loss_curve_figure(lv.train("x^2", steps=60, progress=False), step=30)
        >>> [trace.name for trace in figure.data], figure.layout.yaxis.type
        (['x^2', 'x^2, step 30'], 'log')
    """
    if not runs:
        raise ValueError("`loss_curve_figure` needs at least one run. Pass what `loss_viz.train` returns.")
    low, high = min(run.loss.min() for run in runs), max(run.loss.max() for run in runs)
    if log:
        require_positive(low)
    figure = go.Figure(curve_traces(runs, step))
    figure.update_layout(layout(height), showlegend=len(runs) > 1, margin={"t": 24, "r": 16})
    figure.update_xaxes(title={"text": "step"}, gridcolor=GRID, zeroline=False)
    axis = log_axis(np.log10(high / low)) if log else {}
    return figure.update_yaxes(title={"text": name_loss(runs)}, gridcolor=GRID, zeroline=False, **axis)


def curve_traces(runs: Sequence[Run], step: int | None, names: Sequence[str] | None = None) -> list[go.Scatter]:
    """The losses of each run against the step, and a mark at one step of each.

    Args:
        runs: one or more.
        step: where the marks are; None for none.
        names: of the runs; found by themselves where None.

    Raises:
        ValueError: a step outside all runs.
    """
    names = names or (name_runs(runs) if len(runs) > 1 else (name_run(runs[0]),))
    rows = find_rows(runs, step)
    traces = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = pick_colors(len(runs))[i]
        hover = f"step %{{x}}<br>loss %{{y:.4g}}<extra>{name}</extra>"
        common = {"hovertemplate": hover, "legendgroup": name}
        line = {"width": 2.2, "color": color}
        traces.append(go.Scatter(common, name=name, x=run.step, y=run.loss, mode="lines", line=line))
        if step is not None:
            row = [rows[i]]
            title = f"{name}, step {run.step[row[0]]}"
            mark = {"name": title, "mode": "markers", "marker": mark_ball(i, len(runs)), "showlegend": False}
            traces.append(go.Scatter(common | mark, x=run.step[row], y=run.loss[row]))
    return traces


def mark_ball(i: int, n_runs: int) -> dict[str, Any]:
    """The ball of run `i` of several, from above."""
    return BALL_MARKER | {"color": pick_ball_colors(n_runs)[i]}
