"""The panel's controls as data: one row for each, from which the front end builds it."""

from collections.abc import Iterable, Sequence
from typing import Any

from loss_viz.settings import OPTIONS, PRESETS, TRAINING, Option

FORMULAS = ("x", "x^2", "x^3", "sin(3x)")
OWN = "own"  # the preset, where the settings are those of none
SIGMA_DECADES = (-2.5, 0.0)  # log10 of the ends of the slider
IN_ROW = ("target", "sigma", "k", "resolution")  # always visible, in this order; the others are in the drawer
IN_FIGURES = ("step", "part", "bounds")
PRESET_HINT = "Network and optimizer: those of the post, or robust ones, which reach a plateau on every seed."


def list_controls(names: Iterable[str], heights: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each setting that has a control, and one for the preset of a training.

    Each row has `name`, `label`, `hint`, `place` ("row", "network" or "landscape") and `kind`:

    - "formula": buttons for `choices`, and a field;
    - "choice": a menu of `choices`, of which those in `shown_only` cannot be chosen;
    - "number": a field;
    - "range" and "log": a slider from `low` to `high` by `step`, in log10 of the value for "log"; with `auto`, its
      first position is "auto".

    Args:
        names: the settings. `step`, `part` and `bounds` have no rows: time line and surface are their controls.
        heights: what the surface can show; with one, there is no control for it.

    Example:
        >>> [row["name"] for row in list_controls(("k", "sigma", "step", "plane", "height"), ["loss"])]
        ['sigma', 'k', 'plane']
    """
    shown = [name for name in names if name not in IN_FIGURES and (name != "height" or len(heights) > 1)]
    first = [name for name in IN_ROW if name in shown]
    rows = [_describe(OPTIONS[name], heights) for name in [*first, *(name for name in shown if name not in first)]]
    if TRAINING[0] not in shown:
        return rows
    preset: dict[str, Any] = {
        "name": "preset",
        "label": "preset",
        "hint": PRESET_HINT,
        "place": "network",
        "kind": "choice",
    }
    preset |= {"choices": [*PRESETS, OWN], "shown_only": [OWN]}
    return [*rows[: len(first)], preset, *rows[len(first) :]]


def _describe(option: Option, heights: Sequence[str]) -> dict[str, Any]:
    name, place = option.name, "network" if option.name in TRAINING else "landscape"
    row = {"name": name, "label": option.label, "hint": option.hint, "place": "row" if name in IN_ROW else place}
    auto = {"auto": option.default == "auto"}
    if name == "target":
        return row | {"kind": "formula", "choices": list(FORMULAS)}
    if name == "sigma":
        low, high = SIGMA_DECADES
        return row | auto | {"kind": "log", "low": low, "high": high, "step": 0.02}
    if name == "height":
        return row | {"kind": "choice", "choices": list(heights)}
    if option.choices:
        return row | {"kind": "choice", "choices": list(option.choices)}
    if not option.slider:
        return row | {"kind": "number"}
    low, high = option.slider
    return row | auto | {"kind": "range", "low": low, "high": high, "step": 0.02 if isinstance(high, float) else 1}
