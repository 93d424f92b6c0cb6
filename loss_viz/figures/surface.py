"""Landscapes as Plotly figures: surface, contours, comparison of runs, animation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots

from loss_viz._validation import check_bool, check_fraction, check_int
from loss_viz.diagnostics.folds import Fold, find_folds
from loss_viz.diagnostics.plateaus import find_plateaus
from loss_viz.figures.captions import caption, name_axis, name_loss, write_note
from loss_viz.figures.curves import curve_traces
from loss_viz.figures.loss_axis import Scale, fit_scale, log_axis, span_decades
from loss_viz.figures.style import (
    BOX,
    COLORSCALE,
    FAINT,
    GRID_COLOR,
    LEGEND,
    MUTED,
    PATH_HOVER,
    PLAIN_AXIS,
    TEXT_COLOR,
    layout,
    mark_ball,
    pick_ball_colors,
    pick_colors,
)
from loss_viz.figures.traces import (
    ball_traces,
    camera,
    colorbar_trace,
    error_shade,
    fade,
    fold_trace,
    key_trace,
    path_details,
    path_traces,
    plateau_trace,
    surface_trace,
)
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.local_planes import choose_anchors


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
        check_landscape(land)
    check_bool("log", log)
    check_fraction("min_support", min_support)
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
    rows, colors = landscape.run_set.find_rows(step), pick_ball_colors(len(landscape.runs))
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
    names = landscape.run_set.names if len(landscape.runs) > 1 else ()
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
    check_landscape(landscape)
    check_bool("log", log)
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
    run_set = landscape.run_set
    balls = run_set.find_rows(step)
    details = path_details(run_set, landscape.projection, landscape.path_height)
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
        z=fade(landscape),
        zmin=0,
        zmax=1,
        contours={"coloring": "heatmap"},
        line={"width": 0},
        colorscale=[[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,1)"]],
        showscale=False,
        hoverinfo="skip",
    )
    for i, (name, rows) in enumerate(zip(run_set.names, run_set.rows, strict=True)):
        color = pick_colors(len(balls))[i]
        muted = error_shade(details[rows, 4])
        dots = {"size": 4, "color": muted, "colorscale": [[0, color], [1, MUTED]], "cmin": 0, "cmax": 1}
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
    return figure.update_layout(showlegend=len(run_set.runs) > 1)


def compare_figure(landscape: Landscape, *, step: int | None = None, log: bool = False, height: int = 520) -> go.Figure:
    """The landscape of several runs, and beside it their loss curves in the same colours.

    A click on a name in the legend hides a run in both. The curves are logarithmic where the losses allow it.

    Args:
        landscape: of several runs, as `landscape([run_a, run_b])` makes it; one run will do.
        step: the training step at which the balls lie; the last one by default.
        log: draw the height of the surface on a logarithmic axis.
        height: of the figure, in pixels.

    Raises:
        ValueError: a step outside the runs, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> runs = lv.compare("x^2", ["adam", "sgd"], steps=60, progress=False)
        >>> figure = compare_figure(lv.landscape(runs, resolution=9, progress=False), step=30)
        >>> [trace.name for trace in figure.data if trace.showlegend]
        ['Adam', 'SGD + momentum']
    """
    check_landscape(landscape)
    check_bool("log", log)
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
    figure = make_subplots(cols=2, column_widths=[0.6, 0.4], specs=[[{"type": "scene"}, {"type": "xy"}]])
    figure.add_trace(surface_trace(landscape, scale), row=1, col=1)
    for trace in (*run_traces(landscape, scale, step), *mark_traces(landscape, scale, find_folds(landscape))):
        figure.add_trace(trace, row=1, col=1)
    names = landscape.run_set.names if len(landscape.runs) > 1 else None
    for trace in curve_traces(landscape.runs, step, names):
        figure.add_trace(trace.update(showlegend=False), row=1, col=2)
    figure.update_scenes(xaxis=PLAIN_AXIS, yaxis=PLAIN_AXIS, zaxis=PLAIN_AXIS, aspectmode="manual", aspectratio=BOX)
    figure.update_scenes(
        xaxis={"title": {"text": name_axis(landscape.projection, 0)}},
        yaxis={"title": {"text": name_axis(landscape.projection, 1)}},
        zaxis=scale.axis(),
        camera=camera(landscape, scale, distance=1.1),
        uirevision="keep",
    )
    low, high = landscape.path_loss.min(), landscape.path_loss.max()
    small = {"gridcolor": GRID_COLOR, "zeroline": False, "tickfont": {"size": 11}}
    figure.update_xaxes(title={"text": "step", "font": {"size": 12}}, **small)
    axis = log_axis(span_decades(low, high)) if low > 0 else {}
    figure.update_yaxes(title={"text": name_loss(landscape.runs), "font": {"size": 12}}, **small, **axis)
    title = {"text": caption(landscape), "x": 0.3, "font": {"size": 13}}
    return figure.update_layout(
        layout(height), title=title, legend=LEGEND, showlegend=True, margin={"l": 0, "r": 24, "t": 64, "b": 8}
    )


def animate(
    landscape: Landscape, *, n_frames: int = 80, log: bool = False, height: int = 640, duration: int = 60
) -> go.Figure:
    """The surface figure in which the ball rolls along the run; several runs race, each at the same training step.

    The frames are spread like the anchors, half by arc length and half by time, so that the ball rests on the
    plateau for as long as the run did and its fast falls can still be followed. It always stands at the true loss.

    Args:
        landscape: what to draw.
        n_frames: at most so many; at least 2.
        log: draw the loss on a logarithmic axis.
        height: of the figure, in pixels.
        duration: of a frame, in milliseconds.

    Returns:
        A Plotly figure with one frame for each chosen step, a play and a pause button, and a slider.

    Raises:
        TypeError: no landscape.
        ValueError: fewer than two frames, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = animate(lv.landscape(run, resolution=9, progress=False), n_frames=10)
        >>> len(figure.frames), figure.frames[0].name, figure.frames[-1].name
        (10, '0', '60')
    """
    check_landscape(landscape)
    check_bool("log", log)
    n_frames = check_int("n_frames", n_frames, 2, 10_000, advice="Use 80.")
    duration = check_int("duration", duration, 0, 60_000, advice="Use 60.")
    steps = choose_steps(landscape, n_frames)
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
    figure = surface_figure(landscape, step=int(steps[0]), log=log, height=height)
    colors = pick_ball_colors(len(landscape.runs))
    # Trace 0 is the surface; then come trajectory, stem and ball of each run.
    balls = [3 * run + part for run in range(len(colors)) for part in (2, 3)]
    figure.frames = [
        go.Frame(
            name=str(step),
            data=[
                trace
                for row, color in zip(landscape.run_set.find_rows(int(step)), colors, strict=True)
                for trace in ball_traces(landscape, scale, row, color)
            ],
            traces=balls,
        )
        for step in steps
    ]
    return figure.update_layout(
        updatemenus=[_buttons(duration)], sliders=[_slider(steps)], margin={"l": 0, "r": 0, "t": 56, "b": 8}
    )


def choose_steps(landscape: Landscape, n_frames: int) -> Int[np.ndarray, " n"]:
    """At most so many training steps, spread half by arc length and half by time; those of all runs together.

    Raises:
        ValueError: fewer than two frames.
    """
    if n_frames < 2:
        raise ValueError(f"`n_frames` must be at least 2, got {n_frames}. Use 80.")
    share = max(2, n_frames // len(landscape.runs))
    return np.unique(np.concatenate([run.step[choose_anchors(run.weights, share)] for run in landscape.runs]))


def _move(*, duration: int) -> dict:
    # A 3D scene is only drawn anew when it is told so; without a transition the ball never leaves the true loss.
    return {"frame": {"duration": duration, "redraw": True}, "transition": {"duration": 0}, "mode": "immediate"}


def _buttons(duration: int) -> dict:
    play = {"label": "▶ Play", "method": "animate", "args": [None, _move(duration=duration) | {"fromcurrent": True}]}
    pause = {"label": "❚❚ Pause", "method": "animate", "args": [[None], _move(duration=0)]}
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0.01,
        "y": 0,
        "xanchor": "left",
        "yanchor": "top",
        "pad": {"t": 28},
        "buttons": [play, pause],
    }


def _slider(steps: np.ndarray) -> dict:
    moves = [
        {"label": str(step), "method": "animate", "args": [[str(step)], _move(duration=0)]} for step in steps.tolist()
    ]
    return {
        "active": 0,
        "x": 0.2,
        "len": 0.78,
        "y": 0,
        "pad": {"t": 4},
        "currentvalue": {"prefix": "step ", "xanchor": "left", "font": {"color": TEXT_COLOR}},
        "ticklen": 0,
        "minorticklen": 0,
        "font": {"color": "rgba(0,0,0,0)"},
        "steps": moves,
    }
