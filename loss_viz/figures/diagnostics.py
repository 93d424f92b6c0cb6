"""What is measured along a run and over a picture, as Plotly figures."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from loss_viz._validation import check_array, check_type
from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.geometry import Geometry, Sharpness
from loss_viz.figures.captions import name_axis
from loss_viz.figures.style import BALL_COLOR, GRID_COLOR, MUTED, PATH_COLOR, TEXT_COLOR, layout, pick_colors
from loss_viz.landscapes.kernels import POST_SIGMA, fit_kernel
from loss_viz.landscapes.landscape import Landscape, check_landscape

TICKS = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1e3, 1e4, 1e6)

LOUD = 10.0  # a factor at which the colours of a map end; beyond it hangs the colour of ten


def sigma_figure(curve: SigmaCurve, *, sigma: float | str | None = None, height: int = 320) -> go.Figure:
    """What a fixed width costs where the run is held out, beside `"auto"` and the post's 0.06.

    Args:
        curve: as `sigma_curve` measures it.
        sigma: mark this one as chosen.
        height: of the figure, in pixels.

    Raises:
        TypeError, ValueError: no curve; a `sigma` that is none.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> [trace.name for trace in sigma_figure(lv.sigma_curve(land)).data]
        ['fixed σ']
    """
    check_type("curve", curve, SigmaCurve, "a SigmaCurve", advice="Pass what `sigma_curve` returns.")
    if sigma is not None:
        sigma = fit_kernel(np.zeros((1, 2)), sigma, diagonal=1.0).sigma
    hover = "σ = %{x:.3g}: ×%{y:.3g}<extra></extra>"
    factor = 10**curve.error
    figure = go.Figure()
    line = {"color": PATH_COLOR, "width": 2.2}
    figure.add_scatter(name="fixed σ", x=curve.sigma, y=factor, mode="lines+markers", line=line, hovertemplate=hover)
    figure.add_hline(10**curve.auto, line={"color": TEXT_COLOR, "dash": "dash"})
    figure.add_vline(POST_SIGMA, line={"color": MUTED, "dash": "dot"})
    if isinstance(sigma, float):
        figure.add_vline(sigma, line={"color": BALL_COLOR, "width": 3})
    auto = {"x": np.log10(curve.sigma.max()), "y": curve.auto, "xanchor": "right", "yanchor": "bottom"}
    post = {"x": np.log10(POST_SIGMA), "y": 1, "yref": "y domain", "xanchor": "left", "yanchor": "top"}
    for place, text in ((auto, "auto"), (post, "the post's 0.06")):
        figure.add_annotation(place, text=text, showarrow=False, font={"size": 12})
    figure.update_layout(layout(height), margin={"t": 24, "r": 16})
    ends = np.log10([curve.sigma.min() / 1.2, curve.sigma.max() * 1.2]).tolist()
    names = [f"{value:g}" for value in curve.sigma]
    title = "σ, as a share of the path's diagonal"
    figure.update_xaxes(
        type="log", range=ends, tickvals=curve.sigma, ticktext=names, title={"text": title}, gridcolor=GRID_COLOR
    )
    ticks = {"tickvals": TICKS, "ticktext": [f"×{tick:g}" for tick in TICKS]}
    return figure.update_yaxes(type="log", title={"text": "typical factor, held out"}, gridcolor=GRID_COLOR, **ticks)


def map_figure(
    landscape: Landscape, factors: Float[np.ndarray, "n_y n_x"], title: str, *, height: int = 480
) -> go.Figure:
    """A map of factors over the picture, with the run on it: `mixing_map` or `disagreement_map`.

    Args:
        landscape: whose picture it is.
        factors: `(n_y, n_x)`, 1 or more; nan is left open.
        title: what they are.
        height: of the figure, in pixels.

    Raises:
        TypeError: no landscape, no map or no text.
        ValueError: a map of another shape, or with factors below 1.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> figure = map_figure(land, lv.disagreement_map(land), "disagreement")
        >>> [trace.name for trace in figure.data]
        ['disagreement', 'trajectory']
    """
    check_landscape(landscape)
    check_type("title", title, str, "a text", advice="Say what the factors are.")
    advice = "It is a map over this landscape: make it with `mixing_map` or `disagreement_map`."
    factors = check_array("factors", factors, landscape.loss.shape, advice=advice)
    if (factors < 1).any():
        raise ValueError(f"`factors` must be 1 or more, the smallest is {np.nanmin(factors):.4g}. {advice}")
    ticks = [1, 1.1, 1.25, 1.5, 2, 3, 5, LOUD]
    figure = go.Figure()
    figure.add_heatmap(
        name=title,
        x=landscape.x,
        y=landscape.y,
        z=np.log10(factors),
        customdata=factors,
        zmin=0,
        zmax=np.log10(LOUD),
        colorscale="Purples",
        hovertemplate="at (%{x:.3g}, %{y:.3g})<br>×%{customdata:.3g}<extra></extra>",
        colorbar={"tickvals": np.log10(ticks), "ticktext": [f"×{tick:g}" for tick in ticks], "thickness": 12},
    )
    for i, rows in enumerate(landscape.run_set.rows):
        line = {"color": pick_colors(len(landscape.runs))[i], "width": 2.5}
        x, y = landscape.path[rows].T
        figure.add_scatter(name=landscape.run_set.names[i] or "trajectory", x=x, y=y, mode="lines", line=line)
    figure.update_layout(layout(height), title={"text": f"<b>{title}</b>", "x": 0.5}, margin={"t": 56, "r": 8})
    figure.update_xaxes(title={"text": name_axis(landscape.projection, 0)}, range=landscape.x[[0, -1]].tolist())
    return figure.update_yaxes(title={"text": name_axis(landscape.projection, 1)}, range=landscape.y[[0, -1]].tolist())


def geometry_figure(geometry: Geometry, sharpness: Sharpness | None = None, *, height: int = 620) -> go.Figure:
    """Speed, turns, gradient and its shares along a run, and the ends of the Hessian's spectrum on request.

    Args:
        geometry: as `measure_geometry` measures it.
        sharpness: as `measure_sharpness` does.
        height: of the figure, in pixels.

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
    rows = ["speed, acceleration", "turn, degrees", "|gradient|", "share of the gradient"]
    rows += ["sharpness", "least eigenvalue"] if sharpness else []
    figure = make_subplots(rows=len(rows), shared_xaxes=True, vertical_spacing=0.03)
    red, blue, *_ = pick_colors(2)
    for row, name, values, color in (
        (1, "speed", geometry.speed, red),
        (1, "acceleration", geometry.acceleration, blue),
        (2, "turning angle", geometry.turning, red),
        (3, "gradient", geometry.gradient, red),
        (4, "in the local plane", geometry.in_local, red),
        (4, "in the picture", geometry.in_picture, blue),
    ):
        figure.add_scatter(
            name=name, x=geometry.step, y=values, mode="lines", line={"color": color, "width": 1.5}, row=row, col=1
        )
    spectrum = [(5, "sharpness", sharpness.largest), (6, "least eigenvalue", sharpness.smallest)] if sharpness else []
    for row, name, values in spectrum:
        style = {"name": name, "mode": "lines+markers", "line": {"color": red, "width": 1.5}}
        figure.add_scatter(**style, x=sharpness.step if sharpness else [], y=values, row=row, col=1)
    figure.update_layout(layout(height), showlegend=True, margin={"t": 24, "r": 16})
    figure.update_xaxes(gridcolor=GRID_COLOR, zeroline=False).update_yaxes(gridcolor=GRID_COLOR, zeroline=False)
    figure.update_xaxes(title={"text": "step"}, row=len(rows), col=1)
    for i, title in enumerate(rows, start=1):
        figure.update_yaxes(title={"text": title, "font": {"size": 11}}, row=i, col=1)
    for row in (1, 3):
        figure.update_yaxes(type="log", exponentformat="power", row=row, col=1)
    return figure.update_yaxes(range=[0, 1.02], row=4, col=1)
