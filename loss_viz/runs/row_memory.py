"""Memory for rows that are added one by one, some of which are dropped later."""

import numpy as np
import torch
from jaxtyping import Float

# Large enough that the system gets a block back as soon as its last row is dropped.
BLOCK_BYTES = 2**26


class RowMemory:
    """Blocks of rows, which are used again when some of them have been dropped.

    Args:
        n_columns: length of a row.
        dtype: its dtype.
        n_rows: the most rows of a block, of up to 64 MiB.

    Example:
        >>> memory = RowMemory(2, torch.float32, n_rows=3)
        >>> memory.row[:] = 1.0
        >>> memory.keep().tolist()
        [1.0, 1.0]
    """

    def __init__(self, n_columns: int, dtype: torch.dtype, n_rows: int) -> None:
        self._shape = max(1, min(n_rows, BLOCK_BYTES // (n_columns * dtype.itemsize))), n_columns
        self._dtype = dtype
        self._blocks: list[Float[np.ndarray, "n_rows n_columns"]] = []
        self._n = 0  # number of rows kept
        self._is_lent = False

    @property
    def row(self) -> Float[np.ndarray, " n_columns"]:
        """The next row, the same one until it is kept."""
        i, j = divmod(self._n, self._shape[0])
        if i == len(self._blocks):
            # Not by NumPy, which asks for large pages: the first use of one can take ten times as long in a virtual
            # machine.
            self._blocks.append(torch.empty(self._shape, dtype=self._dtype, device="cpu").numpy())
        return self._blocks[i][j]

    def keep(self) -> Float[np.ndarray, " n_columns"]:
        """Keep the next row, and return it."""
        row = self.row
        self._n += 1
        return row

    def lend(self) -> None:
        """Leave the rows to others, who free a block by dropping all of its rows."""
        n_left = max(0, len(self._blocks) - 1)
        del self._blocks[:n_left]
        self._n -= n_left * self._shape[0]
        self._is_lent = True

    def restart(self) -> None:
        """Begin again at the first row, in new memory if rows were lent."""
        if self._is_lent:
            self._blocks = []
        self._n, self._is_lent = 0, False
