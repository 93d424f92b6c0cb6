"""Make the landscape of an exported file again."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from loss_viz.landscapes.compute import landscape
from loss_viz.landscapes.landscape import Landscape
from loss_viz.landscapes.provenance import DTYPES, _require_whole, read_settings
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs
from loss_viz.runs.training import train

RTOL = 1e-3  # two machines differ by rounding, two runs by far more


def reproduce(
    settings: str | os.PathLike[str] | Mapping[str, Any], *, runs: Runs | None = None, progress: bool = True
) -> Landscape:
    """Make the landscape of an exported file again: train what was trained, and draw the same planes.

    Args:
        settings: a file that was exported, or what `read_settings` says of it.
        runs: the runs that it was of, for those that `train` cannot make again: runs of your own, as `load_run` opens
            them.
        progress: show progress bars.

    Returns:
        The landscape. Where the runs come out otherwise, as after an update of PyTorch or on another machine they
        may, a warning says so.

    Raises:
        ValueError: a run that `train` cannot make, or no settings in the file.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> again = reproduce(land.settings, progress=False)
        >>> bool((again.loss == land.loss).all())
        True
    """
    told = settings if isinstance(settings, Mapping) else read_settings(settings)
    _require_whole(told)
    if runs is None:
        made = [_train_again(run, progress) for run in told["runs"]]
        names = [run["name"] for run in told["runs"]]
        runs = dict(zip(names, made, strict=True)) if any(names) else made
    view = told["landscape"]
    n_x, n_y = view["resolution"]
    again = landscape(runs, **view | {"resolution": (n_x, n_y)}, progress=progress)
    _compare(again, told)
    return again


def _train_again(told: Mapping[str, Any], progress: bool) -> Run:
    if told["train"] is None:
        name = told["name"] or told["task"] or "of this file"
        raise ValueError(
            f"The run {name!r} is none that `train` can make again from settings: its model, function or optimizer "
            "was code. Pass it, as in reproduce(path, runs=load_run(...))."
        )
    return train(**told["train"] | {"dtype": DTYPES[told["train"]["dtype"]]}, progress=progress)


def _compare(again: Landscape, told: Mapping[str, Any]) -> None:
    for run, was in zip(again.settings["runs"], told["runs"], strict=True):
        if run["n_rows"] != was["n_rows"] or not np.allclose(run["loss"], was["loss"], rtol=RTOL):
            warnings.warn(
                f"The run came out otherwise: loss {run['loss'][0]:.4g} to {run['loss'][1]:.4g} in {run['n_rows']} "
                f"rows, where it was {was['loss'][0]:.4g} to {was['loss'][1]:.4g} in {was['n_rows']}. It was made with "
                f"torch {told['torch']}, here is {torch.__version__}.",
                RuntimeWarning,
                stacklevel=3,
            )
    if not told["complete"]:
        warnings.warn(
            "The landscape of this file was interrupted, and on fewer points than this one.",
            RuntimeWarning,
            stacklevel=3,
        )
