"""Data of the page of `export_html`, ready for JSON: updates of its figures, and what the script needs for the ball."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from loss_viz.diagnostics.headlines import describe_timeline, rate_fidelity
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.diagnostics.report import assess, variance_row
from loss_viz.export.variants import LandscapeVariants
from loss_viz.figures.assets import narrow_floats
from loss_viz.figures.live import (
    CLICK_RADIUS,
    MAX_OUTPUTS,
    Updates,
    ViewState,
    build_templates,
    choose_camera,
    choose_rows,
    curve_update,
    describe_balls,
    encode_outputs,
    fit_update,
    path_update,
    summarize,
    trace_key,
    update_all,
)
from loss_viz.figures.loss_axis import CASING_LIFT, LINE_LIFT, Scale, fit_scale
from loss_viz.landscapes.landscape import Landscape
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import OPTIONS, PLACEHOLDERS, to_script

MAX_STEPS = 8000  # recorded steps drawn, of all runs together

MAX_TABLE = 2**8  # different values of an array that is stored as a table and indices of one byte

MAX_STOPS = 200  # stops of the ball while it plays, of all runs together

NO_LIFT = Scale(0.0, 0.0, log=False)  # the page lifts lines itself, because their height depends on the chosen axis

ChosenRows = Sequence[Int[np.ndarray, " _"]]  # for each run, some of its rows


class ArrayStore:
    """The arrays of a page, each stored once.

    Fractions are stored in float32 (seven digits) if it has such numbers, integers in the smallest unsigned type.

    Attributes:
        arrays: encoded arrays, with `dtype`, `shape` and `base64`.

    Example:
        >>> store = ArrayStore()
        >>> store.add(np.arange(3)), store.add(np.zeros(2)), store.add(np.arange(3))
        (0, 1, 0)
        >>> store.arrays[0]
        {'dtype': 'uint8', 'shape': [3], 'base64': 'AAEC'}
    """

    def __init__(self) -> None:
        self.arrays: list[dict[str, Any]] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, array: np.ndarray) -> int:
        """Store an array, and return its index."""
        if array.dtype.kind in "iu":
            array = array.astype(np.min_scalar_type(int(array.max(initial=0))))
        else:
            array = narrow_floats(array)
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            text = base64.b64encode(key[2]).decode()
            self.arrays.append({"dtype": key[0], "shape": list(array.shape), "base64": text})
        return self._known[key]

    def encode_all(self, value: Any) -> Any:
        """Return nested values with references in place of their arrays."""
        if isinstance(value, Mapping):
            return {name: self.encode_all(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self.encode_all(one) for one in value]
        return {"array": self.add(value)} if isinstance(value, np.ndarray) else value

    def encode(self, values: Mapping[str, Any], lift: float = 0.0) -> dict[str, Any]:
        """Return properties of a trace with references in place of their arrays.

        Args:
            values: arrays and plain values.
            lift: fraction of the loss axis by which the page is to raise `z`.
        """
        encoded: dict[str, Any] = {}
        for name, value in values.items():
            if name == "rgba":  # a few hundred different colors, and how opaque each point is
                colors, index = np.unique(value[:, :3], axis=0, return_inverse=True)
                pieces = {"colors": colors, "index": index.ravel(), "left": value[:, 3]}
                encoded[name] = {piece: self.add(array) for piece, array in pieces.items()}
            elif name == "z" and lift:
                encoded[name] = {"losses": self.add(value), "lift": lift}
            elif name == "customdata":
                encoded[name] = {"columns": [self.add(column) for column in value.T]}
            elif name == "line.color":  # from 0 to 1, in 256 visible steps
                encoded |= {name: {"array": self.add(np.rint(255 * value).astype(int))}, "line.cmax": 255}
            elif name == "z" and len(table := np.unique(value)) < min(MAX_TABLE, len(value) // 4):  # level lines
                pieces = {"table": table, "index": np.searchsorted(table, value)}  # nan comes last
                encoded[name] = {piece: self.add(array) for piece, array in pieces.items()}
            else:
                encoded[name] = {"array": self.add(value)} if isinstance(value, np.ndarray) else value
        return encoded


def _find_placeholders(opening: Landscape) -> dict[str, Any]:
    """Return what the page fills in; a stride would mean local planes, so others keep the one that they have."""
    return {name: value for name, value in PLACEHOLDERS.items() if name != "k" or opening.plane == "local"}


def page_data(variants: LandscapeVariants, step: int | None, log: bool | None = None) -> dict[str, Any]:
    """Return all data of the page, ready for JSON.

    Args:
        variants: the landscapes.
        step: training step at which to draw the ball first; None for the last one.
        log: whether the page opens on the logarithmic axis; None if that is possible.

    Raises:
        ValueError: if the step lies outside all runs, or `log=True` with a loss that is not positive.

    Example:
        >>> import loss_viz as lv
        >>> from loss_viz.export.variants import compute_variants
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> data = page_data(compute_variants(run, k=[5], sigma=["auto", 0.06], resolution=(9, 7), progress=False), 30)
        >>> [picture["sigma"] for picture in data["pictures"]], data["values"]["step"]
        (['auto', 0.06], 30)
    """
    run_set, opening, store = variants.run_set, variants.opening, ArrayStore()
    plateaus = [plateau for of_run in assess(opening).plateaus for plateau in of_run]
    drawn = choose_rows(run_set, MAX_STEPS)
    last = max(int(run_set.step[row]) for row in run_set.nearest_rows(step))
    panes = build_templates(replace(run_set, names=tuple(escape(name, quote=False) for name in run_set.names)))
    outputs = choose_rows(run_set, MAX_OUTPUTS // len(_task_points(run_set)[0])) if "fit" in panes else None
    functions = encode_outputs(run_set, outputs) if outputs else None
    balls = partial(describe_balls, run_set, plateaus, outputs=functions, chosen=drawn)
    pictures = _encode_landscapes(variants, plateaus, drawn, balls, store, log=log)
    kinds = list(pictures[0]["axes"])
    stops = [run.step[rows] for run, rows in zip(run_set.runs, choose_rows(run_set, MAX_STOPS), strict=True)]
    return {
        "panes": {
            name: json.loads(pane.to_json(remove_uids=False)) for name, pane in panes.items() if name != "beside"
        },
        "k": variants.k,
        "sigma": variants.sigma,
        "values": {
            "k": opening.k,
            "sigma": opening.sigma,
            "step": last if step is None else step,
            "loss_axis": kinds[-1] if log is None else {False: "linear", True: "log"}[log],
        },
        "controls": _list_controls(variants, kinds),
        "timeline": describe_timeline(run_set, plateaus) | {"frames": np.unique(np.concatenate(stops)).tolist()},
        "runs": _encode_runs(opening, drawn, store),
        "pictures": pictures,
        "reach": CLICK_RADIUS * opening.projection.diagonal,
        "variance": variance_row(opening.projection)[1:],
        "summary": summarize(run_set, plateaus),
        "recipe": to_script(opening.settings, _find_placeholders(opening)),
        "parts": _encode_common(run_set, plateaus, drawn, store, limits=functions["limits"] if functions else None),
        "notes": _write_notes(variants, drawn, outputs),
        "arrays": store.arrays,
    }


def _list_controls(variants: LandscapeVariants, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the page's controls, as `panel.controls.list_controls` does; those with a choice only."""
    rows = []
    for name, values in (("sigma", variants.sigma), ("k", variants.k), ("loss_axis", kinds)):
        row = {"name": name, "label": OPTIONS[name].label, "hint": OPTIONS[name].hint, "place": "row"}
        kind = {"kind": "choice", "choices": kinds} if name == "loss_axis" else {"kind": "list", "values": values}
        rows += [row | kind] if len(values) > 1 else []
    return rows


