"""The panel's background work, from settings to figures, and the position of the ball."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch

from loss_viz._progress import ProgressMeter
from loss_viz.diagnostics.fidelity import SigmaCurve, sigma_curve
from loss_viz.diagnostics.margin import Margin, measure_margin
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.diagnostics.report import PlateauSummary, assess, summarize_plateaus
from loss_viz.figures.live import (
    EMPTY_CURVE,
    MAX_OUTPUTS,
    Updates,
    ViewState,
    choose_camera,
    choose_rows,
    curve_update,
    describe_balls,
    encode_outputs,
    factor_update,
    fit_update,
    margin_update,
    merge_updates,
    summarize,
    update_all,
)
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.landscapes.compute import Metric, Pipeline
from loss_viz.landscapes.grid import Sampling, check_view
from loss_viz.landscapes.held_out import list_candidates
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.objective.batching import limit_torch_threads, trim_heap
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.panel.pacer import Pacer
from loss_viz.panel.sharing import FileRequest
from loss_viz.panel.status import list_tiles
from loss_viz.panel.worker import Superseded, Worker
from loss_viz.planes.plane_set import Planes
from loss_viz.planes.projection import Projection
from loss_viz.runs.run import Run, load_run
from loss_viz.runs.run_set import RunSet, as_run_set
from loss_viz.runs.training import Training, build_training, check_memory, run_training
from loss_viz.settings import LANDSCAPE, NO_PLANE, TRAINING, LandscapeSettings, TrainSettings

BUNDLED_RUN = Path(__file__).parent / "bundled_run.safetensors"
# Of its surface, without axes, written by `.docs/panel_images.py`.
BUNDLED_STILLS = {theme: BUNDLED_RUN.with_name(f"bundled_{theme}.webp") for theme in ("light", "dark")}
BUNDLED_CHOICE: dict[str, Any] = {"plane": "local", "k": 5}  # what "auto" takes for it
LOG_AXES = {"linear": False, "log": True}  # others are chosen by the losses
MAX_RUNS = 4  # cached runs
MAX_RUN_BYTES = 2**26  # weights of all cached runs; the latest run is kept in any case
MAX_TRAINING_BYTES = 2**28
SECONDS_PER_FRAME = 0.1  # between redraws during training
SECONDS_PER_LEVEL = 0.2  # between a surface and a finer one; if the whole one comes sooner, it is the first
TRAINING_SHARE = 0.02  # of the time that passes, for the work of the panel while a training goes on
HOLD_SECONDS, POLL_SECONDS = 0.3, 0.005  # a slider that rests as long as this is drawn, although it is held
MARGIN_SECONDS = 3.0
UNFINISHED = ("updating", "training", "live")  # states of figures of which no files are made
WIDTH_ERROR_SECONDS = 3.0  # the widest kernels need the losses of every plane at every anchor

Settings = Mapping[str, Any]
Check = Callable[[], None]


@runtime_checkable
class Listener(Protocol):
    """Receives results, in the worker's thread or in the one that moves the ball."""

    def on_progress(self, text: str, fraction: float) -> None:
        """Report the current task and its progress, from 0 to 1."""

    def on_runs(self, run_set: RunSet, plateaus: Sequence[Plateau]) -> int:
        """Report new runs and their plateaus; return the training step of the ball."""

    def on_growth(self, run_set: RunSet) -> int:
        """Report the runs so far of a training that goes on; return the training step of the ball."""

    def on_report(self, report: dict[str, Any]) -> None:
        """Report new numbers at the ball."""

    def on_network(self, text: str) -> None:
        """Report the network at a point of the surface."""

    def on_done(self, text: str) -> None:
        """Report that the figures are complete, or that the work was stopped."""

    def on_width_errors(self, curve: SigmaCurve | None, sigma: float | str) -> None:
        """Report the errors of fixed bandwidths; None if they are unknown."""

    def on_error(self, error: BaseException) -> None:
        """Report that the request failed."""

    def on_file(self, file: FileRequest, data: bytes, seconds: float) -> None:
        """Deliver a file, which took some seconds to make."""

    def on_no_file(self, file: FileRequest, error: Exception | None) -> None:
        """Report that a file was not made: because of an error, or the user has stopped it."""


class Request(NamedTuple):
    """Settings to draw; `retrain` ignores cached runs, and `is_paced` leaves the CPU to a training that goes on.

    With `is_drawn` they are on screen, and only files of them are made.
    """

    settings: Settings
    retrain: bool
    is_paced: bool = False
    is_drawn: bool = False


