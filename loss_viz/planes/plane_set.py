"""Planes in weight space, each through one recorded step, and weighted averages of points on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack

from loss_viz.planes.projection import Projection
from loss_viz.runs.weights import WeightRows, column_blocks, is_in_memory, row_blocks, take_rows

MAX_SPAN_BYTES = 2**26  # of the vectors of all planes, which are then computed once
POINTS_PER_PRODUCT = 128  # in smaller products fewer planes are multiplied by zero
FEW_NUMBERS = 2**18  # of a run: then its vectors are computed for a single point, too

PlaneWeights: TypeAlias = np.ndarray | csr_array  # (n, n_planes)


def used_planes(weights: PlaneWeights) -> Int[np.ndarray, " n_used"]:
    """Return the planes that have weight at some point."""
    return np.unique(weights.indices) if isinstance(weights, csr_array) else np.flatnonzero(weights.any(axis=0))


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes in weight space, each through one anchor: theta_t(q) = W[t] + B[t] (q - p[t]).

    The two columns of B are combinations of recorded rows: so is every average of points on the planes. All planes may
    share the axes C of the picture instead: theta_t(q) = W[t] + Cᵀ (q - p[t]).

    Attributes:
        rows: the recorded weights.
        anchors: `(n_planes,)`, the rows W[t] through which the planes pass.
        position: `(n_planes, 2)`, the anchors in the picture.
        path: `(n_planes,)`, index of the run to which each anchor belongs.
        uses: `(n_planes, n_rows)`, rows from which each plane is built, with its anchor.
        columns: the columns of B as combinations of rows, two matrices `(n_planes, n_rows)`.
        inside: `(n_planes, 2, 2)`, C B: scalar products of the axes of the picture and the columns of B.
        shared_axes: `(2, n_params)`, the axes C of the picture if all planes share them, in place of these two.
        buffers: `(n_planes, n_buffers)`, buffers of the model at the anchors; None if they never changed.
        nominal: `(n_buffers,)`, which buffers cannot be averaged: whole numbers and flags. None if all can.
    """

    rows: WeightRows
    anchors: Int[np.ndarray, " n_planes"]
    position: Float[np.ndarray, "n_planes 2"]
    path: Int[np.ndarray, " n_planes"]
    uses: csr_array
    columns: tuple[csr_array, ...] = ()
    inside: Float[np.ndarray, "n_planes 2 2"] | None = None
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
        is_cheap = "_spans" in vars(self) or not self.columns or math.prod(self.rows.shape) < FEW_NUMBERS
        spans = self._spans if is_cheap or 2 * len(points) > len(self) else None
        lifted = np.empty((len(points), self.rows.shape[1]), self._dtype)
        most = POINTS_PER_PRODUCT if is_in_memory(self.rows) else None  # neighbors share planes
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the range of the weights' dtype: inf
            for rows in row_blocks(weights.shape, most):
                self._average(points[rows], weights[rows], spans, lifted[rows])
            if self.shared_axes is not None:
                shift = weights.sum(axis=1)[:, None] * points - weights @ self.position  # sum_t w_t (q - p[t])
                for columns in column_blocks(self.rows, n_rows=len(points)):
                    lifted[:, columns] += shift @ self.shared_axes[:, columns]
            return lifted.astype(self.rows.dtype, copy=False)

    def _average(
        self,
        points: Float[np.ndarray, "n 2"],
        weights: PlaneWeights,
        spans: Float[np.ndarray, "n_planes n_vectors n_params"] | None,
        lifted: Float[np.ndarray, "n n_params"],
    ) -> None:
        """Fill in averages of the vectors of the planes, or of the recorded rows.

        Rows that differ little have large factors of opposite signs, in float64.
        """
        used = used_planes(weights)
        taken: slice | np.ndarray = used
        if spans is not None and len(used) and used[-1] - used[0] < 2 * len(used):  # a slice is not copied
            taken = slice(int(used[0]), int(used[-1]) + 1)
        w = weights[:, taken]
        if isinstance(w, csr_array):
            w = w.toarray()
        n_vectors = 1 + len(self.columns)
        parts = np.empty((*w.shape, n_vectors), np.float64 if spans is None else spans.dtype)
        parts[:, :, 0] = w
        for i in range(len(self.columns)):
            np.multiply(w, points[:, [i]] - self.position[taken, i], out=parts[:, :, 1 + i], casting="same_kind")
        factors = parts.reshape(len(points), -1)
        if spans is not None:
            np.matmul(factors, spans[taken].reshape(factors.shape[1], lifted.shape[1]), out=lifted)
            return
        vectors = self._vectors[(n_vectors * used[:, None] + np.arange(n_vectors)).ravel()]
        rows = np.unique(vectors.indices)
        factors = factors @ vectors[:, rows]
        for columns in column_blocks(self.rows, n_rows=len(rows) + len(points)):
            lifted[:, columns] = factors @ self.rows[rows, columns].astype(np.float64)

    @cached_property
    def _vectors(self) -> csr_array:
        """W[t] and the columns of B, plane by plane, as combinations of rows: `(n_planes * n_vectors, n_rows)`."""
        n = len(self)
        anchors = csr_array((np.ones(n), (np.arange(n), self.anchors)), shape=(n, len(self.rows)))
        matrices = [anchors, *self.columns]
        return vstack(matrices, format="csr")[np.arange(n * len(matrices)).reshape(-1, n).T.ravel()]

    @property
    def _dtype(self) -> np.dtype:
        return np.result_type(self.rows.dtype, np.float32)

    @cached_property
    def _spans(self) -> Float[np.ndarray, "n_planes n_vectors n_params"] | None:
        """W[t] and the columns of B of all planes; None if they would fill too much memory.

        They are moderate in size, unlike the factors of the recorded rows, and need no more digits than these.
        """
        shape = len(self), 1 + len(self.columns), self.rows.shape[1]
        if math.prod(shape) * self._dtype.itemsize > MAX_SPAN_BYTES or not is_in_memory(self.rows):
            return None
        if not self.columns:
            return self.rows[self.anchors].astype(self._dtype)[:, None]
        spans = np.empty(shape, self._dtype)
        for columns in column_blocks(self.rows):
            block = self.rows[:, columns].astype(np.float64)
            spans[:, :, columns] = (self._vectors @ block).reshape(*shape[:2], -1)
        return spans

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
        rows, anchors, uses = self.rows, self.anchors[index], self.uses[index]
        columns = [column[index] for column in self.columns]
        if isinstance(rows, np.ndarray):
            used = np.unique(uses.indices)
            rows, anchors, uses = rows[used], np.searchsorted(used, anchors), uses[:, used]
            columns = [column[:, used] for column in columns]
        return Planes(
            rows,
            anchors,
            self.position[index],
            self.path[index],
            uses,
            tuple(columns),
            take_rows(self.inside, index),
            self.shared_axes,
            take_rows(self.buffers, index),
            self.nominal,
        )


