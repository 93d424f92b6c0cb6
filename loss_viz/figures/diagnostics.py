"""Plotly figures of bandwidth errors, maps of factors, and the geometry of runs."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from loss_viz._validation import check_array, check_type
from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.geometry import Geometry, Sharpness
from loss_viz.figures.captions import plane_axes
from loss_viz.figures.style import BALL_COLOR, MUTED, PATH_COLOR, TEXT_COLOR, flat_axis, layout, pick_colors
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.settings import POST_SIGMA, check_sigma

TICKS = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1e3, 1e4, 1e6)
MAP_TICKS = (1, 1.1, 1.25, 1.5, 2, 3, 5, 10)  # larger factors have the color of the last


def sigma_figure(curve: SigmaCurve, *, sigma: float | str | None = None, height: int = 320) -> go.Figure:
    """Draw the held-out error of fixed bandwidths, with `"auto"` and the post's 0.06 for comparison.

    Args:
        curve: result of `sigma_curve`.
        sigma: bandwidth to mark.
        height: height of the figure, in pixels.

    Raises:
        TypeError: if `curve` is not a `SigmaCurve`.
        ValueError: if `sigma` is out of its range.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> [trace.name for trace in sigma_figure(lv.sigma_curve(land)).data]
        ['fixed σ']
    """
    check_type("curve", curve, SigmaCurve, "a SigmaCurve", advice="Pass what `sigma_curve` returns.")
    if sigma is not None:
        check_sigma(sigma)
    style = {"line": {"color": PATH_COLOR, "width": 2.2}, "hovertemplate": "σ = %{x:.3g}: ×%{y:.3g}<extra></extra>"}
    figure = go.Figure(go.Scatter(style, name="fixed σ", x=curve.sigma, y=10**curve.error, mode="lines+markers"))
    figure.add_hline(10**curve.auto, line={"color": TEXT_COLOR, "dash": "dash"})
    figure.add_vline(POST_SIGMA, line={"color": MUTED, "dash": "dot"})
    if sigma is not None and not isinstance(sigma, str):
        figure.add_vline(float(sigma), line={"color": BALL_COLOR, "width": 3})
    auto = {"x": np.log10(curve.sigma.max()), "y": curve.auto, "xanchor": "right", "yanchor": "bottom"}
    post = {"x": np.log10(POST_SIGMA), "y": 1, "yref": "y domain", "xanchor": "left", "yanchor": "top"}
    for place, text in ((auto, "auto"), (post, "the post's 0.06")):
        figure.add_annotation(place, text=text, showarrow=False, font={"size": 12})
    figure.update_layout(layout(height), margin={"t": 24, "r": 16})
    ends = np.log10([curve.sigma.min() / 1.2, curve.sigma.max() * 1.2]).tolist()
    x: dict[str, Any] = {"range": ends, "tickvals": curve.sigma, "ticktext": [f"{value:g}" for value in curve.sigma]}
    y: dict[str, Any] = {"tickvals": TICKS, "ticktext": [f"×{tick:g}" for tick in TICKS]}
    figure.update_xaxes(flat_axis("σ, as a share of the path's diagonal", type="log", **x))
    return figure.update_yaxes(flat_axis("typical factor, held out", type="log", **y))


def map_figure(
    landscape: Landscape, factors: Float[np.ndarray, "n_y n_x"], title: str, *, height: int = 480
) -> go.Figure:
    """Draw a map of factors over the plane, with the run on it.

    Args:
        landscape: landscape on whose grid the factors are.
        factors: `(n_y, n_x)`, 1 or more, from `disagreement_map`; points with nan are left open.
        title: title of the figure.
        height: height of the figure, in pixels.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if `factors` has another shape, or values below 1.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> figure = map_figure(land, lv.disagreement_map(land), "disagreement")
        >>> [trace.name for trace in figure.data]
        ['disagreement', 'trajectory']
    """
    check_landscape(landscape)
    check_type("title", title, str, "a text", advice="Say what the factors are.")
    advice = "Pass what `disagreement_map` returns for this landscape."
    factors = check_array("factors", factors, landscape.loss.shape, advice=advice)
    if (factors < 1).any():
        raise ValueError(f"`factors` must be 1 or more, the smallest is {np.nanmin(factors):.4g}. {advice}")
    ticks = {"tickvals": np.log10(MAP_TICKS), "ticktext": [f"×{tick:g}" for tick in MAP_TICKS]}
    figure = go.Figure()
    figure.add_heatmap(
        name=title,
        x=landscape.x,
        y=landscape.y,
        z=np.log10(factors),
        customdata=factors,
        zmin=0,
        zmax=np.log10(MAP_TICKS[-1]),
        colorscale="Purples",
        hovertemplate="at (%{x:.3g}, %{y:.3g})<br>×%{customdata:.3g}<extra></extra>",
        colorbar=ticks | {"thickness": 12},
    )
    run_set = landscape.run_set
    for name, rows, color in zip(run_set.names, run_set.rows, pick_colors(len(run_set.runs)), strict=True):
        (x, y), line = landscape.path[rows].T, {"color": color, "width": 2.5}
        figure.add_scatter(name=name or "trajectory", x=x, y=y, mode="lines", line=line)
    x_axis, y_axis = plane_axes(landscape.projection, landscape)
    figure.update_layout(layout(height), xaxis=x_axis, yaxis=y_axis, margin={"t": 56, "r": 8})
    return figure.update_layout(title={"text": f"<b>{title}</b>", "x": 0.5})


def geometry_figure(geometry: Geometry, sharpness: Sharpness | None = None, *, height: int = 620) -> go.Figure:
    """Draw speed, turning angle, gradient and its shares along a run, and optionally the ends of the spectrum.

    Args:
        geometry: result of `measure_geometry`.
        sharpness: result of `measure_sharpness`, for two more rows.
        height: height of the figure, in pixels.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> len(geometry_figure(lv.measure_geometry(land)).data)
        6
    """
    check_type("geometry", geometry, Geometry, "a Geometry", advice="Pass what `measure_geometry` returns.")
    if sharpness is not None:
        advice = "Pass what `measure_sharpness` returns, or leave it out."
        check_type("sharpness", sharpness, Sharpness, "a Sharpness", advice=advice)
    red, blue = pick_colors(2)
    curves = [
        (1, "speed", geometry.step, geometry.speed, red),
        (1, "acceleration", geometry.step, geometry.acceleration, blue),
        (2, "turning angle", geometry.step, geometry.turning, red),
        (3, "gradient", geometry.step, geometry.gradient, red),
        (4, "in the local plane", geometry.step, geometry.in_local, red),
        (4, "in the picture", geometry.step, geometry.in_picture, blue),
    ]
    titles = ["speed, acceleration", "turn, degrees", "|gradient|", "share of the gradient"]
    if sharpness:
        titles += ["sharpness", "smallest eigenvalue"]
        curves.append((5, "sharpness", sharpness.step, sharpness.largest, red))
        curves.append((6, "smallest eigenvalue", sharpness.step, sharpness.smallest, red))
    figure = make_subplots(rows=len(titles), shared_xaxes=True, vertical_spacing=0.03)
    for row, name, step, values, color in curves:
        style = {"mode": "lines" if row < 5 else "lines+markers", "line": {"color": color, "width": 1.5}}
        figure.add_scatter(**style, name=name, x=step, y=values, row=row, col=1)
    figure.update_layout(layout(height), showlegend=True, margin={"t": 24, "r": 16})
    figure.update_xaxes(flat_axis()).update_xaxes(title_text="step", row=len(titles), col=1)
    for row, title in enumerate(titles, start=1):
        log = {"type": "log", "exponentformat": "power"} if row in (1, 3) else {}
        figure.update_yaxes(flat_axis(title, size=11, **log), row=row, col=1)
    return figure.update_yaxes(range=[0, 1.02], row=4, col=1)
