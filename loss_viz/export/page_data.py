"""What the page of `export_html` shows, in plain values: the parts of every picture, and what its ball needs."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from loss_viz.diagnostics.report import PlateauSummary, Report, summarize_plateaus, write_factor
from loss_viz.export.variants import LandscapeVariants
from loss_viz.figures.live import (
    CLICK_REACH,
    Updates,
    ViewState,
    build_templates,
    curve_update,
    fit_update,
    path_update,
    summarize,
    trace_key,
    update_all,
)
from loss_viz.figures.loss_axis import LINE_LIFT, Scale, fit_scale
from loss_viz.figures.traces import ball_arrays
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.planes.local_planes import choose_anchors
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import to_script

N_ROWS = 8000  # steps of all runs together that are drawn, spread like anchors where there are more

N_FRAMES = 200  # likewise, at which the ball stops when it rolls

N_ANSWERS = 2**18  # of the networks at all points and steps: at 100 points 2621 steps

FINEST = 2**16 - 1

FLAT = Scale(0.0, 0.0, log=False)  # nothing is lifted on it: the page does that, on the scale of each picture

ChosenRows = Sequence[Int[np.ndarray, " _"]]  # of each run some of its rows


class ArrayStore:
    """The arrays of a page, each of which is in it once.

    Numbers with a fraction become float32, which keeps seven digits; whole ones take the least room they can.

    Example:
        >>> store = ArrayStore()
        >>> store.keep(np.arange(3)), store.keep(np.zeros(2)), store.keep(np.arange(3))
        (0, 1, 0)
        >>> store.arrays[0]
        {'dtype': 'uint8', 'shape': [3], 'base64': 'AAEC'}
    """

    def __init__(self) -> None:
        self.arrays: list[dict[str, Any]] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def keep(self, array: np.ndarray) -> int:
        """The number under which the page finds an array."""
        whole = array.dtype.kind in "iu"
        with np.errstate(over="ignore"):  # what the page has no number for stays open there
            array = array.astype(np.min_scalar_type(int(array.max(initial=0))) if whole else np.float32)
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            text = base64.b64encode(key[2]).decode()
            self.arrays.append({"dtype": key[0], "shape": list(array.shape), "base64": text})
        return self._known[key]

    def encode(self, values: Mapping[str, Any], lift: float = 0.0) -> dict[str, Any]:
        """The values of a part, with numbers in place of their arrays; the page is to lift its losses by a share."""
        encoded: dict[str, Any] = {}
        for name, value in values.items():
            if name == "rgba":  # a few hundred colours, and how much of them is left
                colors, index = np.unique(value[:, :3], axis=0, return_inverse=True)
                pieces = {"colors": colors, "index": index.ravel(), "left": value[:, 3]}
                encoded[name] = {piece: self.keep(array) for piece, array in pieces.items()}
            elif name == "z" and lift:
                encoded[name] = {"losses": self.keep(value), "lift": lift}
            elif name == "customdata":
                encoded[name] = {"columns": [self.keep(column) for column in value.T]}
            elif name == "line.color":  # from 0 to 1, of which the eye sees no finer steps
                encoded |= {name: {"array": self.keep(np.rint(255 * value).astype(int))}, "line.cmax": 255}
            else:
                encoded[name] = {"array": self.keep(value)} if isinstance(value, np.ndarray) else value
        return encoded


def page_data(variants: LandscapeVariants, step: int | None) -> dict[str, Any]:
    """All that the page knows, ready for JSON.

    Args:
        variants: the pictures.
        step: the training step at which the ball lies at first; None for the last one.

    Raises:
        ValueError: the step lies outside all runs.

    Example:
        >>> import loss_viz as lv
        >>> from loss_viz.export.variants import compute_variants
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> sheet = page_data(compute_variants(run, k=[5], sigma=["auto", 0.06], resolution=(9, 7), progress=False), 30)
        >>> [picture["sigma"] for picture in sheet["pictures"]], sheet["step"]
        (['auto', 0.06], 30)
    """
    run_set, opening, store = variants.run_set, variants.opening, ArrayStore()
    plateau_summary, kept = summarize_plateaus(run_set), sample_rows(run_set, N_ROWS)
    first = max(int(run_set.step[row]) for row in run_set.find_rows(step))
    panes = build_templates(replace(run_set, names=tuple(escape(name, quote=False) for name in run_set.names)))
    fits = _keep_fits(run_set, store) if "fit" in panes else None
    sheet = {
        "panes": {
            name: json.loads(pane.to_json(remove_uids=False)) for name, pane in panes.items() if name != "beside"
        },
        "k": variants.k,
        "sigma": variants.sigma,
        "first": variants.first,
        "step": first if step is None else step,
        "steps": [run_set.first_step, run_set.last_step],
        "frames": np.unique(_list_steps(run_set, sample_rows(run_set, N_FRAMES))).tolist(),
        "runs": _keep_runs(opening, kept, store),
        "pictures": _keep_pictures(variants, plateau_summary, kept, store),
        "ball": store.encode(_shape_ball(opening)),
        "stays": _keep_stays(plateau_summary, store) if len(run_set.runs) == 1 else [],
        "fits": fits,
        "reach": CLICK_REACH * opening.projection.diagonal,
        "variance": [f"{opening.explained_variance_ratio.sum():.1%}", "no measure of fidelity"],
        "summary": summarize(run_set, plateau_summary.plateaus),
        "recipe": to_script(opening.settings),
    }
    sheet["notes"] = _write_notes(variants, kept, fits)
    return sheet | {
        "parts": _keep_common(run_set, fits is not None, plateau_summary, kept, store),
        "arrays": store.arrays,
    }


def sample_rows(run_set: RunSet, n_most: int) -> ChosenRows:
    """Rows of each run, all of them or as many as its share of `n_most`, half by arc length and half by time."""
    share = max(2, n_most // len(run_set.runs))
    return [np.arange(len(run)) if len(run) <= share else choose_anchors(run.weights, share) for run in run_set.runs]


def choose_scales(landscapes: Sequence[Landscape], first: int, *, log: bool) -> list[Scale]:
    """The loss axis of each picture: that of the first, and longer where a picture would not fit on it.

    So the run stays where it is from one picture to the next, and heights can be compared, wherever that is possible.

    Raises:
        ValueError: `log=True` with a loss that is not positive.
    """
    own = [fit_scale([land.loss, land.path_loss], log=log) for land in landscapes]
    return [Scale(min(scale.low, own[first].low), max(scale.high, own[first].high), log) for scale in own]


def _list_steps(run_set: RunSet, kept: ChosenRows) -> Int[np.ndarray, " n"]:
    return np.concatenate([run.step[rows] for run, rows in zip(run_set.runs, kept, strict=True)])


def _keep_runs(landscape: Landscape, kept: ChosenRows, store: ArrayStore) -> list[dict[str, Any]]:
    run_set, projection = landscape.run_set, landscape.projection
    names = run_set.names if len(run_set.runs) > 1 else ("",)
    runs = []
    for name, rows, chosen in zip(names, run_set.rows, kept, strict=True):
        x, y = projection.path[rows].T
        off = projection.off_plane[rows] / projection.diagonal
        arrays = {"step": run_set.step[rows], "loss": run_set.loss[rows], "x": x, "y": y, "off": off}
        runs.append({"name": name, **store.encode({key: array[chosen] for key, array in arrays.items()})})
    return runs


def _keep_pictures(
    variants: LandscapeVariants, plateau_summary: PlateauSummary, kept: ChosenRows, store: ArrayStore
) -> list[dict[str, Any]]:
    axes = {"linear": choose_scales(variants.landscapes, variants.first, log=False)}
    with suppress(ValueError):  # a loss that has no logarithm
        axes["log"] = choose_scales(variants.landscapes, variants.first, log=True)
    pictures = []
    for i, (land, report) in enumerate(zip(variants.landscapes, variants.report, strict=True)):
        drawn = {}
        for kind, scales in axes.items():
            parts = _compose(land, report, scales[i], plateau_summary, kept, first=i == variants.first)
            drawn[kind] = {
                "scale": [scales[i].low, scales[i].high],
                "parts": {name: store.encode(values, _find_lift(name)) for name, values in parts.items()},
            }
        of_runs = [
            store.encode({"height": land.path_height[rows][chosen], "factor": report.fit.factor[rows][chosen]})
            for rows, chosen in zip(variants.run_set.rows, kept, strict=True)
        ]
        said = {"k": land.k, "sigma": land.sigma, "tiles": _write_tiles(report), "cautions": report.cautions}
        pictures.append(said | {"runs": of_runs, "axes": drawn})
    return pictures


def _compose(
    land: Landscape, report: Report, scale: Scale, plateau_summary: PlateauSummary, kept: ChosenRows, *, first: bool
) -> Updates:
    """The panel's parts of a picture, of the kept rows alone."""
    run_set = land.run_set
    surface = Surface(land.x, land.y, land.loss, land.support, land.n_evaluations)
    frame = ViewState(run_set, land.projection, surface, land.path_height, scale, land, None, report)
    parts = update_all(frame, land.sampling, {"min_support": 0.0, "sigma": land.sigma}, plateau_summary, first=first)
    parts |= path_update(run_set, land.projection, land.path_height, FLAT, plateau_summary.plateaus)
    parts["curve_layout"] = _draw_curves(run_set, plateau_summary, kept)["curve_layout"] | parts["curve_layout"]
    for i, chosen in enumerate(kept):
        for name in (f"surface_{trace_key('trajectory', i)}", f"curve_{trace_key('factor', i)}"):
            parts[name] = {key: array[chosen] for key, array in parts[name].items()}
    band = parts["surface_plateau"]
    every = 1 + len(band["x"]) // N_ROWS
    stays_in = np.isnan(band["x"]) | (np.arange(len(band["x"])) % every == 0)
    parts["surface_plateau"] = {key: array[stays_in] for key, array in band.items()}
    return parts


