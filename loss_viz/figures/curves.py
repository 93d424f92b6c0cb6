"""Loss curves, and the surface against them, as Plotly figures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loss_viz._validation import argument_error, check_bool, check_choice, check_type
from loss_viz.diagnostics.margin import RANGE, Margin
from loss_viz.diagnostics.plateaus import Plateau, find_plateaus
from loss_viz.diagnostics.report import assess
from loss_viz.figures.captions import caption, name_loss
from loss_viz.figures.loss_axis import check_positive, log_axis
from loss_viz.figures.style import (
    BAND_COLOR,
    MUTED,
    PATH_COLOR,
    TEXT_COLOR,
    ball_marker,
    error_colors,
    flat_axis,
    headline,
    layout,
    pick_colors,
)
from loss_viz.figures.traces import error_shade
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs, RunSet, stack_runs

TIMES = ("linear", "log")
MARGIN_TICKS = (0.1, 1, 10, 100, 1000)
# Names at the ends of curves: the most runs that have them; pixels from one to the next, and per letter.
MAX_NAMED, NAME_GAP, LETTER = 8, 17, 9.5
NEAR_ENDS = 0.15  # of the axis of the step: ends of curves closer than this must not overlap
STRIP, REST = [0.0, 0.24], [0.32, 1.0]  # heights of the margin and of the loss above it, as shares of the figure


MARGIN_STYLE: dict[str, Any] = {
    "mode": "lines",
    "line": {"color": PATH_COLOR, "width": 1.5},
    "hovertemplate": "step %{x}<br>margin %{text}<extra></extra>",
    "showlegend": False,
}
MARGIN_AXIS: dict[str, Any] = {
    "type": "log",
    "range": np.log10([RANGE[0] / 1.5, RANGE[1] * 1.5]).tolist(),
    "tickvals": MARGIN_TICKS,
    "tickfont": {"size": 10},
}
MARGIN_LINE = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "yref": "y2", "y0": 1, "y1": 1}


def loss_curve_figure(
    runs: Runs,
    *,
    step: int | None = None,
    log: bool = False,
    time: str = "linear",
    levels: Mapping[str, float | int] | None = None,
    margin: Margin | None = None,
    title: str = "",
    height: int = 380,
) -> go.Figure:
    """Draw the training loss of one or more runs against the step.

    Bands mark the plateaus of a single run, with the polynomial fit or the level that each matches. The curves of
    several runs have their names at their ends; more than eight have a legend.

    Args:
        runs: one run, or several in a list or dict; they need not share a model.
        step: training step to mark on each curve.
        log: draw the loss on a logarithmic axis.
        time: `"linear"` or `"log"`, the axis of the step; step 0 has no place on a logarithmic one.
        levels: losses by name that plateaus are compared with, as for `find_plateaus`.
        margin: what `measure_margin` returns for a single run, drawn below the loss at the lower end of each bracket;
            `1/64` stands for any margin below it, 1024 for any above. Below 1, the step raised the loss.
        title: title of the figure, such as what it shows; it may contain HTML as Plotly understands it.
        height: height of the figure, in pixels.

    Raises:
        TypeError: if `runs` is not a run, nor a list or dict of runs, or another argument has the wrong type.
        ValueError: if there is no run, the step lies outside the runs, a choice does not exist, the margin is not that
            of a single run, or with `log=True` a loss is not positive.

    Example:
        >>> import loss_viz as lv
        >>> figure = loss_curve_figure(lv.train("x^2", steps=60, progress=False), step=30, log=True)
        >>> [trace.name for trace in figure.data], figure.layout.yaxis.type
        (['x^2', 'x^2, step 30'], 'log')
    """
    run_set = stack_runs(runs)
    several = run_set.runs
    check_bool("log", log)
    check_choice("time", time, TIMES, advice="Choose one of them.")
    check_type("title", title, str, "a text", advice="Say what the figure shows.")
    if margin is not None:
        _check_margin(margin, several)
    low, high = min(run.loss.min() for run in several), max(run.loss.max() for run in several)
    if log:
        check_positive(low)
    figure = go.Figure(curve_traces(run_set, step))
    figure.update_layout(layout(height), showlegend=len(several) > MAX_NAMED, margin={"t": 24, "r": 16})
    if title:
        heading = {"text": f"<b>{title}</b>", "x": 0, "xref": "paper", "font": {"size": 15}}
        figure.update_layout(title=heading, margin={"t": 56})
    figure.update_xaxes(flat_axis("step"))
    if time == "log":
        figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(flat_axis(name_loss(several), **(log_axis(np.log10(low), np.log10(high)) if log else {})))
    if len(several) == 1:
        plateaus, first = find_plateaus(several[0], levels), int(time == "log")
        shapes, names = plateau_bands(plateaus, first), _name_plateaus(plateaus, first, log=log, time=time)
        figure.update_layout(shapes=shapes, annotations=names)
    elif len(several) <= MAX_NAMED:
        names = _name_curves(run_set, float(height - (136 if title else 104)), log=log, time=time)
        figure.update_layout(annotations=names, margin={"r": 16 + LETTER * max(map(len, run_set.titles))})
        first, last = run_set.first_step, run_set.last_step
        if first < last and last > 1:  # else Plotly extends the axis for the names
            figure.update_xaxes(range=[first, last] if time == "linear" else np.log10([max(first, 1), last]).tolist())
    if margin is not None:
        figure.add_scatter(name="margin", **margin_arrays(margin), **MARGIN_STYLE, yaxis="y2")
        figure.update_layout(yaxis={"domain": REST}, xaxis={"anchor": "y2"})
        figure.update_layout(yaxis2=flat_axis("margin", domain=STRIP, **MARGIN_AXIS))
        figure.add_shape(MARGIN_LINE | {"line": {"color": TEXT_COLOR, "width": 1, "dash": "dash"}})
    return figure


def fidelity_figure(landscape: Landscape, *, held_out: bool = True, height: int = 460) -> go.Figure:
    """Draw the loss of the runs and the surface under them, and below it the factor between the two.

    Several runs follow one another.

    Args:
        landscape: the landscape.
        held_out: also draw the factors at the anchors without the planes near each, if any can be left out.
        height: height of the figure, in pixels.

    Returns:
        A Plotly figure; the loss axis is logarithmic if all losses are positive.

    Raises:
        TypeError: if `landscape` is not a landscape.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> [trace.name for trace in fidelity_figure(land).data]
        ['surface', 'true loss', 'factor', 'held out']
    """
    check_landscape(landscape)
    check_bool("held_out", held_out)
    report, color = assess(landscape), pick_colors(1)[0]
    fit, without = report.fidelity, report.held_out if held_out else None
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06)
    upper, lower = {"row": 1, "col": 1}, {"row": 2, "col": 1}
    surface, true = {"color": MUTED, "width": 4}, {"color": color, "width": 2}
    figure.add_scatter(name="surface", x=fit.step, y=landscape.path_height, mode="lines", line=surface, **upper)
    figure.add_scatter(name="true loss", x=fit.step, y=landscape.path_loss, mode="lines", line=true, **upper)
    marker = {"size": 3, "color": error_shade(fit.factor), **error_colors(color)}
    figure.add_scatter(name="factor", x=fit.step, y=fit.factor, mode="markers", marker=marker, **lower)
    if without:
        style = {"mode": "lines", "line": {"color": TEXT_COLOR, "width": 1}, "opacity": 0.6}
        figure.add_scatter(name="held out", x=without.step, y=without.factor, **style, **lower)
    positive = np.minimum(landscape.path_loss, landscape.path_height).min() > 0
    figure.update_xaxes(flat_axis()).update_xaxes(title_text="step", **lower)
    figure.update_yaxes(flat_axis(name_loss(landscape.runs), exponentformat="power"), **upper)
    figure.update_yaxes(type="log" if positive else "linear", **upper)
    figure.update_yaxes(flat_axis("factor", type="log"), **lower)
    title = headline(caption(landscape))
    return figure.update_layout(layout(height), title=title, showlegend=True, margin={"t": 72, "r": 16})


def plateau_bands(plateaus: Sequence[Plateau], first: int = 0) -> list[dict[str, Any]]:
    """Return bands behind the loss curve, as shapes of a layout; `first` is the first step with a place."""
    band = {"type": "rect", "yref": "y domain", "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}}
    return [
        band | {"x0": max(plateau.start, first), "x1": plateau.end, "fillcolor": BAND_COLOR} for plateau in plateaus
    ]


def _name_plateaus(plateaus: Sequence[Plateau], first: int, *, log: bool, time: str) -> list[dict[str, Any]]:
    """Return level and fit of each plateau, as annotations."""
    style = {"showarrow": False, "yanchor": "bottom", "yshift": 4, "font": {"size": 11}}
    annotations = []
    for plateau in plateaus:
        fit = f":<br>{escape(plateau.fit.name, quote=False)}, {plateau.fit.loss:.3g}" if plateau.fit else ""
        ends = np.array([max(plateau.start, first), plateau.end])
        x = np.log10(ends).mean() if time == "log" else ends.mean()
        place = {"x": float(x), "y": np.log10(plateau.level) if log else plateau.level}
        annotations.append(style | place | {"text": f"plateau at {plateau.level:.3g}{fit}"})
    return annotations


def _name_curves(run_set: RunSet, height: float, *, log: bool, time: str) -> list[dict[str, Any]]:
    """Return the name of each run at the end of its curve, as annotations; names that would overlap are moved up.

    `height` is that of the axis, in pixels.
    """
    ends, colors = [], pick_colors(len(run_set.runs))
    for run, name, color in zip(run_set.runs, run_set.titles, colors, strict=True):
        finite = np.flatnonzero(np.isfinite(run.loss))
        if len(finite):
            step, loss = run.step[finite[-1]], run.loss[finite[-1]]
            x, y = np.log10(max(step, 1)) if time == "log" else step, np.log10(loss) if log else loss
            ends.append((float(x), float(y), f"<b>{escape(name, quote=False)}</b>", color))
    drawn = np.concatenate([run.loss[np.isfinite(run.loss)] for run in run_set.runs])
    low, high = (np.log10([drawn.min(), drawn.max()]) if log else (drawn.min(), drawn.max())) if len(drawn) else (0, 1)
    pixels, width = height / 1.1 / max(high - low, 1e-300), max((end[0] for end in ends), default=1.0)
    annotations: list[dict[str, Any]] = []
    placed: list[tuple[float, float]] = []  # of the names so far: x, and the height in pixels
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        at = float((y - low) * pixels)
        top = max([at, *(other + NAME_GAP for where, other in placed if abs(where - x) < NEAR_ENDS * width)])
        placed.append((x, top))
        style = {"showarrow": False, "xanchor": "left", "xshift": 6, "yshift": top - at, "font": {"color": color}}
        annotations.append(style | {"x": x, "y": y, "text": text})
    return annotations


def margin_arrays(margin: Margin) -> dict[str, Any]:
    """Return steps, the end of each bracket that is drawn, and each bracket in words."""
    ends = zip(margin.lower.tolist(), margin.upper.tolist(), strict=True)
    drawn = np.where(margin.lower == 0, margin.upper, margin.lower)
    return {"x": margin.step, "y": drawn, "text": [_write_bracket(*pair) for pair in ends]}


def _write_bracket(lower: float, upper: float) -> str:
    return (
        f"below {upper:.3g}"
        if lower == 0
        else f"above {lower:.4g}"
        if upper == np.inf
        else f"{lower:.3g} to {upper:.3g}"
    )


def _check_margin(margin: Margin, runs: Sequence[Run]) -> None:
    advice = "Pass what `measure_margin` returns for this run."
    check_type("margin", margin, Margin, "a Margin", advice=advice)
    if len(runs) > 1 or not np.isin(margin.step, runs[0].step).all():
        what = f"there are {len(runs)} runs" if len(runs) > 1 else "it has other steps than the run"
        raise argument_error("margin", f"`margin` must be that of the single run that is drawn; {what}. {advice}")


def curve_traces(run_set: RunSet, step: int | None) -> list[go.Scatter]:
    """Return the loss of each run against the step, and a mark at one step of each.

    Args:
        run_set: one or more runs.
        step: training step of the marks; None for no marks.

    Raises:
        ValueError: if the step lies outside all runs.
    """
    rows, n_runs = run_set.nearest_rows(step), len(run_set.runs)
    traces = []
    for i, (run, name, color) in enumerate(zip(run_set.runs, run_set.titles, pick_colors(n_runs), strict=True)):
        common = {"legendgroup": name, "hovertemplate": f"step %{{x}}<br>loss %{{y:.4g}}<extra>{name}</extra>"}
        line = {"width": 2.2, "color": color}
        traces.append(go.Scatter(common, name=name, x=run.step, y=run.loss, mode="lines", line=line))
        if step is not None:
            row = [rows[i]]
            mark = {"name": f"{name}, step {run_set.step[rows[i]]}", "mode": "markers", "showlegend": False}
            marker = ball_marker(i, n_runs)
            traces.append(go.Scatter(common | mark, marker=marker, x=run_set.step[row], y=run_set.loss[row]))
    return traces
