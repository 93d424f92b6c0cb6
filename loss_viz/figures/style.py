"""Colors, fonts, layouts, axes and hover texts that the figures share."""

from typing import Any

from loss_viz._validation import check_int

COLORSCALE = "Viridis"
PATH_COLOR = "#e8112d"
BALL_COLOR = "#ff8c1a"
MUTED = "#8a8f98"  # a trajectory where the surface is off by a factor of two or more; readable on white and on dark

# Colors of several runs: not on the color scale, bright enough for a dark background and dark enough for white.
RUN_COLORS = (PATH_COLOR, "#2f86ff", "#f03fd0", "#ff8c1a", "#00a88f", "#9a6b4b", "#8a93a0")
TEXT_COLOR = "#22303c"
FAINT = "#6b7680"
GRID_COLOR = "#dfe5ea"
BAND_COLOR = "rgba(255,140,26,0.14)"
CLEAR = "rgba(0,0,0,0)"
FONT = {"family": "Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif", "size": 13, "color": TEXT_COLOR}

# Blend with white where no step of the run is near, and the root of `support` that sets how fast it sets in: with 16
# the color fades over four times the width of `support`.
MAX_FADE = 0.65
FADE_ROOT = 16
BOX = {"x": 1.15, "y": 1.15, "z": 0.75}
LIGHT = {"ambient": 0.8, "diffuse": 0.45, "specular": 0.08, "roughness": 0.9, "fresnel": 0.05}
SURFACE_HOVER = "at (%{x:.3g}, %{y:.3g})<br>surface %{z:.4g}<extra></extra>"
PATH_HOVER = (
    "step %{customdata[0]:.0f}<br>true loss %{customdata[1]:.4g}<br>surface %{customdata[2]:.4g}"
    ", off by ×%{customdata[4]:.3g}<br>at (%{x:.3g}, %{y:.3g}), off the plane by %{customdata[3]:.3g}"
    "<extra>%{meta}</extra>"
)

# Properties of the traces over the surface, all but their arrays.
SURFACE = {"name": "surface", "lighting": LIGHT, "hovertemplate": SURFACE_HOVER}
STEM = {"name": "error", "mode": "lines", "line": {"color": TEXT_COLOR, "width": 4}, "hoverinfo": "skip"}
BALL: dict[str, Any] = {
    "name": "ball",
    "color": BALL_COLOR,
    "lighting": {"ambient": 0.65, "diffuse": 0.6, "specular": 0.3, "roughness": 0.4},
}

SHADOW = {"name": "shadow", "lighting": LIGHT, "hoverinfo": "skip", "showlegend": False}

PLATEAU: dict[str, Any] = {
    "name": "plateau",
    "mode": "lines",
    "line": {"color": "#ffdcb0", "width": 16},  # opaque: Plotly draws translucent lines over everything else
    "hoverinfo": "skip",
    "showlegend": False,
}

FOLD = {
    "name": "fold",
    "mode": "lines+markers",
    "line": {"color": TEXT_COLOR, "width": 4},
    "marker": {"color": TEXT_COLOR, "size": 2},
    "hovertemplate": "%{text}<extra></extra>",
    "showlegend": False,
}

# The run where the surface hides it, drawn on the surface.
BURIED = {
    "name": "under the surface",
    "mode": "lines",
    "line": {"color": TEXT_COLOR, "width": 4, "dash": "dash"},
    "hoverinfo": "skip",
    "showlegend": False,
}

LUMINANCE, DARK = (0.299, 0.587, 0.114), 140  # of red, green and blue; lines on what is darker are white
LEVELS = {"name": "levels", "mode": "lines", "line": {"width": 2}, "hoverinfo": "skip", "showlegend": False}
LEVEL_NAMES = {
    "name": "level names",
    "uid": "level_names",
    "mode": "text",
    "textposition": "top center",
    "textfont": {"size": 12, "color": TEXT_COLOR},
    "hoverinfo": "skip",
    "showlegend": False,
}
LEVEL_NOTE = {
    "showarrow": False,
    "yanchor": "bottom",
    "borderpad": 0,
    "bgcolor": "rgba(255,255,255,0.5)",
    "font": {"size": 12, "color": TEXT_COLOR},
}

LEGEND = {"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.6)", "itemsizing": "constant"}
PLAIN_AXIS = {
    "backgroundcolor": CLEAR,
    "gridcolor": GRID_COLOR,
    "zeroline": False,
    "tickfont": {"size": 11},
    "title": {"font": {"size": 12}},
    "nticks": 6,
}

SCENE = {
    "xaxis": PLAIN_AXIS,
    "yaxis": PLAIN_AXIS,
    "zaxis": PLAIN_AXIS,
    "aspectmode": "manual",
    "aspectratio": BOX,
    "uirevision": "keep",
}


def layout(height: int) -> dict[str, Any]:
    """Return the layout of all figures: background, font, and no button that sends data anywhere.

    Raises:
        TypeError: if `height` is not a number.
        ValueError: if `height` is not a whole number from 10 to 100,000.
    """
    return {
        "height": check_int("height", height, 10, 100_000, advice="It counts pixels: use 500."),
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "modebar": {"remove": ["sendChartToCloud"]},
        "hoverlabel": {"font": {"family": FONT["family"]}},
    }


def flat_axis(title: str = "", *, size: int | None = None, **properties: Any) -> dict[str, Any]:
    """Return a 2D axis with a title, grid lines and no zero line."""
    words: dict[str, Any] = {"text": title} | ({"font": {"size": size}} if size else {})
    return {"title": words, "gridcolor": GRID_COLOR, "zeroline": False} | properties


def headline(text: str, x: float = 0.5) -> dict[str, Any]:
    """Return the title of a figure, centered at a share of its width."""
    return {"text": text, "x": x, "font": {"size": 13}}


def pick_colors(n: int) -> list[str]:
    """Return colors for `n` runs."""
    return [RUN_COLORS[i % len(RUN_COLORS)] for i in range(n)]


def pick_ball_colors(n: int) -> list[str]:
    """Return colors for the balls of `n` runs: those of the runs, if there are several."""
    return [BALL_COLOR] if n == 1 else pick_colors(n)


def error_colors(color: str) -> dict[str, Any]:
    """Return a color scale from the color of a run, where the surface is right, to gray."""
    return {"cmin": 0, "cmax": 1, "colorscale": [[0, color], [1, MUTED]]}


def style_path(name: str, color: str) -> dict[str, Any]:
    """Return the style of a trajectory; a single run may have an empty name."""
    return {
        "name": name or "trajectory",
        "meta": name,
        "legendgroup": name or "trajectory",
        "mode": "lines",
        "line": {"color": color, "width": 7, **error_colors(color)},
        "hovertemplate": PATH_HOVER,
        "showlegend": False,
    }


def style_casing(name: str) -> dict[str, Any]:
    """Return the style of the line below a trajectory, which sets it off from the surface."""
    return {
        "name": "casing",
        "legendgroup": name or "trajectory",
        "mode": "lines",
        "line": {"color": "white", "width": 11},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def ball_marker(i: int, n_runs: int) -> dict[str, Any]:
    """Return the marker of the ball of run `i` in a 2D figure."""
    return {"size": 13, "color": pick_ball_colors(n_runs)[i], "line": {"color": "white", "width": 2}}
