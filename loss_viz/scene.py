"""One still of a landscape: surface, runs and balls in their box, as the interactive figure shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from .captions import write_factor
from .diagnostics import fidelity
from .drawing import (
    BALL,
    DRAINED,
    INK,
    LIGHT,
    path_arrays,
    pick_ball_colors,
    pick_colors,
    stem_arrays,
    surface_arrays,
)
from .folds import find_folds
from .landscapes import Landscape
from .marks import PLATEAU, fold_arrays, plateau_arrays
from .painter import Painter
from .paper import Paper
from .plateaus import find_plateaus
from .scales import BALL_RADIUS, fit_scale

FINER = 2  # pixels in one, along each side, that are averaged in the end: no stairs
# What lies on the surface counts as a little nearer to the eye, in units of the box, so that half of it is not buried;
# and as farther where the eye sees the underside of the surface.
LINE, NEAREST = 0.015, 0.018
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
        self._paper = Paper(landscape, self._scale, size=size, turns=turns, scale=scale)
        self._factor = fidelity(landscape).factor
        self._folds = fold_arrays(landscape, self._scale, find_folds(landscape))
        plateaus = find_plateaus(landscape.run) if len(landscape.runs) == 1 else []
        self._band = plateau_arrays(landscape.bundle, landscape.projection, self._scale, plateaus)
        self._turn(turns[0])

    def shoot(self, step: int, turn: float = 0.0) -> Image.Image:
        """The still at a training step, `turn` degrees around the box from where the interactive figure is seen.

        Raises:
            ValueError: the step lies outside all runs.
        """
        rows = self._landscape.bundle.find_rows(step)
        if turn != self._turned:
            self._turn(turn)
        painter = self._still.copy()
        colors = pick_ball_colors(len(rows))
        seen = [self._paint_ball(painter, row, color) for row, color in zip(rows, colors, strict=True)]
        self._paper.write(*self._tell(step, rows, [share < HIDDEN for share in seen]))
        drawn = Image.fromarray(painter.color).reduce(FINER)
        return Image.alpha_composite(self._paper.draw(), drawn).convert("RGB")

    def _turn(self, degrees: float) -> None:
        self._paper.turn(degrees)
        land, facing = self._landscape, (self._slopes()[:, 2] / EDGE).clip(-1, 1)
        sides = facing.reshape(land.loss.shape)
        self._side = RegularGridInterpolator((land.y, land.x), sides, bounds_error=False, fill_value=1.0)
        self._turned, self._still = degrees, self._paint_all()

    def _paint_all(self) -> Painter:
        """All that stays where it is."""
        painter = Painter(*self._size)
        self._paint_surface(painter)
        land, scale = self._landscape, self._scale
        bundle, projection = land.bundle, land.projection
        self._paint_line(painter, self._band, PLATEAU["line"]["color"], "band")
        self._paint_line(painter, self._folds, INK, "fold")
        for rows, color in zip(bundle.rows, pick_colors(len(bundle.runs)), strict=True):
            run = path_arrays(bundle, projection, land.path_height, scale, rows)
            self._paint_line(painter, run, color, "line", drained=run["line.color"])
        return painter

    def _paint_surface(self, painter: Painter) -> None:
        mesh = surface_arrays(self._landscape, self._scale, self._min_support)
        corners = np.stack([mesh[name] for name in "ijk"], axis=1)
        share = mesh["rgba"][:, 3:] / 255
        color = mesh["rgba"][:, :3] * share + 255 * (1 - share)  # on white
        lit = LIGHT["ambient"] + LIGHT["diffuse"] * (self._slopes() @ LAMP).clip(0)
        # Corners that are not finite belong to no triangle, and have no place.
        z = np.where(np.isfinite(mesh["z"]), mesh["z"], self._landscape.path_loss[0])
        points = self._project(mesh["x"], mesh["y"], z)
        painter.fill(points, (color * lit[:, None]).clip(0, 255), corners)

    def _slopes(self) -> Float[np.ndarray, "n 3"]:
        """The normals of the surface, as the eye sees them: to the right, upwards and towards it."""
        land, unit = self._landscape, self._paper.unit
        height = self._scale.draw(np.where(np.isfinite(land.loss), land.loss, np.nan)) / unit[2]
        along_y, along_x = np.gradient(height, land.y / unit[1], land.x / unit[0])
        normal = np.nan_to_num(np.stack([-along_x, -along_y, np.ones_like(height)], axis=-1)).reshape(-1, 3)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True) @ self._paper.view.T

    def _paint_line(
        self,
        painter: Painter,
        line: Mapping[str, np.ndarray],
        color: str,
        kind: str,
        drained: Float[np.ndarray, " n"] | float = 0.0,
    ) -> None:
        nearer = LINE * self._side(np.column_stack([line["y"], line["x"]]))
        points = self._project(line["x"], line["y"], line["z"], nearer=nearer)
        share = np.broadcast_to(drained, len(points))[:, None]
        shades = read_color(color) * (1 - share) + read_color(DRAINED) * share
        painter.stroke(points, shades, radius=FINER * self._paper.zoom * WIDTHS[kind], flat=kind == "band")

    def _paint_ball(self, painter: Painter, row: int, color: str) -> float:
        land = self._landscape
        stem = stem_arrays(land.path[row], land.path_loss[row], land.path_height[row])
        self._paint_line(painter, stem, INK, "stem")
        middle, radius, bulge = self._place_ball(row)
        return painter.ball(middle, read_color(color), radius=radius, bulge=bulge, light=light_ball)

    def _place_ball(self, row: int) -> tuple[Float[np.ndarray, " 3"], float, float]:
        """Where its middle is, how large it is, and how much nearer its front is, for it rests on the true loss."""
        land, scale, paper = self._landscape, self._scale, self._paper
        radius = BALL_RADIUS * (scale.high - scale.low) / paper.unit[2]
        x, y = land.path[row]
        middle = np.append([x, y], scale.draw(scale.lift(land.path_loss[row : row + 1], BALL_RADIUS)))
        points = np.stack([middle, middle + radius * paper.unit * paper.view[0]])
        nearer = float(NEAREST * self._side([y, x])[0])
        back, front = (paper.project(points, nearer=nearer + more) * [FINER, FINER, 1] for more in (0.0, radius))
        return back[0], float(np.hypot(*(back[1] - back[0])[:2])), float(back[0, 2] - front[0, 2])

    def _project(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, nearer: Any = 0.0) -> np.ndarray:
        points = np.column_stack([x, y, self._scale.draw(z)])
        return self._paper.project(points, nearer=nearer) * [FINER, FINER, 1]

    def _tell(self, step: int, rows: Sequence[int], hidden: Sequence[bool]) -> tuple[str, list[str]]:
        land = self._landscape
        if len(rows) > 1:
            told = zip(land.bundle.names, rows, hidden, strict=True)
            names = [f"{name}, loss {land.path_loss[row]:.4g}{' (hidden)' * gone}" for name, row, gone in told]
            return f"step {step}", names
        [row], [gone] = rows, hidden
        words = f"step {land.bundle.step[row]}, true loss {land.path_loss[row]:.4g}"
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
