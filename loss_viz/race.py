"""Several runs in one view: the landscape that they share, and their loss curves beside it."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .arguments import require_flag
from .captions import caption, name_axis, name_loss
from .curves import curve_traces
from .drawing import BOX, GRID, camera, layout, surface_trace
from .figures import LEGEND, PLAIN_AXIS, mark_traces, run_traces
from .folds import find_folds
from .landscapes import Landscape, require_landscape
from .scales import fit_scale, log_axis, span_decades


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
    require_landscape(landscape)
    require_flag("log", log)
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
    figure = make_subplots(cols=2, column_widths=[0.6, 0.4], specs=[[{"type": "scene"}, {"type": "xy"}]])
    figure.add_trace(surface_trace(landscape, scale), row=1, col=1)
    for trace in (*run_traces(landscape, scale, step), *mark_traces(landscape, scale, find_folds(landscape))):
        figure.add_trace(trace, row=1, col=1)
    names = landscape.bundle.names if len(landscape.runs) > 1 else None
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
    small = {"gridcolor": GRID, "zeroline": False, "tickfont": {"size": 11}}
    figure.update_xaxes(title={"text": "step", "font": {"size": 12}}, **small)
    axis = log_axis(span_decades(low, high)) if low > 0 else {}
    figure.update_yaxes(title={"text": name_loss(landscape.runs), "font": {"size": 12}}, **small, **axis)
    title = {"text": caption(landscape), "x": 0.3, "font": {"size": 13}}
    return figure.update_layout(
        layout(height), title=title, legend=LEGEND, showlegend=True, margin={"l": 0, "r": 24, "t": 64, "b": 8}
    )
