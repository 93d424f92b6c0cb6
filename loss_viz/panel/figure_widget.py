"""The picture in the page: Plotly figures in one widget, fed with arrays and never built anew."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import numpy as np
import plotly.graph_objects as go
import traitlets

from loss_viz.figures.assets import read_plotly, read_static

Updates = Mapping[str, Mapping[str, Any]]


_NARROW = {"f": "float32", "i": "uint32", "u": "uint32"}


class LiveFigures(anywidget.AnyWidget):
    """Figures side by side, each trace of which takes new arrays without a redraw of anything else.

    Plotly's own JavaScript is taken from the installed package, so nothing is fetched from the network. Arrays
    travel as float32 buffers. The page draws the newest state only, keeps camera, zoom and hidden traces, waits
    while a button is down, and answers when a frame is on screen. All panes in 3D have one camera: whoever turns one
    of them turns the others.

    Args:
        hidden: names of the panes that are not shown for now. Such a pane takes no room and costs nothing: its figure
            is made when it is first shown. Set it anew, `picture.hidden = []`, to show it. (So no pane can have the
            name "hidden".)
        panes: the figures by name, in their order. The uid of each trace, or its name where it has none, tells which
            part it takes: trace "ball" of pane "surface" takes the part "surface_ball"; "surface_layout" takes changes
            to the layout.

    Raises:
        traitlets.TraitError: `hidden` names a pane that does not exist.

    Example:
        >>> line = go.Scatter(name="line", x=[], y=[])
        >>> picture = LiveFigures(curve=go.Figure([line]))
        >>> picture.push({"curve_line": {"x": np.arange(3.0), "y": np.arange(3.0)}})
        >>> picture.serial, picture.wait_drawn()
        (1, False)
        >>> picture.hidden = ["curve"]
    """

    _esm = read_plotly() + "\n" + read_static("figure_widget.js")
    _css = read_static("figure_widget.css")
    panes = traitlets.Dict().tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)  # what a badge says while the picture is not up to date
    summary = traitlets.Unicode("").tag(sync=True)  # the picture in words, for those who do not see it
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)
    serial = traitlets.Int(0).tag(sync=True)

    def __init__(self, *, hidden: Sequence[str] = (), **panes: go.Figure) -> None:
        names = [f"{pane}_{trace.uid or trace.name}" for pane, figure in panes.items() for trace in figure.data]
        names += [f"{pane}_layout" for pane in panes]
        # Before ipywidgets starts, which looks once for what is to be kept in step with the page.
        self.add_traits(**{name: traitlets.Dict().tag(sync=True) for name in names})
        self._pushing = threading.Lock()
        self._news = threading.Condition()
        self._shown = 0
        self._patient = False  # is there a page that answers?
        self._handlers: list[Callable[[dict[str, Any]], object]] = []
        super().__init__(panes={name: _to_json(figure) for name, figure in panes.items()}, hidden=hidden)
        self.on_msg(self._on_message)

    def push(self, parts: Updates, **others: str | Sequence[str]) -> None:
        """Change parts of the picture, in one message; those that are as they were are not sent.

        Args:
            parts: by name, each with new values for some attributes of its trace or layout.
            others: `state`, `summary` or `hidden`.
        """
        with self._pushing, self.hold_sync():
            for name, values in parts.items():
                setattr(self, name, getattr(self, name) | {key: _encode(value) for key, value in values.items()})
            for name, value in others.items():
                setattr(self, name, value)
            self.serial += 1

    def wait_drawn(self, timeout: float = 1.0) -> bool:
        """Wait until what was pushed last is on screen; not at all where no page has answered lately."""
        with self._news:
            shown = self._news.wait_for(lambda: self._shown >= self.serial, timeout if self._patient else 0)
            self._patient = shown and self._patient
            return shown

    def on_click(self, handler: Callable[[dict[str, Any]], object]) -> None:
        """Call `handler` with pane, trace, index, x and y of each point that is clicked."""
        self._handlers.append(handler)

    def copy_text(self, text: str) -> None:
        """Put a text on the clipboard of whoever looks at the picture."""
        self.send({"kind": "copy", "text": text})

    @traitlets.validate("hidden")
    def _check_hidden(self, proposal: Any) -> list[str]:
        if unknown := sorted(set(proposal["value"]) - set(self.panes)):
            raise traitlets.TraitError(
                f"`hidden` takes names of panes, which are {', '.join(self.panes)}; got {', '.join(unknown)}."
            )
        return proposal["value"]

    def _on_message(self, _: Any, message: dict[str, Any], __: Any) -> None:
        if message.get("kind") == "shown":
            with self._news:
                self._shown = max(self._shown, message["serial"])
                self._patient = True
                self._news.notify_all()
        elif message.get("kind") == "click":
            for handler in self._handlers:
                handler(message)


def _to_json(figure: go.Figure) -> dict[str, Any]:
    """The figure in plain lists; its template, which is all of Plotly's default looks, is resolved in the page."""
    spec = json.loads(figure.to_json(remove_uids=False))
    return {"data": spec["data"], "layout": spec["layout"]}


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what the page has no number for stays open there
            value = value.astype(_NARROW[value.dtype.kind])
    return {"dtype": value.dtype.name, "shape": list(value.shape), "data": value.tobytes()}
