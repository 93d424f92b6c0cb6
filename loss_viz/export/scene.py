"""One still image of a landscape: axes by matplotlib, surface, runs and balls by the rasterizer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from textwrap import wrap
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

from loss_viz.diagnostics.fidelity import fidelity
from loss_viz.diagnostics.folds import find_folds
from loss_viz.diagnostics.plateaus import find_plateaus
from loss_viz.diagnostics.report import write_cautions, write_factor
from loss_viz.export.rasterizer import Rasterizer
from loss_viz.figures.captions import caption, name_axis, write_variance
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

DPI, USUAL, LEAST = 100, (800, 600), 0.6  # letters grow with the picture; in small ones they stay legible

HEAD, SIDE, LABELS, NOTE_LINE = 80, 92, 40, 12  # room for title, colour bar, axes, a line of small print; at that size

STEPS = [1, 2, 2.5, 5, 10]  # between ticks

MATPLOTLIB_BOX = 1.8294640721620434 * 25 / 24  # diagonal of its box at zoom 1, from which its eye is 10 away

LOOKS: Any = {
    **{
        "grid.color": GRID_COLOR,
        "grid.linewidth": 0.7,
        "text.color": TEXT_COLOR,
        "axes.labelcolor": TEXT_COLOR,
        "axes.labelsize": 9,
    },
    **{
        "xtick.color": TEXT_COLOR,
        "ytick.color": TEXT_COLOR,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.edgecolor": GRID_COLOR,
    },
    **{f"axes3d.{axis}axis.panecolor": (1, 1, 1, 0) for axis in "xyz"},
    "text.parse_math": False,  # a $ in a name is a $
}


class BoxAxes:
    """The empty box of a landscape, and all that is written around it.

    Args:
        landscape: of which the box is.
        axis: that of the loss.
        size: width and height, in pixels of a page.
        scale: how many pixels each of them is made of, along each side.
        turns: degrees to which the eye will walk around the box; from all of them it is seen in whole.

    Attributes:
        zoom: how much larger than usual letters and lines are, for the size of the picture.
        unit: `(3,)`, how much of x, of y and of the drawn loss is one unit of the box.
        view: `(3, 3)`, to the right, upwards and towards the eye, in units of the box.
    """

    view: Float[np.ndarray, "3 3"]

    def __init__(
        self, landscape: Landscape, axis: Scale, *, size: tuple[int, int], turns: Sequence[float], scale: int = 1
    ) -> None:
        self.zoom = scale * max(LEAST, min(np.divide(size, USUAL).tolist()))
        self._eye = np.array(list(camera(landscape, axis, distance=1.0)["eye"].values()))
        self._aspect = np.array(list(BOX.values()))
        room = BALL_RADIUS * (axis.high - axis.low)
        ends = np.array([landscape.x[[0, -1]], landscape.y[[0, -1]], [axis.low - room, axis.high + 2 * room]])
        self.unit = np.diff(ends)[:, 0] / self._aspect
        with _use_looks():
            dpi = DPI * self.zoom
            self._figure = Figure((scale * size[0] / dpi, scale * size[1] / dpi), dpi=dpi, facecolor="white")
            self._canvas = FigureCanvasAgg(self._figure)
            self._axes: Any = self._figure.add_axes((0, 0, 1, 1), projection="3d")
            self._draw_axes(landscape, axis.log, ends)
            foot = self._write_foot(landscape)
            self._note = self._write_head(landscape)
            self._draw_colorbar(axis)
            self._names = self._draw_legend(landscape.run_set.names)
        self._fit(foot, turns)

    def turn(self, degrees: float) -> None:
        """Walk around the box, from where the interactive figure is seen."""
        x, y, z = self._eye / np.linalg.norm(self._eye)
        azimuth = np.degrees(np.arctan2(y, x)) + degrees
        self._axes.view_init(elev=float(np.degrees(np.arcsin(z))), azim=float(azimuth))
        flat, turned = np.hypot(x, y), np.radians(azimuth)
        ahead = np.array([flat * np.cos(turned), flat * np.sin(turned), z])
        right = np.array([-np.sin(turned), np.cos(turned), 0.0])
        self.view = np.stack([right, np.cross(ahead, right), ahead])

    def write(self, note: str, names: Sequence[str] = ()) -> None:
        """What is told of one still alone, and of each of several runs in it."""
        self._note.set_text(note)
        for text, name in zip(self._names, names, strict=True):
            text.set_text(name)

    def draw(self) -> Image.Image:
        """The paper as it is."""
        self._canvas.draw()
        return Image.fromarray(np.array(self._canvas.buffer_rgba()))

    def project(
        self, points: Float[np.ndarray, "n 3"], *, nearer: Float[np.ndarray, " n"] | float = 0.0
    ) -> Float[np.ndarray, "n 3"]:
        """Column, row and depth of points (x, y, drawn loss): pixels from the upper left, and what grows with distance.

        Args:
            points: in the box.
            nearer: how much nearer to the eye than they are they count as, in units of the box; for each, or for all.
        """
        matrix = self._axes.get_proj().T
        here, there = (
            np.column_stack([place, np.ones(len(place))]) @ matrix
            for place in (points, points + np.multiply.outer(nearer, self.unit * self.view[2]))
        )
        pixels = self._axes.transData.transform(here[:, :2] / here[:, 3:])
        height = self._figure.bbox.height
        return np.column_stack([pixels[:, 0], height - pixels[:, 1], there[:, 2] / there[:, 3]])

    def _draw_axes(self, landscape: Landscape, log: bool, ends: Float[np.ndarray, "3 2"]) -> None:
        axes = self._axes
        for set_ends, (low, high) in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), ends, strict=True):
            set_ends(low, high, view_margin=0)
        names = *(name_axis(landscape.projection, i) for i in (0, 1)), "loss"
        for axis, name, (low, high) in zip((axes.xaxis, axes.yaxis, axes.zaxis), names, ends, strict=True):
            axis.set_label_text(name)
            axis.set_major_locator(FixedLocator(place_ticks(low, high, n=5)))
            axis.line.set_color(GRID_COLOR)
            axis.pane.set_edgecolor(GRID_COLOR)
        if log:
            mark_losses(axes.zaxis, *ends[2], n=5)
        axes.tick_params(pad=0)

    def _draw_colorbar(self, axis: Scale) -> None:
        width = self._figure.bbox.width / self.zoom
        bar = self._figure.add_axes((1 - 76 / width, 0.28, 12 / width, 0.42))
        self._figure.colorbar(ScalarMappable(Normalize(axis.low, axis.high), COLORSCALE.lower()), cax=bar)
        bar.set_title("loss", fontsize=9, loc="left")
        bar.yaxis.set_major_locator(FixedLocator(place_ticks(axis.low, axis.high, n=6)))
        if axis.log:
            mark_losses(bar.yaxis, axis.low, axis.high, n=6)
        for spine in bar.spines.values():
            spine.set_visible(False)

    def _draw_legend(self, names: Sequence[str]) -> Sequence[Text]:
        if len(names) < 2:
            return []
        keys = [Line2D([], [], color=color, linewidth=4) for color in pick_colors(len(names))]
        corner = 0, 1 - 46 * self.zoom / self._figure.bbox.height
        looks: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": corner, "fontsize": 8.5, "frameon": False}
        return self._figure.legend(keys, names, **looks).get_texts()

    def _write_head(self, landscape: Landscape) -> Text:
        line = self.zoom / self._figure.bbox.height
        title, *small = read_plainly(caption(landscape))
        looks: dict[str, Any] = {"ha": "center", "va": "top"}
        self._figure.text(0.5, 1 - 12 * line, title, **looks, fontsize=11, fontweight="bold")
        self._figure.text(0.5, 1 - 34 * line, "\n".join(small), **looks, fontsize=8.5, color=FAINT)
        return self._figure.text(0.5, 1 - 54 * line, "", **looks, fontsize=9.5)

    def _write_foot(self, landscape: Landscape) -> float:
        sentences = [write_variance(landscape.projection), *write_cautions(landscape, find_folds(landscape))]
        letters = int(self._figure.bbox.width / self.zoom / 6)
        lines = [line for sentence in sentences for line in wrap(sentence, letters)]
        at = 8 * self.zoom / self._figure.bbox.height
        self._figure.text(0.5, at, "\n".join(lines), ha="center", va="bottom", fontsize=7.5, color=FAINT)
        return float(8 + NOTE_LINE * len(lines))

    def _fit(self, foot: float, turns: Sequence[float]) -> None:
        """Make the box as large as there is room for, in the middle of it."""
        self._zoom_box(1.0)
        self._axes.apply_aspect()
        corners = np.array(np.meshgrid(*self._limits())).reshape(3, -1).T
        seen = []
        for degrees in turns:
            self.turn(degrees)
            seen.append(self.project(corners)[:, :2])
        low, high = np.concatenate(seen).min(axis=0), np.concatenate(seen).max(axis=0)
        size = np.array(self._figure.bbox.size)
        first = np.array([LABELS, HEAD]) * self.zoom
        last = size - np.array([SIDE + LABELS, foot + LABELS]) * self.zoom
        larger = float(((last - first) / (high - low)).min())
        self._zoom_box(larger)
        shift = (first + last) / 2 - (size / 2 + larger * ((low + high) / 2 - size / 2))
        self._axes.set_position((shift[0] / size[0], -shift[1] / size[1], 1, 1))
        self._axes.apply_aspect()

    def _limits(self) -> tuple[tuple[float, float], ...]:
        return self._axes.get_xlim(), self._axes.get_ylim(), self._axes.get_zlim()

    def _zoom_box(self, larger: float) -> None:
        """Its size; the eye is as many sizes of the box away as in the interactive figure."""
        self._axes.set_box_aspect(self._aspect.tolist(), zoom=larger)  # a copy, for it scales what it is given
        away = np.linalg.norm(self._eye) / np.linalg.norm(self._aspect) * MATPLOTLIB_BOX * larger
        self._axes.set_proj_type("persp", focal_length=float(away / 10))


@contextmanager
def _use_looks() -> Iterator[None]:
    """Our own looks, whatever style somebody has chosen for figures of matplotlib."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(LOOKS)
        yield


