"""Still images of a landscape: axes and text drawn by matplotlib, surface, runs and balls by the rasterizer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from loss_viz.diagnostics.report import assess, write_factor
from loss_viz.export.rasterizer import Rasterizer
from loss_viz.figures.captions import caption, name_axis, write_notes
from loss_viz.figures.loss_axis import BALL_RADIUS, Scale, fit_scale
from loss_viz.figures.style import (
    BALL,
    BOX,
    COLORSCALE,
    FAINT,
    GRID_COLOR,
    LIGHT,
    MUTED,
    PLATEAU,
    TEXT_COLOR,
    pick_ball_colors,
    pick_colors,
)
from loss_viz.figures.traces import camera, fold_arrays, path_arrays, plateau_arrays, stem_arrays, surface_arrays
from loss_viz.landscapes.landscape import Landscape

# Text grows with the image, from this size on; in small images it stays legible.
DPI, REFERENCE_SIZE, MIN_ZOOM = 100, (800, 600), 0.6

# Room for title, color bar, axis labels and a line of the notes, in pixels at the reference size.
HEAD, SIDE, LABELS, NOTE_LINE = 80, 92, 40, 12
TICK_STEPS = [1, 2, 2.5, 5, 10]
MATPLOTLIB_BOX = 1.8294640721620434 * 25 / 24  # diagonal of matplotlib's box at zoom 1; its eye is 10 away from there
RC_PARAMS: Any = {
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.7,
    "text.color": TEXT_COLOR,
    "text.parse_math": False,  # names may contain a $
    "axes.edgecolor": GRID_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "axes.labelsize": 9,
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    **{f"axes3d.{axis}axis.panecolor": (1, 1, 1, 0) for axis in "xyz"},
}

SUPERSAMPLING = 2  # rasterized pixels per image pixel along each side, averaged at the end against jagged edges

# Lines and balls on the surface are moved towards the eye by this much, in units of the box, so that the surface does
# not hide half of them; and away from it where the underside of the surface is visible.
LINE_OFFSET, BALL_OFFSET = 0.015, 0.018
LINE_RADII = {"band": 3.6, "line": 1.7, "fold": 1.0, "stem": 1.0}  # in pixels at the reference size
EDGE_ON = 0.1  # sine of the angle to the line of sight below which the sides of the surface are blended
HIDDEN = 0.1  # visible fraction below which a ball counts as hidden
SURFACE_LIGHT = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # Plotly's light for meshes: right of the eye, above
BALL_LIGHT = np.array([-0.3, 0.6, 0.74])


class BoxAxes:
    """The empty box of a landscape with its axes, and the text around it.

    Args:
        landscape: the landscape.
        axis: the loss axis.
        size: width and height in CSS pixels.
        rotations: angles from which the box will be seen, in degrees; it is sized to be fully visible from all of them.
        scale: image pixels per CSS pixel along each side.

    Attributes:
        zoom: size of text and lines relative to the reference size.
        unit: `(3,)`, length of a unit of the box in x, y and drawn loss.
        view: `(3, 3)`, unit vectors to the right, up and towards the eye, in units of the box.
    """

    view: Float[np.ndarray, "3 3"]

    def __init__(
        self, landscape: Landscape, axis: Scale, *, size: tuple[int, int], rotations: Sequence[float], scale: int = 1
    ) -> None:
        self.zoom = scale * max(MIN_ZOOM, min(np.divide(size, REFERENCE_SIZE).tolist()))
        self._eye = np.array(list(camera(landscape, axis, distance=1.0)["eye"].values()))
        self._aspect = np.array(list(BOX.values()))
        room = BALL_RADIUS * (axis.high - axis.low)
        ends = np.array([landscape.x[[0, -1]], landscape.y[[0, -1]], [axis.low - room, axis.high + 2 * room]])
        self.unit = np.diff(ends)[:, 0] / self._aspect
        with _own_style():
            dpi = DPI * self.zoom
            self._figure = Figure((scale * size[0] / dpi, scale * size[1] / dpi), dpi=dpi, facecolor="white")
            self._canvas = FigureCanvasAgg(self._figure)
            self._axes: Any = self._figure.add_axes((0, 0, 1, 1), projection="3d")
            self._draw_axes(landscape, axis.log, ends)
            foot = self._write_notes(landscape)
            self._caption = self._write_title(landscape)
            self._draw_colorbar(axis)
            self._legend = self._draw_legend(landscape.run_set.names)
        self._fit(foot, rotations)

    def rotate(self, degrees: float) -> None:
        """Move the eye around the vertical axis, starting from the viewpoint of the interactive figure."""
        x, y, z = self._eye / np.linalg.norm(self._eye)
        azimuth = np.degrees(np.arctan2(y, x)) + degrees
        self._axes.view_init(elev=float(np.degrees(np.arcsin(z))), azim=float(azimuth))
        flat, angle = np.hypot(x, y), np.radians(azimuth)
        ahead = np.array([flat * np.cos(angle), flat * np.sin(angle), z])
        right = np.array([-np.sin(angle), np.cos(angle), 0.0])
        self.view = np.stack([right, np.cross(ahead, right), ahead])

    def set_texts(self, caption: str, names: Sequence[str] = ()) -> None:
        """Set the caption of a still, and the legend entry of each run if there are several."""
        self._caption.set_text(caption)
        for text, name in zip(self._legend, names, strict=True):
            text.set_text(name)

    def draw(self) -> Image.Image:
        """Return the box and the text as an image."""
        self._canvas.draw()
        return Image.fromarray(np.array(self._canvas.buffer_rgba()))

    def project(
        self, points: Float[np.ndarray, "n 3"], *, offset: Float[np.ndarray, " n"] | float = 0.0
    ) -> Float[np.ndarray, "n 3"]:
        """Return column, row and depth of points: pixels from the upper left, and a number that grows with distance.

        Args:
            points: x, y and drawn loss.
            offset: shift towards the eye that counts for the depth alone, in units of the box; per point, or for all.
        """
        matrix = self._axes.get_proj().T
        here, shifted = (
            np.column_stack([place, np.ones(len(place))]) @ matrix
            for place in (points, points + np.multiply.outer(offset, self.unit * self.view[2]))
        )
        pixels = self._axes.transData.transform(here[:, :2] / here[:, 3:])
        height = self._figure.bbox.height
        return np.column_stack([pixels[:, 0], height - pixels[:, 1], shifted[:, 2] / shifted[:, 3]])

    def _draw_axes(self, landscape: Landscape, log: bool, ends: Float[np.ndarray, "3 2"]) -> None:
        axes = self._axes
        names = *(name_axis(landscape.projection, i) for i in (0, 1)), "loss"
        for letter, name, (low, high) in zip("xyz", names, ends, strict=True):
            getattr(axes, f"set_{letter}lim")(low, high, view_margin=0)
            axis = getattr(axes, f"{letter}axis")
            axis.set_label_text(name)
            axis.set_major_locator(FixedLocator(linear_ticks(low, high, n=5)))
            axis.line.set_color(GRID_COLOR)
            axis.pane.set_edgecolor(GRID_COLOR)
        if log:
            set_log_ticks(axes.zaxis, *ends[2], n=5)
        axes.tick_params(pad=0)

    def _draw_colorbar(self, axis: Scale) -> None:
        width = self._figure.bbox.width / self.zoom
        bar = self._figure.add_axes((1 - 76 / width, 0.28, 12 / width, 0.42))
        self._figure.colorbar(ScalarMappable(Normalize(axis.low, axis.high), COLORSCALE.lower()), cax=bar)
        bar.set_title("loss", fontsize=9, loc="left")
        bar.yaxis.set_major_locator(FixedLocator(linear_ticks(axis.low, axis.high, n=6)))
        if axis.log:
            set_log_ticks(bar.yaxis, axis.low, axis.high, n=6)
        for spine in bar.spines.values():
            spine.set_visible(False)

    def _draw_legend(self, names: Sequence[str]) -> Sequence[Text]:
        if len(names) < 2:
            return []
        keys = [Line2D([], [], color=color, linewidth=4) for color in pick_colors(len(names))]
        corner = 0, 1 - 46 * self.zoom / self._figure.bbox.height
        style: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": corner, "fontsize": 8.5, "frameon": False}
        return self._figure.legend(keys, names, **style).get_texts()

    def _write_title(self, landscape: Landscape) -> Text:
        """Write the title, and return the empty caption under it."""
        line = self.zoom / self._figure.bbox.height
        title, *small = strip_markup(caption(landscape))
        style: dict[str, Any] = {"ha": "center", "va": "top"}
        self._figure.text(0.5, 1 - 12 * line, title, **style, fontsize=11, fontweight="bold")
        self._figure.text(0.5, 1 - 34 * line, "\n".join(small), **style, fontsize=8.5, color=FAINT)
        return self._figure.text(0.5, 1 - 54 * line, "", **style, fontsize=9.5)

    def _write_notes(self, landscape: Landscape) -> float:
        """Write the notes at the bottom, and return their height in pixels at the reference size."""
        lines = write_notes(landscape, int(self._figure.bbox.width / self.zoom / 6))
        at = 8 * self.zoom / self._figure.bbox.height
        self._figure.text(0.5, at, "\n".join(lines), ha="center", va="bottom", fontsize=7.5, color=FAINT)
        return float(8 + NOTE_LINE * len(lines))

    def _fit(self, foot: float, rotations: Sequence[float]) -> None:
        """Make the box as large as the free area allows, and center it there."""
        self._zoom_box(1.0)
        self._axes.apply_aspect()
        limits = self._axes.get_xlim(), self._axes.get_ylim(), self._axes.get_zlim()
        corners = np.array(np.meshgrid(*limits)).reshape(3, -1).T
        seen = []
        for degrees in rotations:
            self.rotate(degrees)
            seen.append(self.project(corners)[:, :2])
        low, high = np.concatenate(seen).min(axis=0), np.concatenate(seen).max(axis=0)
        size = np.array(self._figure.bbox.size)
        first = np.array([LABELS, HEAD]) * self.zoom
        last = size - np.array([SIDE + LABELS, foot + LABELS]) * self.zoom
        factor = float(((last - first) / (high - low)).min())
        self._zoom_box(factor)
        shift = (first + last) / 2 - (size / 2 + factor * ((low + high) / 2 - size / 2))
        self._axes.set_position((shift[0] / size[0], -shift[1] / size[1], 1, 1))
        self._axes.apply_aspect()

    def _zoom_box(self, factor: float) -> None:
        """Scale the box; the eye stays as far away, in sizes of the box, as in the interactive figure."""
        self._axes.set_box_aspect(self._aspect.tolist(), zoom=factor)  # a copy, because matplotlib scales it in place
        distance = np.linalg.norm(self._eye) / np.linalg.norm(self._aspect) * MATPLOTLIB_BOX * factor
        self._axes.set_proj_type("persp", focal_length=float(distance / 10))


class Scene:
    """A landscape that can be rendered at any step and from any side.

    Args:
        landscape: a landscape of one run or of several.
        size: width and height of the stills in CSS pixels.
        scale: image pixels per CSS pixel along each side.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this value.
        rotations: angles that will be rendered, in degrees; the box is fully visible from all of them.

    Raises:
        ValueError: if `log=True` with a loss that is not positive.
    """

    def __init__(
        self,
        landscape: Landscape,
        *,
        size: tuple[int, int],
        scale: int = 1,
        log: bool = False,
        min_support: float = 0.0,
        rotations: Sequence[float] = (0.0,),
    ) -> None:
        self._landscape, self._min_support = landscape, min_support
        self._size = SUPERSAMPLING * scale * size[0], SUPERSAMPLING * scale * size[1]
        self._scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
        self._box = BoxAxes(landscape, self._scale, size=size, rotations=rotations, scale=scale)
        report = assess(landscape)
        self._factor = report.fidelity.factor
        self._folds = fold_arrays(landscape, self._scale, report.folds)
        plateaus = report.plateaus[0] if len(landscape.runs) == 1 else []
        self._band = plateau_arrays(landscape.run_set, landscape.projection, self._scale, plateaus)
        self._rotate(rotations[0])

    def render(self, step: int, rotate: float = 0.0) -> Image.Image:
        """Return the still at a training step, seen `rotate` degrees from the viewpoint of the interactive figure.

        Raises:
            ValueError: if the step lies outside all runs.
        """
        rows = self._landscape.run_set.nearest_rows(step)
        if rotate != self._degrees:
            self._rotate(rotate)
        rasterizer = self._background.copy()
        colors = pick_ball_colors(len(rows))
        visible = [self._draw_ball(rasterizer, row, color) for row, color in zip(rows, colors, strict=True)]
        self._box.set_texts(*self._describe(step, rows, [fraction < HIDDEN for fraction in visible]))
        drawn = Image.fromarray(rasterizer.color).reduce(SUPERSAMPLING)
        return Image.alpha_composite(self._box.draw(), drawn).convert("RGB")

    def _rotate(self, degrees: float) -> None:
        self._box.rotate(degrees)
        land, facing = self._landscape, (self._normals()[:, 2] / EDGE_ON).clip(-1, 1)
        sides = facing.reshape(land.loss.shape)
        self._side = RegularGridInterpolator((land.y, land.x), sides, bounds_error=False, fill_value=1.0)
        self._degrees, self._background = degrees, self._draw_background()

    def _draw_background(self) -> Rasterizer:
        """Draw everything but the balls, which is the same at all steps."""
        rasterizer = Rasterizer(*self._size)
        self._draw_surface(rasterizer)
        land, scale = self._landscape, self._scale
        run_set, projection = land.run_set, land.projection
        self._draw_line(rasterizer, self._band, PLATEAU["line"]["color"], "band")
        self._draw_line(rasterizer, self._folds, TEXT_COLOR, "fold")
        for rows, color in zip(run_set.rows, pick_colors(len(run_set.runs)), strict=True):
            run = path_arrays(run_set, projection, land, scale, rows)
            self._draw_line(rasterizer, run, color, "line", muted=run["line.color"])
        return rasterizer

    def _draw_surface(self, rasterizer: Rasterizer) -> None:
        mesh = surface_arrays(self._landscape, self._scale, self._min_support)
        corners = np.stack([mesh[name] for name in "ijk"], axis=1)
        alpha = mesh["rgba"][:, 3:] / 255
        color = mesh["rgba"][:, :3] * alpha + 255 * (1 - alpha)  # on white
        light = LIGHT["ambient"] + LIGHT["diffuse"] * (self._normals() @ SURFACE_LIGHT).clip(0)
        # Points with a loss that is not finite belong to no triangle: any height will do.
        z = np.where(np.isfinite(mesh["z"]), mesh["z"], self._landscape.path_loss[0])
        points = self._project(mesh["x"], mesh["y"], z)
        rasterizer.triangles(points, (color * light[:, None]).clip(0, 255), corners)

    def _normals(self) -> Float[np.ndarray, "n 3"]:
        """Return the normals of the surface at the grid points, as components right, up and towards the eye."""
        land, unit = self._landscape, self._box.unit
        height = self._scale.draw(np.where(np.isfinite(land.loss), land.loss, np.nan)) / unit[2]
        along_y, along_x = np.gradient(height, land.y / unit[1], land.x / unit[0])
        normal = np.nan_to_num(np.stack([-along_x, -along_y, np.ones_like(height)], axis=-1)).reshape(-1, 3)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True) @ self._box.view.T

    def _draw_line(
        self,
        rasterizer: Rasterizer,
        line: Mapping[str, np.ndarray],
        color: str,
        kind: str,
        muted: Float[np.ndarray, " n"] | float = 0.0,
    ) -> None:
        offset = LINE_OFFSET * self._side(np.column_stack([line["y"], line["x"]]))
        points = self._project(line["x"], line["y"], line["z"], offset=offset)
        share = np.broadcast_to(muted, len(points))[:, None]
        colors = read_color(color) * (1 - share) + read_color(MUTED) * share
        radius = SUPERSAMPLING * self._box.zoom * LINE_RADII[kind]
        rasterizer.line(points, colors, radius=radius, flat=kind == "band")

    def _draw_ball(self, rasterizer: Rasterizer, row: int, color: str) -> float:
        """Draw the ball at a recorded step with its stem, and return the visible fraction of the ball."""
        land = self._landscape
        stem = stem_arrays(land.path[row], land.path_loss[row], land.path_height[row])
        self._draw_line(rasterizer, stem, TEXT_COLOR, "stem")
        center, radius, bulge = self._place_ball(row)
        return rasterizer.sphere(center, read_color(color), radius=radius, bulge=bulge, light=shade_ball)

    def _place_ball(self, row: int) -> tuple[Float[np.ndarray, " 3"], float, float]:
        """Return center, radius and bulge, in rasterized pixels and depth, of the ball that rests on the true loss."""
        land, scale, box = self._landscape, self._scale, self._box
        radius = BALL_RADIUS * (scale.high - scale.low) / box.unit[2]
        x, y = land.path[row]
        center = np.append([x, y], scale.draw(scale.lift(land.path_loss[row : row + 1], BALL_RADIUS)))
        points = np.stack([center, center + radius * box.unit * box.view[0]])
        offset = float(BALL_OFFSET * self._side([y, x])[0])
        back, front = (
            box.project(points, offset=offset + more) * [SUPERSAMPLING, SUPERSAMPLING, 1] for more in (0.0, radius)
        )
        return back[0], float(np.hypot(*(back[1] - back[0])[:2])), float(back[0, 2] - front[0, 2])

    def _project(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, offset: Any = 0.0) -> np.ndarray:
        points = np.column_stack([x, y, self._scale.draw(z)])
        return self._box.project(points, offset=offset) * [SUPERSAMPLING, SUPERSAMPLING, 1]

    def _describe(self, step: int, rows: Sequence[int], hidden: Sequence[bool]) -> tuple[str, list[str]]:
        """Return the caption of a still, and the legend entries of several runs."""
        land = self._landscape
        if len(rows) > 1:
            runs = zip(land.run_set.names, rows, hidden, strict=True)
            return f"step {step}", [
                f"{name}, loss {land.path_loss[row]:.4g}{' (hidden)' * unseen}" for name, row, unseen in runs
            ]
        [row], [unseen] = rows, hidden
        text = f"step {land.run_set.step[row]}, true loss {land.path_loss[row]:.4g}"
        text += f", surface {land.path_height[row]:.4g} ({write_factor(self._factor[row])})"
        return text + "; the ball is hidden" * unseen, []


@contextmanager
def _own_style() -> Iterator[None]:
    """Apply the style of loss_viz to matplotlib, whatever style the user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC_PARAMS)
        yield


