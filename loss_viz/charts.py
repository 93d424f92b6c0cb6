"""The losses of each plane over the whole picture: evaluated at the nodes of a lattice, interpolated between them.

A surface of many planes has seams, the losses on one plane have none: a polynomial through 6 x 6 nodes meets them
almost everywhere within a hundredth of a percent. What it is worth is known from two sides. The polynomial through
4 x 4 of the nodes differs from it by more than its own error; and where losses were evaluated, they tell how far off
it is, there and in the cells around. Where that is too much for the surface, the losses are evaluated (`blend`).
"""

import threading
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter
from tqdm import tqdm

from .ledger import Ledger
from .lifting import evaluate_planes
from .objective import Objective
from .planes import Planes

N_NODES = 13  # along each axis: with 9 or 11 as much is evaluated in the end, and with 9 it is off by up to 2 %
N_COARSE = 5  # of them: where every plane is looked at
ORDER, LOWER_ORDER = 6, 4  # nodes to a polynomial
N_LOOKS = 4  # places along a cell where the two are compared: in the middle alone they agree on what is odd about it
REACH = 3  # cells: how far an error that was seen counts
BOUND_FACTOR = 2.0
MAX_LOSS = 1e300  # stands for inf where terms are bounded, so that a weight of zero times it is zero
LARGEST = 1e100  # losses of which differences can still be formed


