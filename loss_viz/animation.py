"""The ball rolls: the surface figure with frames, a play button and a slider over the steps."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int

from .arguments import read_whole, require_flag
from .drawing import INK, ball_traces, pick_ball_colors
from .figures import surface_figure
from .landscapes import Landscape, require_landscape
from .planes import choose_anchors
from .scales import fit_scale


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
    require_landscape(landscape)
    require_flag("log", log)
    n_frames = read_whole("n_frames", n_frames, 2, 10_000, advice="Use 80.")
    duration = read_whole("duration", duration, 0, 60_000, advice="Use 60.")
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
                for row, color in zip(landscape.bundle.find_rows(int(step)), colors, strict=True)
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
        "currentvalue": {"prefix": "step ", "xanchor": "left", "font": {"color": INK}},
        "ticklen": 0,
        "minorticklen": 0,
        "font": {"color": "rgba(0,0,0,0)"},
        "steps": moves,
    }
