"""Planes in weight space: an origin and two axes each, and weighted averages of points on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from loss_viz.planes.projection import Projection
from loss_viz.runs.weights import WeightRows, column_blocks, row_blocks, take_rows

HELD_BYTES = 2**28  # bases that need more together are built when they are used

Span = Callable[[Int[np.ndarray, " n"], Float[np.ndarray, "n n_rows n_columns"]], Float[np.ndarray, "n 2 n_columns"]]
PlaneWeights: TypeAlias = np.ndarray | csr_array  # (n, n_planes)


def used_planes(weights: PlaneWeights) -> tuple[Int[np.ndarray, " n_used"], Float[np.ndarray, "n n_used"]]:
    """Return the planes that have weight at some point, and the weights of those."""
    if isinstance(weights, csr_array):
        used = np.unique(weights.indices)
        return used, weights[:, used].toarray()
    used = np.flatnonzero(weights.any(axis=0))
    return used, weights[:, used]


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes in weight space, each through one anchor: theta_t(q) = W[t] + Eᵀ E Cᵀ (q - p[t]).

    C holds the axes of the picture and E those of the plane. Instead of axes of their own, all planes may share those
    of the picture: theta_t(q) = W[t] + Cᵀ (q - p[t]).

    Attributes:
        rows: the recorded weights.
        index: `(n_planes, n_rows)`, rows from which each plane is built; the first is its origin, W[t].
        position: `(n_planes, 2)`, the anchors in the picture.
        overlap: `(n_planes, 2, 2)`, E Cᵀ: scalar products of the axes of each plane and of the picture.
        path: `(n_planes,)`, index of the run to which each anchor belongs.
        span: function of planes and some columns of their rows that returns those columns of their axes E.
        shared_axes: `(2, n_params)`, the axes C of the picture if all planes share them, in place of `span`.
        buffers: `(n_planes, n_buffers)`, buffers of the model at the anchors; None if they never changed.
        nominal: `(n_buffers,)`, which buffers cannot be averaged: whole numbers and flags. None if all can.
    """

    rows: WeightRows
    index: Int[np.ndarray, "n_planes n_rows"]
    position: Float[np.ndarray, "n_planes 2"]
    overlap: Float[np.ndarray, "n_planes 2 2"]
    path: Int[np.ndarray, " n_planes"]
    span: Span | None = None
    shared_axes: Float[np.ndarray, "2 n_params"] | None = None
    buffers: Float[np.ndarray, "n_planes n_buffers"] | None = None
    nominal: Bool[np.ndarray, " n_buffers"] | None = None

    def __len__(self) -> int:
        return len(self.position)

    @property
    def row_bytes(self) -> int:
        """Size of one weight vector."""
        return self.rows.shape[1] * self.rows.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        """Whether the bases of all planes are held at once."""
        return len(self) * self._n_vectors * self.row_bytes <= HELD_BYTES

    def lift(self, points: Float[np.ndarray, "n 2"], weights: PlaneWeights) -> Float[np.ndarray, "n n_params"]:
        """Average the points of the planes above `points` of the picture: sum_t w_t theta_t(q).

        Args:
            points: `(n, 2)`, points of the picture.
            weights: `(n, n_planes)`, weights of the planes at each point, dense or sparse. Planes without weight are
                not read.

        Returns:
            `(n, n_params)`, in the dtype of the recorded weights.
        """
        used, w = used_planes(weights)
        combined = np.empty((len(points), self.rows.shape[1]), self.rows.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the range of the weights' dtype: inf
            factors = w
            if self.shared_axes is None:
                overlap = self.overlap[used]
                origin = np.einsum("tij,tj->ti", overlap, self.position[used])
                factors = np.hstack([w, *(w * (points @ overlap[:, i].T - origin[:, i]) for i in range(2))])
            factors = factors.astype(combined.dtype)
            # In float64 a block holds the recorded rows, their differences and the axes.
            n_rows = 12 * len(used)
            for columns in [slice(None)] if self.in_memory else column_blocks(self.rows, n_rows=n_rows):
                np.matmul(factors, self._basis(used, columns), out=combined[:, columns])
                if self.shared_axes is not None:
                    moved = w.sum(axis=1, keepdims=True) * points - w @ self.position[used]
                    combined[:, columns] += moved @ self.shared_axes[:, columns]
        return combined

    def average_buffers(self, weights: PlaneWeights) -> Float[np.ndarray, "n n_buffers"] | None:
        """Average the buffers of the planes with the same weights; None if they never changed.

        Whole numbers, flags, and values that are infinite or nan somewhere are those of the heaviest plane.
        """
        if self.buffers is None:
            return None
        taken = ~np.isfinite(self.buffers).all(axis=0)
        if self.nominal is not None:
            taken |= self.nominal
        if not taken.any():
            return weights @ self.buffers
        heaviest = np.asarray(weights.argmax(axis=1)).ravel()
        averaged = self.buffers[heaviest]
        averaged[:, ~taken] = weights @ self.buffers[:, ~taken]
        return averaged

    def take(self, index: Int[np.ndarray, " n"]) -> "Planes":
        """Return some planes with only the recorded rows they need; rows on disk stay there."""
        rows, needed, span = self.rows, self.index[index], self.span
        if span is not None and self.in_memory:  # their axes are known, and smaller than the rows that span them
            rows, *axes = self._held[:, index]
            needed, span = np.arange(len(index))[:, None], _hold(np.stack(axes, axis=1))
        elif isinstance(rows, np.ndarray):
            used, place = np.unique(needed, return_inverse=True)
            rows, needed = rows[used], place.reshape(needed.shape)
        return Planes(
            rows,
            needed,
            self.position[index],
            self.overlap[index],
            self.path[index],
            span if span is None or span is not self.span else _renumber(span, index),
            self.shared_axes,
            take_rows(self.buffers, index),
            self.nominal,
        )

    @property
    def _n_vectors(self) -> int:
        return 1 if self.shared_axes is not None else 3

    def _basis(self, used: Int[np.ndarray, " n"], columns: slice) -> Float[np.ndarray, "m n_columns"]:
        """Return the origins of some planes, followed by their first and by their second axes."""
        if self.in_memory:
            return self._held[:, used].reshape(-1, self.rows.shape[1])
        return self._build(used, columns)

    @cached_property
    def _held(self) -> Float[np.ndarray, "n_vectors n_planes n_params"]:
        held = np.empty((self._n_vectors, len(self), self.rows.shape[1]), self.rows.dtype)
        for part in row_blocks((len(self), 12 * self.rows.shape[1])):
            planes = np.arange(len(self))[part]
            held[:, part] = self._build(planes, slice(None)).reshape(self._n_vectors, len(planes), -1)
        return held

    def _build(self, used: Int[np.ndarray, " n"], columns: slice) -> Float[np.ndarray, "m n_columns"]:
        needed, place = np.unique(self.index[used], return_inverse=True)
        recorded = self.rows[needed, columns]
        place = place.reshape(len(used), -1)
        origins = recorded[place[:, 0]]
        if self.span is None:
            return origins
        axes = self.span(used, recorded[place].astype(np.float64)).astype(recorded.dtype)
        return np.concatenate([origins, axes[:, 0], axes[:, 1]])


# Without type annotations, whose checks in tests could not be sent to another process.
def _hold(axes):  # type: ignore[no-untyped-def]
    return lambda planes, _: axes[planes]


def _renumber(span, index):  # type: ignore[no-untyped-def]
    return lambda planes, its_rows: span(index[planes], its_rows)


def parallel_planes(
    weights: WeightRows, projection: Projection, anchors: Int[np.ndarray, " n_anchors"], *, starts: Sequence[int] = (0,)
) -> Planes:
    """Move the plane of the picture to each anchor: theta_t(q) = W[t] + Cᵀ (q - p[t])."""
    path = np.searchsorted(starts, anchors, side="right") - 1
    overlap = np.tile(np.eye(2), (len(anchors), 1, 1))
    position, axes = projection.path[anchors], projection.components
    return Planes(weights, anchors[:, None], position, overlap, path, shared_axes=axes)


def flat_plane(
    projection: Projection, center: Float[np.ndarray, " n_params"], position: Float[np.ndarray, " 2"]
) -> Planes:
    """Return one plane through `center`, which is drawn at `position`: theta(q) = center + Cᵀ (q - position)."""
    one = np.zeros((1, 1), dtype=int)
    return Planes(center[None], one, position[None], np.eye(2)[None], one[0], shared_axes=projection.components)


def join_planes(first: Planes, second: Planes) -> Planes:
    """Return the planes of both, which are built from the same recorded weights."""
    n = len(first)

    def span(planes: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n n_rows _"]) -> Float[np.ndarray, "n 2 _"]:
        axes = np.empty((len(planes), 2, rows.shape[2]))
        for part, own, offset in ((planes < n, first.span, 0), (planes >= n, second.span, n)):
            if own is not None and part.any():
                axes[part] = own(planes[part] - offset, rows[part])
        return axes

    def stack(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    return Planes(
        first.rows,
        stack("index"),
        stack("position"),
        stack("overlap"),
        stack("path"),
        span,
        buffers=None if first.buffers is None else stack("buffers"),
        nominal=first.nominal,
    )
