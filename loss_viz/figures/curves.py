"""Losses against the step, as Plotly figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loss_viz._validation import check_bool
from loss_viz.diagnostics.fidelity import fidelity, measure_held_out
from loss_viz.diagnostics.plateaus import Plateau, find_plateaus, match_polynomial
from loss_viz.figures.captions import caption, name_loss, name_run
from loss_viz.figures.loss_axis import check_positive, log_axis, span_decades
from loss_viz.figures.style import (
    BAND,
    GRID_COLOR,
    MUTED,
    TEXT_COLOR,
    layout,
    mark_ball,
    pick_colors,
)
from loss_viz.figures.traces import error_shade
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.runs.run import Run, check_run
from loss_viz.runs.run_set import find_rows, label_runs


def loss_curve_figure(*runs: Run, step: int | None = None, log: bool = True, height: int = 380) -> go.Figure:
    """The training loss of one or more runs against the step, on a logarithmic axis as in the post.

    The plateaus of a single run are bands, with the name of what the network has learned there where it is known.

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
    for run in runs:
        check_run(run)
    check_bool("log", log)
    low, high = min(run.loss.min() for run in runs), max(run.loss.max() for run in runs)
    if log:
        check_positive(low)
    figure = go.Figure(curve_traces(runs, step))
    figure.update_layout(layout(height), showlegend=len(runs) > 1, margin={"t": 24, "r": 16})
    if len(runs) == 1:
        plateaus = find_plateaus(runs[0])
        figure.update_layout(shapes=band_plateaus(plateaus), annotations=_name_plateaus(runs[0], plateaus, log=log))
    figure.update_xaxes(title={"text": "step"}, gridcolor=GRID_COLOR, zeroline=False)
    axis = log_axis(span_decades(low, high)) if log else {}
    return figure.update_yaxes(title={"text": name_loss(runs)}, gridcolor=GRID_COLOR, zeroline=False, **axis)


def fidelity_figure(landscape: Landscape, *, held_out: bool = True, height: int = 460) -> go.Figure:
    """The loss of a run and the surface under it, and beneath it the factor between the two at each step.

    With several runs, of all of them one after the other.

    Args:
        landscape: what to measure.
        held_out: show the factors at the anchors without the planes near them, too, where planes are blended and the
            run is long enough to leave some out.
        height: of the figure, in pixels.

    Returns:
        A Plotly figure; the axis of the losses is logarithmic where all of them are above 0.

    Raises:
        TypeError: no landscape.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> [trace.name for trace in fidelity_figure(land).data]
        ['surface', 'true loss', 'factor', 'held out']
    """
    check_landscape(landscape)
    check_bool("held_out", held_out)
    losses = np.concatenate([landscape.path_loss, landscape.path_height])
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06)
    fit = fidelity(landscape)
    surface = {"name": "surface", "line": {"color": MUTED, "width": 4}}
    true = {"name": "true loss", "line": {"color": pick_colors(1)[0], "width": 2}}
    for style, values in ((surface, landscape.path_height), (true, landscape.path_loss)):
        figure.add_scatter(**style, x=fit.step, y=values, mode="lines", row=1, col=1)
    color = {"color": error_shade(fit.factor), "cmin": 0, "cmax": 1, "colorscale": [[0, pick_colors(1)[0]], [1, MUTED]]}
    marker = {"size": 3, **color}
    figure.add_scatter(name="factor", x=fit.step, y=fit.factor, mode="markers", marker=marker, row=2, col=1)
    without = measure_held_out(landscape) if held_out else None
    if without:
        line = {"color": TEXT_COLOR, "width": 1}
        figure.add_scatter(
            name="held out", x=without.step, y=without.factor, mode="lines", line=line, opacity=0.6, row=2, col=1
        )
    title = {"text": caption(landscape), "x": 0.5, "font": {"size": 13}}
    figure.update_layout(layout(height), title=title, showlegend=True, margin={"t": 72, "r": 16})
    figure.update_xaxes(gridcolor=GRID_COLOR, zeroline=False).update_yaxes(gridcolor=GRID_COLOR, type="log")
    figure.update_xaxes(title={"text": "step"}, row=2, col=1)
    loss_axis = {"exponentformat": "power", "type": "log" if losses.min() > 0 else "linear"}
    figure.update_yaxes(title={"text": name_loss(landscape.runs)}, **loss_axis, row=1, col=1)
    return figure.update_yaxes(title={"text": "factor"}, row=2, col=1)


def band_plateaus(plateaus: Sequence[Plateau]) -> list[dict[str, Any]]:
    """Bands behind the loss curve, as shapes of a layout."""
    band = {"type": "rect", "yref": "y domain", "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}}
    return [band | {"x0": plateau.start, "x1": plateau.end, "fillcolor": BAND} for plateau in plateaus]


def _name_plateaus(run: Run, plateaus: Sequence[Plateau], *, log: bool) -> list[dict[str, Any]]:
    """What was learned on each, as annotations over its level."""
    words = []
    for plateau in plateaus:
        level = match_polynomial(run, plateau)
        text = f"plateau at {plateau.level:.3g}" + (f":<br>{level.name}, {level.loss:.3g}" if level else "")
        place = {"x": (plateau.start + plateau.end) / 2, "y": np.log10(plateau.level) if log else plateau.level}
        words.append(place | {"text": text, "showarrow": False, "yanchor": "bottom", "yshift": 4, "font": {"size": 11}})
    return words


def curve_traces(runs: Sequence[Run], step: int | None, names: Sequence[str] | None = None) -> list[go.Scatter]:
    """The losses of each run against the step, and a mark at one step of each.

    Args:
        runs: one or more.
        step: where the marks are; None for none.
        names: of the runs; found by themselves where None.

    Raises:
        ValueError: a step outside all runs.
    """
    names = names or (label_runs(runs) if len(runs) > 1 else (name_run(runs[0]),))
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