class Chart:
    """The losses of planes at the nodes of a lattice over a box of the picture, evaluated when they are needed.

    Args:
        planes: `n_planes` of them.
        objective: the loss.
        low: `(2,)`, lower left corner of the box.
        high: `(2,)`, upper right corner.
        ledger: of losses by the number of their plane and node.
    """

    def __init__(
        self,
        planes: Planes,
        objective: Objective,
        low: Float[np.ndarray, " 2"],
        high: Float[np.ndarray, " 2"],
        ledger: Ledger | None = None,
    ) -> None:
        self.planes = planes
        self.objective = objective
        self.axes = [np.linspace(low[i], high[i], N_NODES) for i in range(2)]
        self.ledger = Ledger() if ledger is None else ledger
        self.lock = threading.RLock()  # a panel draws in a thread of its own what others ask about

    def bound(self, bar: tqdm) -> Float[np.ndarray, " n_planes"]:
        """A bound on the size of each plane's losses within the box: twice the largest on its coarse lattice."""
        losses = self._look_up(self._coarse, bar)
        return BOUND_FACTOR * magnitude(losses.reshape(len(self.planes), -1)).max(axis=1)

    def locate(self, points: Float[np.ndarray, " n"], axis: int) -> Int[np.ndarray, " n"]:
        """The cell of the lattice in which each coordinate lies."""
        return np.searchsorted(self.axes[axis][1:-1], points, side="right")

    @property
    def n_cells(self) -> tuple[int, int]:
        """Cells of the lattice along each axis."""
        return N_NODES - 1, N_NODES - 1

    def find_nodes(self, cells: Bool[np.ndarray, "n_planes n n"]) -> Bool[np.ndarray, "n_planes m m"]:
        """The nodes that interpolation in these cells of the planes needs; rows along the second axis of the picture.

        The coarse ones are always among them.
        """
        around = np.einsum("ca,tcd,db->tab", _STENCILS, cells.astype(np.float32), _STENCILS, optimize=True) > 0
        return around | self._coarse

    def fill(self, nodes: Bool[np.ndarray, "n_planes m m"], bar: tqdm) -> "Filled":
        """The losses at these nodes."""
        losses = np.zeros(nodes.shape)
        losses[nodes] = self._look_up(nodes, bar)
        return Filled(self, losses)

    @cached_property
    def _coarse(self) -> Bool[np.ndarray, "n_planes m m"]:
        """The coarse nodes; one along an axis along which the box has no extent."""
        along = [np.zeros(N_NODES, dtype=bool) for _ in range(2)]
        for nodes, axis in zip(along, self.axes, strict=True):
            nodes[:: (N_NODES - 1) // (N_COARSE - 1) if axis[0] < axis[-1] else N_NODES] = True
        return np.broadcast_to(np.outer(along[1], along[0]), (len(self.planes), N_NODES, N_NODES))

    def _look_up(self, nodes: Bool[np.ndarray, "n_planes m m"], bar: tqdm) -> Float[np.ndarray, " n"]:
        keys = np.flatnonzero(nodes)
        new = self.ledger.missing(keys)
        index, j, i = np.unravel_index(new, nodes.shape)
        points = np.stack([self.axes[0][i], self.axes[1][j]], axis=1)
        bar.total = (bar.total or 0) + len(new)
        self.ledger.record(new, evaluate_planes(self.objective, self.planes, index, points, bar))
        return self.ledger.read(keys)


class Filled:
    """What a chart says of all points of its box, once the nodes that it needs are known.

    Args:
        chart: the lattice.
        losses: `(n_planes, n, n)`, at its nodes; zero at those that are not known.

    Attributes:
        errors: `(n_planes, m, m)`, by how much each plane's losses may be off in each cell of the lattice.
    """

    def __init__(self, chart: Chart, losses: Float[np.ndarray, "n_planes n n"]) -> None:
        self.chart = chart
        fit = np.abs(losses) <= LARGEST  # false for nan, too
        self._losses = np.where(fit, losses, 0.0)
        differences = np.abs(_apply(_DIFFERENCES[0], self._losses) - _apply(_DIFFERENCES[1], self._losses))
        self.errors = sliding_window_view(differences, (N_LOOKS + 1,) * 2, (1, 2))[:, ::N_LOOKS, ::N_LOOKS].max((3, 4))
        spoilt = np.einsum("ca,tab,db->tcd", _STENCILS, (~fit).astype(np.float32), _STENCILS, optimize=True) > 0
        self.errors[spoilt] = MAX_LOSS

    def interpolate(self, x: Float[np.ndarray, " n_x"], y: Float[np.ndarray, " n_y"]) -> Float[np.ndarray, "n_y n_x _"]:
        """The losses of all planes at the points of a grid."""
        along_x, along_y = (self._weigh(at, axis) for axis, at in enumerate((x, y)))
        rows = np.einsum("tab,ib->ait", self._losses, along_x, optimize=True)
        return np.tensordot(along_y, rows, axes=1)

    def at(self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """The losses of planes `index[i]` at `points[i]`."""
        x, y = (self._weigh(points[:, axis], axis) for axis in range(2))
        return np.einsum("na,nab,nb->n", y, self._losses[index], x, optimize=True)

    def believe(
        self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], gaps: Float[np.ndarray, " n"]
    ) -> None:
        """Take in what was seen: planes `index[i]` are off by `gaps[i]` at `points[i]`, and so perhaps all nearby.

        Only the plane that counts most was looked at there; many that count less may be off alike.
        """
        seen = np.zeros_like(self.errors)
        x, y = (self.chart.locate(points[:, axis], axis) for axis in range(2))
        np.maximum.at(seen, (index, y, x), magnitude(gaps))
        np.maximum(self.errors, maximum_filter(seen.max(axis=0), REACH), out=self.errors)

    def _weigh(self, points: Float[np.ndarray, " n"], axis: int) -> Float[np.ndarray, "n n_nodes"]:
        nodes, cells = self.chart.axes[axis], self.chart.locate(points, axis)
        if nodes[0] == nodes[-1]:  # all of them are one place
            return _weigh(np.zeros(len(points)), np.zeros_like(cells), ORDER)
        return _weigh((points - nodes[0]) / (nodes[1] - nodes[0]), cells, ORDER)


def magnitude(losses: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Their size; that of what is not finite is as large as a bound can be."""
    return np.fmin(np.nan_to_num(np.abs(losses), nan=MAX_LOSS, posinf=MAX_LOSS), MAX_LOSS)


def _apply(weights: Float[np.ndarray, "n m"], losses: Float[np.ndarray, "n_planes m m"]) -> np.ndarray:
    return weights @ losses @ weights.T


def _weigh(at: Float[np.ndarray, " n"], cells: Int[np.ndarray, " n"], order: int) -> Float[np.ndarray, "n n_nodes"]:
    """Lagrange's weights of all nodes at each place, in cells from the first: zero but for the `order` around it."""
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
