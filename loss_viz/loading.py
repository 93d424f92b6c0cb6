"""Open a run that was saved to a file, here or on another machine."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .archive import read_archive
from .objective import LossFn, Objective
from .tasks import ACTIVATIONS, Task, build_mlp
from .trajectory import Run

RTOL = 1e-3  # two machines differ by rounding, two losses by far more


def load_run(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    loss_fn: LossFn | None = None,
    *,
    device: str | torch.device | None = None,
) -> Run:
    """Open a file that `Run.save` wrote.

    A run from `train` needs nothing else: its network is built from the settings in the file and its task is in it.
    Code is not stored in files, so a run of your own needs its model and loss once more.

    Args:
        path: of the file.
        model: built as it was when the run was recorded.
        loss_fn: the loss that was recorded.
        device: where to evaluate the loss.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no run, the model or the loss is missing, the model has other parameters, or the
            loss gives other numbers than the run has.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     lv.train("x^2", steps=20, progress=False).save(f"{folder}/run.safetensors")
        ...     run = load_run(f"{folder}/run.safetensors")
        >>> run.objective(run.weights[:1]).round(6) == run.loss[:1].round(6)
        array([ True])
    """
    arrays, facts = read_archive(path)
    try:
        weights, loss, step = (arrays[name] for name in ("weights", "loss", "step"))
        parameters = [(str(name), tuple(shape)) for name, shape in facts["parameters"]]
        task = None if facts["task"] is None else _read_task(arrays, str(facts["task"]))
        settings, note, name = dict(facts["settings"]), str(facts["note"]), str(facts["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the whole of a run: {error} in it is missing or wrong. Write it anew with run.save."
        ) from error
    if model is None and task is not None:
        model = _rebuild_model(settings, parameters, torch.from_numpy(weights).dtype)
    loss_fn = loss_fn or (task.loss if task else None)
    if model is None or loss_fn is None:
        missing = "model" if model is None else "loss"
        raise ValueError(
            f"{path} does not hold the {missing}, which is code of your own. Pass it, as in "
            "load_run(path, model, loss_fn)."
        )
    objective = Objective(model, loss_fn, device=device)
    _require_parameters(path, objective, parameters)
    buffers = arrays.get("buffers")
    run = Run(weights, loss, step, objective, task=task, note=note, buffers=buffers, name=name, settings=settings)
    _require_loss(path, run)
    return run


def _read_task(arrays: Mapping[str, np.ndarray], name: str) -> Task:
    return Task(name, *(torch.from_numpy(arrays[f"task.{axis}"]) for axis in "xy"))


def _rebuild_model(
    settings: Mapping[str, Any], parameters: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype
) -> nn.Module | None:
    """The perceptron of the settings; None where they do not describe the one that was recorded."""
    depth, activation = len(parameters) // 2 - 1, str(settings.get("activation"))
    width = parameters[0][1][0] if parameters and parameters[0][1] else 0
    if activation not in ACTIVATIONS or depth < 1 or width < 1:
        return None
    return build_mlp(width=width, depth=depth, activation=activation, dtype=dtype, seed=0)


def _require_parameters(
    path: str | os.PathLike[str], objective: Objective, parameters: list[tuple[str, tuple[int, ...]]]
) -> None:
    own = [(entry.name, entry.shape) for entry in objective.layout.entries]
    if own != parameters:
        pairs = zip([*own, None], [*parameters, None], strict=False)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"`model` must be the one whose run is in {path}: the file has {there} where `model` has {here}. Build it "
            "as it was when the run was recorded, with the same parameters trainable."
        )


def _require_loss(path: str | os.PathLike[str], run: Run) -> None:
    rows = np.unique(np.linspace(0, len(run) - 1, 3).astype(int))
    losses = run.objective(run.weights[rows], None if run.buffers is None else run.buffers[rows])
    if not np.allclose(losses, run.loss[rows], rtol=RTOL):
        raise ValueError(
            f"`loss_fn` must be the loss whose run is in {path}: at step {run.step[rows[0]]} it gives {losses[0]:.4g}, "
            f"the run has {run.loss[rows[0]]:.4g}; at the end {losses[-1]:.4g} and {run.loss[-1]:.4g}. "
            "Use the same data."
        )
