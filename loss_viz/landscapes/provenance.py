"""The settings of a landscape in plain values, and reading them back from an exported file."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import OWN_VECTOR, TRAINING, Axes, LandscapeSettings, TrainSettings, to_plain
from loss_viz.tasks.networks import ACTIVATIONS
from loss_viz.tasks.optimizers import OPTIMIZERS, SCHEDULERS
from loss_viz.tasks.regression import build_task

FORMAT, VERSION = "loss_viz settings", 2
# What version 1 called a plane, in today's words. Its surfaces were averages of losses, with narrower kernels.
OLD_PLANES: Mapping[str, Mapping[str, str]] = {
    "local": {"plane": "local"},
    "parallel": {"plane": "parallel"},
    "global": {"plane": "flat", "center": "mean"},
    "final": {"plane": "flat", "center": "last"},
    "random": {"plane": "flat", "axes": "random"},
    "hessian": {"plane": "flat", "axes": "hessian"},
    "saddle": {"plane": "flat", "axes": "saddle"},
}
TRAINED_WITH = tuple(name for name in TRAINING if name != "steps")


def describe_settings(run_set: RunSet, settings: LandscapeSettings, *, complete: bool) -> dict[str, Any]:
    """Describe everything a landscape depends on, ready for JSON: the value of `Landscape.settings`.

    Args:
        run_set: the runs.
        settings: arguments of `loss_viz.landscape`, with the resolution as `(n_x, n_y)`.
        complete: False if the landscape was interrupted, so that its grid is coarser than the one requested.

    Returns:
        `"landscape"` holds the arguments of `loss_viz.landscape`, and `"train"` of each of the `"runs"` those of
        `loss_viz.train` (None if `train` cannot make the run again: one of your own, or one of a Python function). The
        other entries, such as the first and last loss, serve to check a reproduction.
    """
    return to_plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "loss_viz": version("loss_viz"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "runs": [_describe_run(run, name) for run, name in zip(run_set.runs, run_set.names, strict=True)],
            "landscape": asdict(replace(settings, axes=_name_axes(settings.axes))),
            "complete": complete,
        }
    )


def _name_axes(axes: Axes) -> Any:
    """Return the words of the axes; vectors are too long to be kept with every picture."""
    return axes if isinstance(axes, str) else tuple(axis if isinstance(axis, str) else OWN_VECTOR for axis in axes)


def _describe_run(run: Run, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "task": run.task.name if run.task else None,
        "train": _infer_training(run),
        "settings": run.settings,
        "n_params": run.objective.n_params,
        "n_rows": len(run),
        "step": run.step[[0, -1]],
        "loss": run.loss[[0, -1]],
        "note": run.note,
    }


def _infer_training(run: Run) -> dict[str, Any] | None:
    """Return the arguments with which `train` makes the same run; None if there are none."""
    given, task = run.settings, run.task
    if task is None or len(run) < 2 or not all(name in given for name in TRAINED_WITH):
        return None
    if given["activation"] not in ACTIVATIONS or given["optimizer"] not in OPTIMIZERS:
        return None
    scheduler = given.get("scheduler")
    if scheduler is not None and str(scheduler) not in SCHEDULERS:
        return None
    n_points, every, first, last = len(task.x), int(run.step[1] - run.step[0]), run.step[0], int(run.step[-1])
    try:
        again = build_task(given["target"], n_points=n_points, dtype=task.x.dtype)
    except (TypeError, ValueError):  # the name of a Python function is not a formula
        return None
    recorded = np.union1d(np.arange(0, last, every), last)  # of which the landscape may show a part
    if not (torch.equal(again.y, task.y.cpu()) and np.array_equal(recorded[recorded >= first], run.step)):
        return None
    dtype = str(task.x.dtype).removeprefix("torch.")
    # A schedule depends on the number of updates that were asked for, of which there may be fewer.
    steps = last if scheduler is None else given.get("steps", last)
    more = {"steps": steps, "n_points": n_points, "every": every, "dtype": dtype, "scheduler": scheduler}
    return {name: given[name] for name in TRAINED_WITH} | more


START = f'{{"format": "{FORMAT}"'.encode()
READ_BLOCK = 2**20
MAX_SETTINGS_BYTES = 2**24
TRAIN_KEYS = {row.name for row in fields(TrainSettings)}
LANDSCAPE_KEYS = {row.name for row in fields(LandscapeSettings)}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings from an exported file: an image, film, table or page, or any other that holds their JSON.

    Returns:
        The value of `Landscape.settings`; for an image also `"export"`, the function that wrote it, and `"view"`, its
        arguments.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no settings, or those of a later version.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "settings.json"
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> _ = path.write_text(land.to_json(), encoding="utf-8")
        >>> read_settings(path) == land.settings
        True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Pass the path of a picture or a table of loss_viz.")
    try:
        settings, _ = json.JSONDecoder().raw_decode(_read_settings_block(path).decode("latin-1"))
        saved_version = settings.get("version")
    except (ValueError, RecursionError):
        settings, saved_version = {}, VERSION
    if saved_version not in (1, VERSION):
        raise ValueError(
            f"{path} holds settings of version {str(saved_version)[:20]}, this is version {VERSION}. Install the "
            "loss_viz that wrote it, or a later one."
        )
    if not (isinstance(settings.get("runs"), list) and isinstance(settings.get("landscape"), dict)):
        raise ValueError(
            f"{path} holds no settings of loss_viz, or only a part of them. Pass the file as it was exported; "
            "converting it to another format loses them."
        )
    return _upgrade(settings, path) if saved_version == 1 else settings


def _upgrade(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return settings of version 1 in the words of this one."""
    old = settings["landscape"]
    name = str(old.get("plane"))
    plane = OLD_PLANES.get(name)
    if plane is None:
        raise ValueError(
            f"{path} holds settings with `plane`={name[:20]!r}, which this version does not draw any more. Draw the "
            "landscape with axes=('PC1', 'sharpest') for the walls of the valley."
        )
    landscape = asdict(LandscapeSettings()) | old | plane
    landscape["blend"] = "losses" if plane["plane"] != "flat" else "planes"
    return settings | {"version": VERSION, "landscape": landscape}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless settings have all entries that `reproduce` uses; their values are checked on use."""
    try:
        chosen = settings["landscape"]
        complete = set(chosen) == LANDSCAPE_KEYS and np.shape(chosen["resolution"]) == (2,) and bool(settings["runs"])
        complete &= isinstance(chosen["axes"], str | list | tuple) and np.shape(chosen["steps"] or (0, 0)) == (2,)
        complete &= isinstance(settings["complete"], bool) and isinstance(settings["torch"], str)
        for run in settings["runs"]:
            given = run["train"]
            # Files before version 0.2 have no schedule.
            complete &= given is None or (set(given) | {"scheduler"} == TRAIN_KEYS and given["dtype"] in DTYPES)
            complete &= all(isinstance(run[name], str | None) for name in ("name", "task"))
            complete &= isinstance(run["n_rows"], int) and np.shape(run["loss"]) == (2,)
            complete &= np.asarray(run["loss"]).dtype.kind in "if"
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise ValueError(
            "`settings` must be those of a landscape, and whole: some are missing or of another type. Pass "
            "`Landscape.settings`, or the path of an exported file."
        )


def _read_settings_block(path: Path) -> bytes:
    """Return the content of a file from the start of its settings, without holding more than a block before them."""
    window, end = b"", 0
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        while block := file.read(READ_BLOCK):
            window, end = window[-len(START) :] + block, end + len(block)
            if (at := window.find(START)) >= 0:
                file.seek(max(end - len(window) + at - (start == b"GIF8"), 0))
                found = file.read(MAX_SETTINGS_BYTES)
                if start == b"%PDF":  # which puts a backslash before parentheses and backslashes
                    return re.sub(rb"\\(.)", rb"\1", found)
                return _join_blocks(found) if start == b"GIF8" else found
    return b""


def _join_blocks(data: bytes) -> bytes:
    """Return the comment of a GIF, which is stored in blocks, each preceded by its length."""
    at, parts = 0, []
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(parts)
