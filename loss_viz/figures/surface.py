"""Landscapes as Plotly figures: surface, contours, comparison of runs, animation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots

from loss_viz._validation import argument_error, check_bool, check_fraction, check_int
from loss_viz.figures.camera import aim
from loss_viz.figures.captions import SMALL, caption, name_loss, plane_axes, write_notes
from loss_viz.figures.curves import curve_traces
from loss_viz.figures.loss_axis import Scale, fit_scale, log_axis
from loss_viz.figures.style import (
    CLEAR,
    COLORSCALE,
    FAINT,
    LEGEND,
    PATH_HOVER,
    SCENE,
    TEXT_COLOR,
    ball_marker,
    error_colors,
    flat_axis,
    headline,
    layout,
    pick_ball_colors,
    pick_colors,
)
from loss_viz.figures.traces import (
    ball_traces,
    error_shade,
    fade,
    is_inside,
    landscape_traces,
    name_levels,
    path_details,
    surface_arrays,
)
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.local_planes import choose_anchors


def surface_figure(
    *landscapes: Landscape, step: int | None = None, log: bool = False, min_support: float = 0.0, height: int = 560
) -> go.Figure:
    """Draw landscapes as surfaces, with the trajectories and the balls on them.

    Trajectories and balls lie at the **true** losses, wherever the surface is. The thin stem from a ball to the surface
    is the error of the picture; where it is a factor of two or more the trajectory is gray. Where no step of the run is
    near, the surface extrapolates and is paler. Lines on the surface carry the losses at which they lie. A pale band
    marks the plateaus of a single run, a vertical line each fold. Several landscapes stand side by side on one loss
    axis. What this does not show: see `Landscape`.

    Args:
        landscapes: one or more landscapes.
        step: training step at which the balls lie; the last one by default.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this, from 0 to 1.
        height: height of the figure, in pixels; it is as wide as its cell.

    Returns:
        A Plotly figure. Each landscape has the traces surface, and trajectory, error and ball of each run, then the
        casings of the trajectories, plateau and fold if there are any, a legend entry per run if there are several, and
        levels. Trajectories are drawn 0.6 % of the axis above their losses, and balls rest on theirs,
        so that the surface does not hide half of them.

    Raises:
        ValueError: if there is no landscape, the step lies outside the run, or with `log=True` a loss is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = surface_figure(lv.landscape(run, resolution=9, progress=False), step=30)
        >>> [trace.name for trace in figure.data]
        ['surface', 'trajectory', 'error', 'ball', 'casing', 'levels']
    """
    if not landscapes:
        raise ValueError("`surface_figure` needs at least one landscape. Pass what `loss_viz.landscape` returns.")
    check_fraction("min_support", min_support)
    scale, n = _shared_scale(landscapes, log), len(landscapes)
    figure = make_subplots(cols=n, specs=[[{"type": "scene"}] * n], horizontal_spacing=0.01)
    notes = [write_notes(land, 150 // n) for land in landscapes]
    camera = aim(landscapes[-1], scale, distance=1.0 if n == 1 else 1.15)
    for column, (land, lines) in enumerate(zip(landscapes, notes, strict=True), start=1):
        _add_landscape(figure, land, scale, step, camera, min_support, column)
        place = {"x": (column - 0.5) / n, "xref": "paper", "yref": "paper", "xanchor": "center", "showarrow": False}
        font = {"size": 13 if n < 3 else 12}
        figure.add_annotation(place, text=caption(land), y=1, yanchor="bottom", font=font)
        figure.add_annotation(place, text=SMALL.format("<br>".join(lines)), y=0, yanchor="top", font={"color": FAINT})
    return figure.update_layout(
        layout(height),
        legend=LEGEND,
        margin={"l": 0, "r": 0, "t": 56, "b": 16 + 17 * max(map(len, notes))},
        showlegend=len(landscapes[0].runs) > 1,
    )


def _shared_scale(landscapes: Sequence[Landscape], log: bool) -> Scale:
    """Check the arguments, and return the loss axis of all landscapes."""
    for land in landscapes:
        check_landscape(land)
    check_bool("log", log)
    return fit_scale(
        [loss for land in landscapes for loss in (land.loss, land.path_loss)], log=log, name=landscapes[0].height_name
    )


def _add_landscape(
    figure: go.Figure,
    land: Landscape,
    scale: Scale,
    step: int | None,
    camera: Mapping[str, Any],
    min_support: float = 0.0,
    column: int = 1,
) -> None:
    """Add the traces of a landscape, its axes and a camera to one of the scenes of a figure."""
    mesh = surface_arrays(land, scale, min_support)
    lines, names = name_levels(land, scale, mesh, camera["eye"])
    for trace in (*landscape_traces(land, scale, step, mesh), lines):
        figure.add_trace(trace, row=1, col=column)
    x, y = plane_axes(land.projection, land)
    figure.update_scenes(SCENE, row=1, col=column)
    figure.update_scenes(xaxis=x, yaxis=y, zaxis=scale.axis(), annotations=names, camera=camera, row=1, col=column)


def contour_figure(landscape: Landscape, *, step: int | None = None, log: bool = False, height: int = 520) -> go.Figure:
    """Draw a landscape from above: contours of the loss, paths and balls; paler where it extrapolates.

    Args:
        landscape: the landscape.
        step: training step at which the balls lie; the last one by default.
        log: space the contours evenly in log10 of the loss.
        height: height of the figure, in pixels.

    Raises:
        ValueError: if the step lies outside the run, or with `log=True` a loss is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = contour_figure(lv.landscape(run, resolution=9, progress=False))
        >>> [trace.name for trace in figure.data]
        ['surface', 'extrapolated', 'trajectory', 'ball']
    """
    scale = _shared_scale([landscape], log)
    figure = go.Figure([*_contours(landscape, scale), *_flat_paths(landscape, step)])
    x, y = ({**axis, "showgrid": False, "zeroline": False} for axis in plane_axes(landscape.projection, landscape))
    figure.update_layout(layout(height), title=headline(caption(landscape)), xaxis=x, yaxis=y)
    return figure.update_layout(legend=LEGEND, margin={"t": 72, "r": 8}, showlegend=len(landscape.runs) > 1)


def _contours(landscape: Landscape, scale: Scale) -> list[go.Contour]:
    """Return the contours of the loss, and a white veil where the surface extrapolates."""
    loss = go.Contour(
        name="surface",
        x=landscape.x,
        y=landscape.y,
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
    veil = go.Contour(  # Plotly draws every heatmap below every contour, so the veil is a contour too
        name="extrapolated",
        x=landscape.x,
        y=landscape.y,
        z=fade(landscape),
        zmin=0,
        zmax=1,
        contours={"coloring": "heatmap"},
        line={"width": 0},
        colorscale=[[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,1)"]],
        showscale=False,
        hoverinfo="skip",
    )
    return [loss, veil]


def _flat_paths(landscape: Landscape, step: int | None) -> list[go.Scatter]:
    """Return path and ball of each run on the plane."""
    run_set, n_runs = landscape.run_set, len(landscape.runs)
    details = path_details(run_set, landscape.projection, landscape)
    balls, traces = run_set.nearest_rows(step), []
    for i, (name, rows, color) in enumerate(zip(run_set.names, run_set.rows, pick_colors(n_runs), strict=True)):
        dots = {"size": 4, "color": error_shade(details[rows, 4]), **error_colors(color)}
        line = {"mode": "lines+markers", "line": {"color": color, "width": 2}, "marker": dots}
        ball = {"mode": "markers", "marker": ball_marker(i, n_runs)}
        for title, style, chosen in ((name or "trajectory", line, rows), ("ball", ball, balls[i : i + 1])):
            x, y = np.where(is_inside(landscape, landscape.path[chosen])[:, None], landscape.path[chosen], np.nan).T
            words = {"name": title, "meta": name, "legendgroup": name, "showlegend": style is line}
            traces.append(go.Scatter(style | words, x=x, y=y, customdata=details[chosen], hovertemplate=PATH_HOVER))
    return traces


def compare_figure(landscape: Landscape, *, step: int | None = None, log: bool = False, height: int = 520) -> go.Figure:
    """Draw the landscape of several runs, and beside it their loss curves in the same colors.

    A click on a name in the legend hides a run in both. The curves are logarithmic if all losses are positive.

    Args:
        landscape: landscape of several runs, from `landscape([run_a, run_b])`; a single run works too.
        step: training step at which the balls lie; the last one by default.
        log: draw the height of the surface on a logarithmic axis.
        height: height of the figure, in pixels.

    Raises:
        ValueError: if the step lies outside the runs, or with `log=True` a loss is not positive.

    Example:
        >>> import loss_viz as lv
        >>> runs = lv.compare("x^2", ["adam", "sgd"], steps=60, progress=False)
        >>> figure = compare_figure(lv.landscape(runs, resolution=9, progress=False), step=30)
        >>> [trace.name for trace in figure.data if trace.showlegend]
        ['Adam', 'SGD + momentum']
    """
    scale = _shared_scale([landscape], log)
    figure = make_subplots(cols=2, column_widths=[0.6, 0.4], specs=[[{"type": "scene"}, {"type": "xy"}]])
    _add_landscape(figure, landscape, scale, step, aim(landscape, scale, distance=1.1))
    for trace in curve_traces(landscape.run_set, step):
        figure.add_trace(trace.update(showlegend=False), row=1, col=2)
    low, high = landscape.path_loss.min(), landscape.path_loss.max()
    axis = log_axis(np.log10(low), np.log10(high)) if low > 0 else {}
    figure.update_xaxes(flat_axis("step", size=12, tickfont={"size": 11}))
    figure.update_yaxes(flat_axis(name_loss(landscape.runs), size=12, tickfont={"size": 11}, **axis))
    figure.update_layout(layout(height), title=headline(caption(landscape), x=0.3), legend=LEGEND, showlegend=True)
    return figure.update_layout(margin={"l": 0, "r": 24, "t": 64, "b": 8})


def animate(
    landscape: Landscape, *, n_frames: int = 80, log: bool = False, height: int = 640, duration: int = 60
) -> go.Figure:
    """Draw the surface figure with a ball that rolls along the run; several runs race, at the same training steps.

    Frames are spread like the anchors, half by arc length and half by time: the ball rests on a plateau for as long as
    the run did, and fast falls can still be followed. It always lies at the true loss.

    Args:
        landscape: the landscape.
        n_frames: largest number of frames, at least 2.
        log: draw the loss on a logarithmic axis.
        height: height of the figure, in pixels.
        duration: duration of a frame, in milliseconds.

    Returns:
        A Plotly figure with one frame per chosen step, a play and a pause button, and a slider.

    Raises:
        TypeError: if `landscape` is not a landscape.
        ValueError: if there are fewer than two frames, or with `log=True` a loss is not positive.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> figure = animate(lv.landscape(run, resolution=9, progress=False), n_frames=10)
        >>> len(figure.frames), figure.frames[0].name, figure.frames[-1].name
        (10, '0', '60')
    """
    scale = _shared_scale([landscape], log)
    n_frames = check_int("n_frames", n_frames, 2, 10_000, advice="Use 80.")
    duration = check_int("duration", duration, 0, 60_000, advice="Use 60.")
    steps = choose_steps(landscape, n_frames).tolist()
    figure = surface_figure(landscape, step=steps[0], log=log, height=height)
    colors = pick_ball_colors(len(landscape.runs))
    figure.frames = [
        go.Frame(
            name=str(step),
            data=[
                trace
                for row, color in zip(landscape.run_set.nearest_rows(step), colors, strict=True)
                for trace in ball_traces(landscape, scale, row, color)
            ],
            traces=[3 * run + i for run in range(len(colors)) for i in (2, 3)],  # 0: surface, then three of each run
        )
        for step in steps
    ]
    figure.update_layout(updatemenus=[_buttons(duration)], sliders=[_slider(steps)])
    return figure.update_layout(margin={"l": 0, "r": 0, "t": 56, "b": 8})


def choose_steps(landscape: Landscape, n_frames: int) -> Int[np.ndarray, " n"]:
    """Return at most `n_frames` training steps of all runs together, half by arc length and half by time.

    Raises:
        ValueError: if `n_frames` is below 2.
    """
    if n_frames < 2:
        raise argument_error("n_frames", f"`n_frames` must be at least 2, got {n_frames}. Use 80.")
    share = max(2, n_frames // len(landscape.runs))
    return np.unique(np.concatenate([run.step[choose_anchors(run.weights, share)] for run in landscape.runs]))


def _transition(duration: int) -> dict[str, Any]:
    # Plotly redraws a 3D scene only if `redraw` is set; without a transition the ball never leaves the true loss.
    return {"frame": {"duration": duration, "redraw": True}, "transition": {"duration": 0}, "mode": "immediate"}


def _buttons(duration: int) -> dict[str, Any]:
    moves = {"▶ Play": [None, _transition(duration) | {"fromcurrent": True}], "❚❚ Pause": [[None], _transition(0)]}
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0.01,
        "y": 0,
        "xanchor": "left",
        "yanchor": "top",
        "pad": {"t": 28},
        "buttons": [{"label": label, "method": "animate", "args": args} for label, args in moves.items()],
    }


def _slider(steps: Sequence[int]) -> dict[str, Any]:
    return {
        "active": 0,
        "x": 0.2,
        "len": 0.78,
        "y": 0,
        "pad": {"t": 4},
        "currentvalue": {"prefix": "step ", "xanchor": "left", "font": {"color": TEXT_COLOR}},
        "ticklen": 0,
        "minorticklen": 0,
        "font": {"color": CLEAR},
        "steps": [{"label": str(step), "method": "animate", "args": [[str(step)], _transition(0)]} for step in steps],
    }
