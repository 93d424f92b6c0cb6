"""The panel's work: from settings to what is drawn, in a thread of its own, and the ball's way along the run."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from loss_viz._progress import ProgressMeter
from loss_viz.diagnostics.fidelity import SigmaCurve, sigma_curve
from loss_viz.diagnostics.report import PlateauSummary, assess, summarize_plateaus
from loss_viz.figures.live import (
    ViewState,
    ball_update,
    curve_update,
    factor_update,
    fit_update,
    merge_updates,
    step_update,
    summarize,
    update_all,
)
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.landscapes.compute import Pipeline
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.objective.batching import trim_heap
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.panel.status import write_readout
from loss_viz.panel.worker import Worker
from loss_viz.planes.plane_set import Planes
from loss_viz.runs.run_set import RunSet, as_run_set
from loss_viz.runs.training import Training, build_training, check_memory, run_training
from loss_viz.settings import LANDSCAPE, NO_PLANE, TRAINING, LandscapeSettings, TrainSettings

SECONDS_PER_FRAME = 0.1  # of a curve that grows

N_KEPT_RUNS = 4

MAX_RUN_BYTES = 2**26  # of all kept runs but the latest: those of wide networks fill a small machine's memory

MAX_TRAINING_BYTES = 2**28

SECONDS_FOR_COSTS = 3.0  # the widest kernels ask every plane at every anchor


@runtime_checkable
class Listener(Protocol):
    """Who hears of the work; calls come from the working thread, and from whoever moves the ball."""

    def on_progress(self, words: str, share: float) -> None:
        """What is going on, and how much of it is done, from 0 to 1."""

    def on_runs(self, run_set: RunSet) -> int:
        """There are other runs; the answer is the step at which the ball shall lie."""

    def on_readout(self, html: str) -> None:
        """The figures at the ball's place have changed."""

    def on_done(self, words: str) -> None:
        """All is drawn."""

    def on_width_errors(self, curve: SigmaCurve | None, sigma: float | str) -> None:
        """What the bandwidths cost; None where there is nothing to choose."""

    def on_error(self, error: BaseException) -> None:
        """What was asked for cannot be drawn."""


class Request(NamedTuple):
    """All settings, and whether to train even if the run is known."""

    settings: Mapping[str, Any]
    retrain: bool


class TrainedRuns:
    """The last few trained runs, by their settings.

    Args:
        own: runs of the user's own; with them nothing is ever trained.
    """

    def __init__(self, own: RunSet | None = None) -> None:
        self._own = own
        self._kept: OrderedDict[tuple[Any, ...], RunSet] = OrderedDict()

    def find(self, settings: Mapping[str, Any]) -> RunSet | None:
        """Return the runs of these settings; None if they are not known."""
        return self._own or self._kept.get(_training_key(settings))

    def train(self, training: Training, settings: Mapping[str, Any], on_step: Callable[[int, float], object]) -> RunSet:
        """Train what `prepare` built from the settings. A run that ended early is kept for them, too."""
        key = _training_key(settings)
        self._kept[key] = as_run_set(run_training(training, on_step=on_step))
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and (
            len(self._kept) > N_KEPT_RUNS or sum(_weight_bytes(kept) for kept in self._kept.values()) > MAX_RUN_BYTES
        ):
            self._kept.popitem(last=False)
        return self._kept[key]


def _weight_bytes(run_set: RunSet) -> int:
    return math.prod(run_set.weights.shape) * run_set.weights.dtype.itemsize


def _training_key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(settings[name] for name in TRAINING)


def prepare(settings: Mapping[str, Any]) -> Training:
    """Check and build the training that the settings describe.

    Raises:
        ValueError: if a value is out of its range, or the run would not fit in memory.
    """
    training = build_training(TrainSettings(**{name: settings[name] for name in TRAINING}))
    check_memory(training.model, training.steps, training.every, MAX_TRAINING_BYTES)
    return training


class Stopped(Exception):
    """Raised inside work that the user has stopped."""


