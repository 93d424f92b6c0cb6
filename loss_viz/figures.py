"""The window: landscapes as Plotly figures, returned and never shown."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .arguments import require_flag, require_share
from .captions import caption, name_axis, write_note
from .curves import mark_ball
from .drawing import (
    BOX,
    COLORSCALE,
    DRAINED,
    GRID,
    PATH_HOVER,
    ball_traces,
    camera,
    colorbar_trace,
    layout,
    paleness,
    path_details,
    path_traces,
    pick_ball_colors,
    pick_colors,
    shade,
    surface_trace,
)
from .folds import Fold, find_folds
from .landscapes import Landscape, require_landscape
from .marks import fold_trace, key_trace, plateau_trace
from .plateaus import find_plateaus
from .scales import Scale, fit_scale

PLAIN_AXIS = {
    "backgroundcolor": "rgba(0,0,0,0)",
    "gridcolor": GRID,
    "zeroline": False,
    "tickfont": {"size": 11},
    "title": {"font": {"size": 12}},
    "nticks": 6,
}
LEGEND = {"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.6)", "itemsizing": "constant"}
FAINT = "#6b7680"


def surface_figure(
    *landscapes: Landscape, step: int | None = None, log: bool = False, min_support: float = 0.0, height: int = 560
) -> go.Figure:
    """The landscape as a surface, with the trajectory and the ball on it.

    The red line and the ball stand at the run's **true** losses, wherever the surface is; the thin stem from there
    to the surface is the error of the picture, and where that is a factor of two the line has lost its colour. Where
    no step of the run is near, the surface extrapolates and is paler. A pale band marks the plateaus of a single run,
    an upright line each fold. Several landscapes stand side by side on one scale of loss; in the panel their cameras
    move together. What it does not show: see `Landscape`.

    Args:
        landscapes: one or more.
        step: the training step at which the ball lies, and those of all runs; the last one by default.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this, from 0 to 1.
        height: of the figure, in pixels; it is as wide as its cell.

    Returns:
        A Plotly figure with four traces for each landscape, surface, trajectory, error and ball, then what marks
        plateaus and folds where there are any, and one for the colour bar; with several runs the trajectory, the error
        and the ball come once for each, and a legend tells them apart. The line is
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
    for land in landscapes:
        require_landscape(land)
    require_flag("log", log)
    require_share("min_support", min_support)
    scale = fit_scale([loss for land in landscapes for loss in (land.loss, land.path_loss)], log=log)
    n = len(landscapes)
    figure = make_subplots(cols=n, specs=[[{"type": "scene"}] * n], horizontal_spacing=0.01)
    notes: list[str] = []
    for column, land in enumerate(landscapes, start=1):
        surface, folds = surface_trace(land, scale, min_support), find_folds(land)
        for trace in (surface, *run_traces(land, scale, step), *mark_traces(land, scale, folds)):
            figure.add_trace(trace, row=1, col=column)
        figure.update_scenes(
            xaxis={"title": {"text": name_axis(land.projection, 0)}, "range": [land.x[0], land.x[-1]]},
            yaxis={"title": {"text": name_axis(land.projection, 1)}, "range": [land.y[0], land.y[-1]]},
            row=1,
            col=column,
        )
        place = {"x": (column - 0.5) / n, "xref": "paper", "yref": "paper", "xanchor": "center", "showarrow": False}
        font = {"size": 13 if n < 3 else 12}
        figure.add_annotation(place, text=caption(land), y=1, yanchor="bottom", font=font)
        notes.append(write_note(land, folds, width=150 // n))
        figure.add_annotation(place, text=notes[-1], y=0, yanchor="top", font={"color": FAINT})
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
    foot = 16 + 17 * max(note.count("<br>") + 1 for note in notes)
    return figure.update_layout(
        layout(height),
        legend=LEGEND,
        margin={"l": 0, "r": 0, "t": 56, "b": foot},
        showlegend=len(landscapes[0].runs) > 1,
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
            trace.update(legendgroup=path.name, showlegend=False)
        traces += of_one
    return traces


def mark_traces(landscape: Landscape, scale: Scale, folds: Sequence[Fold]) -> list[go.Scatter3d]:
    """The plateaus of a single run, the folds, where there are any, and what several runs are called in the legend."""
    plateaus = find_plateaus(landscape.run) if len(landscape.runs) == 1 else []
    marks = [plateau_trace(landscape, scale, plateaus)] if plateaus else []
    marks += [fold_trace(landscape, scale, folds)] if folds else []
    names = landscape.bundle.names if len(landscape.runs) > 1 else ()
    return marks + [key_trace(name, color) for name, color in zip(names, pick_colors(len(names)), strict=True)]


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
    require_landscape(landscape)
    require_flag("log", log)
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
        color = pick_colors(len(balls))[i]
        drained = shade(details[rows, 4])
        dots = {"size": 4, "color": drained, "colorscale": [[0, color], [1, DRAINED]], "cmin": 0, "cmax": 1}
        line = {"mode": "lines+markers", "line": {"color": color, "width": 2}, "marker": dots}
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
