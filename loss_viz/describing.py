"""What a landscape was made with, in plain values: whoever has them can make it again."""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from .optimizers import OPTIMIZERS
from .surveys import Survey, lay_anew
from .tasks import ACTIVATIONS, build_task
from .trajectory import Run

FORMAT, VERSION = "loss_viz settings", 1
TRAINED_WITH = ("target", "width", "depth", "activation", "optimizer", "lr", "seed")


def describe_settings(around: Survey, sigma: float | str) -> dict[str, Any]:
    """All that a landscape depends on, ready for JSON. `Landscape.settings` is this.

    Args:
        around: the survey of its runs.
        sigma: bandwidth as it was asked for.

    Returns:
        `"landscape"` holds the arguments of `loss_viz.landscape`, and `"train"` of each of the `"runs"` those of
        `loss_viz.train` (None for a run that it cannot make again: one of your own, or of a function that is no
        formula). Beside them stands what tells whether it came out alike, such as the first and the last loss.
        `"complete"` is False where the grid is that of a landscape which was interrupted.
    """
    resolution = len(around.x), len(around.y)
    whole = lay_anew(around, resolution)
    return _make_plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "loss_viz": version("loss_viz"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "runs": [
                _describe_run(run, name) for run, name in zip(around.bundle.runs, around.bundle.names, strict=True)
            ],
            "landscape": {
                "k": around.k,
                "sigma": sigma,
                "resolution": resolution,
                "plane": around.plane,
                "n_anchors": around.n_anchors,
                "seed": around.seed,
            },
            "complete": np.array_equal(whole.x, around.x) and np.array_equal(whole.y, around.y),
        }
    )


def to_json(settings: Mapping[str, Any]) -> str:
    r"""One line of JSON in plain ASCII, and without `<`: it can stand in a file's comment, in a header or in a page.

    Example:
        >>> to_json({"name": "σ < 1", "lr": float("nan")})
        '{"name": "\\u03c3 \\u003c 1", "lr": "nan"}'
    """
    return json.dumps(_make_plain(settings), allow_nan=False).replace("<", r"\u003c")


def _describe_run(run: Run, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "task": run.task.name if run.task else None,
        "train": _trace_training(run),
        "settings": run.settings,
        "n_params": run.objective.n_params,
        "n_rows": len(run),
        "step": run.step[[0, -1]],
        "loss": run.loss[[0, -1]],
        "note": run.note,
    }


def _trace_training(run: Run) -> dict[str, Any] | None:
    """The arguments with which `train` makes the same run; None where there are none."""
    given, task = run.settings, run.task
    if task is None or len(run) < 2 or not all(name in given for name in TRAINED_WITH):
        return None
    if given["activation"] not in ACTIVATIONS or given["optimizer"] not in OPTIMIZERS:
        return None
    n_points, every, last = len(task.x), int(run.step[1] - run.step[0]), int(run.step[-1])
    try:
        again = build_task(given["target"], n_points=n_points, dtype=task.x.dtype)
    except (TypeError, ValueError):  # a function has a name too, but it is no formula
        return None
    recorded = np.union1d(np.arange(0, last, every), last)
    if not (torch.equal(again.y, task.y.cpu()) and np.array_equal(recorded, run.step)):
        return None
    dtype = str(task.x.dtype).removeprefix("torch.")
    more = {"steps": last, "n_points": n_points, "every": every, "dtype": dtype}
    return {name: given[name] for name in TRAINED_WITH} | more


def _make_plain(value: Any) -> Any:
    """What JSON can hold; other things, infinities among them, are put in words."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _make_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
