"""The panel's plots: Plotly figures in one widget, updated by arrays instead of being rebuilt."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import numpy as np
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs_version

from loss_viz.figures.assets import narrow_floats, read_plotly, read_static

Updates = Mapping[str, Mapping[str, Any]]
RENDER = "export default asWidget((model, el) => renderFigures({ model, el }).close);"


class LiveFigures(anywidget.AnyWidget):
    """Plotly figures side by side whose traces take new arrays without rebuilding the figures.

    Plotly's JavaScript comes from the installed package, so nothing is fetched from the network. Arrays travel as
    buffers of float32, or of float64 where float32 has no such number. The browser draws only the newest state, keeps
    camera, zoom and hidden traces, does not redraw a pane while a mouse button is down on it, and reports each drawn
    update. All 3D panes share one camera.

    Args:
        hidden: names of the panes that are not shown. A hidden pane takes no space and no WebGL context: its figure
            is created when it is first shown. Assign a new list, `figures.hidden = []`, to show it. No pane can be
            called "hidden".
        panes: the figures by name, in display order. A trace takes the update called pane, underscore and its uid
            (its name if it has none): trace "ball" of pane "surface" takes "surface_ball". "surface_layout" takes
            changes of the layout.

    Raises:
        traitlets.TraitError: if `hidden` names a pane that does not exist.

    Example:
        >>> line = go.Scatter(name="line", x=[], y=[])
        >>> figures = LiveFigures(curve=go.Figure([line]))
        >>> figures.push({"curve_line": {"x": np.arange(3.0), "y": np.arange(3.0)}})
        >>> figures.serial, figures.wait_drawn()
        (1, False)
        >>> figures.hidden = ["curve"]
    """

    _esm = "\n".join([read_static("figure_widget.js"), read_static("anywidget.js"), RENDER])
    _css = read_static("figure_widget.css")
    _plotly = traitlets.Dict(
        {"version": get_plotlyjs_version(), "source": read_plotly() + "\nexport default module.exports;"}
    ).tag(sync=True)
    panes = traitlets.Dict().tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)  # badge text while the figures are out of date
    summary = traitlets.Unicode("").tag(sync=True)  # text alternative for screen readers
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)
    serial = traitlets.Int(0).tag(sync=True)

    def __init__(self, *, hidden: Sequence[str] = (), **panes: go.Figure) -> None:
        names = [f"{pane}_{trace.uid or trace.name}" for pane, figure in panes.items() for trace in figure.data]
        names += [f"{pane}_layout" for pane in panes]
        # Before super().__init__: ipywidgets collects the traits to synchronize only once.
        self.add_traits(**{name: traitlets.Dict().tag(sync=True) for name in names})
        self._pushing = threading.Lock()
        self._drawn_changed = threading.Condition()
        self._drawn = 0
        self._answering = False  # whether a front end has reported lately
        self._handlers: list[Callable[[dict[str, Any]], object]] = []
        super().__init__(panes={name: _to_json(figure) for name, figure in panes.items()}, hidden=hidden)
        self.on_msg(self._on_message)

    def push(self, updates: Updates, **others: Any) -> None:
        """Send updates in one message; values that have not changed are not sent.

        Args:
            updates: new values for attributes of a trace or layout, by the name of the update.
            others: `state`, `summary`, `hidden`, or a trait of a subclass; it may contain arrays.
        """
        with self._pushing, self.hold_sync():
            for name, values in updates.items():
                setattr(self, name, getattr(self, name) | _encode(values))
            for name, value in others.items():
                setattr(self, name, _encode(value))
            self.serial += 1

    def wait_drawn(self, timeout: float = 1.0) -> bool:
        """Block until the browser has drawn the last update; return at once if no front end has answered recently."""
        with self._drawn_changed:
            drawn = self._drawn_changed.wait_for(lambda: self._drawn >= self.serial, timeout if self._answering else 0)
            self._answering = drawn and self._answering
            return drawn

    def on_click(self, handler: Callable[[dict[str, Any]], object]) -> None:
        """Call `handler` with a dict of pane, trace, index, x and y for each point that is clicked."""
        self._handlers.append(handler)

    @traitlets.validate("hidden")
    def _check_hidden(self, proposal: Any) -> list[str]:
        if unknown := sorted(set(proposal["value"]) - set(self.panes)):
            raise traitlets.TraitError(
                f"`hidden` must be a list of pane names ({', '.join(self.panes)}), got {', '.join(unknown)}."
            )
        return proposal["value"]

    def _on_message(self, _: Any, message: dict[str, Any], __: Any) -> None:
        if message.get("kind") == "shown":
            with self._drawn_changed:
                self._drawn = max(self._drawn, message["serial"])
                self._answering = True
                self._drawn_changed.notify_all()
        elif message.get("kind") == "open":
            with self._pushing:  # a state of which half is old would arrive after the new one
                self.send_state([key for key in self.keys if not key.startswith("_")])
        elif message.get("kind") == "click":
            for handler in self._handlers:
                handler(message)


def _to_json(figure: go.Figure) -> dict[str, Any]:
    """Return data and layout as plain lists; the layout includes the template, which the browser applies."""
    spec = json.loads(figure.to_json(remove_uids=False))
    return {"data": spec["data"], "layout": spec["layout"]}


def _encode(value: Any) -> Any:
    """Return a value with its arrays as binary buffers."""
    if isinstance(value, Mapping):
        return {key: _encode(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_encode(one) for one in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype not in (np.uint8, np.uint16):
        value = narrow_floats(value) if value.dtype.kind == "f" else value.astype(np.uint32)
    return {"dtype": value.dtype.name, "shape": list(value.shape), "data": value.tobytes()}