def _find_lift(name: str) -> float:
    return LINE_LIFT if name.startswith("surface_trajectory") else LINE_LIFT / 2 if name == "surface_plateau" else 0.0


def _draw_curves(run_set: RunSet, plateau_summary: PlateauSummary, kept: ChosenRows) -> Updates:
    curves = [(run.step[rows], run.loss[rows]) for run, rows in zip(run_set.runs, kept, strict=True)]
    return curve_update(curves, plateau_summary.plateaus, None)


def _keep_common(
    run_set: RunSet, fits: bool, plateau_summary: PlateauSummary, kept: ChosenRows, store: ArrayStore
) -> dict[str, Any]:
    """The parts that are the same in every picture and at every step."""
    parts = _draw_curves(run_set, plateau_summary, kept)
    del parts["curve_layout"]  # every picture has its own
    if fits:
        parts |= {"fit_target": fit_update(*_tabulate(run_set), [], 0)["fit_target"]}
    return {name: store.encode(values) for name, values in parts.items()}


def _tabulate(run_set: RunSet) -> tuple[np.ndarray, np.ndarray]:
    task = run_set.runs[0].task
    assert task is not None
    x, y = (values.ravel().double().cpu().numpy() for values in (task.x, task.y))
    return x, y


def _spread_fits(run_set: RunSet) -> ChosenRows:
    return sample_rows(run_set, N_ANSWERS // len(_tabulate(run_set)[0]))


def _keep_fits(run_set: RunSet, store: ArrayStore) -> dict[str, Any]:
    """What the networks answer at some steps of theirs."""
    x, _ = _tabulate(run_set)
    runs = []
    for run, rows in zip(run_set.runs, _spread_fits(run_set), strict=True):
        answers = np.stack([run.predict(row) for row in rows.tolist()])
        low, span = float(answers.min()), float(np.ptp(answers)) or 1.0
        levels = np.rint(FINEST * (answers - low) / span).astype(int)  # far finer than a pixel
        runs.append({**store.encode({"step": run.step[rows], "levels": levels}), "low": low, "unit": span / FINEST})
    return {**store.encode({"x": x}), "runs": runs}


def _keep_stays(plateau_summary: PlateauSummary, store: ArrayStore) -> list[dict[str, Any]]:
    """Where the only run lies still, and what its network has learned there."""
    told = []
    for plateau, level in zip(plateau_summary.plateaus, plateau_summary.levels, strict=True):
        learned = None
        if level:
            learned = {"name": level.name, "loss": f"{level.loss:.3g}", **store.encode({"y": level.values})}
        told.append({"start": plateau.start, "end": plateau.end, "loss": f"{plateau.level:.3g}", "level": learned})
    return told


def _write_tiles(report: Report) -> list[list[str]]:
    measured = {"error, median": report.fit} | ({"held out": report.held_out} if report.held_out else {})
    return [[name, write_factor(fit.median), f"p90 {write_factor(fit.p90)}"] for name, fit in measured.items()]


def _write_notes(variants: LandscapeVariants, kept: ChosenRows, fits: Mapping[str, Any] | None) -> list[str]:
    """Small print on this very page, in sentences."""
    run_set = variants.run_set
    notes = ["All pictures have the loss axis of the one shown first, made longer where one needs it."]
    notes = notes if len(variants.landscapes) > 1 else []
    n_kept, n_rows = sum(map(len, kept)), len(run_set)
    if n_kept < n_rows:
        notes.append(f"{n_kept:,} of {n_rows:,} recorded steps are drawn, spread half by the way and half by time.")
    if fits and (n_fits := sum(map(len, _spread_fits(run_set)))) < n_kept:
        notes.append(f"Networks are kept at {n_fits:,} steps, and shown at those nearest to the ball.")
    notes.append("Numbers were computed in float64 and are kept in float32.")
    largest = float(np.finfo(np.float32).max)
    if any((np.abs(land.loss[np.isfinite(land.loss)]) > largest).any() for land in variants.landscapes):
        notes.append(f"Losses above {largest:.1e}, for which it has no number, are left open.")
    return notes


def _shape_ball(landscape: Landscape) -> dict[str, np.ndarray]:
    """The ball at (0, 0) on the plane, and the shares of the loss axis by which it stands above its loss."""
    extent = np.array([np.ptp(landscape.x), np.ptp(landscape.y)])
    return ball_arrays(np.zeros(2), 0.0, extent, Scale(0.0, 1.0, log=False))
