"""A background thread that runs the latest request and drops the ones before it."""

import threading
from collections.abc import Callable
from typing import Any


class Superseded(Exception):
    """Raised inside work for which a newer request has arrived."""


class Worker:
    """Runs the latest request, in a thread that exists only while there is work.

    Args:
        work: called with a request and a function `check()`, which raises `Superseded` once a newer request has
            arrived. Long work calls `check` often.
        on_error: called with any other exception that `work` raises.

    Example:
        >>> done = []
        >>> worker = Worker(lambda request, check: done.append(request), print)
        >>> worker.submit("settings")
        >>> worker.wait(), done
        (True, ['settings'])
    """

    def __init__(
        self, work: Callable[[Any, Callable[[], None]], object], on_error: Callable[[BaseException], object]
    ) -> None:
        self._work = work
        self._on_error = on_error
        self._changed = threading.Condition()
        self._serial = 0
        self._pending: tuple[int, Any] | None = None
        self._running = False
        self._closed = False

    def submit(self, request: Any) -> None:
        """Run `request` next, in place of every earlier request that has not finished."""
        with self._changed:
            if self._closed:
                return
            self._serial += 1
            self._pending = self._serial, request
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="loss_viz", daemon=True).start()

    def cancel(self) -> None:
        """Drop the pending request and supersede the running one."""
        with self._changed:
            self._serial += 1
            self._pending = None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until there is no work left; return False if that takes more than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        """Cancel all work and accept no more."""
        with self._changed:
            self._closed = True
        self.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._pending is None:
                    self._running = False
                    self._changed.notify_all()
                    return
                (serial, request), self._pending = self._pending, None

            def check(serial: int = serial) -> None:
                if serial != self._serial:
                    raise Superseded

            try:
                self._work(request, check)
            except Superseded:
                pass
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # user code may raise the last two
                self._on_error(error)
