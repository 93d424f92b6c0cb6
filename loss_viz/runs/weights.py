"""The matrix of recorded weights, held in memory or read from disk, and the blocks in which it is worked through."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

BLOCK_BYTES = 2**29  # of one block in float64; a few of them are held at once, whatever the size of the model


@runtime_checkable
class WeightRows(Protocol):
    """Weight vectors as rows: `np.ndarray`, `Checkpoints`, or a `Stack` of them, indexed as NumPy does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n_rows, n_columns)`."""

    @property
    def dtype(self) -> Any:
        """Of the values."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: Any) -> np.ndarray:
        """`rows[i]`, `rows[array]` or `rows[array, columns]`, as an array."""


class StackedRows:
    """Several matrices of as many columns, one above the other, without a copy.

    Example:
        >>> stack = StackedRows([np.zeros((2, 3)), np.ones((1, 3))])
        >>> stack.shape, stack[[2, 0]].tolist()
        ((3, 3), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    """

    def __init__(self, parts: Sequence[WeightRows]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_rows, n_columns)`."""
        return int(self._starts[-1]), self.parts[0].shape[1]

    @cached_property
    def dtype(self) -> np.dtype:
        """Wide enough for all parts."""
        return np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        wanted = np.arange(len(self))[rows]
        flat = np.atleast_1d(wanted)
        values = np.empty((len(flat), len(range(*columns.indices(self.shape[1])))), self.dtype)
        owner = np.searchsorted(self._starts, flat, side="right") - 1
        for i, part in enumerate(self.parts):
            mine = owner == i
            if mine.any():
                values[mine] = part[flat[mine] - self._starts[i], columns]
        return values if wanted.ndim else values[0]


def take_rows(rows: WeightRows | None, index: Any) -> np.ndarray | None:
    """Return `rows[index]`, or None where there are no rows: `buffers` are None in runs whose buffers never change."""
    return None if rows is None else rows[index]


def stack_rows(parts: Sequence[WeightRows]) -> WeightRows:
    """One matrix of several, or the only one as it is."""
    return parts[0] if len(parts) == 1 else StackedRows(parts)


def column_blocks(shape: tuple[int, ...], bar: tqdm | None = None) -> Iterator[slice]:
    """Slices of columns, each of which holds at most `BLOCK_BYTES` over all rows in float64.

    Args:
        shape: of the matrix.
        bar: told of every block where there are several; what it raises ends the work.
    """
    n_rows, n_columns = shape
    width = max(1, BLOCK_BYTES // (8 * max(1, n_rows)))
    starts = range(0, n_columns, width)
    told = bar if len(starts) > 1 else None
    if told is not None:
        told.total = (told.total or 0) + len(starts)
    for start in starts:
        yield slice(start, min(start + width, n_columns))
        if told is not None:
            told.update(1)


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows, each of which holds at most `BLOCK_BYTES` in float64, and at least one row."""
    n_rows, n_columns = shape
    height = max(1, BLOCK_BYTES // (8 * max(1, n_columns)))
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))


def step_lengths(rows: WeightRows, bar: tqdm | None = None) -> np.ndarray:
    """Euclidean distance from each row to the next, `(n_rows - 1,)`."""
    squared = np.zeros(max(0, len(rows) - 1))
    for columns in column_blocks(rows.shape, bar):
        moved = np.diff(rows[:, columns].astype(np.float64), axis=0)
        squared += np.einsum("np,np->n", moved, moved)
    return np.sqrt(squared)
