"""A figure of a landscape, and the words around it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox
from PIL import Image

from loss_viz.diagnostics.headlines import write_headlines
from loss_viz.diagnostics.report import assess, write_factor
from loss_viz.export.plots import (
    draw_contours,
    draw_surface,
    find_eye,
    label_contours,
    linear_ticks,
    set_log_ticks,
    turn,
)
from loss_viz.figures.captions import STANDING, caption, write_notes
from loss_viz.figures.loss_axis import Scale, fit_scale
from loss_viz.figures.style import COLORSCALE, FAINT, GRID_COLOR, TEXT_COLOR, pick_colors
from loss_viz.landscapes.landscape import Landscape

TICKS = 0.85  # size of the numbers on the axes, relative to the labels
HEADLINE, LETTER = 1.6, 0.7  # largest size of the headline, relative to the labels; width of its letters, to it
BAR = 5.5  # width of the color bar and its numbers, in heights of the labels
HIDDEN = 0.1  # visible fraction below which a ball counts as hidden


class Page:
    """A figure with a surface, contours, or both side by side.

    Args:
        landscape: the landscape.
        kind: "surface", "contour" or "both".
        size: width and height in inches.
        dpi: pixels per inch.
        step: training step of the balls.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this value.
        rotations: angles from which the surface will be seen, in degrees; it is fully visible from all of them.
        notes: write title, errors and warnings around the picture, and draw a color bar.
        headline: write above the picture what the run does at the step; `notes` has other words there.
        font: font family.
        font_size: size of the labels, in points.
        line_width: width of the trajectory, in points.

    Raises:
        ValueError: if `log=True` with a loss that is not positive.
    """

    def __init__(
        self,
        landscape: Landscape,
        *,
        kind: str = "surface",
        size: tuple[float, float],
        dpi: float,
        step: int | None = None,
        log: bool = False,
        min_support: float = 0.0,
        rotations: Sequence[float] = (0.0,),
        notes: bool = True,
        headline: bool = False,
        font: str | None = None,
        font_size: float = 9.0,
        line_width: float = 2.4,
    ) -> None:
        self._landscape, self._log, self._size = landscape, log, font_size
        self._style = font, font_size, line_width
        step = landscape.run_set.last_step if step is None else step
        scale = fit_scale([landscape.loss, landscape.path_loss], log=log, name=landscape.height_name)
        self._eye, self._degrees = find_eye(landscape, scale), rotations[0]
        with own_style(*self._style):
            self._figure = Figure(size, dpi=dpi, facecolor="white")
            self._canvas = FigureCanvasAgg(self._figure)
            self._width, self._height = size[0] * 72, size[1] * 72  # in points
            top, bottom, right = 0.0, 0.0, 0.0
            self._caption: Text | None = None
            self._headline: Text | None = None
            if headline and not notes:
                top = self._write_headline()
            if notes:
                top, bottom, right = self._write_head(), self._write_notes(), BAR * font_size
                self._draw_colorbar(scale)
            below = self._draw_legend(top)
            free = Bbox([[0, bottom], [self._width - right, self._height - below]])
            halves = free.splitx(0.5) if kind == "both" else [free, free]
            self._scene = None
            if kind != "contour":
                axes = self._figure.add_axes(self._share(halves[0]), projection="3d")
                self._scene = draw_surface(
                    axes, landscape, scale, step=step, min_support=min_support, rotations=rotations, overhang=True
                )
            if kind != "surface":
                axes = self._figure.add_axes(self._share(halves[1]))
                lines = draw_contours(axes, landscape, scale, step=step, min_support=min_support)
                self._fit_flat(axes, halves[1])
                label_contours(axes, lines, landscape, scale)
            self._set_words(step)

    def render(self, step: int, rotate: float = 0.0) -> Image.Image:
        """Return the still at a training step, seen `rotate` degrees from the viewpoint of the interactive figure.

        Raises:
            ValueError: if the step lies outside all runs.
        """
        with own_style(*self._style):
            if self._scene is not None:
                self._scene.step = step
                if rotate != self._degrees:
                    turn(self._scene.axes, self._eye, rotate)
                    self._degrees = rotate
            self._set_words(step)
            self._canvas.draw()
            return Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")

    def save(self, path: Path, metadata: Mapping[str, str | None]) -> None:
        """Write the figure to a file, as its suffix says."""
        with own_style(*self._style):
            self._figure.savefig(path, format=path.suffix[1:].lower(), dpi=self._figure.dpi, metadata=dict(metadata))

    def _share(self, place: Bbox) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of a place in points as shares of the figure."""
        x, y, width, height = place.bounds
        return x / self._width, y / self._height, width / self._width, height / self._height

    def _write(self, text: str, at: float, size: float, **style: Any) -> Text:
        """Write centered text, `at` points from the bottom, with a size relative to that of the labels."""
        return self._figure.text(0.5, at / self._height, text, ha="center", fontsize=size * self._size, **style)

    def _wrap(self, text: str, size: float) -> list[str]:
        return wrap(text, max(20, int(self._width / (0.52 * size * self._size))))

    def _write_head(self) -> float:
        """Write title and errors, make room for the caption, and return the height of all in points."""
        title, errors = strip_markup(caption(self._landscape))
        top = 0.9 * self._size
        example = describe_step(self._landscape, self._landscape.run_set.last_step)
        rows: Any = (title, 1.2, {"fontweight": "bold"}), (errors, 0.95, {"color": FAINT}), (example, 1.05, {})
        for text, size, style in rows:
            lines = self._wrap(text, size)
            words = self._write("\n".join(lines), self._height - top, size, va="top", **style)
            top += (1.3 * len(lines) + 0.4) * size * self._size
        self._caption = words
        return top

    def _write_headline(self) -> float:
        """Make room for a headline and the caption, and return the height of both in points."""
        run_set = self._landscape.run_set
        self._headlines = write_headlines(run_set.runs[0], assess(self._landscape).plateaus[0])
        longest = max(len(self._choose_headline(step)) for step in run_set.step.tolist())
        size = min(HEADLINE, self._width / (LETTER * longest * self._size))
        self._headline = self._write("", self._height - 0.9 * self._size, size, va="top", fontweight="bold")
        below = (0.9 + 1.6 * size) * self._size
        self._caption = self._write("", self._height - below, 1.05, va="top", color=FAINT)
        return below + 1.7 * self._size

    def _choose_headline(self, step: int) -> str:
        """Return what a single run does at a step, as the panel says it; of several runs the step."""
        run_set = self._landscape.run_set
        where = f"Step {step:,} of {run_set.last_step:,}"
        if len(run_set.runs) > 1:
            return where
        return f"{where}: {next(each.text for each in self._headlines if step <= each.end)}"

    def _write_notes(self) -> float:
        """Write the notes at the bottom, and return their height in points."""
        lines = write_notes(self._landscape, int(self._width / (0.48 * self._size)))
        self._write("\n".join(lines), 0.6 * self._size, TICKS, va="bottom", color=FAINT)
        return (0.8 + len(lines)) * self._size

    def _draw_colorbar(self, scale: Scale) -> None:
        size = self._size
        place = Bbox.from_bounds(self._width - (BAR - 0.5) * size, 0.28 * self._height, size, 0.42 * self._height)
        bar = self._figure.add_axes(self._share(place))
        self._figure.colorbar(ScalarMappable(Normalize(scale.low, scale.high), COLORSCALE.lower()), cax=bar)
        bar.set_title(scale.name, fontsize=size, loc="left")
        bar.yaxis.set_major_locator(FixedLocator(linear_ticks(scale.low, scale.high, n=6)))
        if scale.log:
            set_log_ticks(bar.yaxis, scale.low, scale.high, n=6)
        for spine in bar.spines.values():
            spine.set_visible(False)

    def _draw_legend(self, top: float) -> float:
        """Name several runs, and return the height of all so far, in points from the top."""
        names = self._landscape.run_set.names
        if len(names) < 2:
            return top
        keys = [Line2D([], [], color=color, linewidth=3) for color in pick_colors(len(names))]
        style: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - top / self._height)}
        for n_columns in range(len(names), 0, -1):  # as many as the figure is wide enough for
            legend = self._figure.legend(keys, names, **style, frameon=False, ncols=n_columns, handlelength=1.5)
            extent = legend.get_window_extent(self._canvas.get_renderer())
            if extent.width <= self._figure.bbox.width or n_columns == 1:
                break
            legend.remove()
        return top + extent.height * 72 / self._figure.dpi

    def _fit_flat(self, axes: Any, place: Bbox) -> None:
        """Make flat axes as large as a place in points allows, labels included."""
        points = 72 / self._figure.dpi
        margin = np.full(2, 0.4 * self._size)
        wanted = np.array([place.min + margin, place.max - margin])
        for _ in range(2):
            tight = axes.get_tightbbox(self._canvas.get_renderer()).get_points() * points
            axes.set_position(self._share(Bbox(axes.bbox.get_points() * points + wanted - tight)))

    def _set_words(self, step: int) -> None:
        """Write the caption, which depends on the step."""
        if self._caption is None:
            return
        if self._headline is not None:
            self._headline.set_text(self._choose_headline(step))
        visible = self._scene.visible() if self._scene else None
        text = describe_step(self._landscape, step, visible)
        if self._headline is not None:  # which says the step
            text = text.partition(", ")[2]
        self._caption.set_text("\n".join(self._wrap(text, 1.05)))


