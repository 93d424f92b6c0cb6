"""The panel's work: from settings to what is drawn, in a thread of its own, and the ball's way along the run."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from loss_viz._progress import Meter
from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.report import Stays, find_facts, find_stays
from loss_viz.figures.live import (
    Frame,
    ball_parts,
    compose_frame,
    curve_parts,
    factor_parts,
    fit_parts,
    join_parts,
    step_parts,
    summarize,
)
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.landscapes.compute import Stages, prepare
from loss_viz.landscapes.grid import Survey
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.objective.batching import release_heap
from loss_viz.panel.figure_widget import Picture
from loss_viz.panel.status import write_figures
from loss_viz.panel.worker import Worker
from loss_viz.runs.run_set import Bundle
from loss_viz.runs.training import Training
from loss_viz.settings import ALONE

SECONDS_PER_FRAME = 0.1  # of a curve that grows

SECONDS_FOR_COSTS = 3.0  # the widest kernels ask every plane at every anchor


@runtime_checkable
class Listener(Protocol):
    """Who hears of the work; calls come from the working thread, and from whoever moves the ball."""

    def hear_progress(self, words: str, share: float) -> None:
        """What is going on, and how much of it is done, from 0 to 1."""

    def hear_runs(self, bundle: Bundle) -> int:
        """There are other runs; the answer is the step at which the ball shall lie."""

    def hear_figures(self, html: str) -> None:
        """The figures at the ball's place have changed."""

    def hear_end(self, words: str) -> None:
        """All is drawn."""

    def hear_costs(self, curve: SigmaCurve | None, sigma: float | str) -> None:
        """What the bandwidths cost; None where there is nothing to choose."""

    def hear_error(self, error: BaseException) -> None:
        """What was asked for cannot be drawn."""


class Request(NamedTuple):
    """All settings, and whether to train even if the run is known."""

    settings: Mapping[str, Any]
    anew: bool


class Stopped(Exception):
    """Raised inside work that the user has stopped."""