def choose_scales(landscapes: Sequence[Landscape], first: int, *, log: bool) -> list[Scale]:
    """Return the loss axis of each landscape: that of the first one shown, extended where a landscape needs it.

    This keeps heights comparable and the run in place from one landscape to the next.

    Raises:
        ValueError: if `log=True` with a loss that is not positive.
    """
    own = [fit_scale([land.loss, land.path_loss], log=log) for land in landscapes]
    return [Scale(min(scale.low, own[first].low), max(scale.high, own[first].high), log) for scale in own]


def _encode_runs(landscape: Landscape, drawn: ChosenRows, store: ArrayStore) -> list[dict[str, Any]]:
    run_set, projection = landscape.run_set, landscape.projection
    names = run_set.names if len(run_set.runs) > 1 else ("",)
    runs = []
    for name, rows, chosen in zip(names, run_set.rows, drawn, strict=True):
        x, y = projection.path[rows].T
        off = projection.off_plane[rows] / projection.diagonal
        arrays = {"step": run_set.step[rows], "loss": run_set.loss[rows], "x": x, "y": y, "off": off}
        runs.append({"name": name, **store.encode({key: array[chosen] for key, array in arrays.items()})})
    return runs


def _encode_landscapes(
    variants: LandscapeVariants,
    plateaus: Sequence[Plateau],
    drawn: ChosenRows,
    balls: Callable[..., dict[str, Any]],
    store: ArrayStore,
    *,
    log: bool | None,
) -> list[dict[str, Any]]:
    scales = {"linear": choose_scales(variants.landscapes, variants.first, log=False)}
    # Losses that are not positive have no logarithmic axis.
    with nullcontext() if log else suppress(ValueError):
        scales["log"] = choose_scales(variants.landscapes, variants.first, log=True)
    opening = {kind: ViewState.of(variants.opening, of_kind[variants.first]) for kind, of_kind in scales.items()}
    cameras = {kind: choose_camera(view) for kind, view in opening.items()}
    encoded = []
    for i, land in enumerate(variants.landscapes):
        report, axes = assess(land), {}
        for kind, of_kind in scales.items():
            updates = _thinned_updates(land, of_kind[i], plateaus, drawn, cameras[kind])
            parts = {name: store.encode(values, _lift(name)) for name, values in updates.items()}
            places = store.encode_all(balls(view=ViewState.of(land, of_kind[i])))
            axes[kind] = {"low": of_kind[i].low, "high": of_kind[i].high, "parts": parts, "balls": places}
        heights, factors = land.path_height, report.fidelity.factor
        runs = [
            store.encode({"height": heights[rows][chosen], "factor": factors[rows][chosen]})
            for rows, chosen in zip(variants.run_set.rows, drawn, strict=True)
        ]
        words: dict[str, Any] = {"k": land.k, "sigma": land.sigma, "tiles": report.rows(), "cautions": report.warnings}
        words["chip"] = rate_fidelity(report.fidelity)._asdict()
        encoded.append(words | {"runs": runs, "axes": axes})
    return encoded


