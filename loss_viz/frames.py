"""Points of weight space with two axes each: held in memory, or made of recorded rows when they are asked for."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from .rows import Rows

HELD_BYTES = 2**28  # frames that together need more are made one at a time

Frame = tuple[Float[np.ndarray, " n_params"], Float[np.ndarray, "2 n_params"]]
Span = Callable[[int, Float[np.ndarray, "n_rows n_params"]], Float[np.ndarray, "2 n_params"]]


class Frames:
    """An origin and two axes for each of several planes; axes of zeros where a plane is a line or a point.

    Every one of them is made of a few recorded rows. A model of millions of weights has no room for all at once:
    then each is made when it is used, and only the last one is kept.

    Args:
        rows: the recorded weights.
        index: `(n_planes, n_rows)`, which of them belong to each plane; the first is its origin.
        span: from the number of a plane and its rows to its two axes.

    Attributes:
        row_bytes: of one weight vector.
        fit_memory: whether all of them are held at once.

    Example:
        >>> frames = Frames(np.eye(3), np.array([[2]]), lambda i, rows: np.eye(3)[:2])
        >>> frames.lift(np.array([0]), np.array([[5.0, 6.0]]))
        array([[5., 6., 1.]])
    """

    def __init__(self, rows: Rows, index: Int[np.ndarray, "n_planes n_rows"], span: Span) -> None:
        self._rows, self._index, self._span = rows, index, span
        self._last: tuple[int, Frame] | None = None
        self.row_bytes = rows.shape[1] * rows.dtype.itemsize
        self.fit_memory = 3 * len(index) * self.row_bytes <= HELD_BYTES

    def __getitem__(self, plane: int) -> Frame:
        last = self._last
        if last is None or last[0] != plane:
            rows = self._rows[self._index[plane]]
            last = self._last = plane, (rows[0], self._span(plane, rows).astype(rows.dtype))
        return last[1]

    def lift(self, index: Int[np.ndarray, " n"], coords: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """The points at `coords[i]` along the axes of plane `index[i]`; quickest where like planes are together."""
        with np.errstate(over="ignore"):  # far beyond what the weights can be there is inf, and so is the loss
            coords = coords.astype(self._rows.dtype)
        if self.fit_memory:
            origin, basis = self._held
            return origin[index] + np.einsum("ni,nip->np", coords, basis[index])
        weights = np.empty((len(index), self._rows.shape[1]), self._rows.dtype)
        for plane in np.unique(index):
            origin, basis = self[int(plane)]
            mine = index == plane
            weights[mine] = origin + coords[mine] @ basis
        return weights

    def take(self, planes: Int[np.ndarray, " n"]) -> "Frames":
        """Those of some of the planes, with no more of the recorded rows than they need; rows on disk stay there."""
        if self.fit_memory:
            origin, basis = (part[planes] for part in self._held)
            return Frames(origin, np.arange(len(planes))[:, None], lambda plane, _: basis[plane])
        rows, index, span = self._rows, self._index[planes], self._span
        if isinstance(rows, np.ndarray):
            used, place = np.unique(index, return_inverse=True)
            rows, index = rows[used], place.reshape(index.shape)
        return Frames(rows, index, lambda plane, its: span(int(planes[plane]), its))

    @cached_property
    def _held(self) -> tuple[Float[np.ndarray, "n_planes n_params"], Float[np.ndarray, "n_planes 2 n_params"]]:
        origins, bases = zip(*(self[plane] for plane in range(len(self._index))), strict=True)
        return np.stack(origins), np.stack(bases)