class Studio:
    """Draws on a picture what was asked for last.

    Args:
        picture: where it is drawn.
        listener: who is told.
        stages: what computes, and keeps.
        step: where the ball lies; None for the end of the run.

    Attributes:
        bundle: the latest runs.
        stays: where they lie still.
        frame: the surface that is on screen.
    """

    def __init__(self, picture: Picture, listener: Listener, stages: Stages, *, step: int | None) -> None:
        self.picture = picture
        self.listener = listener
        self.stages = stages
        self.step = step
        self.bundle: Bundle | None = None
        self.stays = Stays()
        self.frame: Frame | None = None
        self.worker = Worker(self._work, self._fail)
        self._drawing = threading.RLock()  # the ball is moved by other threads than the worker's
        self._stop = threading.Event()
        self._training = False

    def ask(self, settings: Mapping[str, Any], *, anew: bool = False) -> None:
        """Draw these settings, and forget what was asked for before."""
        with self._drawing:  # so that no older picture can still say that it is the one
            self._stop.clear()
            self.picture.state = "updating"
            self.worker.submit(Request(settings, anew))

    def stop(self) -> None:
        """End the work under way. A run that was being trained is kept, and drawn, as far as it has come."""
        self._stop.set()

    def roll(self, step: int | None) -> None:
        """Move the ball to a training step, on what is on screen."""
        self.step = step
        with self._drawing:
            if self.bundle and not self._training:
                self.picture.push(self._place_balls(self.bundle))
                self._write_figures(self.bundle)

    def _work(self, request: Request, check: Callable[[], None]) -> None:
        started = time.monotonic()
        # The browser draws at the same time. Where it holds one of two cores, both threads of a pool wait for that one:
        # measured, a landscape then takes 1.3 s on two threads and 0.5 s on one.
        n_threads = max(1, torch.get_num_threads() - 1)
        try:
            with threadpool_limits(n_threads, user_api="openmp"):  # of this thread only
                bundle = self._find_runs(request, check)
                landscape = self._draw_landscape(bundle, request.settings, check)
                words = f"{landscape.n_evaluations:,} losses, drawn in {time.monotonic() - started:.1f} s"
                self.listener.hear_end(" ".join([*(run.note for run in bundle.runs if run.note), words]))
                self._measure_costs(landscape, request.settings, check)
        except Stopped:
            self.picture.state = "stopped"
            self.listener.hear_end("Stopped; the surface is not that of these settings. Move a control or train anew.")
        finally:
            release_heap()

    def _fail(self, error: BaseException) -> None:
        self._training = False
        self.picture.state = "not these settings"
        self.listener.hear_error(error)

    def _find_runs(self, request: Request, check: Callable[[], None]) -> Bundle:
        bundle = None if request.anew else self.stages.find_runs(request.settings)
        if bundle is None:
            self._training = True
            bundle = self._train(request.settings, check)
        self._training = False
        if bundle is not self.bundle:
            self.bundle = bundle
            self.step = self.listener.hear_runs(bundle)
            self.listener.hear_costs(None, request.settings["sigma"])
            self.stays = find_stays(bundle)
            curves = curve_parts([(run.step, run.loss) for run in bundle.runs], self.stays.plateaus, None)
            with self._drawing:
                check()
                parts = join_parts(curves, factor_parts(bundle, None), self._place_balls(bundle))
                self.picture.push(parts, state="updating")
        return bundle

    def _train(self, settings: Mapping[str, Any], check: Callable[[], None]) -> Bundle:
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
            if step == 0 or (now - last > SECONDS_PER_FRAME and self.picture.wait_shown(0.0)) or now - last > 1:
                last = now
                self._draw_training(training, losses)

        return self.stages.train(training, settings, watch)

    def _draw_training(self, training: Training, losses: list[float]) -> None:
        step, n_steps, task = len(losses) - 1, training.steps, training.task
        with torch.no_grad():
            answer = training.model(task.x)
        x, target, network = (values.ravel().double().numpy() for values in (task.x, task.y, answer))
        curve = curve_parts([(np.arange(len(losses)), np.array(losses))], [], n_steps)
        nothing = {"x": np.empty(0), "y": np.empty(0)}
        parts = curve | fit_parts(x, target, [network], step) | {"curve_step": nothing, "curve_factor": nothing}
        self.picture.push(parts, state="training")
        self.listener.hear_progress(f"training, step {step:,} of {n_steps:,}, loss {losses[-1]:.3g}", step / n_steps)

    def _draw_landscape(self, bundle: Bundle, settings: Mapping[str, Any], check: Callable[[], None]) -> Landscape:
        def check_both() -> None:
            check()
            if self._stop.is_set():
                raise Stopped

        meter = Meter(check_both, lambda share: self.listener.hear_progress("blending the planes", share))
        around = self.stages.survey(bundle, settings, meter)
        known = self.stages.knows_surface(around, settings)
        if not known:
            sketch = self.stages.sketch(around, settings, meter)
            self._draw(around, sketch, None, settings, check_both)
        surface = self.stages.blend_surface(around, settings, meter)
        if not known and settings["sigma"] != "auto":  # the heights under the run then take longer than a redraw
            self._draw(around, surface, None, settings, check_both)
        landscape = self.stages.blend_path(around, settings, meter)
        beside = self._blend_beside(bundle, settings, meter) if settings["beside"] != ALONE else None
        self._draw(around, surface, landscape, settings, check_both, beside)
        return landscape

    def _blend_beside(self, bundle: Bundle, settings: Mapping[str, Any], meter: Meter) -> Landscape:
        chosen = {**settings, "plane": settings["beside"]}
        return self.stages.blend_path(self.stages.survey(bundle, chosen, meter), chosen, meter)

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
            curve = self.stages.measure_costs(landscape, Meter(check_time, lambda _: None))
        except Stopped:
            curve = None
        self.listener.hear_costs(curve, settings["sigma"])

    def _draw(
        self,
        around: Survey,
        surface: Surface,
        landscape: Landscape | None,
        settings: Mapping[str, Any],
        check: Callable[[], None],
        beside: Landscape | None = None,
    ) -> None:
        bundle, projection = around.bundle, around.projection
        height = landscape.path_height if landscape else np.full(len(bundle), np.nan)
        losses = [surface.loss, bundle.loss, *([beside.loss] if beside else [])]
        scale = fit_scale(losses, log=settings["loss_axis"] == "log")
        facts = find_facts(landscape) if landscape else None
        frame = Frame(bundle, projection, surface, height, scale, landscape, beside, facts)
        parts = compose_frame(frame, around, settings, self.stays, first=self.frame is None)
        self.picture.wait_shown(0.5)
        with self._drawing:
            check()
            self.frame = frame
            # Until all is known a second surface stays as it is.
            hidden = self.picture.hidden if landscape is None else [] if beside else ["beside"]
            state, words = "" if landscape else "updating", summarize(bundle, self.stays.plateaus)
            self.picture.push(join_parts(parts, self._place_balls(bundle)), hidden=hidden, state=state, summary=words)
            self._write_figures(bundle)

    def _find_rows(self, bundle: Bundle) -> list[int]:
        return bundle.find_rows(
            None if self.step is None else int(np.clip(self.step, bundle.first_step, bundle.last_step))
        )

    def _write_figures(self, bundle: Bundle) -> None:
        if self.frame and self.frame.bundle is bundle:
            rows, frame = self._find_rows(bundle), self.frame
            self.listener.hear_figures(write_figures(bundle, frame.projection, self.stays, rows, frame.facts))

    def _place_balls(self, bundle: Bundle) -> dict[str, dict[str, Any]]:
        """The balls' places on the curves and the networks there; on the surface where that is of the same runs."""
        rows, frame = self._find_rows(bundle), self.frame
        parts: dict[str, dict[str, Any]] = step_parts([(bundle.step[[row]], bundle.loss[[row]]) for row in rows])
        if frame and frame.bundle is bundle:
            parts |= ball_parts(bundle, frame.projection, frame.surface, frame.height, frame.scale, rows)
            if other := frame.beside:
                parts |= ball_parts(
                    bundle, other.projection, other, other.path_height, frame.scale, rows, pane="beside"
                )
        task = bundle.runs[0].task
        if task and all(run.task for run in bundle.runs):
            x, target = (values.ravel().double().cpu().numpy() for values in (task.x, task.y))
            places = zip(bundle.runs, rows, bundle.starts, strict=True)
            answers = [run.predict(row - start) for run, row, start in places]
            step = max(int(bundle.step[row]) for row in rows)
            stuck = self.stays.find(step) if len(rows) == 1 else None
            parts |= fit_parts(x, target, answers, step, stuck[1] if stuck else None)
        return parts
