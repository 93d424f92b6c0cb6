"""Losses of each plane at the nodes of a lattice over the picture, and their interpolation with error bounds."""

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter
from tqdm import tqdm

from loss_viz.landscapes.evaluation import evaluate_planes
from loss_viz.landscapes.loss_cache import LossTable
from loss_viz.objective.objective import Objective
from loss_viz.planes.plane_set import Planes

N_NODES = 13  # along each axis; 9 or 11 save no evaluations in the end, and with 9 errors reach 2 %
N_COARSE = 5  # of the nodes along each axis, at which every plane is evaluated
ORDER, LOWER_ORDER = 6, 4  # nodes per polynomial; their difference estimates the error
N_LOOKS = 4  # points along a cell where the two are compared; in its middle they agree on odd terms
REACH = 3  # cells to which an observed error applies
BOUND_FACTOR = 2.0
MAX_LOSS = 1e300  # in place of inf in bounds, so that its product with a weight of zero is zero
LARGEST = 1e100  # losses up to here are interpolated


class Lattice:
    """The losses of planes at the nodes of a lattice over a box of the picture, evaluated on demand.

    Args:
        planes: the planes.
        objective: the loss.
        low: `(2,)`, lower left corner of the box.
        high: `(2,)`, upper right corner of the box.
        loss_table: losses by the key of their plane and node; a new table by default.
    """

    def __init__(
        self,
        planes: Planes,
        objective: Objective,
        low: Float[np.ndarray, " 2"],
        high: Float[np.ndarray, " 2"],
        loss_table: LossTable | None = None,
    ) -> None:
        self.planes = planes
        self.objective = objective
        self.axes = [np.linspace(low[i], high[i], N_NODES) for i in range(2)]
        self.loss_table = LossTable() if loss_table is None else loss_table
        self.lock = threading.RLock()  # the panel computes in a thread of its own

    def bound(self, bar: tqdm) -> Float[np.ndarray, " n_planes"]:
        """Bound the magnitude of the losses of each plane in the box by twice the largest on the coarse lattice."""
        losses = self._look_up(self._coarse, bar)
        return BOUND_FACTOR * magnitude(losses.reshape(len(self.planes), -1)).max(axis=1)

    def locate(self, points: Float[np.ndarray, " n"], axis: int) -> Int[np.ndarray, " n"]:
        """Return the cell of the lattice in which each coordinate lies."""
        return np.searchsorted(self.axes[axis][1:-1], points, side="right")

    @property
    def n_cells(self) -> tuple[int, int]:
        """Cells of the lattice along each axis."""
        return N_NODES - 1, N_NODES - 1

    def find_nodes(self, cells: Bool[np.ndarray, "n_planes n n"]) -> Bool[np.ndarray, "n_planes m m"]:
        """Return the nodes needed to interpolate in these cells, always including the coarse nodes.

        Rows run along the second axis of the picture.
        """
        needed = np.einsum("ca,tcd,db->tab", _STENCILS, cells.astype(np.float32), _STENCILS, optimize=True) > 0
        return needed | self._coarse

    def fill(self, nodes: Bool[np.ndarray, "n_planes m m"], bar: tqdm) -> "LatticeInterpolant":
        """Evaluate the losses at these nodes."""
        losses = np.zeros(nodes.shape)
        losses[nodes] = self._look_up(nodes, bar)
        return LatticeInterpolant(self, losses)

    @cached_property
    def _coarse(self) -> Bool[np.ndarray, "n_planes m m"]:
        """The coarse nodes; a single one along an axis along which the box has no extent."""
        along = [np.zeros(N_NODES, dtype=bool) for _ in range(2)]
        for nodes, axis in zip(along, self.axes, strict=True):
            nodes[:: (N_NODES - 1) // (N_COARSE - 1) if axis[0] < axis[-1] else N_NODES] = True
        return np.broadcast_to(np.outer(along[1], along[0]), (len(self.planes), N_NODES, N_NODES))

    def _look_up(self, nodes: Bool[np.ndarray, "n_planes m m"], bar: tqdm) -> Float[np.ndarray, " n"]:
        keys = np.flatnonzero(nodes)
        new = self.loss_table.missing(keys)
        index, j, i = np.unravel_index(new, nodes.shape)
        points = np.stack([self.axes[0][i], self.axes[1][j]], axis=1)
        bar.total = (bar.total or 0) + len(new)
        self.loss_table.add(new, evaluate_planes(self.objective, self.planes, index, points, bar))
        return self.loss_table.get(keys)


class LatticeInterpolant:
    """Interpolation of the losses at the nodes of a lattice.

    Args:
        lattice: the lattice.
        losses: `(n_planes, n, n)`, losses at its nodes; zero at unknown ones.

    Attributes:
        errors: `(n_planes, m, m)`, estimated error of each plane in each cell of the lattice.
    """

    def __init__(self, lattice: Lattice, losses: Float[np.ndarray, "n_planes n n"]) -> None:
        self.lattice = lattice
        fit = np.abs(losses) <= LARGEST  # false for nan, too
        self._losses = np.where(fit, losses, 0.0)
        differences = np.abs(
            _apply_weights(_DIFFERENCES[0], self._losses) - _apply_weights(_DIFFERENCES[1], self._losses)
        )
        self.errors = sliding_window_view(differences, (N_LOOKS + 1,) * 2, (1, 2))[:, ::N_LOOKS, ::N_LOOKS].max((3, 4))
        spoilt = np.einsum("ca,tab,db->tcd", _STENCILS, (~fit).astype(np.float32), _STENCILS, optimize=True) > 0
        self.errors[spoilt] = MAX_LOSS

    def interpolate(self, x: Float[np.ndarray, " n_x"], y: Float[np.ndarray, " n_y"]) -> Float[np.ndarray, "n_y n_x _"]:
        """Interpolate the losses of all planes at the points of a grid."""
        along_x, along_y = (self._weigh(at, axis) for axis, at in enumerate((x, y)))
        rows = np.einsum("tab,ib->ait", self._losses, along_x, optimize=True)
        return np.tensordot(along_y, rows, axes=1)

    def at(self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Interpolate the losses of planes `index[i]` at `points[i]`."""
        x, y = (self._weigh(points[:, axis], axis) for axis in range(2))
        return np.einsum("na,nab,nb->n", y, self._losses[index], x, optimize=True)

    def add_observed_errors(
        self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], gaps: Float[np.ndarray, " n"]
    ) -> None:
        """Raise the estimated errors to observed ones: `gaps[i]` of plane `index[i]` at `points[i]`.

        They apply to all planes in nearby cells, since only the plane with the largest weight was checked.
        """
        seen = np.zeros_like(self.errors)
        x, y = (self.lattice.locate(points[:, axis], axis) for axis in range(2))
        np.maximum.at(seen, (index, y, x), magnitude(gaps))
        np.maximum(self.errors, maximum_filter(seen.max(axis=0), REACH), out=self.errors)

    def _weigh(self, points: Float[np.ndarray, " n"], axis: int) -> Float[np.ndarray, "n n_nodes"]:
        nodes, cells = self.lattice.axes[axis], self.lattice.locate(points, axis)
        if nodes[0] == nodes[-1]:  # the box has no extent along this axis
            return _weigh(np.zeros(len(points)), np.zeros_like(cells), ORDER)
        return _weigh((points - nodes[0]) / (nodes[1] - nodes[0]), cells, ORDER)


def magnitude(losses: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return absolute values, with `MAX_LOSS` for values that are not finite."""
    return np.fmin(np.nan_to_num(np.abs(losses), nan=MAX_LOSS, posinf=MAX_LOSS), MAX_LOSS)


def _apply_weights(weights: Float[np.ndarray, "n m"], losses: Float[np.ndarray, "n_planes m m"]) -> np.ndarray:
    return weights @ losses @ weights.T


def _weigh(at: Float[np.ndarray, " n"], cells: Int[np.ndarray, " n"], order: int) -> Float[np.ndarray, "n n_nodes"]:
    """Return the Lagrange weights of all nodes at each point, given in cells; nonzero for the `order` nearest."""
    first = np.clip(cells - (order // 2 - 1), 0, N_NODES - order)
    nodes = first[:, None] + np.arange(order)
    weights = np.zeros((len(at), N_NODES))
    for k in range(order):
        others = np.delete(np.arange(order), k)
        weights[np.arange(len(at)), nodes[:, k]] = np.prod((at[:, None] - nodes[:, others]) / (k - others), axis=1)
    return weights


_LOOKS = np.arange(N_LOOKS * (N_NODES - 1) + 1) / N_LOOKS
_CELLS = np.arange(N_NODES - 1)
_DIFFERENCES = tuple(
    _weigh(_LOOKS, np.minimum(_LOOKS.astype(int), N_NODES - 2), order) for order in (ORDER, LOWER_ORDER)
)

_STENCILS = (_weigh(_CELLS + 0.5, _CELLS, ORDER) != 0).astype(np.float32)  # which nodes each cell needs
Axes = tuple[Float[np.ndarray, " n_x"], Float[np.ndarray, " n_y"]]
N_CHECKS = 61  # points along each axis at which interpolated and true losses are compared


@dataclass(frozen=True, eq=False)
class BlockEstimate:
    """Interpolated losses of planes at some points.

    Attributes:
        losses: `(n, n_planes)`, zero where unknown.
        errors: `(n, n_planes)`, estimated errors.
        known: `(n, n_planes)`, True where a loss was interpolated.
    """

    losses: Float[np.ndarray, "n n_planes"]
    errors: Float[np.ndarray, "n n_planes"]
    known: Bool[np.ndarray, "n n_planes"]


class GridEstimate:
    """Interpolated losses of the planes over a grid, of those planes that were requested at a point.

    Args:
        lattice: lattice of the planes.
        axes: coordinates `(n_x,)` and `(n_y,)` of the grid, over the box of the lattice.
    """

    def __init__(self, lattice: Lattice, axes: Axes) -> None:
        self.lattice = lattice
        self.axes = axes
        self._at = [lattice.locate(axis, i) for i, axis in enumerate(axes)]
        self._cells = np.zeros((len(lattice.planes), *lattice.n_cells), dtype=bool)

    def request(self, part: slice, planes: Bool[np.ndarray, "n n_planes"]) -> None:
        """Request planes at the points of some whole rows of the grid."""
        (columns, first), (rows, start) = (np.unique(at, return_index=True) for at in (self._at[0], self._rows(part)))
        blocks = np.logical_or.reduceat(planes.reshape(-1, len(self.axes[0]), planes.shape[1]), first, axis=1)
        blocks = np.logical_or.reduceat(blocks, start, axis=0)
        self._cells[:, rows[:, None], columns] |= blocks.transpose(2, 0, 1)

    def choose_checks(self) -> Int[np.ndarray, " n_checks"]:
        """Return points at which to compare with true losses: all of a small grid, a regular subset of a large one."""
        n_x, n_y = map(len, self.axes)
        return (np.arange(n_y)[:: -(-n_y // N_CHECKS), None] * n_x + np.arange(n_x)[:: -(-n_x // N_CHECKS)]).ravel()

    def count_nodes(self) -> int:
        """Return the number of nodes needed."""
        return int(self.lattice.find_nodes(self._cells).sum())

    def fill(self, bar: tqdm) -> LatticeInterpolant:
        """Evaluate the losses at the nodes needed."""
        self._filled = self.lattice.fill(self.lattice.find_nodes(self._cells), bar)
        return self._filled

    def read(self, part: slice) -> BlockEstimate:
        """Return the interpolated losses at the points of some whole rows of the grid."""
        n_x = len(self.axes[0])
        rows = np.ix_(self._rows(part), self._at[0])
        known, errors = (array.transpose(1, 2, 0)[rows] for array in (self._cells, self._filled.errors))
        losses = self._filled.interpolate(self.axes[0], self.axes[1][part.start // n_x : part.stop // n_x])
        shape = (-1, losses.shape[2])
        return BlockEstimate(np.where(known, losses, 0.0).reshape(shape), errors.reshape(shape), known.reshape(shape))

    def _rows(self, part: slice) -> Int[np.ndarray, " n"]:
        n_x = len(self.axes[0])
        return self._at[1][part.start // n_x : part.stop // n_x]
