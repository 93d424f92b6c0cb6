"""A landscape in axes of matplotlib: the box of a surface, or contours."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from scipy.spatial import cKDTree

from loss_viz.diagnostics.report import assess
from loss_viz.export.scene import Scene, find_direction, split_shades
from loss_viz.figures.camera import aim
from loss_viz.figures.captions import name_axis
from loss_viz.figures.loss_axis import BALL_RADIUS, Scale
from loss_viz.figures.style import BOX, COLORSCALE, pick_ball_colors, pick_colors
from loss_viz.figures.traces import error_shade, is_inside, surface_arrays
from loss_viz.landscapes.landscape import Landscape

TICK_STEPS = [1, 2, 2.5, 5, 10]
# From 3.9 on matplotlib's box has no margin around the limits of its axes, and is as much larger.
IS_NEW = mpl.__version_info__ >= (3, 9)
NO_MARGIN = {"view_margin": 0} if IS_NEW else {}
MATPLOTLIB_BOX = 1.8294640721620434 * (25 / 24 if IS_NEW else 1)  # its diagonal at zoom 1, with its eye 10 away
MATPLOTLIB_VIEW = 0.185  # width of the projection that matplotlib shows
LABELS = 11  # room for the labels around a box that turns, in margins
N_LEVELS = 12
TINT = 0.4  # opacity of the colors between the level lines


def draw_surface(
    axes: Any,
    landscape: Landscape,
    scale: Scale,
    *,
    step: int,
    min_support: float,
    rotations: Sequence[float],
    overhang: bool = False,
) -> Scene:
    """Draw a landscape in 3D axes, as large as their place allows and seen from the first of some angles.

    Args:
        axes: the axes.
        landscape: the landscape.
        scale: the loss axis.
        step: training step of the balls.
        min_support: leave the surface open where its support is below this value.
        rotations: angles from which the box will be seen, in degrees; it is fully visible from all of them.
        overhang: use all of the place of the axes, not only the square in its middle that matplotlib takes; layouts and
            tight boxes of matplotlib do not know of the rest.
    """
    room = BALL_RADIUS * (scale.high - scale.low)
    ends = np.array([landscape.x[[0, -1]], landscape.y[[0, -1]], [scale.low - room, scale.high + 2 * room]])
    names = [*(name_axis(landscape.projection, i) for i in (0, 1)), scale.name]
    n_ticks = int(np.clip(axes.bbox.width / axes.figure.dpi * 72 / (5 * axes.xaxis.label.get_size()), 2, 5))
    for letter, name, (low, high) in zip("xyz", names, ends.tolist(), strict=True):
        getattr(axes, f"set_{letter}lim")(low, high, **NO_MARGIN)
        axis = getattr(axes, f"{letter}axis")
        axis.set_label_text(name)
        axis.set_rotate_label(True)
        axis.set_major_locator(FixedLocator(linear_ticks(low, high, n=max(2, n_ticks - (letter == "z")))))
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_color(mpl.rcParams["grid.color"])
        axis.pane.set_edgecolor(mpl.rcParams["grid.color"])
    if scale.log:
        set_log_ticks(axes.zaxis, *ends[2], n=max(2, n_ticks - 1))
    eye = find_eye(landscape, scale)
    _fit_box(axes, eye, rotations, overhang=overhang)
    turn(axes, eye, rotations[0])
    seen_from = dict(zip("xyz", (np.linalg.norm(eye) * find_direction(axes)).tolist(), strict=True))
    scene = Scene(landscape, scale, step=step, min_support=min_support, eye=seen_from)
    axes.add_artist(scene)
    return scene


def find_eye(landscape: Landscape, scale: Scale) -> Float[np.ndarray, " 3"]:
    """Return the viewpoint of the interactive figure, from the center of the box."""
    return np.array(list(aim(landscape, scale, distance=1.0)["eye"].values()))


def turn(axes: Any, eye: Float[np.ndarray, " 3"], degrees: float) -> None:
    """Look at the box of 3D axes from a viewpoint that was moved around the vertical axis."""
    x, y, z = eye / np.linalg.norm(eye)
    axes.view_init(elev=float(np.degrees(np.arcsin(z))), azim=float(np.degrees(np.arctan2(y, x)) + degrees))


def _fit_box(axes: Any, eye: Float[np.ndarray, " 3"], rotations: Sequence[float], *, overhang: bool) -> None:
    """Make the box as large as its place in the figure allows, with room for the labels around it."""
    aspect = np.array(list(BOX.values()))
    axes.set_box_aspect(aspect.tolist())  # a copy, because matplotlib scales it in place
    axes.set_proj_type("persp", focal_length=float(np.linalg.norm(eye) / np.linalg.norm(aspect) * MATPLOTLIB_BOX / 10))
    axes.apply_aspect()
    ends = axes.get_xlim(), axes.get_ylim(), axes.get_zlim()
    corners = np.column_stack([np.array(np.meshgrid(*ends)).reshape(3, -1).T, np.ones(8)])
    seen = []
    for degrees in rotations:
        turn(axes, eye, degrees)
        place = corners @ axes.get_proj().T
        seen.append(place[:, :2] / place[:, 3:])
    low, high = np.concatenate(seen).min(axis=0), np.concatenate(seen).max(axis=0)
    turn(axes, eye, rotations[0])
    free = axes.get_position(original=overhang).transformed(axes.figure.transSubfigure)
    margin = 0.3 * axes.xaxis.label.get_size() * axes.figure.dpi / 72
    around = margin * (LABELS if len(rotations) > 1 else 1)  # labels are measured at the first angle only
    most = float((free.size / (high - low)).min())  # pixels per unit of the projection
    least = 0.5 * most  # a smaller box would be lost among its labels
    for n_left in range(6, -1, -1):
        unit = (least + most) / 2 if n_left else least
        text = _zoom(axes, unit, (low + high) / 2, free.get_points().mean(axis=0))
        ends = axes.transData.transform([low, high]) + np.array([[-around], [around]])
        used = Bbox.union([Bbox(ends), text])
        least, most = (unit, most) if (used.size + 2 * margin <= free.size).all() else (least, unit)
    shift = free.get_points().mean(axis=0) - used.get_points().mean(axis=0)
    _zoom(axes, unit, (low + high) / 2, free.get_points().mean(axis=0) + shift)


def _zoom(axes: Any, unit: float, point: Float[np.ndarray, " 2"], place: Float[np.ndarray, " 2"]) -> Bbox:
    """Show a point of the projection at a place in the figure, and return what the text takes up.

    Args:
        axes: 3D axes.
        unit: pixels per unit of the projection.
        point: point of the projection.
        place: where it will be, in pixels.
    """
    axis_list, size = (axes.xaxis, axes.yaxis, axes.zaxis), axes.xaxis.label.get_size()
    start = point - (place - axes.bbox.min) / unit
    axes.viewLim.intervalx, axes.viewLim.intervaly = (start + np.array([[0], [axes.bbox.width]]) / unit).T
    pad = size * axes.bbox.width / (MATPLOTLIB_VIEW * unit)  # matplotlib puts labels farther from larger boxes
    for axis in axis_list:
        axis.labelpad = 2.8 * pad - 21  # matplotlib adds 21 points
        axis.set_tick_params(pad=0.9 * pad - 8)  # and 8 to this
    renderer = axes.figure.canvas.figure._get_renderer()
    return Bbox.union([axis.get_tightbbox(renderer) for axis in axis_list])


def draw_contours(axes: Any, landscape: Landscape, scale: Scale, *, step: int, min_support: float) -> Any:
    """Draw level lines of a landscape in flat axes, the runs and their balls, and return the lines.

    Args:
        axes: the axes.
        landscape: the landscape.
        scale: the loss axis.
        step: training step of the balls.
        min_support: draw no lines where the support of the surface is below this value.
    """
    x, y, width = landscape.x, landscape.y, mpl.rcParams["lines.linewidth"]
    loss, colors = scale.draw(landscape.loss), surface_arrays(landscape, scale)["rgba"].reshape(len(y), len(x), 4)
    hidden = ~np.isfinite(loss) | (landscape.support < min_support)
    inner = loss[~hidden]
    levels = choose_levels(inner.min(), inner.max(), log=scale.log) if inner.size else []
    lines = None
    tint = np.where(hidden[..., None], 0, colors * [1, 1, 1, TINT])
    half = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    extent = x[0] - half[0], x[-1] + half[0], y[0] - half[1], y[-1] + half[1]
    axes.imshow(tint.astype(np.uint8), extent=extent, aspect="auto", origin="lower", interpolation="bilinear")
    if len(levels):
        style = {"levels": levels, "cmap": COLORSCALE.lower(), "norm": Normalize(scale.low, scale.high)}
        lines = axes.contour(x, y, np.ma.array(loss, mask=hidden), **style, linewidths=0.5 * width)
    run_set, report = landscape.run_set, assess(landscape)
    for rows, color in zip(run_set.rows, pick_colors(len(run_set.runs)), strict=True):
        path = landscape.path[rows]
        for shade, line in split_shades(
            color, path, error_shade(report.fidelity.factor[rows]), is_inside(landscape, path)
        ):
            axes.plot(*line.T, color=shade, linewidth=width)
    for row, color in zip(run_set.nearest_rows(step), pick_ball_colors(len(run_set.runs)), strict=True):
        axes.plot(*landscape.path[row], "o", color=color, markeredgecolor="white", markersize=4 * width, zorder=3)
    axes.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
    axes.set_xlabel(name_axis(landscape.projection, 0))
    axes.set_ylabel(name_axis(landscape.projection, 1))
    return lines


def label_contours(axes: Any, lines: Any, landscape: Landscape, scale: Scale) -> None:
    """Write its loss on each level line, where it is far from the runs, the frame and the labels before it."""
    if lines is None:
        return
    size = axes.xaxis.get_ticklabels()[0].get_size()
    unit = size * axes.figure.dpi / 72
    (left, bottom), (right, top) = axes.bbox.get_points()
    taken = axes.transData.transform(landscape.path[is_inside(landscape, landscape.path)])
    places: list[np.ndarray] = []
    names = {level: f"{10**level if scale.log else level:.3g}" for level in lines.levels}
    known = [(name, line) for name, line in zip(names.values(), _find_vertices(lines), strict=True) if len(line)]
    levels = [axes.transData.transform(line) for _, line in known]
    for i, (dots, (name, _)) in enumerate(zip(levels, known, strict=True)):
        frame = np.min([dots[:, 0] - left, right - dots[:, 0], dots[:, 1] - bottom, top - dots[:, 1]], axis=0)
        room = np.minimum(frame, cKDTree(taken).query(dots)[0])
        if len(levels) > 1:
            others = np.concatenate(levels[:i] + levels[i + 1 :])
            room = np.minimum(room, 1.8 * cKDTree(others).query(dots)[0])
        if places:
            room = np.minimum(room, 0.5 * cKDTree(places).query(dots)[0])
        best = int(room.argmax())
        if room[best] > (0.3 * len(name) + 0.5) * unit:
            places.append(dots[best])
    if places:
        axes.clabel(
            lines,
            manual=axes.transData.inverted().transform(places),
            fontsize=size,
            inline_spacing=2,
            fmt=names,
            colors=[mpl.rcParams["text.color"]],
        )


def _find_vertices(lines: Any) -> list[Float[np.ndarray, "n 2"]]:
    """Return the points of each level line."""
    if hasattr(lines, "get_paths"):
        return [path.vertices for path in lines.get_paths()]
    parts = [level.get_paths() for level in lines.collections]  # before matplotlib 3.8
    return [np.concatenate([np.empty((0, 2)), *(path.vertices for path in paths)]) for paths in parts]


def choose_levels(low: float, high: float, *, log: bool) -> list[float]:
    """Return about twelve levels at round losses between two drawn losses."""
    places = round_logs(low, high, n=N_LEVELS) if log else linear_ticks(low, high, n=N_LEVELS)
    return [place for place in places if low < place < high]


def linear_ticks(low: float, high: float, *, n: int) -> list[float]:
    """Return about `n` round numbers from `low` to `high`. Near the largest floats matplotlib alone would overflow."""
    unit = 1e100 if max(abs(low), abs(high)) > 1e200 else 1.0
    low, high = low / unit, high / unit
    places = np.array(MaxNLocator(n, steps=TICK_STEPS).tick_values(low, high))
    return (places[(low <= places) & (places <= high)] * unit).tolist()


def round_logs(low: float, high: float, *, n: int) -> list[float]:
    """Return log10 of about `n` round losses, those with log10 from `low` to `high`."""
    whole = np.arange(np.floor(low), np.ceil(high) + 1)
    choices = [whole[whole % 2**power == 0] for power in range(10)]
    choices.append(np.add.outer(whole, np.log10([1, 2, 5])).ravel())
    choices.append(np.linspace(low, high, n + 1)[1:-1] if n > 2 else np.array([low, high]))
    shown = [choice[(low <= choice) & (choice <= high)] for choice in choices]
    several = [choice for choice in shown[:-1] if len(choice) > 1] or shown[-1:]
    return min(several, key=lambda choice: abs(len(choice) - n)).tolist()


def set_log_ticks(axis: Any, low: float, high: float, *, n: int) -> None:
    """Mark about `n` round losses on a matplotlib axis that extends from `low` to `high` in log10 of the loss."""
    axis.set_major_locator(FixedLocator(round_logs(low, high, n=n)))
    axis.set_major_formatter(FuncFormatter(lambda place, _: f"{10**place:.3g}"))
