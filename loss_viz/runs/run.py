"""The record of a run: the weights it passed through, the loss at each of them, and its file."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from tqdm.auto import tqdm

from loss_viz._validation import check_array, check_int, check_path, check_type, first_line
from loss_viz.objective.objective import LossFn, Objective
from loss_viz.runs.checkpoints import Checkpoints, check_frozen, find_checkpoints, holds
from loss_viz.runs.run_file import read_archive, write_archive
from loss_viz.runs.weights import WeightRows, row_blocks, take_rows
from loss_viz.tasks.networks import ACTIVATIONS, build_mlp
from loss_viz.tasks.regression import Task

MAX_STEP = 2**53  # every whole number up to this is a float, too


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded training run.

    Row t holds the weights before update `step[t]` and the loss **at** those weights; row 0 is the
    initialization. The arrays are read-only.

    Attributes:
        weights: `(n_steps, n_params)`, the trainable parameters in `model.parameters()` order; an array in float32 or
            float64, or `loss_viz.checkpoints.Checkpoints`, which reads the rows that it is asked for.
        loss: `(n_steps,)`, finite.
        step: `(n_steps,)`, number of updates made so far, increasing from one row to the next.
        objective: `objective(weights (n, n_params)) -> (n,)`, the loss anywhere in weight space.
        task: what was learned, where it is one of the built-in regressions.
        note: a sentence on how the run ended when it ended early, else empty.
        buffers: `(n_steps, n_buffers)`, the floating-point buffers of the model (the statistics of batch
            normalization) where they change; None where they are those of the model all along.
        name: what it is called in a legend.
        settings: how it was trained, in plain values, as far as that is known.

    Raises:
        TypeError: an attribute of another kind.
        ValueError: no row, shapes that do not belong together, values that are not finite, steps that do not increase.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=20, progress=False)
        >>> run.weights.shape, run.loss.shape, int(run.step[-1])
        ((21, 25), (21,), 20)
    """

    weights: WeightRows
    loss: Float[np.ndarray, " _"]
    step: Int[np.ndarray, " _"]
    objective: Objective
    task: Task | None = None
    note: str = ""
    buffers: WeightRows | None = None
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read()
        n_steps, n_params = self.weights.shape
        if not 0 < n_steps == len(self.loss) == len(self.step) or n_params != self.objective.n_params:
            raise ValueError(
                f"A run needs weights (n_steps, {self.objective.n_params}) and one loss and one step for each row; "
                f"got weights {self.weights.shape}, loss {self.loss.shape}, step {self.step.shape}. "
                "Record all three at the same moments."
            )
        if self.step[0] < 0 or self.step[-1] > MAX_STEP or (np.diff(self.step) < 1).any():
            raise ValueError(
                "`step` must count the updates made so far, from 0 or more and increasing from row to row. Number the "
                "rows with np.arange(len(weights)) where the steps are not known."
            )
        if self.buffers is not None and self.buffers.shape != (n_steps, self.objective.buffer_layout.n):
            raise ValueError(
                f"`buffers` must have shape {(n_steps, self.objective.buffer_layout.n)}, got {self.buffers.shape}. "
                "Record them at the same moments, or leave them out where they never change."
            )
        arrays = [
            array for array in (self.weights, self.buffers, self.loss, self.step) if isinstance(array, np.ndarray)
        ]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(
                "A run needs finite weights and losses; some are nan or inf. Keep the rows before the first one."
            )
        for array in arrays:
            array.setflags(write=False)

    def _read(self) -> None:
        """Take in what was given: whatever NumPy makes an array of numbers of is one."""
        advice = "Pass what `loss_viz.train`, a Recorder or `load_run` made."
        check_type("objective", self.objective, Objective, "an Objective", advice="Make one of the model and its loss.")
        check_type("task", self.task, (Task, type(None)), "a Task or None", advice=advice)
        check_type("settings", self.settings, Mapping, "a dict", advice="Leave it out where there are none.")
        for name in ("note", "name"):
            check_type(name, getattr(self, name), str, "a text", advice="Leave it out where there is none.")
        for name in ("weights", "buffers") if self.buffers is not None else ("weights",):
            rows = getattr(self, name)
            if isinstance(rows, np.ndarray | torch.Tensor) or not isinstance(rows, WeightRows):
                wide = check_array(name, rows, ("n_steps", "n"), advice="One row is one moment of the run.")
                object.__setattr__(self, name, wide)
        loss = check_array("loss", self.loss, ("n_steps",), advice="Pass one number for each row.")
        object.__setattr__(self, "loss", loss.astype(np.float64, copy=False))
        step = np.asarray(self.step)
        if step.dtype.kind not in "iu" or step.ndim != 1:
            raise TypeError(
                f"`step` must be whole numbers, one for each row; got {step.dtype} of shape {step.shape}. Number the "
                "rows with np.arange(len(weights)) where the steps are not known."
            )
        object.__setattr__(self, "step", step.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        name = f"{self.name or self.task.name!r}, " if self.task else f"{self.name}, " if self.name else ""
        ends = f"loss {self.loss[0]:.3g} -> {self.loss[-1]:.3g}"
        return f"Run({name}{len(self)} steps of {self.objective.n_params} weights, {ends})"

    @property
    def title(self) -> str:
        """What to call the run: its name, else its task; may be empty."""
        return self.name or (self.task.name if self.task else "")

    def state(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Return weights and buffers at one or several rows, as `objective(*run.state([0, 5]))` takes them."""
        return self.weights[rows], take_rows(self.buffers, rows)

    def nearest_row(self, step: float) -> int:
        """Return the recorded row closest to a training step; the earlier one of two."""
        return int(np.abs(self.step - step).argmin())

    def predict(self, row: int) -> Float[np.ndarray, " n_points"]:
        """What the network answers at the points of its task, with the weights of one recorded row.

        Raises:
            TypeError, ValueError: no row of the run; or it has no task, so that its inputs are not known.
        """
        if self.task is None:
            raise ValueError(
                "`predict` needs a run of a built-in task; this one has none. Call `run.objective.predict`."
            )
        row = check_int("row", row, -len(self), len(self) - 1, advice="The last one is -1.")
        weights, buffers = self.state(row)
        return self.objective.predict(weights, self.task.x, buffers).ravel().double().cpu().numpy()

    @property
    def model(self) -> nn.Module:
        """The network that was trained."""
        return self.objective.model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one file, which `load_run` opens on any machine.

        The file is in safetensors and describes itself: weights, losses, steps and buffers, names and shapes of the
        parameters, the task, the settings and the version. It is there in whole or not at all.

        Raises:
            TypeError: no path, or `settings` that are no plain values.
            ValueError: the weights are not in memory: their folder of checkpoints is the file.
            OSError: the folder is missing, or the disk is full.

        Example:
            >>> import loss_viz as lv
            >>> from tempfile import TemporaryDirectory
            >>> run = lv.train("x^2", steps=20, progress=False)
            >>> with TemporaryDirectory() as folder:
            ...     run.save(f"{folder}/run.safetensors")
            ...     again = lv.load_run(f"{folder}/run.safetensors")
            >>> again
            Run('x^2', 21 steps of 25 weights, loss 0.175 -> 0.0957)
        """
        path = check_path("path", path, advice="Pass one such as 'run.safetensors'.")
        if path.is_dir():
            raise ValueError(
                f"`path` must be a file to write, {path} is a folder. Add a name, as in 'run.safetensors'."
            )
        if isinstance(self.weights, Checkpoints):
            raise ValueError(
                f"The weights of this run lie in {self.weights.paths[0].parent}, which is all that it needs. Copy that "
                "folder, and open it with Run.from_checkpoints(model, loss_fn, folder)."
            )
        arrays = {"weights": self.weights[:], "loss": self.loss, "step": self.step}
        if self.buffers is not None:
            arrays["buffers"] = self.buffers[:]
        if self.task is not None:
            arrays |= {"task.x": self.task.x.cpu().numpy(), "task.y": self.task.y.cpu().numpy()}
        write_archive(
            path,
            arrays,
            {
                "loss_viz": version("loss_viz"),
                "torch": torch.__version__,
                "parameters": [[entry.name, list(entry.shape)] for entry in self.objective.layout.entries],
                "task": self.task.name if self.task else None,
                "note": self.note,
                "name": self.name,
                "settings": dict(self.settings),
            },
        )

    @classmethod
    def from_checkpoints(
        cls,
        model: nn.Module,
        loss_fn: LossFn,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        device: str | torch.device | None = None,
        name: str = "",
        progress: bool = True,
    ) -> "Run":
        """The run that a folder of checkpoints tells of; each is a row, and none is held in memory.

        Args:
            model: built as it was when the checkpoints were written; its own weights do not matter, but what is
                frozen in it is taken as it is.
            loss_fn: the loss of a model, on data of its own.
            paths: a folder, a pattern such as `"runs/*.pt"`, or a list of checkpoints: `.safetensors`, `.pt`, `.pth`,
                `.bin` and Lightning's `.ckpt`, loaded without pickled code, and the folders of Hugging Face's
                `Trainer`. They are put in the order of the numbers in their names, which are taken for the steps.
            device: where to evaluate the losses.
            name: what the run is called in a legend.
            progress: show a progress bar when the losses take more than a second.

        Raises:
            TypeError: an argument of another kind.
            ValueError: no checkpoint, one that cannot be read, or one of another model, with the
                parameters that are missing or of another shape.

        Example:
            >>> import torch
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> model = torch.nn.Linear(1, 1)
            >>> with TemporaryDirectory() as folder:
            ...     for step in (0, 5, 10):
            ...         torch.save(model.state_dict(), Path(folder) / f"step-{step}.pt")
            ...     run = Run.from_checkpoints(model, lambda m: m(torch.ones(4, 1)).square().mean(), folder)
            >>> run.step.tolist(), run.weights.shape
            ([0, 5, 10], (3, 2))
        """
        found, step = find_checkpoints(paths)
        if len(found) < 2:
            raise ValueError(f"A run needs at least 2 checkpoints, {found[0]} is the only one. Give the whole folder.")
        objective = Objective(model, loss_fn, device=device)
        check_frozen(objective.model, [found[0], found[-1]])
        buffers = None
        if objective.buffer_layout.n and all(holds(found[0], entry) for entry in objective.buffer_layout.entries):
            buffers = Checkpoints(found, objective.buffer_layout)
        weights = Checkpoints(found, objective.layout)
        return evaluate_run(objective, weights, step, buffers=buffers, name=name, progress=progress)


def check_run(run: Any) -> None:
    """Refuse what is no run.

    Raises:
        TypeError: it is something else.
    """
    check_type("run", run, Run, "a Run", advice="Pass what `loss_viz.train` returns, or recorder.run().")


def evaluate_run(
    objective: Objective,
    weights: WeightRows,
    step: Int[np.ndarray, " n_steps"],
    *,
    buffers: WeightRows | None = None,
    name: str = "",
    note: str = "",
    progress: bool = True,
) -> Run:
    """The run through recorded weights: the loss at each row is evaluated, up to the first that is not finite.

    Raises:
        ValueError: the weights or the loss are not finite at the very first row.
    """
    loss = np.full(len(weights), np.nan)
    n_rows = len(weights)
    with tqdm(total=n_rows, desc="losses of the run", delay=1, leave=False, disable=not progress) as bar:
        for rows in row_blocks(weights.shape):
            block = weights[rows]
            loss[rows] = objective(block, take_rows(buffers, rows))
            good = np.isfinite(loss[rows]) & np.isfinite(block).all(axis=1)
            bar.update(len(good))
            if not good.all():
                n_rows = rows.start + int(good.argmin())
                break
    if n_rows < len(weights):
        if n_rows == 0:
            raise ValueError(
                f"The first weights of a run and their loss must be finite; the loss there is {loss[0]}. "
                "Check the data of `loss_fn`, and leave out what comes before a run that makes sense."
            )
        end = f"The loss is {loss[n_rows]} at step {step[n_rows]}; the run is kept up to step {step[n_rows - 1]}."
        note = f"{end} {note}".strip()
        weights, buffers = _cut(weights, n_rows), None if buffers is None else _cut(buffers, n_rows)
    return Run(weights, loss[:n_rows], step[:n_rows], objective, note=note, buffers=buffers, name=name)


def _cut(rows: WeightRows, n_rows: int) -> WeightRows:
    return Checkpoints(rows.paths[:n_rows], rows.layout) if isinstance(rows, Checkpoints) else rows[:n_rows]


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
    arrays, metadata = read_archive(path)
    try:
        weights, loss, step = (arrays[name] for name in ("weights", "loss", "step"))
        parameters = [(str(name), tuple(shape)) for name, shape in metadata["parameters"]]
        task = None if metadata["task"] is None else _read_task(arrays, str(metadata["task"]))
        settings, note, name = dict(metadata["settings"]), str(metadata["note"]), str(metadata["name"])
        weights = check_array("weights", weights, ("n_steps", "n_params"), advice="")
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
            f"{first_line(error)}. Build both as they were then."
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
    losses = run.objective(*run.state(rows))
    if not np.allclose(losses, run.loss[rows], rtol=RTOL):
        raise ValueError(
            f"`loss_fn` must be the loss whose run is in {path}: at step {run.step[rows[0]]} it gives {losses[0]:.4g}, "
            f"the run has {run.loss[rows[0]]:.4g}; at the end {losses[-1]:.4g} and {run.loss[-1]:.4g}. "
            "Use the same data."
        )
