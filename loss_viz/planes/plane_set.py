"""Planes in weight space: an origin and two axes each, held in memory or built from recorded rows on demand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from loss_viz.planes.projection import Projection
from loss_viz.runs.weights import WeightRows, take_rows

HELD_BYTES = 2**28  # bases that need more together are built one at a time
Basis = tuple[Float[np.ndarray, " n_params"], Float[np.ndarray, "2 n_params"]]
Span = Callable[[int, Float[np.ndarray, "n_rows n_params"]], Float[np.ndarray, "2 n_params"]]


class PlaneBases:
    """An origin and two axes for each of several planes; axes are zero where a plane is a line or a point.

    Each basis is built from a few recorded rows. If not all fit in memory, each is built when used, and only the last
    one is kept.

    Args:
        rows: the recorded weights.
        index: `(n_planes, n_rows)`, rows from which each plane is built; the first is its origin.
        span: function of the number of a plane and its rows that returns its two axes.

    Attributes:
        row_bytes: size of one weight vector.
        in_memory: whether all bases are held at once.

    Example:
        >>> bases = PlaneBases(np.eye(3), np.array([[2]]), lambda i, rows: np.eye(3)[:2])
        >>> bases.lift(np.array([0]), np.array([[5.0, 6.0]]))
        array([[5., 6., 1.]])
    """

    def __init__(self, rows: WeightRows, index: Int[np.ndarray, "n_planes n_rows"], span: Span) -> None:
        self._rows, self._index, self._span = rows, index, span
        self._last: tuple[int, Basis] | None = None
        self.row_bytes = rows.shape[1] * rows.dtype.itemsize
        self.in_memory = 3 * len(index) * self.row_bytes <= HELD_BYTES

    def __getitem__(self, plane: int) -> Basis:
        last = self._last
        if last is None or last[0] != plane:
            rows = self._rows[self._index[plane]]
            last = self._last = plane, (rows[0], self._span(plane, rows).astype(rows.dtype))
        return last[1]

    def lift(self, index: Int[np.ndarray, " n"], coords: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """Return the points at `coords[i]` along the axes of plane `index[i]`; fastest if equal ones are adjacent."""
        with np.errstate(over="ignore"):  # beyond the range of the weights' dtype: inf, and the loss follows
            coords = coords.astype(self._rows.dtype)
        if self.in_memory:
            origin, basis = self._held
            return origin[index] + np.einsum("ni,nip->np", coords, basis[index])
        weights = np.empty((len(index), self._rows.shape[1]), self._rows.dtype)
        for plane in np.unique(index):
            origin, basis = self[int(plane)]
            here = index == plane
            weights[here] = origin + coords[here] @ basis
        return weights

    def take(self, planes: Int[np.ndarray, " n"]) -> "PlaneBases":
        """Return the bases of some planes with only the recorded rows they need; rows on disk stay there."""
        if self.in_memory:
            origin, basis = (part[planes] for part in self._held)
            return PlaneBases(origin, np.arange(len(planes))[:, None], lambda plane, _: basis[plane])
        rows, index, span = self._rows, self._index[planes], self._span
        if isinstance(rows, np.ndarray):
            used, place = np.unique(index, return_inverse=True)
            rows, index = rows[used], place.reshape(index.shape)
        return PlaneBases(rows, index, lambda plane, its_rows: span(int(planes[plane]), its_rows))

    @cached_property
    def _held(self) -> tuple[Float[np.ndarray, "n_planes n_params"], Float[np.ndarray, "n_planes 2 n_params"]]:
        origins, bases = zip(*(self[plane] for plane in range(len(self._index))), strict=True)
        return np.stack(origins), np.stack(bases)


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes in weight space, each through one anchor.

    Attributes:
        bases: origin of each plane, its anchor in weight space, and the axes that span it.
        position: `(n_planes, 2)`, the anchors in the picture.
        overlap: `(n_planes, 2, 2)`, E Cᵀ: scalar products of the axes of each plane and of the picture.
        path: `(n_planes,)`, index of the run to which each anchor belongs.
        buffers: `(n_planes, n_buffers)`, buffers of the model at the anchors; None if they never changed.
    """

    bases: PlaneBases
    position: Float[np.ndarray, "n_planes 2"]
    overlap: Float[np.ndarray, "n_planes 2 2"]
    path: Int[np.ndarray, " n_planes"]
    buffers: Float[np.ndarray, "n_planes n_buffers"] | None = None

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: Int[np.ndarray, " n"]) -> tuple["Planes", Int[np.ndarray, " n"]]:
        """Return the planes that occur in `index`, and the same index into them."""
        used, place = np.unique(index, return_inverse=True)
        buffers = take_rows(self.buffers, used)
        return Planes(self.bases.take(used), self.position[used], self.overlap[used], self.path[used], buffers), place

    def lift(self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """Return the weights at which plane `index[i]` is evaluated for point `points[i]` of the picture."""
        displacement = points - self.position[index]
        return self.bases.lift(index, np.einsum("nij,nj->ni", self.overlap[index], displacement))


def parallel_planes(
    weights: WeightRows, projection: Projection, anchors: Int[np.ndarray, " n_anchors"], *, starts: Sequence[int] = (0,)
) -> Planes:
    """Move the PC plane to each anchor: theta_t(q) = W[t] + Cᵀ (q - p[t])."""
    bases = PlaneBases(weights, anchors[:, None], lambda *_: projection.components)
    path = np.searchsorted(starts, anchors, side="right") - 1
    return Planes(bases, projection.path[anchors], np.tile(np.eye(2), (len(anchors), 1, 1)), path)


def single_plane(projection: Projection) -> Planes:
    """Return the plane of the picture itself: theta(q) = origin + Cᵀ q. The run does not lie on it."""
    bases = PlaneBases(projection.origin[None], np.zeros((1, 1), dtype=int), lambda *_: projection.components)
    return Planes(bases, np.zeros((1, 2)), np.eye(2)[None], np.zeros(1, dtype=int))
