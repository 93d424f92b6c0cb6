"""The panel's widgets and their layout."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from jaxtyping import Float

from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.settings import OPTIONS, POST_SIGMA, PRESETS, TRAINING, VIEW, Option

FORMULAS = ("x", "x^2", "x^3", "sin(3x)")
OWN = "own"  # a formula or preset other than the listed ones
SIGMA_DECADES = (-2.5, 0.0)  # log10 of the ends of the slider
NARROW, WIDE = {"description_width": "40px"}, {"description_width": "52px"}
# Controls that set several options, or none.
OTHER_HINTS = {
    "choice": "The function to learn: one of the post's four, or your own formula below.",
    "preset": "Network and optimizer settings: those of the post, or robust ones, which reach a plateau on every seed.",
    "train": "Train again with these settings and watch the loss fall.",
    "stop": "Stop the current work; a run is kept up to the step that it has reached.",
    "auto_k": "Try 5 steps and a twentieth of the run, and take what predicts left-out steps best.",
    "auto": "Kernels as narrow as the anchors allow on the path, wider away from it.",
    "post": "The bandwidth of the blog post everywhere, 0.06 of the path's diagonal.",
    "play": "Roll the ball along the run.",
    "code": "Copy Python code that draws this figure without the panel.",
}


def build_controls() -> dict[str, Any]:
    """Return all controls by name: one for each option, and those of `OTHER_HINTS`."""
    formulas = [(formula, formula) for formula in FORMULAS]
    controls = {name: _build_control(option) for name, option in OPTIONS.items()} | {
        "choice": widgets.Dropdown(options=[*formulas, ("own formula", OWN)], description="target", style=WIDE),
        "preset": widgets.Dropdown(options=[*PRESETS, OWN], description="preset", style=WIDE),
        "train": widgets.Button(description="Train", button_style="primary", icon="refresh"),
        "stop": widgets.Button(description="Stop", icon="stop", disabled=True),
        "auto_k": widgets.ToggleButton(description="auto k", layout={"max_width": "49%"}),
        "auto": widgets.ToggleButton(description="auto σ"),
        "post": widgets.Button(description=f"post's {POST_SIGMA}"),
        "code": widgets.Button(description="Copy code", icon="copy"),
        "play": widgets.Play(interval=150),
    }
    hints = {name: option.hint for name, option in OPTIONS.items()} | OTHER_HINTS
    for name, control in controls.items():
        # ipywidgets 7, as on Colab, has another name for the tooltip of a control with a description.
        setattr(control, "tooltip" if control.has_trait("tooltip") else "description_tooltip", hints[name])
    return controls


def _build_control(option: Option) -> Any:
    look: dict[str, Any] = {"description": option.label, "style": WIDE if len(option.label) > 5 else NARROW}
    if option.name == "target":
        return widgets.Text(description=option.label, style=WIDE, continuous_update=False)
    if option.name == "sigma":
        low, high = SIGMA_DECADES
        return widgets.FloatLogSlider(value=POST_SIGMA, min=low, max=high, step=0.02, readout_format=".3g", **look)
    if option.name in TRAINING:
        look["layout"] = {"width": "auto"}
    if option.choices or option.name == "height":
        return widgets.Dropdown(options=option.choices or (option.default,), **look)
    is_float = isinstance(option.default, float)
    if not option.slider:
        return (widgets.FloatText if is_float else widgets.IntText)(**look)
    low, high = option.slider
    if is_float:
        return widgets.FloatSlider(min=low, max=high, step=0.02, readout_format=".2f", **look)
    return widgets.IntSlider(min=low, max=high, **look)


class Message(widgets.HTML):
    """A line of text that takes no space while it is empty."""

    def __init__(self, kind: str) -> None:
        super().__init__(layout={"display": "none"})
        self.add_class(f"lossviz-{kind}")

    def show(self, text: str) -> None:
        """Show `text`; hide the message if it is empty."""
        self.value = f"<div>{escape(text)}</div>" if text else ""
        self.layout.display = None if text else "none"


class ControlPanel:
    """All widgets of a panel. Reports user input through its callbacks and displays what it is given.

    Args:
        figures: the figures, which are part of the layout.
        trains: whether to show the controls for training.
        heights: what the surface can show; with one, there is no control for it.
        on_change: called with the name of an option, or "preset", and the value chosen by the user.
        on_press: called with the name of a pressed button: "train", "stop" or "code".

    Attributes:
        controls: the controls by name.
        box: the whole layout.
    """

    def __init__(
        self,
        figures: LiveFigures,
        *,
        trains: bool,
        heights: Sequence[str],
        on_change: Callable[[str, Any], object],
        on_press: Callable[[str], object],
    ) -> None:
        self.figures = figures
        self.controls = build_controls()
        self.controls["height"].options = tuple(heights)
        self.controls["height"].layout.display = None if len(heights) > 1 else "none"
        self._on_change = on_change
        self._lock = threading.RLock()  # input arrives in the kernel's threads, values from the worker's
        self._updating = False
        self._sigma_decades = math.log10(POST_SIGMA)
        self._errors = {name: Message("error") for name in OPTIONS}
        self._note, self._taken = Message("note"), Message("note")
        self._readout, self._status, self._width_errors = widgets.HTML("<dl></dl>"), widgets.HTML(), widgets.HTML()
        self._progress = widgets.FloatProgress(min=0.0, max=1.0)
        self._code = widgets.Textarea(layout={"display": "none", "width": "auto", "height": "110px"})
        named = {"figures": self._readout, "status": self._status, "costs": self._width_errors}
        for name, widget in (named | {"progress": self._progress, "code": self._code}).items():
            widget.add_class(f"lossviz-{name}")
        self.box = _box(widgets.VBox, "desk", self._arrange(trains=trains), self._status, self._code)
        self._observe(on_press)

    def show_value(self, name: str, value: Any) -> None:
        """Show the value of an option, and remove its error message."""
        with self._silently():
            if name == "sigma":
                self._show_sigma(value)
            elif name == "k" and isinstance(value, str):
                self._dim_k(auto=True)
            elif value is not None:
                control = self.controls[name]
                if isinstance(control, widgets.IntSlider):
                    control.min, control.max = min(control.min, value), max(control.max, value)
                control.value = value
            if name == "k" and not isinstance(value, str):
                self._dim_k(auto=False)
            if name == "step" and value is not None:
                self.controls["play"].value = value
            if name == "target":
                self.controls["choice"].value = value if value in FORMULAS else OWN
            self.show_error(name, "")

    def show_preset(self, name: str) -> None:
        """Show the name of the preset that the settings match, or `OWN`."""
        with self._silently():
            self.controls["preset"].value = name

    def set_steps(self, first: int, last: int) -> None:
        """Set the range of the ball's step, and a playing speed that takes a quarter of a minute for all of it."""
        with self._silently():
            for control in (self.controls["step"], self.controls["play"]):
                control.max = max(control.min, last)
                control.min, control.max = first, last
            self.controls["play"].step = max(1, (last - first) // 100)

    def show_error(self, name: str, text: str) -> None:
        """Show an error message at the control of an option; remove it if `text` is empty."""
        self._errors[name].show(text)
        _set_class(self.controls[name], "wrong", bool(text))

    def show_status(self, text: str, *, bad: bool = False, details: str = "") -> None:
        """Show a line below the panel, with details to unfold."""
        more = f"<details><summary>details</summary><pre>{escape(details)}</pre></details>" if details else ""
        kind = "lossviz-bad" if bad else "lossviz-good"
        self._status.value = f"<div class='{kind}' role='status'>{escape(text)}{more}</div>"

    def show_progress(self, fraction: float | None) -> None:
        """Show progress from 0 to 1; None hides it."""
        self._progress.value = fraction or 0.0
        self._progress.layout.visibility = "hidden" if fraction is None else "visible"
        self.controls["stop"].disabled = fraction is None

    def show_readout(self, html: str) -> None:
        """Show the numbers above the surface."""
        self._readout.value = html

    def show_width_errors(self, html: str) -> None:
        """Show the error of each bandwidth below the σ slider; hide it if `html` is empty."""
        self._width_errors.value = html
        self._width_errors.layout.display = None if html else "none"

    def toggle_code(self, text: str) -> None:
        """Show Python code and copy it to the clipboard, or hide it if it is shown."""
        hidden = self._code.layout.display == "none"
        self._code.value = text
        self._code.layout.display = None if hidden else "none"
        if hidden:
            self.figures.copy_text(text)

    def show_sigma(self, widths: Float[np.ndarray, " n_anchors"]) -> None:
        """Show the bandwidths in units of weights; a single plane has none."""
        narrow, wide = f"{widths.min():.2g}", f"{widths.max():.2g}"
        text = f"= {narrow if narrow == wide else f'{narrow} to {wide}'} in units of weights"
        self._note.show(text if len(widths) > 1 else "")

    def show_taken(self, plane: str, k: int) -> None:
        """Show which planes and stride `"auto"` took."""
        with self._silently():
            if self.controls["auto_k"].value:
                slider = self.controls["k"]
                slider.max = max(slider.max, k)
                slider.value = k
        self._taken.show(
            {"local": f"local planes, k = {k}", "parallel": "parallel planes", "flat": "a flat plane"}[plane]
        )

    def close(self) -> None:
        """Close every widget."""
        for widget in _walk(self.box):
            widget.close()

    @contextmanager
    def _silently(self) -> Iterator[None]:
        """Change controls without calling `on_change`."""
        with self._lock:
            before, self._updating = self._updating, True
            try:
                yield
            finally:
                self._updating = before

    def _show_sigma(self, value: float | str) -> None:
        slider = self.controls["sigma"]
        self.controls["auto"].value = value == "auto"
        _set_class(slider, "dim", value == "auto")
        if not isinstance(value, str):
            self._sigma_decades = math.log10(value)
            slider.min = min(slider.min, math.floor(self._sigma_decades))
            slider.max = max(slider.max, math.ceil(self._sigma_decades))
            slider.value = value

    def _dim_k(self, *, auto: bool) -> None:
        self.controls["auto_k"].value = auto
        _set_class(self.controls["k"], "dim", auto)

    def _observe(self, on_press: Callable[[str], object]) -> None:
        def forward(control: str, option: str, convert: Callable[[Any], Any] = lambda value: value) -> None:
            def handle(change: Any) -> None:
                with self._lock:
                    if not self._updating:
                        self._on_change(option, convert(change["new"]))

            self.controls[control].observe(handle, "value")

        for name in OPTIONS:
            if name != "sigma":
                forward(name, name)
        self.controls["sigma"].observe(self._on_sigma, "value")
        forward("auto_k", "k", lambda on: "auto" if on else self.controls["k"].value)
        forward("auto", "sigma", lambda on: "auto" if on else self._slider_sigma)
        forward("choice", "target", lambda choice: self.controls["target"].value if choice == OWN else choice)
        forward("preset", "preset")
        forward("play", "step")
        self.controls["post"].on_click(lambda _: self._on_change("sigma", POST_SIGMA))
        for name in ("train", "stop", "code"):
            self.controls[name].on_click(lambda _, name=name: on_press(name))

    @property
    def _slider_sigma(self) -> float:
        return float(f"{self.controls['sigma'].value:.3g}")

    def _on_sigma(self, change: Any) -> None:
        """Forward a move of the σ slider, unless the browser only rounded a value to the slider's step."""
        decades = math.log10(change["new"])
        with self._lock:
            moved = abs(decades - self._sigma_decades) > change["owner"].step * 0.51
            if moved and not self._updating:
                self._sigma_decades = decades
                self._on_change("sigma", self._slider_sigma)

    def _arrange(self, *, trains: bool) -> widgets.Box:
        c = self.controls

        def group(title: str, *rows: Any, options: Iterable[str] = ()) -> widgets.Box:
            heading = widgets.HTML(f"<b>{title}</b>")
            heading.add_class("lossviz-title")
            return _box(widgets.VBox, "group", heading, *rows, *(self._errors[name] for name in options))

        def buttons(*names: str) -> widgets.Box:
            return _box(widgets.HBox, "buttons", *(c[name] for name in names))

        work = (buttons("train", "stop") if trains else buttons("stop"), self._progress)
        drawn = ["axes", "plane", *(name for name in VIEW if name not in ("axes", "plane", "step"))]
        below = {
            "plane": (self._taken,),
            "k": (buttons("auto_k"),),
            "sigma": (buttons("auto", "post"), self._note, self._width_errors),
        }
        rows = [row for name in drawn for row in (c[name], *below.get(name, ()))]
        landscape = group("Landscape", *rows, buttons("code"), options=drawn)
        if trains:
            fields = _box(widgets.Box, "fields", *(c[name] for name in TRAINING[1:]))
            network = group("Network", c["preset"], fields, *work, options=TRAINING[1:])
            side = [group("Target", c["choice"], c["target"], options=["target"]), network, landscape]
        else:
            side = [landscape, group("Work", *work)]
        time = _box(widgets.HBox, "time", c["play"], c["step"])
        main = _box(widgets.VBox, "main", self._readout, self.figures, time, self._errors["step"])
        return _box(widgets.Box, "body", _box(widgets.VBox, "side", *side), main)


def _box(kind: type[widgets.Box], name: str, *children: Any) -> widgets.Box:
    box = kind(children)
    box.add_class(f"lossviz-{name}")
    return box


def _set_class(widget: Any, name: str, on: bool) -> None:
    (widget.add_class if on else widget.remove_class)(f"lossviz-{name}")


def _walk(widget: Any) -> Iterator[Any]:
    """Yield a widget and everything below it, styles and layouts included."""
    below = (*getattr(widget, "children", ()), getattr(widget, "style", None), getattr(widget, "layout", None))
    for child in below:
        if child is not None:
            yield from _walk(child)
    yield widget
