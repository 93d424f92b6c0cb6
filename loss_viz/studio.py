"""The panel's work: from settings to what is drawn, in a thread of its own, and the ball's way along the run."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from .drawing import find_row
from .jobs import Meter, Worker
from .landscapes import Landscape, Surface
from .panes import (
    ball_parts,
    camera_parts,
    curve_parts,
    fit_parts,
    path_parts,
    surface_parts,
    title_parts,
    write_figures,
)
from .picture import Picture
from .plateaus import Plateau, find_plateaus
from .projection import Projection
from .scales import Scale, fit_scale
from .stages import Stages, prepare
from .surveys import Survey
from .training import Training
from .trajectory import Run

SECONDS_PER_FRAME = 0.1  # of a curve that grows


@runtime_checkable
class Listener(Protocol):
    """Who hears of the work; calls come from the working thread, and from whoever moves the ball."""

    def hear_progress(self, words: str, share: float) -> None:
        """What is going on, and how much of it is done, from 0 to 1."""

    def hear_run(self, run: Run) -> int:
        """There is another run; the answer is the step at which the ball shall lie."""

    def hear_figures(self, html: str) -> None:
        """The figures at the ball's place have changed."""

    def hear_end(self, words: str) -> None:
        """All is drawn."""

    def hear_error(self, error: Exception) -> None:
        """What was asked for cannot be drawn."""


class Request(NamedTuple):
    """All settings, and whether to train even if the run is known."""

    settings: Mapping[str, Any]
    anew: bool


class Stopped(Exception):
    """Raised inside work that the user has stopped."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The surface that is on screen. Heights under the run that are not known yet are nan."""

    run: Run
    projection: Projection
    surface: Surface
    height: Float[np.ndarray, " n_steps"]
    scale: Scale
    landscape: Landscape | None = None