def parallel_planes(
    weights: WeightRows, projection: Projection, anchors: Int[np.ndarray, " n_anchors"], *, starts: Sequence[int] = (0,)
) -> Planes:
    """Move the plane of the picture to each anchor: theta_t(q) = W[t] + Cᵀ (q - p[t])."""
    path = np.searchsorted(starts, anchors, side="right") - 1
    uses = mark_rows(np.arange(len(anchors)), anchors, len(anchors), len(weights))
    return Planes(weights, anchors, projection.path[anchors], path, uses, shared_axes=projection.components)


def flat_plane(
    projection: Projection, center: Float[np.ndarray, " n_params"], position: Float[np.ndarray, " 2"]
) -> Planes:
    """Return one plane through `center`, which is drawn at `position`: theta(q) = center + Cᵀ (q - position)."""
    one = np.zeros(1, dtype=int)
    uses = mark_rows(one, one, 1, 1)
    return Planes(center[None], one, position[None], one, uses, shared_axes=projection.components)


def mark_rows(plane: Int[np.ndarray, " n"], row: Int[np.ndarray, " n"], n_planes: int, n_rows: int) -> csr_array:
    """Return a matrix of flags, set for these pairs of a plane and a row."""
    return csr_array((np.ones(len(plane), dtype=bool), (plane, row)), shape=(n_planes, n_rows))


def join_planes(first: Planes, second: Planes) -> tuple[Planes, Int[np.ndarray, " n"]]:
    """Return the planes of both in the order of their anchors, and where each stood in the first, then the second.

    Both are built from the same recorded weights.
    """
    order = np.argsort(np.append(first.anchors, second.anchors), kind="stable")

    def merge(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])[order]

    pairs = zip((first.uses, *first.columns), (second.uses, *second.columns), strict=True)
    uses, *columns = (vstack(pair, format="csr")[order] for pair in pairs)
    planes = Planes(
        first.rows,
        merge("anchors"),
        merge("position"),
        merge("path"),
        uses,
        tuple(columns),
        merge("inside"),
        buffers=None if first.buffers is None else merge("buffers"),
        nominal=first.nominal,
    )
    return planes, order
