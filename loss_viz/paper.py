"""The paper of a still: the box with its axes, what is written around it, and where a point of it appears.

matplotlib sets letters and axes. What stands in the box is left to `loss_viz.painter`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from PIL import Image

from .captions import caption, name_axis, write_cautions, write_variance
from .drawing import BOX, COLORSCALE, GRID, INK, camera, pick_colors
from .figures import FAINT
from .folds import find_folds
from .landscapes import Landscape
from .scales import BALL_RADIUS, Scale

DPI, USUAL, LEAST = 100, (800, 600), 0.6  # letters grow with the picture; in small ones they stay legible
HEAD, SIDE, LABELS, LINE = 80, 92, 40, 12  # room for title, colour bar, axes, a line of small print; at that size
STEPS = [1, 2, 2.5, 5, 10]  # between ticks
MATPLOTLIB_BOX = 1.8294640721620434 * 25 / 24  # diagonal of its box at zoom 1, from which its eye is 10 away
LOOKS: Any = {
    **{"grid.color": GRID, "grid.linewidth": 0.7, "text.color": INK, "axes.labelcolor": INK, "axes.labelsize": 9},
    **{"xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.edgecolor": GRID},
    **{f"axes3d.{axis}axis.panecolor": (1, 1, 1, 0) for axis in "xyz"},
    "text.parse_math": False,  # a $ in a name is a $
}


class Paper:
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
            self._names = self._draw_legend(landscape.bundle.names)
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
            axis.line.set_color(GRID)
            axis.pane.set_edgecolor(GRID)
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
        return float(8 + LINE * len(lines))

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
