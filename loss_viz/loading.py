"""Open a run that was saved to a file, here or on another machine."""

import math
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from .archive import read_archive
from .arguments import quote, read_floats
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
        weights = read_floats("weights", weights, ("n_steps", "n_params"), advice="")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the whole of a run: {error} in it is missing or wrong. Write it anew with run.save."
        ) from error
    if model is None and task is not None:
        model = _rebuild_model(settings, parameters, weights.shape[1], task.x.dtype)
    if loss_fn is None and task is not None:
        loss_fn = task.loss
    if model is None or loss_fn is None:
        missing = "model" if model is None else "loss"
        raise ValueError(
            f"{path} does not hold the {missing}, which is code of your own. Pass it, as in "
            "load_run(path, model, loss_fn)."
        )
    try:
        objective = Objective(model, loss_fn, device=device)
    except RuntimeError as error:
        raise ValueError(
            f"`model` and `loss_fn` must go together, as they did in the run in {path}; PyTorch says: "
            f"{quote(error)}. Build both as they were then."
        ) from error
    _require_parameters(path, objective, parameters)
    buffers = arrays.get("buffers")
    run = Run(weights, loss, step, objective, task=task, note=note, buffers=buffers, name=name, settings=settings)
    _require_loss(path, run)
    return run


def _read_task(arrays: Mapping[str, np.ndarray], name: str) -> Task:
    return Task(name, *(torch.from_numpy(arrays[f"task.{axis}"]) for axis in "xy"))


def _rebuild_model(
    settings: Mapping[str, Any], parameters: list[tuple[str, tuple[int, ...]]], n_params: int, dtype: torch.dtype
) -> nn.Module | None:
    """The perceptron of the settings; None where they do not describe the one that was recorded."""
    depth, activation = len(parameters) // 2 - 1, str(settings.get("activation"))
    width = parameters[0][1][0] if parameters and parameters[0][1] else 0
    # A few words of a file may not claim any amount of memory.
    if activation not in ACTIVATIONS or not 0 < depth < n_params or parameters != _list_parameters(width, depth):
        return None
    if sum(math.prod(shape) for _, shape in parameters) != n_params:
        return None
    return build_mlp(width=width, depth=depth, activation=activation, dtype=dtype, seed=0)


def _list_parameters(width: Any, depth: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Names and shapes of the parameters of a perceptron, in their order."""
    sizes = [1, *[width] * depth, 1]
    layers = [(f"{2 * i}", n_in, n_out) for i, (n_in, n_out) in enumerate(pairwise(sizes))]
    return [part for i, n_in, n_out in layers for part in ((f"{i}.weight", (n_out, n_in)), (f"{i}.bias", (n_out,)))]


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
