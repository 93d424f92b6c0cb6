"""The interactive panel: change a setting or move a control, and the figures follow."""

import os
import threading
import time
import traceback
import weakref
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from IPython import get_ipython
from torch import nn
from traitlets import TraitError

from loss_viz._validation import check_choice
from loss_viz.diagnostics.fidelity import SigmaCurve
from loss_viz.diagnostics.headlines import describe_growth, describe_timeline, opening_step
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.figures.assets import read_static
from loss_viz.figures.live import build_templates
from loss_viz.figures.surface import surface_figure
from loss_viz.landscapes.compute import Metric
from loss_viz.landscapes.landscape import Landscape
from loss_viz.objective.private_copy import LossFn
from loss_viz.panel.controller import BUNDLED_STILLS, UNFINISHED, Controller
from loss_viz.panel.controls import OWN, list_controls
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.panel.sharing import FORMATS, FileRequest, check_extra
from loss_viz.panel.status import width_error_arrays
from loss_viz.panel.watch import Watch
from loss_viz.runs.growing import FolderGrowth, GrowingRun, RecorderGrowth
from loss_viz.runs.recorder import Recorder
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.settings import (
    LANDSCAPE,
    OPTIONS,
    PRESETS,
    TRAINING,
    VIEW,
    Option,
    as_tuples,
    check_setting,
    preset_for,
    to_script,
)
from loss_viz.tasks.optimizers import label_optimizer

N_FRAMES = 200  # of the animation


def _build_trait(option: Option) -> traitlets.TraitType:
    if option.default == "auto" and option.slider:
        return traitlets.Union([traitlets.Int(), traitlets.Unicode()], default_value=option.default)
    if option.name == "sigma":
        return traitlets.Union([traitlets.Float(), traitlets.Unicode()], default_value=option.default)
    if option.name == "part":
        return traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=None, allow_none=True)
    if option.name == "bounds":
        pair = traitlets.Tuple(traitlets.Float(), traitlets.Float())
        return traitlets.Tuple(pair, pair, default_value=None, allow_none=True)
    if option.default is None:
        return traitlets.Int(None, allow_none=True)
    return {int: traitlets.Int, float: traitlets.Float, str: traitlets.Unicode}[type(option.default)](option.default)


# Figures with a trait for every option.
_OptionTraits: Any = traitlets.MetaHasTraits(
    "_OptionTraits", (LiveFigures,), {name: _build_trait(option) for name, option in OPTIONS.items()}
)


RENDER = "export default asWidget((model, el) => { const panel = new Panel(model, el); return () => panel.close(); });"


