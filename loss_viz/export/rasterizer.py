"""Rasterizer with a z-buffer: each pixel shows the nearest of the things drawn on it, in whatever order they come.

Plotting libraries that need no graphics card sort whole shapes by distance, which buries a line that lies on a surface
or shows it through a hill.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 2**21  # pixels tested at once

SLACK = 1e-9  # tolerance of barycentric coordinates, so that rounding leaves no gap between two triangles

Light = Callable[[Float[np.ndarray, "n 3"], Float[np.ndarray, " 3"]], Float[np.ndarray, "n 3"]]


class Rasterizer:
    """An image with a depth for each pixel.

    A point is (column, row, depth): pixels from the upper left corner, where the center of the first pixel is
    (0.5, 0.5), and a number that grows along the line of sight. Colors are red, green and blue from 0 to 255.

    Args:
        width: width in pixels.
        height: height in pixels.

    Attributes:
        color: `(height, width, 4)`, 8 bits each; transparent where nothing is drawn.
        depth: `(height, width)`; infinite where nothing is drawn.

    Example:
        >>> rasterizer = Rasterizer(4, 1)
        >>> for depth, red in ((2.0, 200), (1.0, 100), (3.0, 50)):
        ...     rasterizer.line(np.array([[1.5, 0.5, depth]]), np.array([[red, 0.0, 0.0]]), radius=0.6)
        >>> rasterizer.color[0, :, [0, 3]].tolist()
        [[0, 100, 0, 0], [0, 255, 0, 0]]
    """

    def __init__(self, width: int, height: int) -> None:
        self.color = np.zeros((height, width, 4), np.uint8)
        self.depth = np.full((height, width), np.inf)

    def copy(self) -> "Rasterizer":
        """Return an independent copy."""
        other = Rasterizer(0, 0)
        other.color, other.depth = self.color.copy(), self.depth.copy()
        return other

    def triangles(
        self,
        points: Float[np.ndarray, "n 3"],
        color: Float[np.ndarray, "n 3"],
        corners: Int[np.ndarray, "n_triangles 3"],
    ) -> None:
        """Draw triangles, given as indices of three points each; depth and color are interpolated between them."""
        place = points[corners]
        (x0, y0), (x1, y1), (x2, y2) = place[..., :2].transpose(1, 2, 0)
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        for which, column, row in self._pixels_in_boxes(place[area != 0]):
            which = np.flatnonzero(area)[which]
            x, y = column + 0.5 - x0[which], row + 0.5 - y0[which]
            second = (x * (y2 - y0)[which] - y * (x2 - x0)[which]) / area[which]
            third = (y * (x1 - x0)[which] - x * (y1 - y0)[which]) / area[which]
            weights = np.stack([1 - second - third, second, third], axis=1)
            inside = (weights >= -SLACK).all(axis=1)
            which, weights, at = which[inside], weights[inside], (row * self.color.shape[1] + column)[inside]
            seen = self._update_depth(at, np.einsum("pc,pc->p", weights, place[which, :, 2]))
            self._paint(at[seen], np.einsum("pc,pcr->pr", weights[seen], color[corners[which[seen]]]))

    def line(
        self, points: Float[np.ndarray, "n 3"], color: Float[np.ndarray, "n 3"], *, radius: float, flat: bool = False
    ) -> None:
        """Draw a line through the points with a round pen; points with nan interrupt it.

        Args:
            points: points of the line.
            color: color at each of them.
            radius: radius of the pen, in pixels.
            flat: paint what is already there without changing its depth, so that nothing drawn later is hidden.
        """
        known = np.isfinite(points).all(axis=1)
        for part in np.split(np.arange(len(points)), np.flatnonzero(~known)):
            part = part[known[part]]
            if len(part):
                length = np.append(0, np.cumsum(np.hypot(*np.diff(points[part, :2], axis=0).T)))
                at = np.linspace(0, length[-1], int(length[-1]) + 2)  # at most a pixel apart
                values = np.column_stack([points[part], color[part]]).T
                tips = np.stack([np.interp(at, length, value) for value in values], axis=1)
                for which, at, _, depth in self._pixels_in_discs(tips[:, :3], radius):
                    seen = depth <= self.depth.reshape(-1)[at] if flat else self._update_depth(at, depth)
                    self._paint(at[seen], tips[which[seen], 3:])

    def sphere(
        self,
        center: Float[np.ndarray, " 3"],
        color: Float[np.ndarray, " 3"],
        *,
        radius: float,
        bulge: float,
        light: Light,
    ) -> float:
        """Draw the front half of a sphere and return the fraction of it that is visible.

        Args:
            center: center of the sphere.
            color: color of the sphere.
            radius: radius in pixels.
            bulge: depth of the center minus depth of the foremost point.
            light: function from normals (right, up, towards the eye) and the color to the visible colors.
        """
        n_seen = n_all = 0
        for _, at, offset, depth in self._pixels_in_discs(center[None], radius):
            front = np.sqrt(1 - (offset**2).sum(axis=1))
            seen = self._update_depth(at, depth - bulge * front)
            normal = np.column_stack([offset * [1, -1], front])[seen]
            self._paint(at[seen], light(normal, color))
            n_seen, n_all = n_seen + len(normal), n_all + len(at)
        return n_seen / max(1, n_all)

    def _pixels_in_boxes(
        self, place: Float[np.ndarray, "n_triangles 3 3"]
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """Yield triangle, column and row of all pixels in the bounding boxes of triangles, block by block."""
        last = np.array(self.color.shape[1::-1]) - 1
        low = np.ceil(place[..., :2].min(axis=1) - 0.5).clip(0).astype(int)
        high = np.floor(place[..., :2].max(axis=1) - 0.5).clip(max=last).astype(int)
        size = (high - low + 1).clip(0)
        for start, end in _split_blocks(np.cumsum(size.prod(axis=1))):
            n_pixels = size[start:end].prod(axis=1)
            which = np.repeat(np.arange(start, end), n_pixels)
            count = np.arange(len(which)) - np.repeat(np.cumsum(n_pixels) - n_pixels, n_pixels)
            yield which, low[which, 0] + count % size[which, 0], low[which, 1] + count // size[which, 0]

    def _pixels_in_discs(
        self, points: Float[np.ndarray, "n 3"], radius: float
    ) -> Iterator[
        tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]]
    ]:
        """Yield point, flat pixel index, offset from the center in radii, and depth of all pixels in discs."""
        height, width = self.depth.shape
        reach = np.arange(-int(radius) - 1, int(radius) + 2)
        offsets = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
        block = max(1, BLOCK // len(offsets))
        for start in range(0, len(points), block):
            center = points[start : start + block, None, :2]
            pixel = np.floor(center) + offsets
            offset = (pixel + 0.5 - center) / radius
            inside = (offset**2).sum(axis=-1) <= 1
            inside &= (pixel >= 0).all(axis=-1) & (pixel < [width, height]).all(axis=-1)
            which = start + np.nonzero(inside)[0]
            column, row = pixel[inside].astype(int).T
            yield which, row * width + column, offset[inside], points[which, 2]

    def _update_depth(self, at: Int[np.ndarray, " n"], depth: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Update the depth of pixels, and return which of the depths are now the nearest of their pixel."""
        nearest = self.depth.reshape(-1)
        np.minimum.at(nearest, at, depth)
        return nearest[at] == depth

    def _paint(self, at: Int[np.ndarray, " n"], color: Float[np.ndarray, "n 3"]) -> None:
        pixels = self.color.reshape(-1, 4)
        pixels[at, :3], pixels[at, 3] = np.rint(color.clip(0, 255)), 255


def _split_blocks(ends: Int[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
    """Yield ranges of boxes with at most `BLOCK` pixels together, or one box; `ends` are cumulative counts."""
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield start, end
        start = end