def linear_ticks(low: float, high: float, *, n: int) -> list[float]:
    """Return about `n` round numbers from `low` to `high`. Near the largest floats matplotlib alone would overflow."""
    unit = 1e100 if max(abs(low), abs(high)) > 1e200 else 1.0
    low, high = low / unit, high / unit
    places = np.array(MaxNLocator(n, steps=TICK_STEPS).tick_values(low, high))
    return (places[(low <= places) & (places <= high)] * unit).tolist()


def set_log_ticks(axis: Any, low: float, high: float, *, n: int) -> None:
    """Mark about `n` round losses on a matplotlib axis that extends from `low` to `high` in log10 of the loss."""
    decades = np.arange(np.floor(low), np.ceil(high) + 1, max(1, np.ceil((high - low) / n)))
    places = np.add.outer(decades, np.log10([1, 2, 5] if high - low < 2 else [1])).ravel()
    places = places[(low <= places) & (places <= high)]
    axis.set_major_locator(FixedLocator(places.tolist()) if len(places) > 1 else MaxNLocator(n))
    axis.set_major_formatter(FuncFormatter(lambda place, _: f"{10**place:.3g}"))


def strip_markup(text: str) -> list[str]:
    """Return the lines of a caption without its HTML."""
    return [unescape(re.sub(r"</?(b|span)\b[^>]*>", "", line)) for line in text.split("<br>")]


def read_color(color: str) -> Float[np.ndarray, " 3"]:
    """Return red, green and blue of a color, from 0 to 255."""
    return 255 * np.array(to_rgb(color))


def shade_ball(normal: Float[np.ndarray, "n 3"], color: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the colors of a ball where its surface has the given normals (right, up, towards the eye).

    Blinn-Phong shading: ambient and diffuse light, and a highlight.
    """
    light = BALL["lighting"]
    half = BALL_LIGHT + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    highlight = 255 * light["specular"] * (normal @ half).clip(0) ** 40
    return color * (light["ambient"] + light["diffuse"] * (normal @ BALL_LIGHT).clip(0))[:, None] + highlight[:, None]
