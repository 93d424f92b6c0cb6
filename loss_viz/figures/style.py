"""Colors, fonts, layout and hover texts that all figures share."""

from typing import Any

from loss_viz._validation import check_int

COLORSCALE = "Viridis"

PATH_COLOR = "#e8112d"

BALL_COLOR = "#ff8c1a"

MUTED = "#8a8f98"  # where the surface is off by two or more; seen on white, on dark and on it

# Of several runs: not on the colour scale, bright enough for dark paper and dark enough for white.
RUN_COLORS = (PATH_COLOR, "#2f86ff", "#f03fd0", "#ff8c1a", "#00a88f", "#9a6b4b", "#8a93a0")

TEXT_COLOR = "#22303c"

GRID_COLOR = "#dfe5ea"

FONT = {"family": "Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif", "size": 13, "color": TEXT_COLOR}

# How far towards white the surface is painted where no step of the run is near it, and the root of `support` that
# sets how soon: 16 makes the colour fade over four times the width that `support` has.
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

SURFACE = {"name": "surface", "lighting": LIGHT, "hovertemplate": SURFACE_HOVER}

PATH = {
    "name": "trajectory",
    "mode": "lines",
    "hovertemplate": PATH_HOVER,
    "legendgroup": "trajectory",
    "showlegend": False,
}

STEM = {"name": "error", "mode": "lines", "line": {"color": TEXT_COLOR, "width": 4}, "hoverinfo": "skip"}

BALL: dict[str, Any] = {
    "name": "ball",
    "color": BALL_COLOR,
    "lighting": {"ambient": 0.65, "diffuse": 0.6, "specular": 0.3, "roughness": 0.4},
}


def style_path(name: str, color: str) -> dict[str, Any]:
    """How the line of a run looks; the only run has no name of its own."""
    line = {"color": color, "width": 7, "cmin": 0, "cmax": 1, "colorscale": [[0, color], [1, MUTED]]}
    return PATH | {"line": line} | ({"name": name, "meta": name, "legendgroup": name} if name else {"meta": ""})


def layout(height: int) -> dict[str, Any]:
    """What all figures share: paper, letters, and no button that sends data anywhere.

    Raises:
        TypeError, ValueError: a height that Plotly does not draw.
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


def pick_colors(n: int) -> list[str]:
    """Colours for `n` runs."""
    return [RUN_COLORS[i % len(RUN_COLORS)] for i in range(n)]


def pick_ball_colors(n: int) -> list[str]:
    """Colours for the balls of `n` runs: those of the runs where there are several."""
    return [BALL_COLOR] if n == 1 else pick_colors(n)


PLATEAU: dict[str, Any] = {
    "name": "plateau",
    "mode": "lines",
    "line": {"color": "#ffdcb0", "width": 16},  # opaque: Plotly draws what is translucent over all the rest
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

PLAIN_AXIS = {
    "backgroundcolor": "rgba(0,0,0,0)",
    "gridcolor": GRID_COLOR,
    "zeroline": False,
    "tickfont": {"size": 11},
    "title": {"font": {"size": 12}},
    "nticks": 6,
}

LEGEND = {"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.6)", "itemsizing": "constant"}

FAINT = "#6b7680"

BAND = "rgba(255,140,26,0.14)"

BALL_MARKER = {"size": 13, "color": BALL_COLOR, "line": {"color": "white", "width": 2}}


def mark_ball(i: int, n_runs: int) -> dict[str, Any]:
    """The ball of run `i` of several, from above."""
    return BALL_MARKER | {"color": pick_ball_colors(n_runs)[i]}
