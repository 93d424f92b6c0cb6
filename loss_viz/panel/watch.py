"""Following a training that goes on, without slowing it down."""

import threading
import time
from typing import Any, Protocol, runtime_checkable

from loss_viz._progress import ProgressMeter
from loss_viz.objective.batching import limit_torch_threads
from loss_viz.panel.controller import Controller
from loss_viz.panel.worker import Superseded
from loss_viz.runs.growing import GrowingRun, Progress
from loss_viz.runs.run_set import as_run_set

LOOK_SECONDS = 1.0  # between two looks, if the share allows it
MAX_LOOK_SECONDS = 30.0  # after looks that have failed
MIN_STEPS = 4  # recorded steps of the first picture
PAUSE_SECONDS = 5.0  # without a new step: then the training pauses, if no step took a third of this
PAUSE_FACTOR = 3.0


@runtime_checkable
class Listener(Protocol):
    """Receives what the watch has to say, in its thread."""

    def on_watch(self, text: str, problem: str) -> None:
        """Report what is going on, and what cannot be read."""

    def on_settled(self) -> None:
        """Report that the training pauses or has ended, and its whole run is to be drawn."""

    def on_error(self, error: BaseException) -> None:
        """Report that a look has failed."""


class Watch:
    """Looks at a training about once a second, in a thread, and shows the run so far.

    At each look, curve and ball are brought up to date, and when the last surface is done, a new coarse one is drawn.
    The controller's `Pacer` bounds the CPU time of both. When no step comes for a while, the whole run is drawn with
    all details, until the training goes on. The thread ends with `close`, `stop`, and when recording has ended.

    Args:
        source: the run.
        controller: draws it.
        listener: receives messages.

    Attributes:
        settled: set while the whole run is on screen, or on its way.
        has_run: whether there has been anything to draw.
    """

    def __init__(self, source: GrowingRun, controller: Controller, listener: Listener) -> None:
        self.settled = threading.Event()
        self.has_run = False
        self._source, self._controller, self._listener = source, controller, listener
        self._closed, self._stopped, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._position: Any = None
        self._grown_at = time.monotonic()
        self._longest = 0.0  # seconds between two steps
        self._shown: Any = None  # position that the last sample shows
        self._thread = threading.Thread(target=self._run, name="loss_viz watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it still looks."""
        return self._thread.is_alive() and not self._closed.is_set()

    def stop(self) -> None:
        """Look no more, and draw the whole run so far."""
        self._stopped.set()
        self._wake.set()

    def close(self) -> None:
        """Look no more; what is being done ends with its next step."""
        self._closed.set()
        self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the training pauses or has ended; return False if that takes more than `timeout` seconds."""
        return self.settled.wait(timeout)

    def _run(self) -> None:
        seconds = LOOK_SECONDS
        with limit_torch_threads(1):  # of this thread; the training keeps its own
            while not self._closed.is_set():
                try:
                    if self._look():
                        return
                    seconds = LOOK_SECONDS
                except Superseded:  # closed, or the training has gone on
                    pass
                except Exception as error:  # of the user's loss, for example
                    if self._closed.is_set():
                        return
                    self._listener.on_error(error)
                    if self._stopped.is_set():
                        self.settled.set()
                        return
                    seconds = min(2 * seconds, MAX_LOOK_SECONDS)
                self._wake.wait(max(seconds, self._controller.pacer.seconds_left))

    def _look(self) -> bool:
        """Look once; return whether that was the last time."""
        with self._controller.pacer:
            progress = self._source.look()
        is_over = progress.is_over or self._stopped.is_set()
        self._note_growth(progress)
        if len(progress.steps) < MIN_STEPS and not (is_over and len(progress.steps) > 1):
            n = len(progress.steps)
            text = progress.note or f"Waiting for the training: {n} of the first {MIN_STEPS} steps recorded."
            self._listener.on_watch(f"Stopped: {text}" if is_over else text, progress.problem)
            if is_over:
                self.settled.set()
            return is_over
        pause = max(PAUSE_SECONDS, PAUSE_FACTOR * self._longest)
        if is_over or progress.is_read or time.monotonic() - self._grown_at > pause:
            if is_over or not self.settled.is_set():
                self._draw_whole(is_over)
            return is_over
        self._draw_sample(progress)
        return False

    def _note_growth(self, progress: Progress) -> None:
        if progress.position == self._position:
            return
        now = time.monotonic()
        if self.has_run and not self.settled.is_set():
            self._longest = max(now - self._grown_at, self._longest / 2)
        self._position, self._grown_at = progress.position, now
        if self.settled.is_set():
            self.settled.clear()
            self._controller.worker.cancel()  # the whole picture, which would compete with the training
            self._controller.worker.wait()

    def _draw_sample(self, progress: Progress) -> None:
        """Show the run so far, and have its surface drawn if the last one is done."""
        if self._shown != progress.position:
            with self._controller.pacer as pacer:
                run = self._source.sample(ProgressMeter(lambda: pacer.rest(self._check), lambda _: None))
                if run is not None and len(run) > 1:
                    self._controller.show_growing(as_run_set(run))
                    self._shown, self.has_run = progress.position, True
        text = f"Training, step {progress.steps[-1]:,}. {progress.note}".strip()
        surface = self._controller.growing_surface_step
        if surface is not None and surface < progress.steps[-1]:
            text += f" The surface is that of step {surface:,}."
        self._listener.on_watch(text, progress.problem)
        if self.has_run:
            self._controller.request_growing()

    def _draw_whole(self, is_over: bool) -> None:
        last, checked = self._position, time.monotonic()

        def check() -> None:
            nonlocal checked
            self._check()
            if not is_over and time.monotonic() - checked > 0.2:
                checked = time.monotonic()
                if self._source.look().position != last:
                    raise Superseded

        run = self._source.whole(ProgressMeter(check, lambda _: None))
        self._controller.show_whole(as_run_set(run))
        self.has_run, self._shown = True, None
        self._listener.on_settled()
        self.settled.set()

    def _check(self) -> None:
        if self._closed.is_set():
            raise Superseded
