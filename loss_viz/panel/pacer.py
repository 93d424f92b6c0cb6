"""Keeps background work below a share of the time that passes."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

POLL_SECONDS = 0.1


class Pacer:
    """A lock whose holder rests after each piece of work, so that the work stays below a share of the time.

    Work of a thread that holds the lock is followed by a rest in proportion. Only one thread works at a time, and
    others may work while it rests.

    Args:
        share: duration of the work as a share of the time that passes.

    Attributes:
        spent: CPU time of all work so far.

    Example:
        >>> with Pacer(0.5) as pacer:
        ...     total = sum(range(1000))  # work for a while, then
        ...     pacer.rest()
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the next piece of work may begin
        self._began = self._cpu = 0.0  # of the present piece
        self.spent = 0.0  # CPU time of all work so far

    def __enter__(self) -> "Pacer":
        self._lock.acquire()
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._charge()
        self._lock.release()

    @property
    def seconds_left(self) -> float:
        """Seconds until the next piece of work may begin."""
        return max(0.0, self._free_at - time.monotonic())

    def rest(self, check: Callable[[], None] = lambda: None) -> None:
        """Let go of the lock until the next piece of work may begin; exceptions that `check` raises end the rest."""
        self._charge()
        self._lock.release()
        try:
            check()
            while (left := self.seconds_left) > 0:
                time.sleep(min(left, POLL_SECONDS))
                check()
        finally:
            self._lock.acquire()
            self._begin()

    def _begin(self) -> None:
        self._began, self._cpu = time.monotonic(), time.thread_time()

    def _charge(self) -> None:
        self.spent += time.thread_time() - self._cpu
        # Not the CPU time: on a busy machine the thread may hold the interpreter lock, for which the training waits,
        # while the system runs something else.
        cost = time.monotonic() - self._began
        self._free_at = max(self._free_at, self._began) + cost / self._share