class Stopped(Exception):
    """Raised inside work that the user has stopped."""


def _choose_landscape(settings: Settings) -> LandscapeSettings:
    return LandscapeSettings(**{name: settings[name] for name in LANDSCAPE})


def _check_until(end: float, check: Check) -> None:
    """Raise `Stopped` if time has run out, or what `check` raises."""
    check()
    if time.monotonic() > end:
        raise Stopped


def find_bundled_run(settings: Settings) -> RunSet | None:
    """Return the run that comes with loss_viz, if it was trained with these settings.

    The panel opens with it, while it trains the same one. It was written by `lv.train("x^3").save(BUNDLED_RUN)`.
    """
    default = TrainSettings()
    is_default = all(settings[name] == getattr(default, name) for name in TRAINING)
    return as_run_set(load_run(BUNDLED_RUN)) if is_default else None


class RunCache:
    """The last few trained runs, by their settings."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[Any, ...], RunSet] = OrderedDict()

    def find(self, settings: Settings) -> RunSet | None:
        """Return the run trained with these settings, if it is cached."""
        return self._runs.get(self._key(settings))

    def add(self, settings: Settings, run_set: RunSet) -> None:
        """Cache a run, and drop the oldest ones beyond the limits of number and memory."""
        key = self._key(settings)
        self._runs[key] = run_set
        self._runs.move_to_end(key)
        while len(self._runs) > 1 and (len(self._runs) > MAX_RUNS or self._n_bytes > MAX_RUN_BYTES):
            self._runs.popitem(last=False)

    @property
    def _n_bytes(self) -> int:
        all_weights = [run_set.weights for run_set in self._runs.values()]
        return sum(math.prod(weights.shape) * weights.dtype.itemsize for weights in all_weights)

    @staticmethod
    def _key(settings: Settings) -> tuple[Any, ...]:
        return tuple(settings[name] for name in TRAINING)


class Controller:
    """Runs the latest request in the background and draws it.

    Args:
        figures: where to draw.
        listener: receives progress, results and errors.
        own_runs: runs to draw; None to train them.
        step: training step of the ball; None for the end of the run.
        metrics: further heights of the surface by name.

    Attributes:
        run_set: the latest runs, or None.
        run_cache: the trained runs.
        view: the surface on screen, or None.
        worker: the background thread.
        is_held: whether a slider is held in the front end. Meanwhile only the coarsest surfaces are drawn.
    """

    def __init__(
        self,
        figures: LiveFigures,
        listener: Listener,
        own_runs: RunSet | None,
        *,
        step: int | None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.figures = figures
        self.listener = listener
        self.step = step
        self.run_set: RunSet | None = None
        self.run_cache = RunCache()
        self.view: ViewState | None = None
        self.worker = Worker(self._work, self._fail)
        self.is_held = False
        self._own_runs = own_runs
        # Of the latest runs. That of the user's own is built here, because probing metrics draws random numbers.
        self._pipeline = Pipeline(own_runs, metrics=metrics) if own_runs else None
        self._metrics = self._pipeline.metrics if self._pipeline else metrics  # for the runs of a training that goes on
        self._plateaus = PlateauSummary()
        self._outputs: dict[str, Any] | None = None  # of their networks
        self._aimed: tuple[Any, ...] = ()  # the runs and axes for which the camera was aimed
        self._camera: dict[str, Any] = {}
        self._margins: WeakKeyDictionary[Run, Margin] = WeakKeyDictionary()
        self._width_errors: WeakKeyDictionary[Planes, SigmaCurve | None] = WeakKeyDictionary()
        self._drawing = threading.RLock()  # the ball is moved from other threads than the worker's
        self._part: tuple[Any, ...] = ()  # the whole runs, the part that was cut from them last, and its runs
        self._stop = threading.Event()
        self._training = False
        self._network_shown = False  # that of a point of the surface
        self.pacer = Pacer(TRAINING_SHARE)
        # Whether the curves are not those of `run_set`: another request may have ended a training, or their drawing.
        self._curves_are_old = False
        self._is_growing = False  # whether the runs are those so far of a training that goes on
        self._near: Projection | None = None  # plane of the last surface of growing runs
        self._settings: Settings = {}  # of the last request
        self._files: list[FileRequest] = []  # to be made
        self._making_files = False

    def request(self, settings: Settings, *, retrain: bool = False) -> None:
        """Draw these settings, in place of earlier requests."""
        with self._drawing:  # an earlier request can no longer mark its figures as current
            self._stop.clear()
            self.figures.state = "updating"
            self._settings = settings
            self.worker.submit(Request(settings, retrain))

    def stop(self) -> None:
        """Stop the current work. A run in training is kept, and drawn, up to its last step."""
        self._stop.set()

    def remember(self, settings: Settings) -> None:
        """Take settings for the first surface of a training that has not begun."""
        self._settings = settings

    def show_growing(self, run_set: RunSet) -> None:
        """Show the curves of the runs so far of a training that goes on; their surface is to be requested."""
        with self._drawing:
            self._is_growing = True
            self._own_runs = self.run_set = run_set
            self._plateaus = PlateauSummary()
            self.step = self.listener.on_growth(run_set)
            self.figures.push(self._run_updates(run_set), state="live", balls=self._describe_balls())

    def request_growing(self) -> None:
        """Draw the surface of growing runs at the pace that leaves the training alone, unless there is other work."""
        shown = self.view.run_set if self.view else None
        with self._drawing:
            if shown is not self.run_set and self.worker.wait(0.0):
                self.worker.submit(Request(self._settings, retrain=False, is_paced=True))

    @property
    def growing_surface_step(self) -> int | None:
        """Last step of the runs whose surface is on screen, while a training goes on; None before the first surface."""
        return self.view.run_set.last_step if self.view and self._is_growing else None

    def show_whole(self, run_set: RunSet) -> None:
        """Take the whole runs of a training that pauses or has ended for the next request."""
        with self._drawing:
            self._is_growing = False
            self._own_runs = run_set

    def move_ball(self, step: int | None) -> None:
        """Move the ball to a training step of the runs on screen."""
        self.step = step
        with self._drawing:
            if self.run_set and not self._training:
                self._show_report()
                if self._network_shown:
                    self.figures.push({"fit_there": EMPTY_CURVE | {"showlegend": False}})
                    self._network_shown = False

    def show_network(self, point: tuple[float, float]) -> None:
        """Show what the network at a point of the surface computes, and its loss; nothing while there is no surface."""
        with self._drawing:
            land = self.view.landscape if self.view else None
            if land is None or land.blend.of == "losses":
                return
            task = land.run.task
            place = f"({point[0]:.3g}, {point[1]:.3g})"
            text = f"the network at {place}, {land.height_name} {float(land.at(np.array([point]))[0]):.3g}"
            if task:
                with torch.no_grad():
                    output = land.network_at(np.array(point))(task.x).ravel().double().cpu().numpy()
                x, _ = task.to_numpy()
                self._network_shown = True
                self.figures.push({"fit_there": {"x": x, "y": output, "name": f"at {place}", "showlegend": True}})
            self.listener.on_network(text)

    def _work(self, request: Request, check: Check) -> None:
        started = time.monotonic()
        # The browser draws at the same time and occupies a core. On two cores a landscape took 1.3 s with two OpenMP
        # threads, which wait for each other, and 0.5 s with one.
        n_threads = max(1, torch.get_num_threads() - 1)
        try:
            if self._is_growing:
                with limit_torch_threads(1):
                    return self._draw_growing(request, check)
            with limit_torch_threads(n_threads):
                landscape = self.view.landscape if request.is_drawn and self.view else None
                try:
                    if landscape is None:
                        run_set = self._find_runs(request, check)
                        landscape = self._draw_landscape(run_set, request.settings, check)
                        text = f"{landscape.n_evaluations:,} losses, drawn in {time.monotonic() - started:.1f} s"
                        self.listener.on_done(" ".join([*(run.note for run in run_set.runs if run.note), text]))
                except (Superseded, Stopped):
                    raise
                except Exception as error:  # the files that were asked for before are those of another landscape
                    self._fail(error)
                    return self._make_files(check)
                self._make_files(check)
                curve = self._find_width_errors(landscape, check)
                self.listener.on_width_errors(curve, request.settings["sigma"])
                self._draw_margin(landscape.run_set, check)
        except Stopped:
            self._files.clear()
            self.figures.state = "stopped"
            self.listener.on_done(
                "Stopped; the surface is not that of these settings. Change a setting or train again."
            )
        finally:
            trim_heap()

    def _fail(self, error: BaseException) -> None:
        self._training = False
        self.figures.state = "not these settings"
        self.listener.on_error(error)

    def _find_runs(self, request: Request, check: Check) -> RunSet:
        """Return the runs of a request, trained if need be; draw them unless they are on screen."""
        whole = self._own_runs or (None if request.retrain else self.run_cache.find(request.settings))
        if whole is None:
            bundled = None if self.run_set else find_bundled_run(request.settings)
            if bundled:
                shown = self._show_runs(bundled, request.settings, check)
                chosen = _choose_landscape(request.settings)
                if (chosen.plane, chosen.k) == ("auto", "auto"):
                    chosen = replace(chosen, **BUNDLED_CHOICE)
                meter = ProgressMeter(check, lambda _: None)
                self._draw_coarse(Pipeline(shown), chosen, request.settings, meter, check)
            self._training = bundled is None
            whole = self._train(request.settings, check, drawn=bundled is None)
            self.run_cache.add(request.settings, whole)
        self._training = False
        return self._show_runs(whole, request.settings, check)

    def _show_runs(self, whole: RunSet, settings: Settings, check: Check) -> RunSet:
        """Draw runs, or the part of them that was chosen, unless they are on screen; return what is drawn."""
        run_set, part = whole, settings["part"]
        if part:
            if self._part[:2] != (whole, part):
                self._part = whole, part, whole.cut(part, name="part")
            run_set = self._part[2]
        if run_set is not self.run_set or self._curves_are_old:
            self.run_set, self._curves_are_old = run_set, True
            self._plateaus = summarize_plateaus(run_set)
            self.step = self.listener.on_runs(run_set, self._plateaus.plateaus)
            self.listener.on_width_errors(None, settings["sigma"])
            with self._drawing:
                check()
                self.figures.push(self._run_updates(run_set), state="updating", balls=self._describe_balls())
            self._curves_are_old = False
        return run_set

    def _run_updates(self, run_set: RunSet) -> Updates:
        """Return the curves of runs, and what they learn."""
        curves = curve_update([(run.step, run.loss) for run in run_set.runs], self._plateaus.plateaus)
        return merge_updates(curves, factor_update(run_set), margin_update(None), self._task_update(run_set))

    def _draw_growing(self, request: Request, check: Check) -> None:
        """Draw the coarse surface of the runs so far, on axes that are turned to those of the last one."""
        with self.pacer as pacer:
            pace = partial(pacer.rest, check) if request.is_paced else check
            meter = ProgressMeter(pace, lambda _: None)
            run_set, settings = self.run_set, request.settings
            if run_set is None:
                return
            near = self._near if self._near and self._near.components.shape[1] == run_set.objective.n_params else None
            pipeline = Pipeline(run_set, near=near)
            chosen = _choose_landscape(settings)
            plane, k = list_candidates(run_set, chosen)[-1]  # no losses are spent on a choice
            if plane == "local" and len(run_set) < 2 * k + 1:
                return
            chosen = replace(chosen, plane=plane, k=k)
            check_view(run_set, chosen)
            self._near = self._draw_coarse(pipeline, chosen, settings, meter, check).projection

    def _draw_coarse(
        self, pipeline: Pipeline, chosen: LandscapeSettings, settings: Settings, meter: ProgressMeter, check: Check
    ) -> Sampling:
        """Draw the coarsest surface, without its errors."""
        surface, sampling = next(pipeline.surfaces(chosen, meter)), pipeline.sampling(chosen, meter)
        log = LOG_AXES.get(settings["loss_axis"])
        scale = fit_scale([surface.loss, pipeline.run_set.loss], log=log, name="loss")
        self._draw(ViewState(sampling, surface, chosen.sigma, scale), settings["min_support"], check)
        return sampling

    def _train(self, settings: Settings, check: Check, *, drawn: bool) -> RunSet:
        """Train; if `drawn`, the curve and the network are drawn meanwhile."""
        training = build_training(TrainSettings(**{name: settings[name] for name in TRAINING}))
        check_memory(training.model, training.steps, training.every, MAX_TRAINING_BYTES)
        losses: list[float] = []
        last = time.monotonic()

        def on_step(step: int, loss: float) -> None:
            nonlocal last
            check()
            losses.append(loss)
            if self._stop.is_set():
                self._stop.clear()
                raise KeyboardInterrupt
            now = time.monotonic()
            if not drawn:
                if now - last > SECONDS_PER_FRAME:
                    last = now
                    self.listener.on_progress("a run that comes with loss_viz; yours is trained", step / training.steps)
            elif step == 0 or (now - last > SECONDS_PER_FRAME and self.figures.wait_drawn(0.0)) or now - last > 1:
                last = now
                self._draw_training(training, losses)

        return as_run_set(run_training(training, on_step=on_step))

    def _draw_training(self, training: Training, losses: list[float]) -> None:
        step, n_steps, task = len(losses) - 1, training.steps, training.task
        with torch.no_grad():
            output = training.model(task.x)
        x, target, network = (values.ravel().double().numpy() for values in (task.x, task.y, output))
        curve = curve_update([(np.arange(len(losses)), np.array(losses))], n_steps=n_steps)
        empty = {"x": np.empty(0), "y": np.empty(0)}
        updates = curve | fit_update(x, target, network) | {"curve_factor": empty}
        if step == 0:
            updates = merge_updates(updates, margin_update(None))
        self._curves_are_old = True
        self.figures.push(updates, state="training", balls={})
        self.listener.on_progress(f"training, step {step:,} of {n_steps:,}, loss {losses[-1]:.3g}", step / n_steps)

    def _draw_landscape(self, run_set: RunSet, settings: Settings, check: Check) -> Landscape:
        """Draw the surface from coarse to fine, then the complete landscape; return that."""

        def check_both() -> None:
            check()
            if self._stop.is_set():
                raise Stopped

        meter = ProgressMeter(check_both, lambda done: self.listener.on_progress("evaluating the surface", done))
        if self._pipeline is None or self._pipeline.run_set is not run_set:
            self._pipeline = Pipeline(run_set, metrics=self._metrics)
        pipeline, chosen = self._pipeline, _choose_landscape(settings)
        height, known = settings["height"], pipeline.is_known(chosen)
        sampling = pipeline.sampling(chosen, meter)

        def draw(
            surface: Surface | Landscape, landscape: Landscape | None = None, second: Landscape | None = None
        ) -> None:
            losses = [surface.loss, *([second.loss] if second else [])]
            if height == "loss" or landscape:
                losses.append(landscape.path_loss if landscape else run_set.loss)
            log = LOG_AXES.get(settings["loss_axis"])
            scale = fit_scale(losses, log=log, name=height)
            view = ViewState(sampling, surface, chosen.sigma, scale, landscape, second)
            self._draw(view, settings["min_support"], check_both)

        if not known:
            started, drawn = time.monotonic(), -math.inf
            for surface in pipeline.surfaces(chosen, meter, height):
                now = time.monotonic()
                is_soon = (now - started) * len(sampling.points) / surface.loss.size < SECONDS_PER_LEVEL
                if now - drawn > SECONDS_PER_LEVEL and (self.is_held or not is_soon):
                    draw(surface)
                    drawn = time.monotonic()
                while self.is_held and time.monotonic() - drawn < HOLD_SECONDS:
                    check_both()  # the slider may have moved on: until then the browser needs the processors
                    time.sleep(POLL_SECONDS)
        landscape, second = pipeline.landscape(chosen, meter), None
        if height != "loss":
            landscape = landscape.metric(height)
        assess(landscape).measure_held_out(meter)
        if settings["beside"] != NO_PLANE:
            second = pipeline.landscape(replace(chosen, plane=settings["beside"]), meter)
            second = second if height == "loss" else second.metric(height)
        draw(landscape, landscape, second)
        return landscape

    def _find_width_errors(self, landscape: Landscape, check: Check) -> SigmaCurve | None:
        """Measure the errors of fixed bandwidths; None if there is nothing to hold out, or time runs out.

        Losses evaluated before time runs out are kept, so the next redraw continues from there.
        """
        end, planes = time.monotonic() + WIDTH_ERROR_SECONDS, landscape.planes

        if planes not in self._width_errors:
            try:
                bar = ProgressMeter(partial(_check_until, end, check), lambda _: None)
                self._width_errors[planes] = sigma_curve(landscape, bar=bar) if len(planes) > 1 else None
            except ValueError:
                self._width_errors[planes] = None
            except Stopped:
                return None
        return self._width_errors[planes]

    def _draw_margin(self, run_set: RunSet, check: Check) -> None:
        """Measure and draw the stability margin of a single run, unless it is on screen or time runs out."""
        run, end = run_set.runs[0], time.monotonic() + MARGIN_SECONDS
        if len(run_set.runs) > 1 or len(run) < 2:
            return
        if run not in self._margins:
            bar = ProgressMeter(partial(_check_until, end, check), lambda _: None)
            with suppress(Stopped):
                self._margins[run] = measure_margin(run, bar=bar)
        if run in self._margins:
            with self._drawing:
                check()
                self.figures.push(margin_update(self._margins[run]))

    def _draw(self, view: ViewState, min_support: float, check: Check) -> None:
        plateaus, complete = self._plateaus.plateaus, view.landscape is not None
        key = ("growing", view.scale.log) if self._is_growing else (view.run_set, view.projection.axes, view.scale.log)
        camera = self._camera if key == self._aimed else choose_camera(view)
        updates = update_all(view, plateaus, min_support=min_support, camera=camera)
        if not self._is_growing:
            self.figures.wait_drawn(0.5)
        with self._drawing:
            check()
            self.view, self._aimed, self._camera = view, key, camera
            self.figures.push(
                updates,
                balls=self._describe_balls(),
                # The second surface stays as it is until the landscape is complete.
                hidden=self.figures.hidden if not complete else [] if view.second else ["beside"],
                state="live" if self._is_growing else "" if complete else "updating",
                summary=summarize(view.run_set, plateaus),
            )
            self._show_report()

    def _find_rows(self, run_set: RunSet) -> list[int]:
        step = None if self.step is None else int(np.clip(self.step, run_set.first_step, run_set.last_step))
        return run_set.nearest_rows(step)

    def _show_report(self) -> None:
        if self.view and (self.view.run_set is self.run_set or self._is_growing):
            self.listener.on_report(list_tiles(self.view, self._plateaus, self._find_rows(self.view.run_set)))

    def _task_update(self, run_set: RunSet) -> Updates:
        """Return the target of the runs, if they learn a built-in task, and compute what their networks put out."""
        self._outputs = None
        task = run_set.runs[0].task
        if task is None or not all(run.task for run in run_set.runs):
            return {}
        self._outputs = encode_outputs(run_set, choose_rows(run_set, MAX_OUTPUTS // len(task.x)))
        return fit_update(*task.to_numpy(), limits=self._outputs["limits"])

    def _describe_balls(self) -> dict[str, Any]:
        assert self.run_set is not None
        view = self.view if self.view and (self._is_growing or self.view.run_set is self.run_set) else None
        return describe_balls(self.run_set, self._plateaus.plateaus, view, self._outputs)

    def request_file(self, kind: str, *, min_support: float, asker: str) -> bool:
        """Make a file of the landscape on screen; return False if that is not complete.

        Settings that are changed meanwhile are drawn first. The file is still that of the landscape that was on screen.

        Args:
            kind: as for `FileRequest`.
            min_support: as for `FileRequest`.
            asker: as for `FileRequest`.
        """
        with self._drawing:
            view = self.view
            if view is None or view.landscape is None or self.figures.state in UNFINISHED:
                return False
            run_set, step = view.run_set, self.step
            step = run_set.last_step if step is None else int(np.clip(step, run_set.first_step, run_set.last_step))
            file = FileRequest(kind, view.landscape, step, view.scale.log, min_support, asker)
            if file not in self._files:
                self._files.append(file)
            self._stop.clear()
            if not self._making_files:
                self.listener.on_progress(f"making the {kind}", 0.0)
                self.worker.submit(Request(self._settings, retrain=False, is_drawn=True))
            return True

    def _make_files(self, check: Check) -> None:
        """Make the files that were asked for. One that a newer request interrupts is made again after that."""

        def check_both() -> None:
            check()
            if self._stop.is_set():
                raise Stopped

        try:
            while True:
                with self._drawing:
                    self._making_files = bool(self._files)
                    if not self._files:
                        return
                    file = self._files[0]
                self._make_file(file, check_both)
                with self._drawing:
                    self._files.remove(file)
        finally:
            self._making_files = False

    def _make_file(self, file: FileRequest, check: Check) -> None:
        started, text = time.monotonic(), f"making the {file.kind}"
        self.listener.on_progress(text, 0.0)
        try:
            data = file.make(ProgressMeter(check, lambda done: self.listener.on_progress(text, done)))
        except Superseded:
            raise
        except Stopped:
            self._stop.clear()
            self.listener.on_no_file(file, None)
        except Exception as error:
            self.listener.on_no_file(file, error)
        else:
            self.listener.on_file(file, data, time.monotonic() - started)
