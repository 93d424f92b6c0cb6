"""The panel: set a value or move a control, and the picture follows."""

import traceback
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import traitlets
from IPython import get_ipython
from traitlets import TraitError

from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.figures.live import build_templates
from loss_viz.figures.surface import surface_figure
from loss_viz.landscapes.landscape import Landscape
from loss_viz.panel.controller import Controller
from loss_viz.panel.controls import OWN, ControlPanel
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.panel.status import draw_width_errors
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.settings import LANDSCAPE, OPTIONS, PRESETS, TRAINING, VIEW, check_setting, preset_for, to_script

NAMES = TRAINING + VIEW
TRAITS = {int: traitlets.Int, float: traitlets.Float, str: traitlets.Unicode}
SPECIAL_TRAITS = {
    "sigma": traitlets.Union([traitlets.Float(), traitlets.Unicode()], default_value=OPTIONS["sigma"].default),
    "step": traitlets.Int(None, allow_none=True),
}

# A panel whose traits are the options.
_Settings: Any = type(widgets.VBox)(
    "_Settings",
    (widgets.VBox,),
    {
        name: SPECIAL_TRAITS[name] if name in SPECIAL_TRAITS else TRAITS[type(option.default)](option.default)
        for name, option in OPTIONS.items()
    },
)


