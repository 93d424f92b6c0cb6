"""Planes in weight space: an origin and two axes each, and weighted averages of points on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from loss_viz.planes.projection import Projection
from loss_viz.runs.weights import WeightRows, column_blocks, take_rows

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

    C holds the axes of the picture and E those of the plane, which are combinations of recorded rows: so is every
    average of points on the planes. Instead of axes of their own, all planes may share those of the picture:
    theta_t(q) = W[t] + Cᵀ (q - p[t]).

    Attributes:
        rows: the recorded weights.
        index: `(n_planes, n_rows)`, rows from which each plane is built; the first is its origin, W[t].
        position: `(n_planes, 2)`, the anchors in the picture.
        overlap: `(n_planes, 2, 2)`, E Cᵀ: scalar products of the axes of each plane and of the picture.
        path: `(n_planes,)`, index of the run to which each anchor belongs.
        mix: `(n_planes, 2, n_rows)`, the axes E of each plane as combinations of its rows.
        shared_axes: `(2, n_params)`, the axes C of the picture if all planes share them, in place of `mix`.
        buffers: `(n_planes, n_buffers)`, buffers of the model at the anchors; None if they never changed.
        nominal: `(n_buffers,)`, which buffers cannot be averaged: whole numbers and flags. None if all can.
    """

    rows: WeightRows
    index: Int[np.ndarray, "n_planes n_rows"]
    position: Float[np.ndarray, "n_planes 2"]
    overlap: Float[np.ndarray, "n_planes 2 2"]
    path: Int[np.ndarray, " n_planes"]
    mix: Float[np.ndarray, "n_planes 2 n_rows"] | None = None
    shared_axes: Float[np.ndarray, "2 n_params"] | None = None
    buffers: Float[np.ndarray, "n_planes n_buffers"] | None = None
    nominal: Bool[np.ndarray, " n_buffers"] | None = None

    def __len__(self) -> int:
        return len(self.position)

    @property
    def row_bytes(self) -> int:
        """Size of one weight vector."""
        return self.rows.shape[1] * self.rows.dtype.itemsize

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
        rows, factors = self._combine(used, w, points)
        moved = w.sum(axis=1, keepdims=True) * points - w @ self.position[used]
        combined = np.empty((len(points), self.rows.shape[1]), self.rows.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the range of the weights' dtype: inf
            for columns in column_blocks(self.rows, n_rows=len(rows) + len(points)):
                part = factors @ self.rows[rows, columns].astype(np.float64)
                if self.shared_axes is not None:
                    part += moved @ self.shared_axes[:, columns]
                combined[:, columns] = part
        return combined

    def _combine(
        self, used: Int[np.ndarray, " n_used"], w: Float[np.ndarray, "n n_used"], points: Float[np.ndarray, "n 2"]
    ) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "n m"]]:
        """Return the recorded rows of some planes, and the factor of each row in the average at each point.

        In float64, because rows that differ little are multiplied by large factors of opposite signs.
        """
        rows, place = np.unique(self.index[used], return_inverse=True)
        place = place.reshape(len(used), -1)
        at = np.arange(len(used))
        parts, targets, values = [w], [place[:, :1]], [np.ones((len(used), 1))]
        if self.mix is not None:
            overlap = self.overlap[used]
            origin = np.einsum("tij,tj->ti", overlap, self.position[used])
            parts += [w * (points @ overlap[:, i].T - origin[:, i]) for i in range(2)]
            targets += [place, place]
            values += [self.mix[used, i] for i in range(2)]
        source = np.concatenate([np.repeat(at + i * len(used), part.shape[1]) for i, part in enumerate(targets)])
        target, value = (np.concatenate([part.ravel() for part in parts]) for parts in (targets, values))
        matrix = csr_array((value, (target, source)), shape=(len(rows), len(parts) * len(used)))
        return rows, (matrix @ np.hstack(parts).T).T

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
        rows, needed = self.rows, self.index[index]
        if isinstance(rows, np.ndarray):
            used, place = np.unique(needed, return_inverse=True)
            rows, needed = rows[used], place.reshape(needed.shape)
        return Planes(
            rows,
            needed,
            self.position[index],
            self.overlap[index],
            self.path[index],
            None if self.mix is None else self.mix[index],
            self.shared_axes,
            take_rows(self.buffers, index),
            self.nominal,
        )


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

    def stack(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    return Planes(
        first.rows,
        stack("index"),
        stack("position"),
        stack("overlap"),
        stack("path"),
        stack("mix"),
        buffers=None if first.buffers is None else stack("buffers"),
        nominal=first.nominal,
    )
