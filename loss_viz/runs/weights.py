"""Matrices of recorded weights, in memory or on disk, processed in blocks."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

# Of one block in float64; a few are in memory at a time, whatever the size of the model. Columns of rows on disk are
# read in larger ones, because each block opens every file.
BLOCK_BYTES, BLOCK_BYTES_ON_DISK = 2**24, 3 * 2**27


@runtime_checkable
class WeightRows(Protocol):
    """Weight vectors as rows, with NumPy's indexing: `np.ndarray`, `Checkpoints`, or a `StackedRows` of them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n_rows, n_columns)`."""

    @property
    def dtype(self) -> Any:
        """Dtype of the values."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return `rows[i]`, `rows[array]` or `rows[array, columns]` as an array."""


class StackedRows:
    """Several matrices with the same number of columns, stacked without a copy.

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
        """Common dtype of all parts."""
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


def stack_rows(parts: Sequence[WeightRows]) -> WeightRows:
    """Stack matrices without a copy; a single one is returned as it is."""
    return parts[0] if len(parts) == 1 else StackedRows(parts)


def take_rows(rows: WeightRows | None, index: Any) -> np.ndarray | None:
    """Return `rows[index]`, or None if `rows` is None, as the buffers of a run may be."""
    return None if rows is None else rows[index]


def spread_rows(n_rows: int, n: int) -> np.ndarray:
    """Return up to `n` row numbers, evenly spread from the first to the last of `n_rows`.

    Example:
        >>> spread_rows(101, 5).tolist(), spread_rows(2, 5).tolist()
        ([0, 25, 50, 75, 100], [0, 1])
    """
    return np.unique(np.linspace(0, n_rows - 1, n).astype(int))


def column_blocks(rows: WeightRows, bar: tqdm | None = None, *, n_rows: int | None = None) -> Iterator[slice]:
    """Yield slices of columns, each with at most `BLOCK_BYTES` in float64 over all rows.

    Args:
        rows: the matrix.
        bar: progress bar, advanced once per block if there are several; exceptions it raises stop the iteration.
        n_rows: number of rows of a block in memory; those of the matrix by default.
    """
    n_columns = rows.shape[1]
    limit = BLOCK_BYTES if is_in_memory(rows) else BLOCK_BYTES_ON_DISK
    width = max(1, limit // (8 * max(1, len(rows) if n_rows is None else n_rows)))
    starts = range(0, n_columns, width)
    shown = bar if len(starts) > 1 else None
    if shown is not None:
        shown.total = (shown.total or 0) + len(starts)
    for start in starts:
        yield slice(start, min(start + width, n_columns))
        if shown is not None:
            shown.update(1)


def is_in_memory(rows: WeightRows) -> bool:
    """Return whether rows are arrays, and not read from files."""
    return all(isinstance(part, np.ndarray) for part in (rows.parts if isinstance(rows, StackedRows) else [rows]))


def row_blocks(shape: tuple[int, ...], most: int | None = None) -> Iterator[slice]:
    """Yield slices of at least one row, each with at most `BLOCK_BYTES` in float64 and at most `most` rows."""
    n_rows, n_columns = shape
    height = max(1, BLOCK_BYTES // (8 * max(1, n_columns)))
    height = height if most is None else min(height, most)
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))


def step_lengths(rows: WeightRows, bar: tqdm | None = None) -> np.ndarray:
    """Return the Euclidean distance from each row to the next, `(n_rows - 1,)`."""
    squared = np.zeros(max(0, len(rows) - 1))
    for columns in column_blocks(rows, bar):
        block = rows[:, columns].astype(np.float64)
        block[:-1] -= block[1:]  # in place: new memory takes longer
        squared += np.einsum("np,np->n", block[:-1], block[:-1])
    return np.sqrt(squared)