class Explorer(_Settings):
    """A panel that trains, draws the landscape and follows every control at once.

    Each setting is a trait: set it in code, or move its control. Work runs beside the kernel's main thread, the
    latest setting wins, and what is on screen belongs to the settings or says that it is being updated.

    Args:
        target: a formula in x, trained on here; or a `Run` of your own, whose landscape is explored; or several runs
            in a list, or by name in a dict, that race on one plane.
        preset: `"post"` or `"robust"`, for what the settings leave out (as for `train`).
        settings: any of `width`, `depth`, `activation`, `optimizer`, `lr`, `steps`, `seed` (as for `train`), `k`,
            `sigma`, `resolution`, `plane` (as for `landscape`), `step`, `loss_axis`, `"linear"` or `"log"`,
            `min_support` (as for `surface_figure`) and `beside`, a plane for a second surface, or `"none"`.

    Raises:
        TypeError: another kind of target, or a setting that does not exist.
        ValueError: an unknown preset, or runs that do not share model and loss.
        traitlets.TraitError: a setting that may not take its value.

    Example:
        >>> explorer = Explorer("x^2", steps=60, resolution=9)
        >>> explorer.wait()
        True
        >>> explorer.k = 3
        >>> explorer.wait(), explorer.landscape.k
        (True, 3)
        >>> explorer
        Explorer(target='x^2', k=3, sigma='auto', resolution=9, plane='local', step=60)
        >>> explorer.close()
    """

    _opened = False

    def __init__(
        self, target: str | Runs = OPTIONS["target"].default, *, preset: str = "post", **settings: Any
    ) -> None:
        super().__init__()
        try:
            self._open(target, preset, settings)
        except BaseException:
            self.close()  # a panel that cannot be shall not stay behind as half of one
            raise

    def _open(self, target: str | Runs, preset: str, settings: dict[str, Any]) -> None:
        if not isinstance(target, str | Run | Sequence | Mapping):
            raise TypeError(
                f"`target` must be a formula in x, a Run or several, got {type(target).__name__}. "
                "For a function pass lv.Explorer(lv.train(function))."
            )
        own = None if isinstance(target, str) else as_run_set(target)
        self._source = own
        self._last: int | None = None  # step of the run on screen
        self._blamed = ""  # the control beside which the last error of the work stands
        self._names = VIEW if own else NAMES
        if isinstance(target, str):
            settings = {"target": target, **settings}
        if unknown := sorted(set(settings) - set(self._names)):
            raise TypeError(f"`Explorer` has no setting {', '.join(unknown)}. It takes {', '.join(self._names)}.")
        for name, value in settings.items():
            setattr(self, name, value)
        if own is None:
            for name, value in preset_for(self.target, preset)._asdict().items():
                if name not in settings:
                    setattr(self, name, value)
        self.figures = LiveFigures(hidden=["beside"], **build_templates(own))
        self.control_panel = ControlPanel(self.figures, trains=own is None, on_change=self._take, on_press=self._press)
        self._controller = Controller(self.figures, self, own, step=self.step)
        for name in self._names:
            self.control_panel.write(name, getattr(self, name))
        self._name_preset()
        self.children = (self.control_panel.box,)
        self.add_class("lossviz")
        self._opened = True
        self.figures.on_click(self._click)
        self.observe(self._follow_target, "target")
        self.observe(self._change, self._names)
        replace_previous(self)
        self._ask()

    def __repr__(self) -> str:
        shown = [name for name in ("target", *VIEW[:5]) if name in self._names]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        runs = "".join(f"{run!r}, " for run in self._source.runs) if self._source else ""
        return f"Explorer({runs}{values})"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values; `Explorer(**explorer.settings)` draws the same picture.

        For a run of your own it is `Explorer(run, **explorer.settings)`. After a training that ended early `steps` is
        the number of steps that it took.
        """
        values = self._read()
        trained = None if self._source else self._controller.trained.find(values)
        return values | ({"steps": max(1, trained.last_step)} if trained and trained.runs[0].note else {})

    @property
    def run(self) -> Run | None:
        """The run on screen, the first of several; None before there is one."""
        return self.runs[0] if self.runs else None

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs on screen."""
        return self._controller.run_set.runs if self._controller.run_set else ()

    @property
    def landscape(self) -> Landscape | None:
        """The landscape on screen; None until one is complete."""
        return self._controller.frame.landscape if self._controller.frame else None

    @property
    def figure(self) -> go.Figure:
        """The surface on screen as a Plotly figure of its own.

        Raises:
            ValueError: there is none yet.
        """
        if self.landscape is None:
            raise ValueError("There is no landscape to draw yet. Call explorer.wait() first.")
        frame = self._controller.frame
        shown = [self.landscape, *([frame.second] if frame and frame.second else [])]
        return surface_figure(*shown, step=self.step, log=self.loss_axis == "log", min_support=self.min_support)

    @property
    def code(self) -> str:
        """The Python lines that draw this picture without the panel."""
        settings = self.settings
        shown: dict[str, Any] = {"landscape": {name: settings[name] for name in LANDSCAPE}}
        if self._source is None:
            shown["runs"] = [{"train": settings}]
        view = settings | {"log": self.loss_axis == "log"}
        return to_script(shown, view, name="runs" if len(self.runs) > 1 else "run")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until what was asked for is drawn; False if it takes longer than `timeout` seconds, or cannot be."""
        finished = self._controller.worker.wait(timeout)
        self.figures.wait_drawn()
        return finished and not self.figures.state

    def close(self) -> None:
        """End the work and remove the panel from the page."""
        if self._opened:
            self._controller.worker.close()
            self.control_panel.close()
        if self.layout is not None:
            self.layout.close()
        super().close()

    @traitlets.validate(*NAMES)
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        try:
            return value if value is None else check_setting(name, value)
        except (TypeError, ValueError) as error:
            raise TraitError(str(error)) from None

    def _read(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _ask(self, *, retrain: bool = False) -> None:
        self.control_panel.show_status("updating")
        self.control_panel.show_work(0.0)
        self._controller.request(self._read(), retrain=retrain)

    def _change(self, change: Any) -> None:
        """A setting has changed, in code or by its control."""
        if change["name"] == "step":
            self._controller.move_ball(change["new"])
            self.control_panel.write("step", change["new"])
            return
        self.control_panel.write(change["name"], change["new"])
        if change["name"] in TRAINING:
            self._name_preset()
        self._ask()

    def _take(self, name: str, value: Any) -> None:
        """A control was moved: its setting takes the value, or says beside the control why it may not."""
        if name == "preset":
            for setting, preset in preset_for(self.target, value)._asdict().items() if value in PRESETS else ():
                setattr(self, setting, preset)
            self._name_preset()
            return
        try:
            setattr(self, name, value)
            self.control_panel.show_error(name, "")
        except TraitError as error:
            self.control_panel.show_error(name, str(error))

    def _press(self, button: str) -> None:
        if button == "train":
            self._ask(retrain=True)
        elif button == "stop":
            self._controller.stop()
        else:
            self.control_panel.show_code(self.code)

    def _follow_target(self, change: Any) -> None:
        """Steps and seed that were those of the preset for the last target become those for the new one."""
        for preset in PRESETS:
            old, new = preset_for(change["old"], preset), preset_for(change["new"], preset)
            for name in ("steps", "seed"):
                if (self.width, self.lr) == (old.width, old.lr) and getattr(self, name) == getattr(old, name):
                    setattr(self, name, getattr(new, name))

    def _name_preset(self) -> None:
        if self._source is None:
            now = {name: getattr(self, name) for name in ("width", "lr", "seed", "steps")}
            matches = [name for name in PRESETS if preset_for(self.target, name)._asdict() == now]
            self.control_panel.name_preset(matches[0] if matches and self._is_plain() else OWN)

    def _is_plain(self) -> bool:
        return all(getattr(self, name) == OPTIONS[name].default for name in ("depth", "activation", "optimizer"))

    def _click(self, point: dict[str, Any]) -> None:
        step = self._controller.frame.find_step(point) if self._controller.frame else None
        if step is not None:
            self.step = step

    def on_progress(self, words: str, share: float) -> None:
        """Of the work: how far it is."""
        self.control_panel.show_status(words)
        self.control_panel.show_work(share)

    def on_runs(self, run_set: RunSet) -> int:
        """Of other runs: the ball stays at its step, or at the end if it was there."""
        first, last = run_set.first_step, run_set.last_step
        self.control_panel.set_steps(first, last)
        follows = self.step is None or self.step == self._last
        self._last = last
        step = last if self.step is None or follows else int(np.clip(self.step, first, last))
        if step != self.step:
            self.step = step
        return step

    def on_readout(self, html: str) -> None:
        """Of the figures at the ball's place."""
        self.control_panel.show_readout(html)

    def on_done(self, words: str) -> None:
        """Of a picture that is complete, or work that was stopped."""
        self.control_panel.show_work(None)
        self.control_panel.show_status(words)
        if self._blamed:
            self.control_panel.show_error(self._blamed, "")
            self._blamed = ""
        if self.landscape is not None:
            self.control_panel.show_sigma(self.landscape.sigma_absolute)

    def on_width_errors(self, curve: SigmaCurve | None, sigma: float | str) -> None:
        """Of what the places of the σ slider cost."""
        ends = self.control_panel.controls["sigma"]
        self.control_panel.show_width_errors(
            draw_width_errors(curve, sigma, ends=(ends.min, ends.max)) if curve else ""
        )

    def on_error(self, error: BaseException) -> None:
        """Of what cannot be drawn: said beside the control whose name the error gives, and the last picture stays."""
        self.control_panel.show_work(None)
        argument = getattr(error, "argument", "")
        name = "loss_axis" if argument == "log" else argument
        if isinstance(error, ValueError) and name in self._names:
            self._blamed = name
            self.control_panel.show_error(name, str(error))
            self.control_panel.show_status(
                f"The picture is still that of the settings before; {name} says why.", bad=True
            )
        else:
            details = "".join(traceback.format_exception(error))
            self.control_panel.show_status(f"{type(error).__name__}: {error}", bad=True, details=details)


_OPEN: dict[str, tuple[str, list["weakref.ref[Any]"]]] = {}


def replace_previous(panel: Any) -> None:
    """Close what the running cell opened when it ran before, and note `panel` in its place.

    ipywidgets keeps every widget alive until it is closed. Front ends that do not name their cells, and Python outside
    a notebook, are left as they are.
    """
    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return
    parent = kernel.get_parent("shell")
    cell = parent.get("metadata", {}).get("cellId")
    if not cell:
        return
    execution = parent["header"]["msg_id"]
    last, panels = _OPEN.get(cell, ("", []))
    if last != execution:
        for previous in (reference() for reference in panels):
            if previous is not None:
                previous.close()
        panels = []
    _OPEN[cell] = execution, [*panels, weakref.ref(panel)]