class Studio:
    """Draws on a picture what was asked for last.

    Args:
        picture: where it is drawn.
        listener: who is told.
        stages: what computes, and keeps.
        step: where the ball lies; None for the end of the run.

    Attributes:
        run: the latest run.
        plateaus: where it lies still.
        frame: the surface that is on screen.
    """

    def __init__(self, picture: Picture, listener: Listener, stages: Stages, *, step: int | None) -> None:
        self.picture = picture
        self.listener = listener
        self.stages = stages
        self.step = step
        self.run: Run | None = None
        self.plateaus: list[Plateau] = []
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
            if self.run and not self._training:
                self.picture.push(self._place_ball(self.run))
                self._write_figures(self.run)

    def _work(self, request: Request, check: Callable[[], None]) -> None:
        started = time.monotonic()
        # The browser draws at the same time. Where it holds one of two cores, both threads of a pool wait for that one:
        # measured, a landscape then takes 1.3 s on two threads and 0.5 s on one.
        n_threads = max(1, torch.get_num_threads() - 1)
        try:
            with threadpool_limits(n_threads, user_api="openmp"):  # of this thread only
                run = self._find_run(request, check)
                around = self.stages.survey(run, request.settings)
                landscape = self._draw_landscape(around, request.settings, check)
        except Stopped:
            self.picture.state = "stopped"
            self.listener.hear_end("Stopped; the surface is not that of these settings. Move a control or train anew.")
            return
        words = f"{landscape.n_evaluations:,} losses, drawn in {time.monotonic() - started:.1f} s"
        self.listener.hear_end(f"{run.note} {words}" if run.note else words)

    def _fail(self, error: Exception) -> None:
        self._training = False
        self.picture.state = "not these settings"
        self.listener.hear_error(error)

    def _find_run(self, request: Request, check: Callable[[], None]) -> Run:
        run = None if request.anew else self.stages.find_run(request.settings)
        if run is None:
            self._training = True
            run = self._train(request.settings, check)
        self._training = False
        if run is not self.run:
            self.run = run
            self.step = self.listener.hear_run(run)
            self.plateaus = find_plateaus(run)
            curve = curve_parts(run.step, run.loss, self.plateaus, None)
            with self._drawing:
                check()
                self.picture.push(curve | self._place_ball(run), state="updating")
        return run

    def _train(self, settings: Mapping[str, Any], check: Callable[[], None]) -> Run:
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
        nothing = {"curve_step": {"x": np.empty(0), "y": np.empty(0)}}
        parts = (
            curve_parts(np.arange(len(losses)), np.array(losses), [], n_steps)
            | fit_parts(x, target, network, step)
            | nothing
        )
        self.picture.push(parts, state="training")
        self.listener.hear_progress(f"training, step {step:,} of {n_steps:,}, loss {losses[-1]:.3g}", step / n_steps)

    def _draw_landscape(self, around: Survey, settings: Mapping[str, Any], check: Callable[[], None]) -> Landscape:
        def check_both() -> None:
            check()
            if self._stop.is_set():
                raise Stopped

        meter = Meter(check_both, lambda share: self.listener.hear_progress("blending the planes", share))
        known = self.stages.knows_surface(around, settings)
        if not known:
            sketch = self.stages.sketch(around.run, settings, meter)
            self._draw(around, sketch, None, settings, check_both)
        surface = self.stages.blend_surface(around, settings, meter)
        if not known and settings["sigma"] != "auto":  # the heights under the run then take longer than a redraw
            self._draw(around, surface, None, settings, check_both)
        landscape = self.stages.blend_path(around, settings, meter)
        self._draw(around, surface, landscape, settings, check_both)
        return landscape

    def _draw(
        self,
        around: Survey,
        surface: Surface,
        landscape: Landscape | None,
        settings: Mapping[str, Any],
        check: Callable[[], None],
    ) -> None:
        sigma, log = settings["sigma"], settings["loss_axis"] == "log"
        run, projection = around.run, around.projection
        height = landscape.path_height if landscape else np.full(len(run), np.nan)
        scale = fit_scale([surface.loss, run.loss], log=log)
        frame = Frame(run, projection, surface, height, scale, landscape)
        parts = surface_parts(surface, projection, scale) | path_parts(run, projection, height, scale)
        parts["surface_layout"] |= title_parts(around, sigma, landscape)["surface_layout"]
        if self.frame is None:
            parts["surface_layout"] |= camera_parts(surface, scale)["surface_layout"]
        self.picture.wait_shown(0.5)
        with self._drawing:
            check()
            self.frame = frame
            state = "" if landscape else "updating"
            self.picture.push(parts | self._place_ball(run), state=state, summary=_summarize(run, self.plateaus))
            self._write_figures(run)

    def _find_row(self, run: Run) -> int:
        return find_row(run, None if self.step is None else int(np.clip(self.step, run.step[0], run.step[-1])))

    def _write_figures(self, run: Run) -> None:
        if self.frame and self.frame.run is run:
            row, projection = self._find_row(run), self.frame.projection
            self.listener.hear_figures(write_figures(run, projection, self.plateaus, row, self.frame.landscape))

    def _place_ball(self, run: Run) -> dict[str, dict[str, Any]]:
        """The ball's place on the curve and the network there; on the surface where that is of the same run."""
        row, frame = self._find_row(run), self.frame
        parts: dict[str, dict[str, Any]] = {"curve_step": {"x": run.step[[row]], "y": run.loss[[row]]}}
        if frame and frame.run is run:
            parts |= ball_parts(run, frame.projection, frame.surface, frame.height, frame.scale, row)
        if run.task:
            x, target = (values.ravel().double().cpu().numpy() for values in (run.task.x, run.task.y))
            parts |= fit_parts(x, target, run.predict(row), int(run.step[row]))
        return parts


def _summarize(run: Run, plateaus: list[Plateau]) -> str:
    sticky = "".join(
        f" It lies on a plateau at loss {plateau.level:.3g} from step {plateau.start} to {plateau.end}."
        for plateau in plateaus
    )
    return f"Loss landscape of a run of {len(run)} steps, from loss {run.loss[0]:.3g} to {run.loss[-1]:.3g}.{sticky}"
