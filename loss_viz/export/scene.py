"""A landscape in a 3D axes of matplotlib, in which each thing hides what is behind it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import IdentityTransform
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from loss_viz.diagnostics.report import assess
from loss_viz.export.rasterizer import Rasterizer
from loss_viz.figures.level_lines import level_arrays
from loss_viz.figures.loss_axis import BALL_RADIUS, SHADOW_LIFT, Scale
from loss_viz.figures.style import BALL, BOX, LIGHT, MUTED, PLATEAU, TEXT_COLOR, pick_ball_colors, pick_colors
from loss_viz.figures.traces import (
    fold_arrays,
    is_on_dark,
    path_arrays,
    plateau_arrays,
    shadow_arrays,
    stem_arrays,
    surface_arrays,
)
from loss_viz.landscapes.landscape import Landscape

SUPERSAMPLING = 2  # rasterized pixels per image pixel along each side, averaged at the end against jagged edges

# Lines and balls on the surface are moved towards the eye by this much, in units of the box, so that the surface does
# not hide half of them; and away from it where the underside of the surface is visible.
LINE_OFFSET, BALL_OFFSET = 0.015, 0.018
LINE_WIDTHS = {  # relative to lines.linewidth
    "band": 2.6,
    "casing": 1.6,
    "line": 1.0,
    "fold": 0.6,
    "stem": 0.6,
    "level": 0.35,
    "edge": 0.3,
}
NAME_OPACITY = 0.5  # of the ground of a name
EDGE_ON = 0.1  # sine of the angle to the line of sight below which the sides of the surface are blended
CLEAR_SIDE = 0.9  # of the blend; where the surface is seen from the side, it would cut level lines to pieces
N_SHADES = 8  # of a trajectory, from its color to gray
SURFACE_LIGHT = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # Plotly's light for meshes: right of the eye, above
BALL_LIGHT = np.array([-0.3, 0.6, 0.74])


class Scene(Artist):
    """Surface with level lines, runs, plateaus, folds and balls with their shadows, of a landscape.

    matplotlib's own artists are sorted by distance as wholes, which buries a line that lies on a surface or shows it
    through a hill. Here surface and balls are an image with a depth for each pixel, of the resolution at which the
    figure is drawn or saved; lines are lines, without the parts that something hides. All follows the axes: its size,
    its limits and its viewpoint.

    Args:
        landscape: a landscape of one run or of several.
        scale: the loss axis.
        step: training step of the balls.
        min_support: leave the surface open where its support is below this value.
        eye: viewpoint for which the names of the level lines are placed, as Plotly's camera has it.
    """

    axes: Any  # set by `axes.add_artist`

    def __init__(
        self, landscape: Landscape, scale: Scale, *, step: int, min_support: float, eye: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.step = step
        self._landscape, self._scale = landscape, scale
        self._mesh = surface_arrays(landscape, scale, min_support)
        self._folds = fold_arrays(landscape, scale, assess(landscape).folds)
        plateaus = assess(landscape).plateaus[0] if len(landscape.runs) == 1 else []
        self._band = plateau_arrays(landscape.run_set, landscape.projection, scale, plateaus)
        arrays = level_arrays(landscape, self._mesh, scale, landscape.path, landscape.path_loss, eye)
        self._levels, self._names = arrays["levels"], arrays["level_names"]
        self._line_width = mpl.rcParams["lines.linewidth"]
        self._text_color = mpl.rcParams["text.color"]
        self._seen_as: tuple[Any, ...] = ()
        self._aspect = np.array(list(BOX.values()))

    def visible(self) -> list[float]:
        """Return the visible fraction of each ball."""
        return self._rasterize(1.0)[1]

    def draw(self, renderer: Any) -> None:
        """Draw everything, as matplotlib asks."""
        if not self.get_visible():
            return
        magnification = renderer.get_image_magnification()
        picture, _ = self._rasterize(magnification)
        image = np.asarray(Image.fromarray(picture.color).reduce(SUPERSAMPLING))
        gc = renderer.new_gc()
        if image.size:
            left, top = self._corner
            renderer.draw_image(gc, left, top - len(image) / magnification, image[::-1])
        balls = list(self._balls())
        for line, color, kind, muted in self._lines():
            points = self._place_line(line, LINE_OFFSET)
            self._draw_line(renderer, gc, picture, points, color, kind, muted, balls=[ball for ball, _ in balls])
        self._draw_names(renderer, picture)
        for (center, radius, _), color in balls:
            angle = np.linspace(0, 2 * np.pi, 100)[:, None]
            ring = center + radius * np.hstack([np.cos(angle), np.sin(angle), 0 * angle])
            self._draw_line(renderer, gc, picture, ring, 0.6 * read_color(color) / 255, "edge")
        gc.restore()
        self.stale = False

    def _lines(self) -> Iterator[tuple[Mapping[str, np.ndarray], str, str, Any]]:
        """Yield the points, the color, the kind and the share of gray of each line."""
        land, scale = self._landscape, self._scale
        is_dark = is_on_dark(self._levels["rgba"])
        is_clear = self._side(np.column_stack([self._levels["y"], self._levels["x"]])) >= CLEAR_SIDE
        for color, drawn in ((TEXT_COLOR, ~is_dark), ("white", is_dark)):
            drawn = is_clear & (drawn | np.append(drawn[1:], False))  # up to the first point of the other color
            yield self._levels | {"x": np.where(drawn, self._levels["x"], np.nan)}, color, "level", 0.0
        yield self._band, PLATEAU["line"]["color"], "band", 0.0
        yield self._folds, self._text_color, "fold", 0.0
        for rows, color in zip(land.run_set.rows, pick_colors(len(land.runs)), strict=True):
            run = path_arrays(land.run_set, land.projection, land, scale, rows)
            yield run, "white", "casing", 0.0
            yield run, color, "line", run["line.color"]
        for row in land.run_set.nearest_rows(self.step):
            stem = stem_arrays(land.path[row], land.path_loss[row], land.path_height[row])
            yield stem, self._text_color, "stem", 0.0

    def _balls(self) -> Iterator[tuple[tuple[Float[np.ndarray, " 3"], float, float], str]]:
        """Yield the place and the color of each ball."""
        rows = self._landscape.run_set.nearest_rows(self.step)
        for row, color in zip(rows, pick_ball_colors(len(rows)), strict=True):
            yield self._place_ball(row), color

    def _rasterize(self, magnification: float) -> tuple[Rasterizer, list[float]]:
        """Return the surface with the balls, and the visible fraction of each ball."""
        seen_as = (
            self.axes.get_proj().tobytes(),
            self.axes.transData.transform([(0.0, 0.0), (1.0, 1.0)]).tobytes(),
            to_rgb(self.axes.get_facecolor()),
            magnification,
        )
        if seen_as != self._seen_as:  # else the surface is where it was
            self._look(magnification)
            self._background = self._draw_surface()
            self._seen_as = seen_as
        picture = self._background.copy()
        for row in self._landscape.run_set.nearest_rows(self.step):
            self._draw_shadow(picture, row)
        visible = [
            picture.sphere(center, read_color(color), radius=radius, bulge=bulge, light=shade_ball)
            for (center, radius, bulge), color in self._balls()
        ]
        return picture, visible

    def _look(self, magnification: float) -> None:
        """Read the viewpoint and the size of the axes."""
        axes, land = self.axes, self._landscape
        ends = np.array([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
        self._unit = np.diff(ends)[:, 0] / self._aspect  # length of a unit of the box in x, y and drawn loss
        ahead = find_direction(axes)
        right = np.array([-ahead[1], ahead[0], 0.0]) / np.hypot(*ahead[:2])
        self._view = np.stack([right, np.cross(ahead, right), ahead])  # right, up and towards the eye, in the box
        self._matrix, self._zoom, self._corner = axes.get_proj().T, SUPERSAMPLING * magnification, np.zeros(2)
        corners = np.array(np.meshgrid(*ends)).reshape(3, -1).T
        columns, rows = (self._project(corners)[:, :2] / SUPERSAMPLING).T  # rows are negative: they count downwards
        width, height = np.array(axes.figure.canvas.figure.bbox.size) * magnification
        first = np.floor([max(columns.min(), 0), max(rows.min(), -height)])
        last = np.ceil([min(columns.max(), width), min(rows.max(), 0)])
        self._corner = first * [1, -1] / magnification
        self._size = SUPERSAMPLING * (last - first).clip(0).astype(int)
        facing = (self._normals()[:, 2] / EDGE_ON).clip(-1, 1).reshape(land.loss.shape)
        self._side = RegularGridInterpolator((land.y, land.x), facing, bounds_error=False, fill_value=1.0)

    def _draw_surface(self) -> Rasterizer:
        mesh, picture = self._mesh, Rasterizer(*self._size.tolist())
        corners = np.stack([mesh[name] for name in "ijk"], axis=1)
        alpha = mesh["rgba"][:, 3:] / 255
        color = mesh["rgba"][:, :3] * alpha + read_color(self.axes.get_facecolor()) * (1 - alpha)
        light = LIGHT["ambient"] + LIGHT["diffuse"] * (self._normals() @ SURFACE_LIGHT).clip(0)
        # Points with a loss that is not finite belong to no triangle: any height will do.
        z = np.where(np.isfinite(mesh["z"]), mesh["z"], self._landscape.path_loss[0])
        points = self._project(np.column_stack([mesh["x"], mesh["y"], self._scale.draw(z)]))
        shaded = (color * light[:, None]).clip(0, 255)
        picture.triangles(points, shaded, corners)
        land, places = self._landscape, (self._landscape.y, self._landscape.x)
        values = np.column_stack([self._scale.draw(mesh["z"]), shaded]).reshape(*land.loss.shape, -1)
        self._ground = RegularGridInterpolator(places, values, bounds_error=False, fill_value=np.nan)
        return picture

    def _draw_shadow(self, picture: Rasterizer, row: int) -> None:
        """Darken the surface below a ball: the more, the closer the two are."""
        land, scale = self._landscape, self._scale
        height = scale.high - scale.low
        both = scale.draw(np.array([land.path_loss[row], land.path_height[row]]))
        gap = abs(both[0] - both[1]) / (2 * BALL_RADIUS * height)
        if not gap < 1:  # nor where the height is unknown
            return
        shadow = shadow_arrays(np.array([np.ptp(land.x), np.ptp(land.y)]))
        place = land.path[row] + np.column_stack([shadow["x"], shadow["y"]])
        z, *color = self._ground(place[:, ::-1]).T
        points = np.column_stack([place, z + SHADOW_LIFT * height])
        corners = np.stack([shadow[name] for name in "ijk"], axis=1)
        corners = corners[np.isfinite(points).all(axis=1)[corners].all(axis=1)]
        shade = 1 - (1 - gap) * shadow["dark"]
        points = self._project(np.nan_to_num(points), LINE_OFFSET / 2 * self._side(place[:, ::-1]))
        picture.triangles(points, np.nan_to_num(np.column_stack(color) * shade[:, None]), corners)

    def _normals(self) -> Float[np.ndarray, "n 3"]:
        """Return the normals of the surface at the grid points, as components right, up and towards the eye."""
        land, unit = self._landscape, self._unit
        height = self._scale.draw(np.where(np.isfinite(land.loss), land.loss, np.nan)) / unit[2]
        along_y, along_x = np.gradient(height, land.y / unit[1], land.x / unit[0])
        normal = np.nan_to_num(np.stack([-along_x, -along_y, np.ones_like(height)], axis=-1)).reshape(-1, 3)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True) @ self._view.T

    def _place_line(self, line: Mapping[str, np.ndarray], offset: float) -> Float[np.ndarray, "n 3"]:
        points = np.column_stack([line["x"], line["y"], self._scale.draw(line["z"])])
        return self._project(points, offset * self._side(points[:, 1::-1]))

    def _place_ball(self, row: int) -> tuple[Float[np.ndarray, " 3"], float, float]:
        """Return center, radius and bulge, in rasterized pixels and depth, of the ball that rests on the true loss."""
        land, scale = self._landscape, self._scale
        radius = BALL_RADIUS * (scale.high - scale.low) / self._unit[2]
        x, y = land.path[row]
        center = np.append([x, y], scale.draw(scale.lift(land.path_loss[row : row + 1], BALL_RADIUS)))
        points = np.stack([center, center + radius * self._unit * self._view[0]])
        offset = float(BALL_OFFSET * self._side([y, x])[0])
        back, front = (self._project(points, offset + more) for more in (0.0, radius))
        return back[0], float(np.hypot(*(back[1] - back[0])[:2])), float(back[0, 2] - front[0, 2])

    def _project(
        self, points: Float[np.ndarray, "n 3"], offset: Float[np.ndarray, " n"] | float = 0.0
    ) -> Float[np.ndarray, "n 3"]:
        """Return column, row and depth of points: rasterized pixels from the upper left, and a number that grows.

        Args:
            points: x, y and drawn loss.
            offset: shift towards the eye that counts for the depth alone, in units of the box; per point, or for all.
        """
        here, shifted = (
            np.column_stack([place, np.ones(len(place))]) @ self._matrix
            for place in (points, points + np.multiply.outer(offset, self._unit * self._view[2]))
        )
        place = self.axes.transData.transform(here[:, :2] / here[:, 3:])
        return np.column_stack([(place - self._corner) * [1, -1] * self._zoom, shifted[:, 2] / shifted[:, 3]])

    def _unproject(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Return where rasterized pixels are in the figure."""
        return points[:, :2] * [1, -1] / self._zoom + self._corner

    def _draw_line(
        self,
        renderer: Any,
        gc: Any,
        picture: Rasterizer,
        points: Float[np.ndarray, "n 3"],
        color: Any,
        kind: str,
        muted: Float[np.ndarray, " n"] | float = 0.0,
        balls: Sequence[tuple[Float[np.ndarray, " 3"], float, float]] = (),
    ) -> None:
        """Draw the visible parts of a line through projected points; points with nan interrupt it.

        A line that passes behind a ball ends where its edge, not its middle, would cover the ball.
        """
        reach = LINE_WIDTHS[kind] * self._line_width / 2 * self.axes.figure.dpi / 72 * self._zoom
        shares = np.broadcast_to(muted, len(points))
        known = np.isfinite(points).all(axis=1)
        gc.set_linewidth(LINE_WIDTHS[kind] * self._line_width)  # in points
        gc.set_capstyle("round")
        gc.set_joinstyle("round")
        for part in np.split(np.arange(len(points)), np.flatnonzero(~known)):
            part = part[known[part]]
            if len(part) > 1:
                length = np.append(0, np.cumsum(np.hypot(*np.diff(points[part, :2], axis=0).T)))
                at = np.linspace(0, length[-1], int(length[-1]) + 2)  # at most a pixel apart
                values = np.column_stack([points[part], shares[part]]).T
                *place, share = (np.interp(at, length, value) for value in values)
                dots = np.stack(place, axis=1)
                drawn = self._unproject(dots)
                shown = picture.shows(dots)
                for (column, row, depth), radius, bulge in balls:
                    beside = np.hypot(dots[:, 0] - column, dots[:, 1] - row) < radius + reach
                    shown &= ~(beside & (dots[:, 2] > depth - bulge))
                for shade, line in split_shades(color, drawn, share, shown):
                    gc.set_foreground(shade)
                    renderer.draw_path(gc, Path(line), IdentityTransform())

    def _draw_names(self, renderer: Any, picture: Rasterizer) -> None:
        """Write the losses of the level lines above them, where the surface does not hide these."""
        points = self._place_line(self._names, LINE_OFFSET)
        box = {"boxstyle": "square,pad=0", "facecolor": (1.0, 1.0, 1.0, NAME_OPACITY), "linewidth": 0}
        style = {"size": self.axes.zaxis.get_ticklabels()[0].get_size(), "color": TEXT_COLOR, "bbox": box}
        for text, (x, y), shown in zip(
            self._names["text"], self._unproject(points), picture.shows(points), strict=True
        ):
            if shown:
                words = Text(x, y, text, ha="center", va="bottom", **style)
                words.set_figure(self.axes.figure)
                words.draw(renderer)


def find_direction(axes: Any) -> Float[np.ndarray, " 3"]:
    """Return the direction of length 1 from the box of 3D axes to the eye."""
    elevation, azimuth = np.radians([axes.elev, axes.azim])
    return np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])


def split_shades(
    color: Any, points: Float[np.ndarray, "n 2"], muted: Float[np.ndarray, " n"], shown: Bool[np.ndarray, " n"]
) -> Iterator[tuple[tuple[float, float, float], Float[np.ndarray, "m 2"]]]:
    """Yield the shades of a trajectory, and its points in each of them, with nan where it is interrupted.

    Args:
        color: color of the trajectory.
        points: its points.
        muted: how gray it is at each of them, from 0 to 1.
        shown: which of them are drawn.
    """
    level = np.rint(N_SHADES * muted).astype(int)
    for value in np.unique(level[shown]):
        on = shown & (level == value)
        on[1:] |= on[:-1] & shown[1:]  # up to the first point of the next shade
        share = value / N_SHADES
        red, green, blue = (((1 - share) * read_color(color) + share * read_color(MUTED)) / 255).tolist()
        yield (red, green, blue), np.where(on[:, None], points, np.nan)


def read_color(color: Any) -> Float[np.ndarray, " 3"]:
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
