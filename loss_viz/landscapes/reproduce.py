"""Make the landscape of an exported file again."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from loss_viz.landscapes.compute import landscape
from loss_viz.landscapes.landscape import Landscape
from loss_viz.landscapes.provenance import DTYPES, check_settings, read_settings
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs
from loss_viz.runs.training import train
from loss_viz.settings import OWN_VECTOR, as_tuples

RTOL = 1e-3  # machines differ by rounding, runs by far more


def reproduce(
    settings: str | os.PathLike[str] | Mapping[str, Any], *, runs: Runs | None = None, progress: bool = True
) -> Landscape:
    """Make the landscape of an exported file again: repeat the training, and use the same settings.

    Args:
        settings: path of an exported file, or `Landscape.settings`.
        runs: the runs, if `train` cannot make them again: your own, as `load_run` returns them.
        progress: show progress bars.

    Returns:
        The landscape. A warning is given if the runs differ from the original ones, which may happen after an update of
        PyTorch or on another machine. A file of version 0.1 is drawn with `blend="losses"` and the kernels of today.

    Raises:
        ValueError: if the file holds no settings, or `train` cannot make a run again and `runs` is None.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> again = reproduce(land.settings, progress=False)
        >>> bool((again.loss == land.loss).all())
        True
    """
    saved = settings if isinstance(settings, Mapping) else read_settings(settings)
    check_settings(saved)
    if runs is None:
        trained = [_train_again(run, progress) for run in saved["runs"]]
        names = [run["name"] for run in saved["runs"]]
        runs = dict(zip(names, trained, strict=True)) if any(names) else trained
    chosen = saved["landscape"]
    if OWN_VECTOR in chosen["axes"]:
        raise ValueError(
            "The axes of this landscape were vectors of your own, which a file does not hold. Call landscape(runs, "
            "axes=(u, v)) with them."
        )
    again = landscape(runs, **{name: as_tuples(value) for name, value in chosen.items()}, progress=progress)
    _compare(again, saved)
    return again


def _train_again(saved: Mapping[str, Any], progress: bool) -> Run:
    given = saved["train"]
    if given is None:
        name = saved["name"] or saved["task"] or "of this file"
        raise ValueError(
            f"`train` cannot make the run {name!r} again from its settings: its model, function, optimizer or "
            "schedule was code. Pass it, as in reproduce(path, runs=load_run(...))."
        )
    return train(**given | {"dtype": DTYPES[given["dtype"]]}, progress=progress)


def _compare(again: Landscape, saved: Mapping[str, Any]) -> None:
    for run, was in zip(again.settings["runs"], saved["runs"], strict=True):
        if run["n_rows"] != was["n_rows"] or not np.allclose(run["loss"], was["loss"], rtol=RTOL):
            warnings.warn(
                f"The run differs from the original: loss {run['loss'][0]:.4g} to {run['loss'][1]:.4g} in "
                f"{run['n_rows']} rows, was {was['loss'][0]:.4g} to {was['loss'][1]:.4g} in {was['n_rows']}. The "
                f"original was made with torch {saved['torch']}, this is {torch.__version__}.",
                RuntimeWarning,
                stacklevel=3,
            )
    if not saved["complete"]:
        warnings.warn(
            "The original landscape was interrupted: it has fewer points than this one.",
            RuntimeWarning,
            stacklevel=3,
        )
