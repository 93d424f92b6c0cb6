"""A progress bar that reports a fraction instead of drawing itself."""

import time
from collections.abc import Callable

from tqdm import tqdm


class ProgressMeter(tqdm):
    """A progress bar that calls `report` with the fraction done, at most ten times a second.

    Args:
        check: called at every update; exceptions it raises stop the work.
        report: called with a number from 0 to 1.
    """

    def __init__(self, check: Callable[[], None], report: Callable[[float], object]) -> None:
        super().__init__(total=0, disable=True)
        self._check = check
        self._report = report
        self._reported = time.monotonic()

    def update(self, n: int | None = 1) -> None:
        """Count `n` more items as done."""
        self._check()
        self.n += n or 0
        now = time.monotonic()
        if now - self._reported > 0.1:
            self._reported = now
            self._report(self.n / max(self.total, self.n, 1))
