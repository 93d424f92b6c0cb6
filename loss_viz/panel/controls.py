"""The panel's widgets and their layout."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from jaxtyping import Float

from loss_viz.landscapes.kernels import POST_SIGMA
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.runs.training import PRESETS
from loss_viz.settings import CHOICES, TRAINING, VIEW

FORMULAS = ("x", "x^2", "x^3", "sin(3x)")

OWN = "own"

SIGMA_DECADES = (-2.5, 0.0)

LABEL = {"description_width": "52px"}

SHORT = {"description_width": "40px"}

HINTS = {
    "choice": "The function to be learned: one of the post's four, or your own formula below.",
    "target": "Any formula in x, such as sin(5x) + x/2 or exp(-x^2); Enter trains on it.",
    "preset": "Fills in the network and optimizer: post, of the blog post, or robust, which sticks on every seed.",
    "width": "Units in each hidden layer.",
    "depth": "Number of hidden layers.",
    "activation": "What each hidden unit does with its input.",
    "optimizer": "The rule that updates the weights; sgd has momentum 0.9.",
    "lr": "Learning rate: the size of an update.",
    "steps": "Number of updates to the weights.",
    "seed": "Start of the random numbers from which the first weights are drawn.",
    "train": "Train anew with these settings and watch the loss fall.",
    "stop": "End the work under way; a run is kept up to the step that it has reached.",
    "plane": "Where the loss is taken: on planes along the run (local, parallel), or on a single one: the PC plane "
    "(global), or through the last weights (final, random, hessian, saddle).",
    "k": "Stride, in steps, of the velocity and acceleration that span the local planes.",
    "sigma": "Width of the kernels that blend the planes, as a share of the path's diagonal; to move it leaves auto.",
    "auto": "Kernels as narrow as the anchors allow on the path, wider away from it.",
    "post": "The width that the blog post used, 0.06 of the diagonal, everywhere.",
    "resolution": "Points of the surface along each axis.",
    "loss_axis": "Draw the height of the surface in losses or in powers of ten; the curve keeps powers of ten.",
    "min_support": "Leave the surface open where the run is farther away: 0 shows all, 1 only what lies on the path.",
    "beside": "A second surface of the same run on other planes, on the same scale and under the same camera.",
    "step": "The training step at which the ball lies; a click on the curve or the trajectory moves it too.",
    "play": "Let the ball roll along the run.",
    "code": "Copy the Python lines that draw this picture without the panel.",
}


def build_controls() -> dict[str, Any]:
    """All controls by name, with their hints; most have the name of a setting."""
    number = {"layout": {"width": "auto"}, "style": SHORT}
    slider = {"style": SHORT, "continuous_update": True}
    formulas = [(formula, formula) for formula in FORMULAS]
    built = {
        "choice": widgets.Dropdown(options=[*formulas, ("own formula", OWN)], description="target", style=LABEL),
        "target": widgets.Text(description="f(x)", continuous_update=False, style=LABEL),
        "preset": widgets.Dropdown(options=[*PRESETS, OWN], description="preset", style=LABEL),
        "width": widgets.IntText(description="width", **number),
        "depth": widgets.IntText(description="depth", **number),
        "activation": widgets.Dropdown(options=CHOICES["activation"], description="units", **number),
        "optimizer": widgets.Dropdown(options=CHOICES["optimizer"], description="opt.", **number),
        "lr": widgets.FloatText(description="lr", **number),
        "steps": widgets.IntText(description="steps", **number),
        "seed": widgets.IntText(description="seed", **number),
        "train": widgets.Button(description="Train", button_style="primary", icon="refresh"),
        "stop": widgets.Button(description="Stop", icon="stop", disabled=True),
        "plane": widgets.Dropdown(options=CHOICES["plane"], description="plane", style=SHORT),
        "k": widgets.IntSlider(min=1, max=50, description="k", **slider),
        "sigma": widgets.FloatLogSlider(
            value=POST_SIGMA,
            min=SIGMA_DECADES[0],
            max=SIGMA_DECADES[1],
            step=0.02,
            readout_format=".3g",
            description="σ",
            **slider,
        ),
        "auto": widgets.ToggleButton(description="auto σ"),
        "post": widgets.Button(description=f"post's {POST_SIGMA}"),
        "resolution": widgets.IntSlider(min=11, max=121, description="grid", **slider),
        "loss_axis": widgets.Dropdown(options=CHOICES["loss_axis"], description="loss", style=SHORT),
        "min_support": widgets.FloatSlider(
            min=0.0, max=1.0, step=0.02, readout_format=".2f", description="support", **(slider | {"style": LABEL})
        ),
        "beside": widgets.Dropdown(options=CHOICES["beside"], description="beside", style=LABEL),
        "code": widgets.Button(description="Copy code", icon="copy"),
        "play": widgets.Play(interval=150),
        "step": widgets.IntSlider(min=0, max=1, description="step", **slider),
    }
    for name, control in built.items():
        # ipywidgets 7, as Colab has it, calls the tooltip of a described control by another name.
        modern = control.has_trait("tooltip")
        setattr(control, "tooltip" if modern else "description_tooltip", HINTS[name])
    return built


FIELDS = ("width", "depth", "activation", "optimizer", "lr", "steps", "seed")

PLAIN = (
    "target",
    *FIELDS,
    "plane",
    "k",
    "resolution",
    "loss_axis",
    "min_support",
    "beside",
    "step",
)  # the control's value is the setting's


class Message(widgets.HTML):
    """A line of words that takes no room while it is empty."""

    def __init__(self, kind: str) -> None:
        super().__init__(layout={"display": "none"})
        self.add_class(f"lossviz-{kind}")

    def show(self, text: str) -> None:
        """Show a text, or nothing."""
        self.value = f"<div>{escape(text)}</div>" if text else ""
        self.layout.display = None if text else "none"


class ControlPanel:
    """All widgets of a panel. It knows no settings: it tells what was moved, and shows what it is told.

    Args:
        picture: the views.
        trains: whether there is something to train, or only a run to be looked at.
        on_change: called with the name of a setting, or "preset", and the value that was chosen.
        on_press: called with the name of the button: "train", "stop" or "code".

    Attributes:
        controls: the controls by name.
        box: what is displayed.
    """

    def __init__(
        self,
        picture: LiveFigures,
        *,
        trains: bool,
        on_change: Callable[[str, Any], object],
        on_press: Callable[[str], object],
    ) -> None:
        self.figures = picture
        self.controls = build_controls()
        self._on_change = on_change
        self._lock = threading.RLock()  # handlers run in the kernel's threads, and words come from the worker's
        self._writing = False
        self._sigma_place = math.log10(POST_SIGMA)
        self._errors = {name: Message("error") for name in TRAINING + VIEW}
        self._note = Message("note")
        self._readout, self._status, self._width_errors = widgets.HTML("<dl></dl>"), widgets.HTML(), widgets.HTML()
        self._progress = widgets.FloatProgress(min=0.0, max=1.0)
        self._code = widgets.Textarea(layout={"display": "none", "width": "auto", "height": "110px"})
        named = {"figures": self._readout, "status": self._status, "progress": self._progress, "code": self._code}
        named["costs"] = self._width_errors
        for name, widget in named.items():
            widget.add_class(f"lossviz-{name}")
        self.box = _box(widgets.VBox, "desk", self._arrange(trains=trains), self._status, self._code)
        self._listen(on_press)

    def write(self, name: str, value: Any) -> None:
        """Let a control show the value of its setting, and take back what was said against it."""
        with self._quietly():
            self._write(name, value)
            self.show_error(name, "")

    def name_preset(self, name: str) -> None:
        """Show which preset the settings of the network are, or that they are none."""
        with self._quietly():
            self.controls["preset"].value = name

    def set_steps(self, first: int, last: int) -> None:
        """The steps between which the ball can roll, and a stride that takes it through in a quarter of a minute."""
        with self._quietly():
            for control in (self.controls["step"], self.controls["play"]):
                control.max = max(control.min, last)
                control.min, control.max = first, last
            self.controls["play"].step = max(1, (last - first) // 100)

    def show_error(self, name: str, text: str) -> None:
        """Say beside a control what is wrong with it; an empty text takes it back."""
        self._errors[name].show(text)
        mark = self.controls[name].add_class if text else self.controls[name].remove_class
        mark("lossviz-wrong")

    def show_status(self, text: str, *, bad: bool = False, details: str = "") -> None:
        """Show a line of words at the foot of the panel, with details to be opened."""
        more = f"<details><summary>details</summary><pre>{escape(details)}</pre></details>" if details else ""
        kind = "lossviz-bad" if bad else "lossviz-good"
        self._status.value = f"<div class='{kind}' role='status'>{escape(text)}{more}</div>"

    def show_work(self, share: float | None) -> None:
        """Show how much is done, from 0 to 1; None when nothing is under way."""
        self._progress.value = share or 0.0
        self._progress.layout.visibility = "hidden" if share is None else "visible"
        self.controls["stop"].disabled = share is None

    def show_readout(self, html: str) -> None:
        """Show the line of figures."""
        self._readout.value = html

    def show_width_errors(self, html: str) -> None:
        """Show what each place of the σ slider costs, or nothing."""
        self._width_errors.value = html
        self._width_errors.layout.display = None if html else "none"

    def show_code(self, text: str) -> None:
        """Show lines of Python, put them on the clipboard, or put them away again."""
        hidden = self._code.layout.display == "none"
        self._code.value = text
        self._code.layout.display = None if hidden else "none"
        if hidden:
            self.figures.copy_text(text)

    def show_sigma(self, widths: Float[np.ndarray, " n_anchors"]) -> None:
        """Say how wide the kernels are in units of weights; a single plane has none."""
        narrow, wide = f"{widths.min():.2g}", f"{widths.max():.2g}"
        words = f"= {narrow if narrow == wide else f'{narrow} to {wide}'} in units of weights"
        self._note.show(words if len(widths) > 1 else "")

    def close(self) -> None:
        """Remove every widget."""
        for widget in _walk(self.box):
            widget.close()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change controls without telling of it: the change comes from the settings."""
        with self._lock:
            before, self._writing = self._writing, True
            try:
                yield
            finally:
                self._writing = before

    def _write(self, name: str, value: Any) -> None:
        control = self.controls[name]
        if name == "sigma":
            self.controls["auto"].value = value == "auto"
            (control.add_class if value == "auto" else control.remove_class)("lossviz-dim")
            if value != "auto":
                control.min = min(control.min, math.floor(math.log10(value)))
                control.max = max(control.max, math.ceil(math.log10(value)))
                self._sigma_place = math.log10(value)
                control.value = value
            return
        if value is None:
            return
        if isinstance(control, widgets.IntSlider):
            control.min, control.max = min(control.min, value), max(control.max, value)
        control.value = value
        if name == "step":
            self.controls["play"].value = value
        if name == "target":
            self.controls["choice"].value = value if value in FORMULAS else OWN

    def _listen(self, on_press: Callable[[str], object]) -> None:
        def tell(name: str, translate: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], None]:
            def handle(change: Any) -> None:
                with self._lock:
                    if not self._writing:
                        self._on_change(name, translate(change["new"]))

            return handle

        for name in PLAIN:
            self.controls[name].observe(tell(name), "value")
        self.controls["sigma"].observe(self._hear_sigma, "value")
        self.controls["auto"].observe(tell("sigma", lambda on: "auto" if on else self._slider_sigma), "value")
        self.controls["post"].on_click(lambda _: self._on_change("sigma", POST_SIGMA))
        self.controls["preset"].observe(tell("preset"), "value")
        self.controls["choice"].observe(
            tell("target", lambda choice: self.controls["target"].value if choice == OWN else choice), "value"
        )
        self.controls["play"].observe(tell("step"), "value")
        for name in ("train", "stop", "code"):
            self.controls[name].on_click(lambda _, name=name: on_press(name))

    @property
    def _slider_sigma(self) -> float:
        return float(f"{self.controls['sigma'].value:.3g}")

    def _hear_sigma(self, change: Any) -> None:
        """The page moves a slider to the nearest place that it has and says so; that is no choice of the user's."""
        decades = math.log10(change["new"])
        with self._lock:
            moved = abs(decades - self._sigma_place) > change["owner"].step * 0.51
            if moved and not self._writing:
                self._sigma_place = decades
                self._on_change("sigma", self._slider_sigma)

    def _arrange(self, *, trains: bool) -> widgets.Box:
        c = self.controls

        def group(title: str, *rows: Any, of: Iterable[str]) -> widgets.Box:
            heading = widgets.HTML(f"<b>{title}</b>")
            heading.add_class("lossviz-title")
            return _box(widgets.VBox, "group", heading, *rows, *(self._errors[name] for name in of))

        work = (_box(widgets.HBox, "buttons", *((c["train"],) if trains else ()), c["stop"]), self._progress)
        fields = _box(widgets.Box, "fields", *(c[name] for name in FIELDS))
        landscape = group(
            "Landscape",
            *(c["plane"], c["k"], c["sigma"]),
            _box(widgets.HBox, "buttons", c["auto"], c["post"]),
            *(self._note, self._width_errors, c["resolution"], c["loss_axis"], c["min_support"], c["beside"]),
            _box(widgets.HBox, "buttons", c["code"]),
            of=("plane", "k", "sigma", "resolution", "loss_axis", "min_support", "beside"),
        )
        target = group("Target", c["choice"], c["target"], of=["target"])
        network = group("Network", c["preset"], fields, *work, of=FIELDS)
        side = (target, network, landscape) if trains else (landscape, group("Work", *work, of=[]))
        time = _box(widgets.HBox, "time", c["play"], c["step"])
        main = _box(widgets.VBox, "main", self._readout, self.figures, time, self._errors["step"])
        return _box(widgets.Box, "body", _box(widgets.VBox, "side", *side), main)


def _box(kind: type[widgets.Box], name: str, *children: Any) -> widgets.Box:
    box = kind(children)
    box.add_class(f"lossviz-{name}")
    return box


def _walk(widget: Any) -> Iterable[Any]:
    """A widget and all that hangs on it, its looks included."""
    hanging = (*getattr(widget, "children", ()), getattr(widget, "style", None), getattr(widget, "layout", None))
    for child in hanging:
        if child is not None:
            yield from _walk(child)
    yield widget