def place_ticks(low: float, high: float, *, n: int) -> list[float]:
    """Round numbers from `low` to `high`, about `n`; matplotlib's own way to them overflows near the largest floats."""
    unit = 1e100 if max(abs(low), abs(high)) > 1e200 else 1.0
    low, high = low / unit, high / unit
    places = np.array(MaxNLocator(n, steps=STEPS).tick_values(low, high))
    return (places[(low <= places) & (places <= high)] * unit).tolist()


def mark_losses(axis: Any, low: float, high: float, *, n: int) -> None:
    """Ticks at about `n` round losses on an axis of matplotlib that runs from `low` to `high` in decades."""
    decades = np.arange(np.floor(low), np.ceil(high) + 1, max(1, np.ceil((high - low) / n)))
    places = np.add.outer(decades, np.log10([1, 2, 5] if high - low < 2 else [1])).ravel()
    places = places[(low <= places) & (places <= high)]
    axis.set_major_locator(FixedLocator(places.tolist()) if len(places) > 1 else MaxNLocator(n))
    axis.set_major_formatter(FuncFormatter(lambda place, _: f"{10**place:.3g}"))


def read_plainly(text: str) -> list[str]:
    """The lines of a caption, without its markup."""
    return [unescape(re.sub(r"</?(b|span)\b[^>]*>", "", line)) for line in text.split("<br>")]


