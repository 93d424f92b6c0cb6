"""Work beside the kernel's main thread: the latest request wins, and what is stale ends."""

import threading
from collections.abc import Callable
from typing import Any


class Superseded(Exception):
    """Raised inside work that a newer request has overtaken."""


class Worker:
    """Carries out the latest request, in a thread that lives only while there is something to do.

    Args:
        work: called with a request and a function `check()`, which raises `Superseded` once the request is overtaken;
            long work calls it often.
        fail: called with whatever else `work` raises.

    Example:
        >>> done = []
        >>> worker = Worker(lambda request, check: done.append(request), print)
        >>> worker.submit("a picture")
        >>> worker.wait(), done
        (True, ['a picture'])
    """

    def __init__(
        self, work: Callable[[Any, Callable[[], None]], object], fail: Callable[[BaseException], object]
    ) -> None:
        self._work = work
        self._fail = fail
        self._changed = threading.Condition()
        self._serial = 0
        self._waiting: tuple[int, Any] | None = None
        self._running = False
        self._closed = False

    def submit(self, request: Any) -> None:
        """Ask for `request` in place of whatever was asked for before."""
        with self._changed:
            if self._closed:
                return
            self._serial += 1
            self._waiting = self._serial, request
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="loss_viz", daemon=True).start()

    def cancel(self) -> None:
        """Ask for nothing: what is running becomes stale."""
        with self._changed:
            self._serial += 1
            self._waiting = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing to do; False if that takes longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        """Cancel, for good."""
        with self._changed:
            self._closed = True
        self.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._waiting is None:
                    self._running = False
                    self._changed.notify_all()
                    return
                (serial, request), self._waiting = self._waiting, None

            def check(serial: int = serial) -> None:
                if serial != self._serial:
                    raise Superseded

            try:
                self._work(request, check)
            except Superseded:
                pass
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two: of code that the work calls
                self._fail(error)
