"""What a chart tells of every plane at every point of a grid, before a loss is evaluated there."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from .charts import Chart, Filled

Axes = tuple[Float[np.ndarray, " n_x"], Float[np.ndarray, " n_y"]]

N_CHECKS = 61  # along each axis: where the chart is held against a loss


@dataclass(frozen=True, eq=False)
class Block:
    """Losses of planes at some points, as far as they are known.

    Attributes:
        losses: `(n, n_planes)`, zero where nothing is known.
        errors: `(n, n_planes)`, by how much those may be off that are known.
        known: `(n, n_planes)`, which are.
    """

    losses: Float[np.ndarray, "n n_planes"]
    errors: Float[np.ndarray, "n n_planes"]
    known: Bool[np.ndarray, "n n_planes"]


class Estimate:
    """The losses on the planes over a grid: first which of them are wanted where, then what the chart says of them.

    Args:
        chart: of the planes.
        axes: the coordinates `(n_x,)` and `(n_y,)` of the grid, over the box of the chart.
    """

    def __init__(self, chart: Chart, axes: Axes) -> None:
        self.chart = chart
        self.axes = axes
        self._at = [chart.locate(axis, i) for i, axis in enumerate(axes)]
        self._cells = np.zeros((len(chart.planes), *chart.n_cells), dtype=bool)

    def want(self, part: slice, planes: Bool[np.ndarray, "n n_planes"]) -> None:
        """Which planes are wanted at the points of some whole rows of the grid."""
        (columns, first), (rows, start) = (np.unique(at, return_index=True) for at in (self._at[0], self._rows(part)))
        blocks = np.logical_or.reduceat(planes.reshape(-1, len(self.axes[0]), planes.shape[1]), first, axis=1)
        blocks = np.logical_or.reduceat(blocks, start, axis=0)
        self._cells[:, rows[:, None], columns] |= blocks.transpose(2, 0, 1)

    def choose_checks(self) -> Int[np.ndarray, " n_checks"]:
        """Points at which the chart is held against a loss: all of a small grid, evenly spread ones of a large."""
        n_x, n_y = map(len, self.axes)
        return (np.arange(n_y)[:: -(-n_y // N_CHECKS), None] * n_x + np.arange(n_x)[:: -(-n_x // N_CHECKS)]).ravel()

    def count_nodes(self) -> int:
        """How many nodes of the chart it takes."""
        return int(self.chart.find_nodes(self._cells).sum())

    def fill(self, bar: tqdm) -> Filled:
        """Evaluate them."""
        self._filled = self.chart.fill(self.chart.find_nodes(self._cells), bar)
        return self._filled

    def read(self, part: slice) -> Block:
        """What is known at the points of some whole rows of the grid."""
        n_x = len(self.axes[0])
        rows = np.ix_(self._rows(part), self._at[0])
        known, errors = (array.transpose(1, 2, 0)[rows] for array in (self._cells, self._filled.errors))
        losses = self._filled.interpolate(self.axes[0], self.axes[1][part.start // n_x : part.stop // n_x])
        shape = (-1, losses.shape[2])
        return Block(np.where(known, losses, 0.0).reshape(shape), errors.reshape(shape), known.reshape(shape))

    def _rows(self, part: slice) -> Int[np.ndarray, " n"]:
        n_x = len(self.axes[0])
        return self._at[1][part.start // n_x : part.stop // n_x]
