"""The window: landscapes and runs as Plotly figures, returned and never shown."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .drawing import (
    BALL_COLOR,
    BOX,
    COLORSCALE,
    GRID,
    PATH_COLOR,
    PATH_HOVER,
    ball_traces,
    camera,
    caption,
    colorbar_trace,
    find_row,
    layout,
    paleness,
    path_arrays,
    path_trace,
    pc_title,
    pick_colors,
    surface_trace,
)
from .landscapes import Landscape
from .scales import fit_scale, log_axis, require_positive
from .trajectory import Run

PLAIN_AXIS = {
    "backgroundcolor": "rgba(0,0,0,0)",
    "gridcolor": GRID,
    "zeroline": False,
    "tickfont": {"size": 11},
    "title": {"font": {"size": 12}},
    "nticks": 6,
}
BALL_MARKER = {"size": 13, "color": BALL_COLOR, "line": {"color": "white", "width": 2}}


def surface_figure(*landscapes: Landscape, step: int | None = None, log: bool = False, height: int = 560) -> go.Figure:
    """The landscape as a surface, with the trajectory and the ball on it.

    The red line and the ball stand at the run's **true** losses, wherever the surface is; the thin stem from there
    to the surface is the error of the picture. Where no step of the run is near, the surface extrapolates and is
    paler. Several landscapes stand side by side on one scale of loss. What it does not show: see `Landscape`.

    Args:
        landscapes: one or more.
        step: the training step at which the ball lies; the last one by default.
        log: draw the loss on a logarithmic axis.
        height: of the figure, in pixels; it is as wide as its cell.

    Returns:
        A Plotly figure with four traces for each landscape, surface, trajectory, error and ball, and one for the
        colour bar. The line is drawn 0.6 % of the axis above its losses and the ball rests on its own, so that
        neither is buried in the surface.

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
        ball = ball_traces(land, scale, find_row(land.run, step))
        for trace in (surface_trace(land, scale), path_trace(land, scale), *ball):
            figure.add_trace(trace, row=1, col=column)
        figure.update_scenes(
            xaxis={"title": {"text": pc_title(land, 0)}, "range": [land.x[0], land.x[-1]]},
            yaxis={"title": {"text": pc_title(land, 1)}, "range": [land.y[0], land.y[-1]]},
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
    return figure.update_layout(layout(height), margin={"l": 0, "r": 0, "t": 56, "b": 8})


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
    row = find_row(landscape.run, step)
    x, y = landscape.path.T
    details = path_arrays(landscape.run, landscape.projection, landscape.path_height, scale)["customdata"]
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
        hovertemplate="PC1 %{x:.3g}, PC2 %{y:.3g}<br>surface %{customdata:.4g}<extra></extra>",
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
    figure.add_scatter(
        name="trajectory",
        x=x,
        y=y,
        mode="lines",
        line={"color": PATH_COLOR, "width": 2.5},
        customdata=details,
        hovertemplate=PATH_HOVER,
    )
    figure.add_scatter(
        name="ball",
        x=x[[row]],
        y=y[[row]],
        mode="markers",
        marker=BALL_MARKER,
        customdata=details[[row]],
        hovertemplate=PATH_HOVER,
    )
    bare = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(title={"text": pc_title(landscape, 0)}, range=[landscape.x[0], landscape.x[-1]], **bare)
    figure.update_yaxes(title={"text": pc_title(landscape, 1)}, range=[landscape.y[0], landscape.y[-1]], **bare)
    title = {"text": caption(landscape), "x": 0.5, "font": {"size": 13}}
    return figure.update_layout(layout(height), title=title, margin={"t": 72, "r": 8})


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
    figure = go.Figure()
    for run, color in zip(runs, pick_colors(len(runs)), strict=True):
        name = run.task.name if run.task else "run"
        hover = f"step %{{x}}<br>loss %{{y:.4g}}<extra>{name}</extra>"
        figure.add_scatter(
            name=name, x=run.step, y=run.loss, mode="lines", line={"width": 2.2, "color": color}, hovertemplate=hover
        )
        if step is not None:
            row = [find_row(run, step)]
            figure.add_scatter(
                name=f"{name}, step {run.step[row[0]]}",
                x=run.step[row],
                y=run.loss[row],
                mode="markers",
                marker=BALL_MARKER,
                hovertemplate=hover,
                showlegend=False,
            )
    figure.update_layout(layout(height), showlegend=len(runs) > 1, margin={"t": 24, "r": 16})
    figure.update_xaxes(title={"text": "step"}, gridcolor=GRID, zeroline=False)
    axis = log_axis(np.log10(high / low)) if log else {}
    return figure.update_yaxes(title={"text": "training loss"}, gridcolor=GRID, zeroline=False, **axis)