def describe_step(landscape: Landscape, step: int, visible: Sequence[float] | None = None) -> str:
    """Return the caption of a still: the step and the true losses, and of a single run the surface there.

    Args:
        landscape: the landscape.
        step: training step.
        visible: visible fraction of each ball.
    """
    rows, run_set, height = landscape.run_set.nearest_rows(step), landscape.run_set, landscape.height_name
    unseen = [visible is not None and visible[i] < HIDDEN for i in range(len(rows))]
    if len(rows) > 1:
        parts = zip(run_set.names, rows, unseen, strict=True)
        losses = [f"{name} {landscape.path_loss[row]:.4g}{' (hidden)' * away}" for name, row, away in parts]
        return f"step {step}, true {height}: {', '.join(losses)}"
    [row] = rows
    factor = write_factor(assess(landscape).fidelity.factor[row])
    text = f"step {run_set.step[row]}, true {height} {landscape.path_loss[row]:.4g}"
    return f"{text}, surface {landscape.path_height[row]:.4g} ({factor})" + "; the ball is hidden" * unseen[0]


def describe_landscape(landscape: Landscape, step: int) -> str:
    """Return the words of a figure as one paragraph: title, errors, step and notes."""
    words = [*strip_markup(caption(landscape)), describe_step(landscape, step)]
    return ". ".join(words) + ". " + " ".join([*write_notes(landscape, 10_000), STANDING])