def _thinned_updates(
    land: Landscape, scale: Scale, plateaus: Sequence[Plateau], drawn: ChosenRows, camera: Mapping[str, Any]
) -> Updates:
    """Return the panel's updates for a landscape, with the chosen rows only."""
    run_set = land.run_set
    updates = update_all(ViewState.of(land, scale), plateaus, min_support=0.0, camera=camera)
    updates |= path_update(ViewState.of(land, NO_LIFT), plateaus)
    updates["curve_layout"] = _curve_updates(run_set, plateaus, drawn)["curve_layout"] | updates["curve_layout"]
    for i, chosen in enumerate(drawn):
        lines = ("surface_trajectory", "surface_casing", "curve_factor")
        for name in (trace_key(line, i) for line in lines):
            updates[name] = {key: array[chosen] for key, array in updates[name].items()}
    band = updates["surface_plateau"]
    stride = 1 + len(band["x"]) // MAX_STEPS
    chosen = np.isnan(band["x"]) | (np.arange(len(band["x"])) % stride == 0)
    updates["surface_plateau"] = {key: array[chosen] for key, array in band.items()}
    return updates


def _lift(name: str) -> float:
    """Return the fraction of the loss axis by which the page raises a trace."""
    lifts = {"surface_trajectory": LINE_LIFT, "surface_casing": CASING_LIFT, "surface_plateau": LINE_LIFT / 2}
    return lifts.get(name.partition("-")[0], 0.0)


def _curve_updates(run_set: RunSet, plateaus: Sequence[Plateau], drawn: ChosenRows) -> Updates:
    curves = [(run.step[rows], run.loss[rows]) for run, rows in zip(run_set.runs, drawn, strict=True)]
    return curve_update(curves, plateaus)


def _encode_common(
    run_set: RunSet,
    plateaus: Sequence[Plateau],
    drawn: ChosenRows,
    store: ArrayStore,
    limits: tuple[float, float] | None,
) -> dict[str, Any]:
    """Encode the updates that are the same for every landscape and step."""
    updates = _curve_updates(run_set, plateaus, drawn)
    del updates["curve_layout"]  # each landscape has its own
    if limits:
        updates |= fit_update(*_task_points(run_set), limits=limits)
    return {name: store.encode(values) for name, values in updates.items()}


def _task_points(run_set: RunSet) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the task that all runs share."""
    task = run_set.runs[0].task
    assert task is not None
    return task.to_numpy()


def _write_notes(variants: LandscapeVariants, drawn: ChosenRows, outputs: ChosenRows | None) -> list[str]:
    """Return sentences on how this page was made."""
    run_set, notes = variants.run_set, []
    if len(variants.landscapes) > 1:
        notes.append("All surfaces have the loss axis of the one shown first, extended where one needs it.")
    n_drawn, n_rows = sum(map(len, drawn)), len(run_set)
    if n_drawn < n_rows:
        notes.append(f"{n_drawn:,} of {n_rows:,} recorded steps are drawn, spread half by arc length and half by time.")
    if outputs and (n_outputs := sum(map(len, outputs))) < n_drawn:
        notes.append(f"Network outputs are stored at {n_outputs:,} steps; the one nearest to the ball is shown.")
    return [*notes, "Numbers were computed in float64 and are stored in float32, where that has such numbers."]
