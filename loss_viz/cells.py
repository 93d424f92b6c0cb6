"""Whose cell is it? A cell that is run again closes the panels that it showed before."""

import weakref
from typing import Any

from IPython import get_ipython

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
