"""A picture with depth: of all that falls on a pixel the nearest is seen, in whatever order it was drawn.

Plotting libraries that do without a graphics card sort whole shapes by their distance, and a line on a surface is
then buried in it, or seen through a hill. Here each pixel is decided on its own, as a graphics card does it.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 2**21  # pixels that are tried at once

SLACK = 1e-9  # so that rounding leaves no gap between two triangles

Light = Callable[[Float[np.ndarray, "n 3"], Float[np.ndarray, " 3"]], Float[np.ndarray, "n 3"]]


class Rasterizer:
    """A picture, and how far from the eye each of its pixels is.

    A point is (column, row, depth): pixels from the upper left corner, the middle of the first pixel is (0.5, 0.5), and
    a number that grows along the line of sight. Colours are red, green and blue, from 0 to 255.

    Args:
        width: of the picture, in pixels.
        height: likewise.

    Attributes:
        color: `(height, width, 4)`, 8 bits each; transparent where nothing was drawn.
        depth: `(height, width)`; infinite where nothing was drawn.

    Example:
        >>> rasterizer = Rasterizer(4, 1)
        >>> for depth, red in ((2.0, 200), (1.0, 100), (3.0, 50)):
        ...     rasterizer.stroke(np.array([[1.5, 0.5, depth]]), np.array([[red, 0.0, 0.0]]), radius=0.6)
        >>> rasterizer.color[0, :, [0, 3]].tolist()
        [[0, 100, 0, 0], [0, 255, 0, 0]]
    """

    def __init__(self, width: int, height: int) -> None:
        self.color = np.zeros((height, width, 4), np.uint8)
        self.depth = np.full((height, width), np.inf)

    def copy(self) -> "Rasterizer":
        """The same picture once more, to draw on."""
        other = Rasterizer(0, 0)
        other.color, other.depth = self.color.copy(), self.depth.copy()
        return other

    def fill(
        self,
        points: Float[np.ndarray, "n 3"],
        color: Float[np.ndarray, "n 3"],
        corners: Int[np.ndarray, "n_triangles 3"],
    ) -> None:
        """Draw triangles, each between three of the points; depth and colour blend from corner to corner."""
        place = points[corners]
        (x0, y0), (x1, y1), (x2, y2) = place[..., :2].transpose(1, 2, 0)
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        for which, column, row in self._list_pixels(place[area != 0]):
            which = np.flatnonzero(area)[which]
            x, y = column + 0.5 - x0[which], row + 0.5 - y0[which]
            second = (x * (y2 - y0)[which] - y * (x2 - x0)[which]) / area[which]
            third = (y * (x1 - x0)[which] - x * (y1 - y0)[which]) / area[which]
            share = np.stack([1 - second - third, second, third], axis=1)
            inside = (share >= -SLACK).all(axis=1)
            which, share, at = which[inside], share[inside], (row * self.color.shape[1] + column)[inside]
            seen = self._keep_nearest(at, np.einsum("pc,pc->p", share, place[which, :, 2]))
            error_shade = np.einsum("pc,pcr->pr", share[seen], color[corners[which[seen]]])
            self._put(at[seen], error_shade)

    def stroke(
        self, points: Float[np.ndarray, "n 3"], color: Float[np.ndarray, "n 3"], *, radius: float, flat: bool = False
    ) -> None:
        """Draw the line through the points, as a pen with a round tip of that radius; it is lifted where one is nan.

        What is `flat` is paint on the things that are there: it hides nothing that is drawn later.
        """
        known = np.isfinite(points).all(axis=1)
        for part in np.split(np.arange(len(points)), np.flatnonzero(~known)):
            part = part[known[part]]
            if len(part):
                way = np.append(0, np.cumsum(np.hypot(*np.diff(points[part, :2], axis=0).T)))
                at = np.linspace(0, way[-1], int(way[-1]) + 2)  # a pixel apart, or less
                values = np.column_stack([points[part], color[part]]).T
                tips = np.stack([np.interp(at, way, value) for value in values], axis=1)
                for which, at, _, depth in self._list_discs(tips[:, :3], radius):
                    seen = depth <= self.depth.reshape(-1)[at] if flat else self._keep_nearest(at, depth)
                    self._put(at[seen], tips[which[seen], 3:])

    def ball(
        self,
        middle: Float[np.ndarray, " 3"],
        color: Float[np.ndarray, " 3"],
        *,
        radius: float,
        bulge: float,
        light: Light,
    ) -> float:
        """Draw the front half of a ball, and tell what share of it is seen.

        Args:
            middle: of the ball.
            color: of the ball.
            radius: in pixels.
            bulge: how much less than that of its middle the depth of its foremost point is.
            light: from directions in which the ball's surface looks, to the right, upwards and to the eye, and its
                colour to the colours that are seen there.
        """
        n_seen = n_all = 0
        for _, at, away, depth in self._list_discs(middle[None], radius):
            front = np.sqrt(1 - (away**2).sum(axis=1))
            seen = self._keep_nearest(at, depth - bulge * front)
            normal = np.column_stack([away * [1, -1], front])[seen]
            self._put(at[seen], light(normal, color))
            n_seen, n_all = n_seen + len(normal), n_all + len(at)
        return n_seen / max(1, n_all)

    def _list_pixels(
        self, place: Float[np.ndarray, "n_triangles 3 3"]
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """Triangle, column and row of all pixels in the boxes around triangles, block by block."""
        last = np.array(self.color.shape[1::-1]) - 1
        low = np.ceil(place[..., :2].min(axis=1) - 0.5).clip(0).astype(int)
        high = np.floor(place[..., :2].max(axis=1) - 0.5).clip(max=last).astype(int)
        size = (high - low + 1).clip(0)
        ends = np.cumsum(size.prod(axis=1))
        for start, end in _cut(ends):
            n_pixels = size[start:end].prod(axis=1)
            which = np.repeat(np.arange(start, end), n_pixels)
            count = np.arange(len(which)) - np.repeat(np.cumsum(n_pixels) - n_pixels, n_pixels)
            yield which, low[which, 0] + count % size[which, 0], low[which, 1] + count // size[which, 0]

    def _list_discs(
        self, points: Float[np.ndarray, "n 3"], radius: float
    ) -> Iterator[
        tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]]
    ]:
        """Point, pixel, way from the middle (1 is the rim) and depth of all pixels in discs, block by block."""
        height, width = self.depth.shape
        reach = np.arange(-int(radius) - 1, int(radius) + 2)
        offsets = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
        block = max(1, BLOCK // len(offsets))
        for start in range(0, len(points), block):
            middle = points[start : start + block, None, :2]
            pixel = np.floor(middle) + offsets
            away = (pixel + 0.5 - middle) / radius
            inside = (away**2).sum(axis=-1) <= 1
            inside &= (pixel >= 0).all(axis=-1) & (pixel < [width, height]).all(axis=-1)
            which = start + np.nonzero(inside)[0]
            column, row = pixel[inside].astype(int).T
            yield which, row * width + column, away[inside], points[which, 2]

    def _keep_nearest(self, at: Int[np.ndarray, " n"], depth: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Note the depths, and tell which are now the nearest of their pixel."""
        nearest = self.depth.reshape(-1)
        np.minimum.at(nearest, at, depth)
        return nearest[at] == depth

    def _put(self, at: Int[np.ndarray, " n"], color: Float[np.ndarray, "n 3"]) -> None:
        pixels = self.color.reshape(-1, 4)
        pixels[at, :3], pixels[at, 3] = np.rint(color.clip(0, 255)), 255


def _cut(ends: Int[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
    """Ranges of things that together have at most `BLOCK` pixels, or one thing; `ends` counts them on."""
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield start, end
        start = end