class Controller:
    """Draws on a picture what was asked for last.

    Args:
        picture: where it is drawn.
        listener: who is told.
        own: runs of the user's own; without them the controller trains.
        step: where the ball lies; None for the end of the run.

    Attributes:
        run_set: the latest runs.
        plateau_summary: where they lie still.
        frame: the surface that is on screen.
    """

    def __init__(self, picture: LiveFigures, listener: Listener, own: RunSet | None, *, step: int | None) -> None:
        self.figures = picture
        self.listener = listener
        self.trained = TrainedRuns(own)
        self.pipeline: Pipeline | None = None  # of the latest runs
        self._width_errors: WeakKeyDictionary[Planes, SigmaCurve | None] = WeakKeyDictionary()
        self.step = step
        self.run_set: RunSet | None = None
        self.plateau_summary = PlateauSummary()
        self.frame: ViewState | None = None
        self.worker = Worker(self._work, self._fail)
        self._drawing = threading.RLock()  # the ball is moved by other threads than the worker's
        self._stop = threading.Event()
        self._training = False

    def request(self, settings: Mapping[str, Any], *, retrain: bool = False) -> None:
        """Draw these settings, and forget what was asked for before."""
        with self._drawing:  # so that no older picture can still say that it is the one
            self._stop.clear()
            self.figures.state = "updating"
            self.worker.submit(Request(settings, retrain))

    def stop(self) -> None:
        """End the work under way. A run that was being trained is kept, and drawn, as far as it has come."""
        self._stop.set()

    def move_ball(self, step: int | None) -> None:
        """Move the ball to a training step, on what is on screen."""
        self.step = step
        with self._drawing:
            if self.run_set and not self._training:
                self.figures.push(self._place_balls(self.run_set))
                self._show_readout(self.run_set)

    def _work(self, request: Request, check: Callable[[], None]) -> None:
        started = time.monotonic()
        # The browser draws at the same time. Where it holds one of two cores, both threads of a pool wait for that one:
        # measured, a landscape then takes 1.3 s on two threads and 0.5 s on one.
        n_threads = max(1, torch.get_num_threads() - 1)
        try:
            with threadpool_limits(n_threads, user_api="openmp"):  # of this thread only
                run_set = self._find_runs(request, check)
                landscape = self._draw_landscape(run_set, request.settings, check)
                words = f"{landscape.n_evaluations:,} losses, drawn in {time.monotonic() - started:.1f} s"
                self.listener.on_done(" ".join([*(run.note for run in run_set.runs if run.note), words]))
                self._measure_costs(landscape, request.settings, check)
        except Stopped:
            self.figures.state = "stopped"
            self.listener.on_done("Stopped; the surface is not that of these settings. Move a control or train anew.")
        finally:
            trim_heap()

    def _fail(self, error: BaseException) -> None:
        self._training = False
        self.figures.state = "not these settings"
        self.listener.on_error(error)

    def _find_runs(self, request: Request, check: Callable[[], None]) -> RunSet:
        run_set = None if request.retrain else self.trained.find(request.settings)
        if run_set is None:
            self._training = True
            run_set = self._train(request.settings, check)
        self._training = False
        if run_set is not self.run_set:
            self.run_set = run_set
            self.step = self.listener.on_runs(run_set)
            self.listener.on_width_errors(None, request.settings["sigma"])
            self.plateau_summary = summarize_plateaus(run_set)
            curves = curve_update([(run.step, run.loss) for run in run_set.runs], self.plateau_summary.plateaus)
            with self._drawing:
                check()
                updates = merge_updates(curves, factor_update(run_set), self._place_balls(run_set))
                self.figures.push(updates, state="updating")
        return run_set

    def _train(self, settings: Mapping[str, Any], check: Callable[[], None]) -> RunSet:
        training = prepare(settings)
        losses: list[float] = []
        last = time.monotonic()

        def watch(step: int, loss: float) -> None:
            nonlocal last
            check()
            losses.append(loss)
            if self._stop.is_set():
                self._stop.clear()
                raise KeyboardInterrupt
            now = time.monotonic()
            if step == 0 or (now - last > SECONDS_PER_FRAME and self.figures.wait_drawn(0.0)) or now - last > 1:
                last = now
                self._draw_training(training, losses)

        return self.trained.train(training, settings, watch)

    def _draw_training(self, training: Training, losses: list[float]) -> None:
        step, n_steps, task = len(losses) - 1, training.steps, training.task
        with torch.no_grad():
            answer = training.model(task.x)
        x, target, network = (values.ravel().double().numpy() for values in (task.x, task.y, answer))
        curve = curve_update([(np.arange(len(losses)), np.array(losses))], [], n_steps)
        nothing = {"x": np.empty(0), "y": np.empty(0)}
        parts = curve | fit_update(x, target, [network], step) | {"curve_step": nothing, "curve_factor": nothing}
        self.figures.push(parts, state="training")
        self.listener.on_progress(f"training, step {step:,} of {n_steps:,}, loss {losses[-1]:.3g}", step / n_steps)

    def _draw_landscape(self, run_set: RunSet, settings: Mapping[str, Any], check: Callable[[], None]) -> Landscape:
        def check_both() -> None:
            check()
            if self._stop.is_set():
                raise Stopped

        meter = ProgressMeter(check_both, lambda share: self.listener.on_progress("blending the planes", share))
        if self.pipeline is None or self.pipeline.run_set is not run_set:
            self.pipeline = Pipeline(run_set)
        pipeline, chosen = self.pipeline, LandscapeSettings(**{name: settings[name] for name in LANDSCAPE})
        sampling = pipeline.sampling(chosen, meter)
        known = pipeline.has_surface(chosen)
        if not known:
            self._draw(sampling, pipeline.preview(chosen, meter), None, settings, check_both)
        surface = pipeline.surface(chosen, meter)
        if not known and settings["sigma"] != "auto":  # the heights under the run then take longer than a redraw
            self._draw(sampling, surface, None, settings, check_both)
        landscape = pipeline.landscape(chosen, meter)
        assess(landscape).measure_held_out(meter)
        beside = None
        if settings["beside"] != NO_PLANE:
            beside = pipeline.landscape(replace(chosen, plane=settings["beside"]), meter)
        self._draw(sampling, surface, landscape, settings, check_both, beside)
        return landscape

    def _measure_costs(self, landscape: Landscape, settings: Mapping[str, Any], check: Callable[[], None]) -> None:
        """After all is drawn: what each place of the slider costs, if that is soon known.

        What was evaluated until the time is up is kept, and the next redraw goes on from there.
        """
        end = time.monotonic() + SECONDS_FOR_COSTS

        def check_time() -> None:
            check()
            if time.monotonic() > end:
                raise Stopped

        try:
            curve = self._measure_width_errors(landscape, ProgressMeter(check_time, lambda _: None))
        except Stopped:
            curve = None
        self.listener.on_width_errors(curve, settings["sigma"])

    def _measure_width_errors(self, landscape: Landscape, bar: ProgressMeter) -> SigmaCurve | None:
        """Measure the error of each bandwidth; None where there is nothing to blend, or nothing can be held out."""
        planes = landscape.planes
        if planes not in self._width_errors:
            try:
                self._width_errors[planes] = sigma_curve(landscape, bar=bar) if len(planes) > 1 else None
            except ValueError:
                self._width_errors[planes] = None
        return self._width_errors[planes]

    def _draw(
        self,
        sampling: Sampling,
        surface: Surface,
        landscape: Landscape | None,
        settings: Mapping[str, Any],
        check: Callable[[], None],
        beside: Landscape | None = None,
    ) -> None:
        run_set = sampling.run_set
        losses = [surface.loss, run_set.loss, *([beside.loss] if beside else [])]
        scale = fit_scale(losses, log=settings["loss_axis"] == "log")
        frame = ViewState(sampling, surface, settings["sigma"], scale, landscape, beside)
        plateaus, low = self.plateau_summary.plateaus, settings["min_support"]
        updates = update_all(frame, plateaus, min_support=low, first=self.frame is None)
        self.figures.wait_drawn(0.5)
        with self._drawing:
            check()
            self.frame = frame
            # Until all is known a second surface stays as it is.
            hidden = self.figures.hidden if landscape is None else [] if beside else ["beside"]
            state, words = "" if landscape else "updating", summarize(run_set, plateaus)
            self.figures.push(
                merge_updates(updates, self._place_balls(run_set)), hidden=hidden, state=state, summary=words
            )
            self._show_readout(run_set)

    def _find_rows(self, run_set: RunSet) -> list[int]:
        return run_set.nearest_rows(
            None if self.step is None else int(np.clip(self.step, run_set.first_step, run_set.last_step))
        )

    def _show_readout(self, run_set: RunSet) -> None:
        if self.frame and self.frame.run_set is run_set:
            rows, frame = self._find_rows(run_set), self.frame
            self.listener.on_readout(write_readout(run_set, frame.projection, self.plateau_summary, rows, frame.report))

    def _place_balls(self, run_set: RunSet) -> dict[str, dict[str, Any]]:
        """The balls' places on the curves and the networks there; on the surface where that is of the same runs."""
        rows, frame = self._find_rows(run_set), self.frame
        updates = step_update(run_set, rows)
        if frame and frame.run_set is run_set:
            updates |= ball_update(frame, rows)
        task = run_set.runs[0].task
        if task and all(run.task for run in run_set.runs):
            x, target = task.to_numpy()
            places = zip(run_set.runs, rows, run_set.starts, strict=True)
            answers = [run.predict(row - start) for run, row, start in places]
            step = max(int(run_set.step[row]) for row in rows)
            plateau = self.plateau_summary.find(step) if len(rows) == 1 else None
            updates |= fit_update(x, target, answers, step, plateau.fit if plateau else None)
        return updates