FINER = 2  # pixels in one, along each side, that are averaged in the end: no stairs

# What lies on the surface counts as a little nearer to the eye, in units of the box, so that half of it is not buried;
# and as farther where the eye sees the underside of the surface.
LINE_NEARER, NEAREST = 0.015, 0.018

WIDTHS = {"band": 3.6, "line": 1.7, "fold": 1.0, "stem": 1.0}  # half of them, in pixels of a picture of usual size

EDGE = 0.1  # how far from edgeways the surface is seen where that is settled: sine of the angle

HIDDEN = 0.1  # of a ball is not much to be seen

LAMP = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # where Plotly's lamp for meshes is: to the right of the eye and above

BALL_LAMP = np.array([-0.3, 0.6, 0.74])


class Scene:
    """A landscape that can be seen at any step, from any side.

    Args:
        landscape: of one run or of several.
        size: width and height of the stills, in pixels of a page.
        scale: how many pixels each of them is made of, along each side.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this.
        turns: degrees by which stills will be turned; from all of these sides the whole of it is seen.

    Raises:
        ValueError: `log=True` with a loss that is not positive.
    """

    def __init__(
        self,
        landscape: Landscape,
        *,
        size: tuple[int, int],
        scale: int = 1,
        log: bool = False,
        min_support: float = 0.0,
        turns: Sequence[float] = (0.0,),
    ) -> None:
        self._landscape, self._min_support = landscape, min_support
        self._size = FINER * scale * size[0], FINER * scale * size[1]
        self._scale = fit_scale([landscape.loss, landscape.path_loss], log=log)
        self._paper = BoxAxes(landscape, self._scale, size=size, turns=turns, scale=scale)
        self._factor = fidelity(landscape).factor
        self._folds = fold_arrays(landscape, self._scale, find_folds(landscape))
        plateaus = find_plateaus(landscape.run) if len(landscape.runs) == 1 else []
        self._band = plateau_arrays(landscape.run_set, landscape.projection, self._scale, plateaus)
        self._turn(turns[0])

    def shoot(self, step: int, turn: float = 0.0) -> Image.Image:
        """The still at a training step, `turn` degrees around the box from where the interactive figure is seen.

        Raises:
            ValueError: the step lies outside all runs.
        """
        rows = self._landscape.run_set.find_rows(step)
        if turn != self._turned:
            self._turn(turn)
        rasterizer = self._still.copy()
        colors = pick_ball_colors(len(rows))
        seen = [self._paint_ball(rasterizer, row, color) for row, color in zip(rows, colors, strict=True)]
        self._paper.write(*self._tell(step, rows, [share < HIDDEN for share in seen]))
        drawn = Image.fromarray(rasterizer.color).reduce(FINER)
        return Image.alpha_composite(self._paper.draw(), drawn).convert("RGB")

    def _turn(self, degrees: float) -> None:
        self._paper.turn(degrees)
        land, facing = self._landscape, (self._slopes()[:, 2] / EDGE).clip(-1, 1)
        sides = facing.reshape(land.loss.shape)
        self._side = RegularGridInterpolator((land.y, land.x), sides, bounds_error=False, fill_value=1.0)
        self._turned, self._still = degrees, self._paint_all()

    def _paint_all(self) -> Rasterizer:
        """All that stays where it is."""
        rasterizer = Rasterizer(*self._size)
        self._paint_surface(rasterizer)
        land, scale = self._landscape, self._scale
        run_set, projection = land.run_set, land.projection
        self._paint_line(rasterizer, self._band, PLATEAU["line"]["color"], "band")
        self._paint_line(rasterizer, self._folds, TEXT_COLOR, "fold")
        for rows, color in zip(run_set.rows, pick_colors(len(run_set.runs)), strict=True):
            run = path_arrays(run_set, projection, land.path_height, scale, rows)
            self._paint_line(rasterizer, run, color, "line", muted=run["line.color"])
        return rasterizer

    def _paint_surface(self, rasterizer: Rasterizer) -> None:
        mesh = surface_arrays(self._landscape, self._scale, self._min_support)
        corners = np.stack([mesh[name] for name in "ijk"], axis=1)
        share = mesh["rgba"][:, 3:] / 255
        color = mesh["rgba"][:, :3] * share + 255 * (1 - share)  # on white
        lit = LIGHT["ambient"] + LIGHT["diffuse"] * (self._slopes() @ LAMP).clip(0)
        # Corners that are not finite belong to no triangle, and have no place.
        z = np.where(np.isfinite(mesh["z"]), mesh["z"], self._landscape.path_loss[0])
        points = self._project(mesh["x"], mesh["y"], z)
        rasterizer.fill(points, (color * lit[:, None]).clip(0, 255), corners)

    def _slopes(self) -> Float[np.ndarray, "n 3"]:
        """The normals of the surface, as the eye sees them: to the right, upwards and towards it."""
        land, unit = self._landscape, self._paper.unit
        height = self._scale.draw(np.where(np.isfinite(land.loss), land.loss, np.nan)) / unit[2]
        along_y, along_x = np.gradient(height, land.y / unit[1], land.x / unit[0])
        normal = np.nan_to_num(np.stack([-along_x, -along_y, np.ones_like(height)], axis=-1)).reshape(-1, 3)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True) @ self._paper.view.T

    def _paint_line(
        self,
        rasterizer: Rasterizer,
        line: Mapping[str, np.ndarray],
        color: str,
        kind: str,
        muted: Float[np.ndarray, " n"] | float = 0.0,
    ) -> None:
        nearer = LINE_NEARER * self._side(np.column_stack([line["y"], line["x"]]))
        points = self._project(line["x"], line["y"], line["z"], nearer=nearer)
        share = np.broadcast_to(muted, len(points))[:, None]
        shades = read_color(color) * (1 - share) + read_color(MUTED) * share
        rasterizer.stroke(points, shades, radius=FINER * self._paper.zoom * WIDTHS[kind], flat=kind == "band")

    def _paint_ball(self, rasterizer: Rasterizer, row: int, color: str) -> float:
        land = self._landscape
        stem = stem_arrays(land.path[row], land.path_loss[row], land.path_height[row])
        self._paint_line(rasterizer, stem, TEXT_COLOR, "stem")
        middle, radius, bulge = self._place_ball(row)
        return rasterizer.ball(middle, read_color(color), radius=radius, bulge=bulge, light=light_ball)

    def _place_ball(self, row: int) -> tuple[Float[np.ndarray, " 3"], float, float]:
        """Where its middle is, how large it is, and how much nearer its front is, for it rests on the true loss."""
        land, scale, axes_box = self._landscape, self._scale, self._paper
        radius = BALL_RADIUS * (scale.high - scale.low) / axes_box.unit[2]
        x, y = land.path[row]
        middle = np.append([x, y], scale.draw(scale.lift(land.path_loss[row : row + 1], BALL_RADIUS)))
        points = np.stack([middle, middle + radius * axes_box.unit * axes_box.view[0]])
        nearer = float(NEAREST * self._side([y, x])[0])
        back, front = (axes_box.project(points, nearer=nearer + more) * [FINER, FINER, 1] for more in (0.0, radius))
        return back[0], float(np.hypot(*(back[1] - back[0])[:2])), float(back[0, 2] - front[0, 2])

    def _project(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, nearer: Any = 0.0) -> np.ndarray:
        points = np.column_stack([x, y, self._scale.draw(z)])
        return self._paper.project(points, nearer=nearer) * [FINER, FINER, 1]

    def _tell(self, step: int, rows: Sequence[int], hidden: Sequence[bool]) -> tuple[str, list[str]]:
        land = self._landscape
        if len(rows) > 1:
            told = zip(land.run_set.names, rows, hidden, strict=True)
            names = [f"{name}, loss {land.path_loss[row]:.4g}{' (hidden)' * gone}" for name, row, gone in told]
            return f"step {step}", names
        [row], [gone] = rows, hidden
        words = f"step {land.run_set.step[row]}, true loss {land.path_loss[row]:.4g}"
        words += f", surface {land.path_height[row]:.4g} ({write_factor(self._factor[row])})"
        return words + "; the ball is hidden" * gone, []


def read_color(color: str) -> Float[np.ndarray, " 3"]:
    """Red, green and blue of a colour, from 0 to 255."""
    return 255 * np.array(to_rgb(color))


def light_ball(normal: Float[np.ndarray, "n 3"], color: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "n 3"]:
    """The colours of a ball whose surface looks to `normal`: to the right, upwards and towards the eye."""
    light = BALL["lighting"]
    half = BALL_LAMP + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    shine = 255 * light["specular"] * (normal @ half).clip(0) ** 40
    return color * (light["ambient"] + light["diffuse"] * (normal @ BALL_LAMP).clip(0))[:, None] + shine[:, None]
