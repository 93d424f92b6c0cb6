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
        >>> rasterizer = Rasterizer(2, 1)
        >>> square = np.array([[0.0, 0, 5], [0, 1, 5], [1, 0, 5], [1, 1, 5]])  # the left pixel, 5 away
        >>> rasterizer.triangles(square, np.full((4, 3), 200.0), np.array([[0, 1, 2], [1, 2, 3]]))
        >>> rasterizer.color[0, :, [0, 3]].tolist()
        [[200, 0], [255, 0]]
        >>> rasterizer.shows(np.array([[0.5, 0.5, 4], [0.5, 0.5, 6], [1.5, 0.5, 6]])).tolist()
        [True, False, True]
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

    def shows(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Return which points lie in the image and behind nothing that is drawn."""
        column, row = np.floor(points[:, :2]).astype(int).T
        height, width = self.depth.shape
        shown = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        shown[shown] = points[shown, 2] <= self.depth[row[shown], column[shown]]
        return shown

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
        if radius == 0:  # matplotlib has widened axes whose range is near the smallest float
            return 0.0
        height, width = self.depth.shape
        first, last = np.floor(center[:2] - radius).clip(0), np.ceil(center[:2] + radius).clip(max=[width, height])
        column, row = (part.ravel() for part in np.meshgrid(*map(np.arange, first.astype(int), last.astype(int))))
        offset = (np.column_stack([column, row]) + 0.5 - center[:2]) / radius
        inside = (offset**2).sum(axis=1) <= 1
        at, offset = (row * width + column)[inside], offset[inside]
        front = np.sqrt(1 - (offset**2).sum(axis=1))
        seen = self._update_depth(at, center[2] - bulge * front)
        normal = np.column_stack([offset * [1, -1], front])[seen]
        self._paint(at[seen], light(normal, color))
        return len(normal) / max(1, len(at))

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