@contextmanager
def own_style(font: str | None, font_size: float, line_width: float) -> Iterator[None]:
    """Apply the style of loss_viz to matplotlib, whatever style the user has set."""
    thin = line_width / 2.4
    with mpl.rc_context():
        mpl.rcdefaults()
        params: Any = {
            "font.family": [*([font] if font else []), *mpl.rcParams["font.family"]],
            "font.size": font_size,
            "axes.labelsize": font_size,
            "legend.fontsize": font_size,
            "xtick.labelsize": TICKS * font_size,
            "ytick.labelsize": TICKS * font_size,
            "text.color": TEXT_COLOR,
            "text.parse_math": False,  # names may contain a $
            "axes.labelcolor": TEXT_COLOR,
            "xtick.color": TEXT_COLOR,
            "ytick.color": TEXT_COLOR,
            "axes.edgecolor": TEXT_COLOR,
            "grid.color": GRID_COLOR,
            "grid.linewidth": 0.8 * thin,
            "lines.linewidth": line_width,
            "axes.linewidth": 0.8 * thin,
            "xtick.major.width": 0.8 * thin,
            "ytick.major.width": 0.8 * thin,
            "xtick.major.size": 0.35 * font_size,
            "ytick.major.size": 0.35 * font_size,
            "pdf.fonttype": 42,  # text as text, which can be searched and edited
            "svg.fonttype": "none",
            "svg.hashsalt": "loss_viz",  # the same file each time
        }
        mpl.rcParams.update(params)
        yield


def strip_markup(text: str) -> list[str]:
    """Return the lines of a caption without its HTML."""
    return [unescape(re.sub(r"</?(b|span)\b[^>]*>", "", line)) for line in text.split("<br>")]