class Explorer(_OptionTraits):
    """A panel that trains a network, or takes your runs, and draws the loss landscape.

    Every setting is a trait: assign it in code or move its control, and the figures follow. Work runs in a background
    thread, and the latest setting wins. Until the figures match the settings, a badge on them says so. The panel is one
    anywidget: it can be observed, linked and put into a box of ipywidgets, or into `mo.ui.anywidget` in marimo.

    Args:
        source: a formula in x, to train on; or a `Run` of your own; or several runs in a list, or in a dict by name,
            which are drawn on one plane; or a `Recorder`, whose training the panel follows.
        metrics: further heights of the surface by name, as for `landscape`; `height` chooses among them.
        preset: `"post"` or `"robust"`, as for `train`, for settings that are not given.
        settings: any of `width`, `depth`, `activation`, `optimizer`, `lr`, `steps`, `seed` (as for `train`), `k`,
            `sigma`, `resolution`, `axes`, `plane`, `bounds` (as for `landscape`), `step` and `min_support` (as for
            `surface_figure`), `part` (`steps` of `landscape`: a part of the run on a plane of its own), `loss_axis`
            (`"auto"`, `"linear"` or `"log"`), `height` (`"loss"` or a metric), and `beside`, the plane of a second
            surface, or `"none"`.

    Raises:
        TypeError: if `source` is something else, or a setting does not exist.
        ValueError: if the preset does not exist, or the runs do not share model and loss.
        traitlets.TraitError: if a setting has a value that is not allowed.

    Example:
        >>> explorer = Explorer("x^2", steps=60, resolution=9)
        >>> explorer.wait()
        True
        >>> explorer.k = 3
        >>> explorer.wait(), explorer.landscape.k
        (True, 3)
        >>> explorer
        Explorer(target='x^2', k=3, sigma='auto', resolution=9, axes='pca', plane='auto', step=60)
        >>> explorer.close()
    """

    _esm = "\n".join([*map(read_static, ("figure_widget.js", "panel.js", "anywidget.js")), RENDER])
    _css = read_static("figure_widget.css") + "\n" + read_static("panel.css")
    # What the front end shows around the figures. It reports input in messages, because a wrong value must not change
    # a setting.
    controls = traitlets.List(traitlets.Dict()).tag(sync=True)  # rows of `list_controls`
    values = traitlets.Dict().tag(sync=True)  # value of each setting, and "preset"
    errors = traitlets.Dict().tag(sync=True)  # why a value is not allowed, by setting
    notes = traitlets.Dict().tag(sync=True)  # what "auto" stands for, and the errors of fixed bandwidths
    work = traitlets.Dict().tag(sync=True)  # text, bad, details and progress of the work
    report = traitlets.Dict().tag(sync=True)  # tiles and warnings
    timeline = traitlets.Dict().tag(sync=True)  # first and last step, headlines, stops, frames, and trials

    balls = traitlets.Dict().tag(sync=True)  # where the balls are at each step, see `describe_balls`
    unfinished = traitlets.List(list(UNFINISHED)).tag(sync=True)  # states of figures of which no files are made
    still = traitlets.Dict().tag(sync=True)  # URLs of images of the bundled run, "light" and "dark"

    # The types of traits, which mypy cannot infer.
    step: int | None
    bounds: tuple[tuple[float, float], tuple[float, float]] | None
    _built = False
    _watch: Watch | None = None  # of a training that goes on
    _heights: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        source: str | Runs | Recorder | FolderGrowth = OPTIONS["target"].default,
        *,
        preset: str = "post",
        metrics: Mapping[str, Metric] | None = None,
        **settings: Any,
    ) -> None:
        growing: GrowingRun | None = None
        if isinstance(source, Recorder | FolderGrowth):
            growing = RecorderGrowth(source) if isinstance(source, Recorder) else source
            source = growing.start
        if not isinstance(source, str | Run | Sequence | Mapping):
            raise TypeError(
                f"`source` must be a formula in x, a Run or several, or a Recorder, got {type(source).__name__}. "
                "For a function use lv.Explorer(lv.train(function))."
            )
        metrics = dict(metrics or {})
        self._own_runs = None if isinstance(source, str) else as_run_set(source)
        self._heights = ("loss", *metrics)
        self._last_step: int | None = None  # of the runs on screen
        self._last_part: tuple[int, int] | None = None
        self._opening_step: int | None = None
        self._failed_option = ""  # whose control shows why the last request failed
        self._names = VIEW if self._own_runs else TRAINING + VIEW
        self._showing = threading.RLock()  # input arrives in the kernel's threads, results in the worker's
        # Before super().__init__, after which ipywidgets would keep an unfinished panel alive.
        self._assign({"target": source} | settings if isinstance(source, str) else settings, preset)
        self._controller = Controller(self, self, self._own_runs, step=self.step, metrics=metrics)
        self._watch = Watch(growing, self._controller, self) if growing else None
        # What the page is built from goes out with the message that creates the widget.
        self.controls = list_controls(self._names, self._heights)
        self.values = self._values()
        self._show_preset()
        if self._values() == {name: OPTIONS[name].default for name in self._names}:
            stills = {theme: b64encode(path.read_bytes()).decode() for theme, path in BUNDLED_STILLS.items()}
            self.still = {theme: f"data:image/webp;base64,{data}" for theme, data in stills.items()}
        super().__init__(hidden=["beside"], **build_templates(self._own_runs))
        self._built = True
        self.on_click(self._on_click)
        self.observe(self._follow_target, "target")
        self.observe(self._on_setting, self._names)
        replace_previous(self)
        self._request()
        if self._watch:
            self._watch.start()

    @classmethod
    def watch(
        cls,
        folder: str | os.PathLike[str],
        model: nn.Module,
        loss_fn: LossFn,
        *,
        device: str | torch.device | None = None,
        name: str = "",
        metrics: Mapping[str, Metric] | None = None,
        **settings: Any,
    ) -> "Explorer":
        """Follow a training in another process, which writes snapshots or checkpoints to a folder.

        The folder may be that of a `Recorder`, or one that `Run.from_checkpoints` opens, and need not exist yet. Files
        that are half-written are read at a later look. *Stop* ends it.

        Args:
            folder: the folder.
            model: model, built as it is in the training.
            loss_fn: loss of a model on fixed data.
            device: device of the evaluation; the model's by default.
            name: name in legends.
            metrics: as for `Explorer`.
            settings: as for `Explorer` with a run.

        Raises:
            TypeError, ValueError: as for `Explorer` and `Run.from_model`.

        Example:
            >>> import torch
            >>> from tempfile import TemporaryDirectory
            >>> model = torch.nn.Linear(1, 1)
            >>> with TemporaryDirectory() as folder:  # in practice, the training is another process
            ...     explorer = Explorer.watch(folder, model, lambda m: m(torch.ones(4, 1)).square().mean())
            ...     explorer.close()
        """
        growing = FolderGrowth(folder, model, loss_fn, device=device, name=name)
        return cls(growing, metrics=metrics, **settings)

    def _assign(self, settings: dict[str, Any], preset: str) -> None:
        if unknown := sorted(set(settings) - set(self._names)):
            raise TypeError(f"`Explorer` has no setting {', '.join(unknown)}. It takes {', '.join(self._names)}.")
        for name, value in settings.items():
            setattr(self, name, value)
        if self._own_runs is None:
            for name, value in preset_for(self.target, preset)._asdict().items():
                if name not in settings:
                    setattr(self, name, value)

    def __repr__(self) -> str:
        shown = [name for name in ("target", *LANDSCAPE, "step") if name in self._names]
        values = ", ".join(f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None)
        own = (self.runs or self._own_runs.runs) if self._own_runs else ()
        runs = "".join(f"{run!r}, " for run in own)
        return f"Explorer({runs}{values})"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values: `Explorer(**explorer.settings)` draws the same figures.

        With runs of your own it is `Explorer(runs, **explorer.settings)`. After a training that ended early, `steps`
        is the number of steps taken.
        """
        values = self._values()
        trained = None if self._own_runs else self._controller.run_cache.find(values)
        return values | ({"steps": max(1, trained.last_step)} if trained and trained.runs[0].note else {})

    @property
    def run(self) -> Run | None:
        """The run on screen, or the first of several; None before there is one."""
        return self.runs[0] if self.runs else None

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs on screen."""
        return self._controller.run_set.runs if self._controller.run_set else ()

    @property
    def landscape(self) -> Landscape | None:
        """The landscape on screen; None until it is complete."""
        return self._controller.view.landscape if self._controller.view else None

    @property
    def figure(self) -> go.Figure:
        """The surface on screen as a separate Plotly figure.

        Raises:
            ValueError: if there is no landscape yet.
        """
        view = self._controller.view
        if view is None or view.landscape is None:
            raise ValueError("There is no landscape to draw yet. Call explorer.wait() first.")
        shown = [view.landscape, *([view.second] if view.second else [])]
        return surface_figure(*shown, step=self.step, log=view.scale.log, min_support=self.min_support)

    @property
    def code(self) -> str:
        """Python code that draws the surface without the panel."""
        settings = self.settings
        shown: dict[str, Any] = {
            "landscape": {name: settings[name] for name in LANDSCAPE} | {"steps": settings["part"]}
        }
        if self._own_runs is None:
            shown["runs"] = [{"train": settings}]
        view = settings | {"log": self._controller.view.scale.log if self._controller.view else False}
        return to_script(shown, view, name="runs" if len(self.runs) > 1 else "run")

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the figures match the settings.

        While a training is followed, that is once it pauses or has ended, and its whole run is drawn.

        Returns:
            False if that takes more than `timeout` seconds, or the settings cannot be drawn.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._watch and not self._watch.wait(timeout):
            return False
        finished = self._controller.worker.wait(None if end is None else max(0.0, end - time.monotonic()))
        self.wait_drawn()
        return finished and not self.state

    def close(self) -> None:
        """Stop the work and remove the panel from the page."""
        if self._watch:
            self._watch.close()
        if self._built:
            self._controller.worker.close()
        if self.layout is not None:
            self.layout.close()
        super().close()

    @traitlets.validate(*OPTIONS)
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name == "height":
                check_choice(name, value, self._heights, advice="Pass others as metrics={'accuracy': f}.")
            return value if value is None else check_setting(name, value)
        except (TypeError, ValueError) as error:
            raise TraitError(str(error)) from None

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _show(self, trait: str, **parts: Any) -> None:
        """Change some entries of what the front end shows."""
        with self._showing:
            setattr(self, trait, getattr(self, trait) | parts)

    def _request(self, *, retrain: bool = False) -> None:
        if self._watch and not self._watch.has_run:
            return self._controller.remember(self._values())
        self.work = {"text": "updating", "progress": 0.0}
        self._controller.request(self._values(), retrain=retrain)

    def _on_setting(self, change: Any) -> None:
        """Draw after a trait has changed, in code or by its control."""
        name, value = change["name"], change["new"]
        if name == "step":
            self._controller.move_ball(value)
        self._show("values", **{name: value})
        self._show("errors", **{name: ""})
        if name in TRAINING:
            self._show_preset()
        if name in (*TRAINING, "axes", "part") and self.bounds is not None:
            self.bounds = None  # those were of other axes; this draws
        elif name != "step":
            self._request()

    def _on_message(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        super()._on_message(widget, message, buffers)
        if message.get("kind") == "set":
            self._on_control(message["name"], message["value"])
        elif message.get("kind") == "hold":
            self._controller.is_held = bool(message["held"])
        elif message.get("kind") == "hover":
            self._controller.show_network((message["x"], message["y"]))
        elif message.get("kind") == "press":
            self._on_press(message["button"])
        elif message.get("kind") == "share" and message["file"] in FORMATS:
            self._share(message["file"], str(message["asker"]))

    def _on_control(self, name: str, value: Any) -> None:
        """Assign the value of a control, or show at the control why it is not allowed."""
        if name == "preset":
            chosen = preset_for(self.target, value)._asdict() if isinstance(value, str) and value in PRESETS else {}
            for option, default in chosen.items():
                setattr(self, option, default)
            self._show_preset()
            return
        if name not in self._names:
            return
        value = as_tuples(value)  # JSON has no tuples
        try:
            check_setting(name, value)  # names the constraint, which the type of the trait does not
            setattr(self, name, value)
            self._show("errors", **{name: ""})
        except (TypeError, ValueError, TraitError) as error:
            self._show("errors", **{name: str(error)})

    def _on_press(self, button: str) -> None:
        if button == "train":
            self._request(retrain=True)
        elif button == "stop" and self._watch and self._watch.is_running:
            self._watch.stop()
        elif button == "stop":
            self._controller.stop()
        elif button == "code":
            self.send({"kind": "copy", "text": self.code})

    def _on_click(self, point: dict[str, Any]) -> None:
        """Select the step at a point of the run, or show the network at another point of the surface."""
        step = self._controller.view.find_step(point) if self._controller.view else None
        if step is not None:
            self.step = step
        elif (point["pane"], point["trace"]) == ("surface", "surface"):
            self._controller.show_network((point["x"], point["y"]))

    def _follow_target(self, change: Any) -> None:
        """Replace `steps` and `seed` of the preset for the previous target by those for the new one."""
        for preset in PRESETS:
            old, new = preset_for(change["old"], preset), preset_for(change["new"], preset)
            for name in ("steps", "seed"):
                if (self.width, self.lr) == (old.width, old.lr) and getattr(self, name) == getattr(old, name):
                    setattr(self, name, getattr(new, name))

    def _show_preset(self) -> None:
        if self._own_runs is None:
            common = {name: OPTIONS[name].default for name in ("depth", "activation", "optimizer")}
            presets = {name: common | preset_for(self.target, name)._asdict() for name in PRESETS}
            matches = [
                name
                for name, values in presets.items()
                if all(getattr(self, option) == value for option, value in values.items())
            ]
            self._show("values", preset=matches[0] if matches else OWN)

    def on_progress(self, text: str, fraction: float) -> None:
        """Show the progress of the work."""
        self.work = {"text": text, "progress": fraction}

    def on_runs(self, run_set: RunSet, plateaus: Sequence[Plateau]) -> int:
        """Return the step of the ball on new runs: the same step, or the end if it was at the end.

        Until it is moved, it is the middle of a single run's longest plateau.
        """
        first, last = run_set.first_step, run_set.last_step
        more = {"frames": _choose_frames(run_set), "trials": self._suggest_trials()}
        self.timeline = describe_timeline(run_set, plateaus) | more
        opening = opening_step(run_set.runs[0], plateaus) if len(run_set.runs) == 1 else last
        step = opening if self.step is None else int(np.clip(self.step, first, last))
        if self.step is not None and self.part == self._last_part:
            step = {self._opening_step: opening, self._last_step: last}.get(self.step, step)
        self._last_step, self._last_part, self._opening_step, self.step = last, self.part, opening, step
        return step

    def _suggest_trials(self) -> list[dict[str, Any]]:
        """Return what to train next, as `text` and `settings`: the front end offers it at the end of a run."""
        if self._own_runs:
            return []
        other = "adam" if self.optimizer == "sgd" else "sgd"
        lr = float(f"{self.lr / 3:.2g}")
        return [
            {"text": f"And with {label_optimizer(other)}?", "settings": {"optimizer": other}},
            {"text": f"And with lr = {lr:g}?", "settings": {"lr": lr}},
        ]

    def on_growth(self, run_set: RunSet) -> int:
        """Return the step of the ball on the runs so far: the newest, unless the ball was moved to another one."""
        last = run_set.last_step
        self.timeline = describe_growth(run_set.runs[0]) | {"frames": _choose_frames(run_set)}
        is_newest = self.step is None or self.step == self._last_step
        self._last_step = last
        if is_newest:
            self.step = last
        return self.step if self.step is not None else last

    def on_watch(self, text: str, problem: str) -> None:
        """Show how far the training that is followed has come, and what cannot be read."""
        self.work = {"text": f"{text} {problem}".strip(), "progress": 0.0} | ({"bad": True} if problem else {})

    def on_settled(self) -> None:
        """Draw the whole run of a training that pauses or has ended."""
        self._request()

    def on_report(self, report: dict[str, Any]) -> None:
        """Show the numbers at the ball."""
        self.report = report

    def on_network(self, text: str) -> None:
        """Show the numbers of the network at a point of the surface."""
        self._show("report", network=text)

    def on_done(self, text: str) -> None:
        """Show that the figures are complete, or that the work was stopped."""
        self.work = {"text": text}
        if self._failed_option:
            self._show("errors", **{self._failed_option: ""})
            self._failed_option = ""
        if self.landscape is not None:
            widths, plane = self.landscape.sigma_absolute, self.landscape.plane
            narrow, wide = f"{widths.min():.2g}", f"{widths.max():.2g}"
            taken = str(self.landscape.k) if plane == "local" else plane
            sigma = narrow if narrow == wide else f"{narrow}–{wide}"
            sigma = f"{sigma} in units of weights" if len(widths) > 1 else ""
            self._show("notes", k=taken, sigma=sigma)

    def on_width_errors(self, curve: SigmaCurve | None, sigma: float | str) -> None:
        """Show the errors of fixed bandwidths at the σ slider."""
        self._show("notes", width_errors=width_error_arrays(curve, sigma) if curve else None)

    def on_error(self, error: BaseException) -> None:
        """Show an error at the control of the argument it names, otherwise in the status line with its traceback."""
        argument = getattr(error, "argument", "")
        name = "loss_axis" if argument == "log" else argument
        if isinstance(error, ValueError) and name in self._names:
            self._failed_option = name
            self._show("errors", **{name: str(error)})
            text, details = f"The surface is still that of the previous settings; see the message about {name}.", ""
        else:
            text, details = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
        self.work = {"text": text, "bad": True, "details": details}

    def _share(self, kind: str, asker: str) -> None:
        """Have a file made for one view of the panel, or say beside its button why that is not possible."""
        problem = ""
        try:
            check_extra(kind)
        except ImportError as error:
            problem = str(error)
        if not problem and not self._controller.request_file(kind, min_support=self.min_support, asker=asker):
            problem = "The landscape is not complete yet. Press again when it is."
        self._show("errors", **{kind: problem})

    def on_file(self, file: FileRequest, data: bytes, seconds: float) -> None:
        """Send a file to the view that has asked for it."""
        message = {"kind": "file", "name": file.name, "type": file.mime_type, "asker": file.asker}
        self.send(message, buffers=[data])
        self.work = {"text": f"{file.name}: {len(data) / 1e6:.1f} MB, made in {seconds:.1f} s"}

    def on_no_file(self, file: FileRequest, error: Exception | None) -> None:
        """Show that the user has stopped the making of a file, or the error at its button and in the status line."""
        if error is None:
            self.work = {"text": f"Stopped; the {file.kind} was not made."}
            return
        text = f"The {file.kind} was not made. {type(error).__name__}: {error}"
        self._show("errors", **{file.kind: text})
        self.work = {"text": text, "bad": True, "details": "".join(traceback.format_exception(error))}


def _choose_frames(run_set: RunSet) -> list[int]:
    """Return the steps at which the ball stops while it is played."""
    return np.unique(np.linspace(run_set.first_step, run_set.last_step, N_FRAMES).astype(int)).tolist()


_PANELS: dict[str, tuple[str, list["weakref.ref[Any]"]]] = {}  # by notebook cell: its last execution, and its panels


def replace_previous(panel: Any) -> None:
    """Register `panel` with the running notebook cell, and close the panels of the cell's previous execution.

    ipywidgets keeps a widget alive until it is closed. Does nothing outside a notebook, and in front ends that do not
    send cell ids.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return
    parent = kernel.get_parent("shell")
    cell = parent.get("metadata", {}).get("cellId")
    if not cell:
        return
    execution = parent["header"]["msg_id"]
    last, panels = _PANELS.get(cell, ("", []))
    if last != execution:
        for previous in (reference() for reference in panels):
            if previous is not None:
                previous.close()
        panels = []
    _PANELS[cell] = execution, [*panels, weakref.ref(panel)]
