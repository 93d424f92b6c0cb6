"""A recorded training run: its weights, the loss at each of them, and its file."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.func import functional_call, vmap
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._files import check_destination
from loss_viz._validation import argument_error, check_array, check_int, check_path, check_type, first_line
from loss_viz.objective.functional import unwrap_model
from loss_viz.objective.layout import ParameterLayout, parameter_layout
from loss_viz.objective.objective import LossCheck, LossFn, Objective
from loss_viz.runs.checkpoint_file import choose_key
from loss_viz.runs.checkpoints import Checkpoints, find_changing, find_checkpoints, read_norms
from loss_viz.runs.run_file import STATE, Parameters, read_run_file, rebuild_model, write_archive
from loss_viz.runs.tensor_names import add_file_names, check_base
from loss_viz.runs.weights import WeightRows, row_blocks, spread_rows, take_rows
from loss_viz.tasks.regression import Task

MAX_STEP = 2**53  # integers up to this are exact as floats
CHUNKS_PER_BLOCK = 8  # of weights, after which a progress bar is advanced
N_CHECKED = 5  # steps at which losses are compared with those of the model itself


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded training run.

    Row t holds the weights before update `step[t]` and the loss **at** those weights; row 0 is the
    initialization. The arrays are read-only.

    Attributes:
        weights: `(n_steps, n_params)`, the trainable parameters in `model.parameters()` order; a float32 or float64
            array, or `loss_viz.runs.checkpoints.Checkpoints`, whose rows are read on demand.
        loss: `(n_steps,)`, finite losses in float64.
        step: `(n_steps,)`, number of updates so far, strictly increasing.
        objective: `objective(weights (n, n_params)) -> (n,)`, the loss anywhere in weight space.
        task: regression task of a run from `train`, else None.
        note: sentence that says why the run ended early, else empty.
        buffers: `(n_steps, n_buffers)`, the other tensors of the model that change, as `objective.buffer_layout` lists
            them: buffers such as the statistics of batch normalization, and frozen parameters that something else
            moves, such as an average; None if there are none.
        name: name in legends.
        settings: training settings as plain values, as far as they are known.
        optimizer_state: norms `(n_steps,)` of tensors in the optimizer's state, such as `"exp_avg_sq"` of Adam, by
            name: the Euclidean norm over all parameters after `step[t]` updates, nan where the optimizer holds none
            yet. See `track` of `Recorder` and `train`; empty by default.

    Raises:
        TypeError: if an attribute has another type.
        ValueError: if there are no rows, shapes do not match, values are not finite, or steps do not increase.

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
    optimizer_state: Mapping[str, Float[np.ndarray, " _"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._convert()
        n_steps, n_params = self.weights.shape
        if not 0 < n_steps == len(self.loss) == len(self.step) or n_params != self.objective.n_params:
            raise ValueError(
                f"A run needs weights (n_steps, {self.objective.n_params}) and one loss and one step for each row; "
                f"got weights {self.weights.shape}, loss {self.loss.shape}, step {self.step.shape}. "
                "Record all three at the same steps."
            )
        if self.step[0] < 0 or self.step[-1] > MAX_STEP or (np.diff(self.step) < 1).any():
            raise ValueError(
                "`step` must be the number of updates so far, at least 0 and increasing from row to row. Number the "
                "rows with np.arange(len(weights)) if the steps are not known."
            )
        for name, norms in self.optimizer_state.items():
            if norms.shape != self.step.shape:
                raise argument_error(
                    "optimizer_state",
                    f"`optimizer_state` must hold {n_steps} numbers for each name, {name!r} has shape {norms.shape}. "
                    "Record them at the same steps, with nan where there are none.",
                )
        if self.buffers is not None and self.buffers.shape != (n_steps, self.objective.buffer_layout.n):
            raise ValueError(
                f"`buffers` must have shape {(n_steps, self.objective.buffer_layout.n)}, got {self.buffers.shape}. "
                "Record them at the same steps, or leave them out if they never change."
            )
        arrays = [array for array in (self.weights, self.loss, self.step) if isinstance(array, np.ndarray)]
        if not all(map(_are_finite, arrays)):
            raise ValueError(
                "A run needs finite weights and losses; some are nan or inf. Keep the rows before the first one."
            )
        for array in (*arrays, self.buffers, *self.optimizer_state.values()):
            if isinstance(array, np.ndarray):
                array.setflags(write=False)

    def _convert(self) -> None:
        """Check types, and convert everything that NumPy can read as numbers to arrays."""
        advice = "Use the runs of `loss_viz.train`, a Recorder or `load_run`."
        check_type("objective", self.objective, Objective, "an Objective", advice="Make one from the model and loss.")
        check_type("task", self.task, (Task, type(None)), "a Task or None", advice=advice)
        check_type("settings", self.settings, Mapping, "a dict", advice="Leave it out if there are none.")
        check_type("optimizer_state", self.optimizer_state, Mapping, "a dict", advice="Leave it out if there is none.")
        norms = {
            str(name): check_array("optimizer_state", values, ("n_steps",), advice="Pass one number for each row.")
            for name, values in self.optimizer_state.items()
        }
        object.__setattr__(self, "optimizer_state", norms)
        for name in ("note", "name"):
            check_type(name, getattr(self, name), str, "a string", advice="Leave it out if there is none.")
        for name in ("weights", "buffers") if self.buffers is not None else ("weights",):
            rows = getattr(self, name)
            if isinstance(rows, np.ndarray | torch.Tensor) or not isinstance(rows, WeightRows):
                wide = check_array(name, rows, ("n_steps", "n"), advice="One row is one step of the run.")
                object.__setattr__(self, name, wide)
        loss = check_array("loss", self.loss, ("n_steps",), advice="Pass one number for each row.")
        object.__setattr__(self, "loss", loss.astype(np.float64, copy=False))
        step = np.asarray(self.step)
        if step.dtype.kind not in "iu" or step.ndim != 1:
            raise TypeError(
                f"`step` must be whole numbers, one for each row; got {step.dtype} of shape {step.shape}. Number the "
                "rows with np.arange(len(weights)) if the steps are not known."
            )
        object.__setattr__(self, "step", step.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        name = f"{self.name or self.task.name!r}, " if self.task else f"{self.name}, " if self.name else ""
        ends = f"loss {self.loss[0]:.3g} -> {self.loss[-1]:.3g}"
        return f"Run({name}{len(self)} steps of {self.objective.n_params} weights, {ends})"

    @cached_property
    def check(self) -> LossCheck:
        """How far the losses are from those of the model itself, loaded afresh, at some steps from first to last."""
        rows = spread_rows(len(self), N_CHECKED)
        check = self.objective.check_losses(*self.state(rows), self.loss[rows])
        if not check.passed:
            warnings.warn(describe_check(check), RuntimeWarning, stacklevel=2)
        return check

    @property
    def title(self) -> str:
        """The name of the run, else that of its task, else empty."""
        return self.name or (self.task.name if self.task else "")

    def state(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Return weights and buffers at one or several rows, for `run.objective(*run.state([0, 5]))`."""
        return self.weights[rows], take_rows(self.buffers, rows)

    def nearest_row(self, step: float | int | np.integer) -> int:
        """Return the recorded row closest to a training step, the earlier one of two."""
        return int(np.abs(self.step - step).argmin())

    def predict(self, row: int) -> Float[np.ndarray, " n_points"]:
        """Return the network's output at the points of its task, with the weights of one recorded row.

        Raises:
            TypeError: if `row` is not a number.
            ValueError: if there is no such row, or the run has no task.
        """
        if self.task is None:
            raise ValueError(
                "`predict` needs a run of a built-in task, this one has none. Call `run.objective.predict`."
            )
        row = check_int("row", row, -len(self), len(self) - 1, advice="The last row is -1.")
        weights, buffers = self.state(row)
        return self.objective.predict(weights, self.task.x, buffers).ravel().double().cpu().numpy()

    def predict_rows(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n n_points"]:
        """Return what `predict` returns for each of several rows, evaluated together.

        Raises:
            ValueError: if the run has no task.
        """
        if self.task is None:
            raise ValueError("`predict_rows` needs a run of a built-in task, this one has none.")
        if self.buffers is not None:
            return np.stack([self.predict(row) for row in rows.tolist()])
        model, x, split = self.model, self.task.x, self.objective.layout.split
        weights = torch.as_tensor(np.asarray(self.weights[rows])).to(x)
        with torch.no_grad():
            outputs = vmap(lambda one: functional_call(model, split(one), (x,)))(weights)
        return outputs.flatten(1).double().cpu().numpy()

    def cut(self, rows: slice) -> "Run":
        """Return the run of some consecutive rows, which shares their memory."""
        weights, buffers = cut_rows(self.weights, rows), None if self.buffers is None else cut_rows(self.buffers, rows)
        norms = {name: values[rows] for name, values in self.optimizer_state.items()}
        step, loss = self.step[rows], self.loss[rows]
        return replace(self, weights=weights, loss=loss, step=step, buffers=buffers, optimizer_state=norms)

    @property
    def model(self) -> nn.Module:
        """The network that was trained."""
        return self.objective.model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one file, which `load_run` opens on any machine.

        The file is in safetensors format and self-describing: weights, losses, steps, buffers and optimizer norms,
        names and shapes of the parameters, the task, the settings and the version. It is written atomically. Rows in a
        folder of snapshots or checkpoints are copied block by block, so that they need not fit in memory.

        Raises:
            TypeError: if `path` is not a path, or `settings` are not plain values.
            ValueError: if the rows are on disk and cannot be read.
            OSError: if `path` cannot be written.

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
        place = check_destination(path)
        arrays: dict[str, WeightRows] = {"weights": self.weights, "loss": self.loss, "step": self.step}
        arrays |= {STATE + name: norms for name, norms in self.optimizer_state.items()}
        if self.buffers is not None:
            arrays["buffers"] = self.buffers
        if self.task is not None:
            arrays |= {"task.x": self.task.x.cpu().numpy(), "task.y": self.task.y.cpu().numpy()}
        write_archive(
            place,
            arrays,
            {
                "loss_viz": version("loss_viz"),
                "torch": torch.__version__,
                "parameters": [[entry.name, list(entry.shape)] for entry in self.objective.layout.entries],
                "buffers": [entry.name for entry in self.objective.buffer_layout.entries],
                "task": self.task.name if self.task else None,
                "note": self.note,
                "name": self.name,
                "settings": dict(self.settings),
            },
        )

    @classmethod
    def from_model(
        cls, model: nn.Module, loss_fn: LossFn, *, device: str | torch.device | None = None, name: str = ""
    ) -> "Run":
        """Make a run of one finished model, as a single row.

        `landscape` draws it on the axes `"random"`, `"hessian"`, `"saddle"`, or on two directions of your own. There is
        no trajectory.

        Args:
            model: the trained model.
            loss_fn: loss of a model on fixed data.
            device: device of the evaluation; the model's by default.
            name: name in legends.

        Raises:
            TypeError: if an argument has another type.
            ValueError: if the loss is not a finite scalar.

        Example:
            >>> import loss_viz as lv
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> run = Run.from_model(model, lambda m: m(torch.ones(4, 2)).square().mean())
            >>> lv.landscape(run, axes="hessian", resolution=9, progress=False).loss.shape
            (9, 9)
        """
        objective = Objective(model, loss_fn, device=device)
        return evaluate_run(
            objective, objective.initial_weights[None], np.zeros(1, dtype=int), name=name, progress=False
        )

    @classmethod
    def from_checkpoints(
        cls,
        model: nn.Module,
        loss_fn: LossFn,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        order: str = "step",
        steps: Sequence[int] | np.ndarray | None = None,
        key: str = "",
        device: str | torch.device | None = None,
        name: str = "",
        progress: bool = True,
    ) -> "Run":
        """Open a folder of checkpoints as a run with one row per checkpoint, none of them kept in memory.

        Args:
            model: model, built as it was when the checkpoints were written. Its trainable weights do not matter, its
                frozen ones do.
            loss_fn: loss of a model on fixed data.
            paths: a folder, a pattern such as `"runs/*.pt"`, or a list of checkpoints: `.safetensors`, files of
                `torch.save` and Lightning, loaded without running code, and the folders of Hugging Face's `Trainer` and
                of `torch.distributed.checkpoint`.
            order: `"step"` sorts by the steps stored in the files, else by those in their names; `"modified"` by the
                time at which the files were written; `"given"` keeps the order of a list.
            steps: number of updates at each path in a list, if the files do not tell.
            key: name of the dictionary with the weights, such as `"params_ema"`, in files that hold the model twice.
            device: device of the evaluation; the model's by default.
            name: name in legends.
            progress: show a progress bar if evaluating the losses takes more than a second.

        Raises:
            TypeError: if an argument has another type.
            ValueError: if there is no checkpoint, or one cannot be read or belongs to another model.

        Warns:
            UserWarning: if copies such as `best.pt` are left out, the order is uncertain, or the average of the weights
                is in the files too.

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
        check_type("key", key, str, "a string", advice="Leave it out if the files hold the model once.")
        found, step = find_checkpoints(paths, order, steps)
        objective = Objective(model, loss_fn, device=device)
        objective, weights, buffers = open_checkpoints(objective, found, key)
        return evaluate_run(
            objective,
            weights,
            step,
            buffers=buffers,
            optimizer_state=read_norms(found),
            name=name,
            progress=progress,
        )


def _are_finite(array: np.ndarray) -> bool:
    """Check a block of rows at a time: a mask of all weights would take a quarter of their memory."""
    return all(np.isfinite(array[rows]).all() for rows in row_blocks((len(array), array[0].size)))


def check_run(run: Any) -> None:
    """Raise `TypeError` unless `run` is a `Run`."""
    check_type("run", run, Run, "a Run", advice="Pass the result of `loss_viz.train` or recorder.run().")


def open_checkpoints(
    objective: Objective, paths: Sequence[Path], key: str = ""
) -> tuple[Objective, Checkpoints, Checkpoints | None]:
    """Return the objective with the tensors that change in its `buffer_layout`, the weights, and those tensors.

    Args:
        objective: loss of the model.
        paths: checkpoints in order.
        key: as for `Checkpoints`.

    Raises:
        ValueError: if a checkpoint cannot be read or belongs to another model.
    """
    check_base(paths[0], objective.model)
    layout = add_file_names(objective.layout, objective.model)
    key = choose_key(paths[0], layout.entries, key)
    objective = objective.following(find_changing(paths, objective, key))
    weights = Checkpoints(paths, layout, key=key)
    if not objective.buffer_layout.n:
        return objective, weights, None
    others = add_file_names(objective.buffer_layout, objective.model)
    return objective, weights, Checkpoints(paths, others, objective.initial_state, key)


def evaluate_run(
    objective: Objective,
    weights: WeightRows,
    step: Int[np.ndarray, " n_steps"],
    *,
    buffers: WeightRows | None = None,
    optimizer_state: Mapping[str, np.ndarray] = MappingProxyType({}),
    name: str = "",
    note: str = "",
    progress: bool = True,
    check: LossCheck | None = None,
    bar: tqdm | None = None,
) -> Run:
    """Evaluate the loss at recorded weights, and return the run up to the first row that is not finite.

    Args:
        objective: the loss.
        weights: the recorded weights.
        step: number of updates at each row.
        buffers: the other tensors that change, at each row.
        optimizer_state: norms of optimizer tensors, by name.
        name: name in legends.
        note: why the run ended early.
        progress: show a progress bar if it takes more than a second.
        check: comparison with the model itself; made here if None.
        bar: progress bar to advance instead; exceptions it raises stop the work.

    Raises:
        ValueError: if the weights or the loss are not finite in the first row.
    """
    loss = np.full(len(weights), np.nan)
    n_rows = len(weights)
    # Before the losses, because it may change how they are evaluated.
    some = spread_rows(n_rows, N_CHECKED)
    check = check or objective.check_losses(weights[some], take_rows(buffers, some))
    if not check.passed:
        note = f"{describe_check(check)} {note}".strip()
    own = progress_bar(
        total=n_rows, desc="losses of the run", delay=1, leave=False, disable=not progress or bar is not None
    )
    with own if bar is None else nullcontext(bar) as shown:
        for rows in row_blocks(weights.shape, CHUNKS_PER_BLOCK * objective.chunk_size):
            block = weights[rows]
            loss[rows] = objective(block, take_rows(buffers, rows))
            good = np.isfinite(loss[rows]) & np.isfinite(block).all(axis=1)
            shown.update(len(good))
            if not good.all():
                n_rows = rows.start + int(good.argmin())
                break
    if n_rows < len(weights):
        if n_rows == 0:
            raise ValueError(
                f"The first weights of a run and their loss must be finite, the loss is {loss[0]}. "
                "Check the data of `loss_fn`, or leave out the first rows."
            )
        end = f"The loss is {loss[n_rows]} at step {step[n_rows]}; the run is kept up to step {step[n_rows - 1]}."
        note = f"{end} {note}".strip()
        kept = slice(0, n_rows)
        weights, buffers = cut_rows(weights, kept), None if buffers is None else cut_rows(buffers, kept)
    norms = {name: values[:n_rows] for name, values in optimizer_state.items()}
    run = Run(
        weights, loss[:n_rows], step[:n_rows], objective, note=note, buffers=buffers, name=name, optimizer_state=norms
    )
    vars(run)["check"] = check
    return run


def describe_check(check: LossCheck) -> str:
    """Return a sentence on a check that was not passed: how far the losses are off, and what to do."""
    cause = (
        f"Recorded are parameters and buffers; these attributes changed, too: {check.cause}. Make them buffers with "
        "register_buffer."
        if check.cause
        else "The model keeps something that is neither a parameter nor a buffer, or it has changed since."
    )
    size = f"×{check.factor:.3g}" if check.factor > 1.01 else f"{check.factor - 1:.2g} of their value"
    return f"The losses of the run differ from those of the model itself, by up to {size}. {cause}"


def cut_rows(weights: WeightRows, rows: slice) -> WeightRows:
    """Return consecutive rows; those on disk stay there."""
    return weights.cut(rows) if isinstance(weights, Checkpoints) else weights[rows]


RTOL = 1e-3  # losses differ by rounding between two machines, and by far more between two loss functions


def load_run(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    loss_fn: LossFn | None = None,
    *,
    device: str | torch.device | None = None,
) -> Run:
    """Open a file that `Run.save` wrote, or the folder of a `Recorder`.

    The file of a run from `train` is complete: it holds the task and the settings of the network. Files hold no code,
    so any other run also needs its model and loss.

    Args:
        path: file to open, or a folder of snapshots or other checkpoints, which `Run.from_checkpoints` opens.
        model: model, built as it was when the run was recorded.
        loss_fn: loss that was recorded.
        device: device of the evaluation; the model's by default.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file is truncated or not a run, the folder holds no checkpoints, model or loss are missing,
            or they are not those of the run.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     lv.train("x^2", steps=20, progress=False).save(f"{folder}/run.safetensors")
        ...     run = load_run(f"{folder}/run.safetensors")
        >>> run.objective(run.weights[:1]).round(6) == run.loss[:1].round(6)
        array([ True])
    """
    place = check_path("path", path, advice="Pass the path given to run.save, or the folder of a Recorder.")
    if os.path.isdir(place):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        if model is None or loss_fn is None:
            missing = "model" if model is None else "loss_fn"
            raise argument_error(
                missing,
                f"`{missing}` must be passed with a folder, {place} holds weights only. Call load_run(path, model, "
                "loss_fn).",
            )
        return Run.from_checkpoints(model, loss_fn, place, device=device)
    fields, parameters = read_run_file(path)
    if model is None:
        model = rebuild_model(fields, parameters)
    if loss_fn is None and fields["task"] is not None:
        loss_fn = fields["task"].loss
    if model is None or loss_fn is None:
        missing = "model" if model is None else "loss"
        raise ValueError(
            f"{path} does not hold the {missing}, which is your own code. Pass it, as in "
            "load_run(path, model, loss_fn)."
        )
    _check_parameters(path, parameter_layout(unwrap_model(model)), parameters)
    try:
        objective = Objective(model, loss_fn, device=device)
    except RuntimeError as error:
        raise ValueError(
            f"`model` and `loss_fn` must fit together, as they did in the run in {path}; PyTorch says: "
            f"{first_line(error)}. Build both as they were then."
        ) from error
    held = fields.pop("buffer_names")
    if held is not None and fields["buffers"] is not None:
        if absent := sorted(set(held) - set(objective.initial_state)):
            raise ValueError(
                f"`model` must be the one of the run in {path}: the file has {absent[0]!r}, `model` has not. Build it "
                "as it was when the run was recorded."
            )
        objective = objective.following(held)
    run = Run(objective=objective, **fields)
    _check_loss(path, run)
    return run


def _check_parameters(path: str | os.PathLike[str], layout: ParameterLayout, parameters: Parameters) -> None:
    own = [(entry.name, entry.shape) for entry in layout.entries]
    if own != parameters:
        pairs = zip([*own, None], [*parameters, None], strict=False)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"`model` must be the one of the run in {path}: the file has {there} where `model` has {here}. Build it "
            "as it was when the run was recorded, with the same trainable parameters."
        )


def _check_loss(path: str | os.PathLike[str], run: Run) -> None:
    rows = spread_rows(len(run), 3)
    losses = run.objective(*run.state(rows))
    if not np.allclose(losses, run.loss[rows], rtol=RTOL):
        raise ValueError(
            f"`loss_fn` must be the loss of the run in {path}: at step {run.step[rows[0]]} it gives {losses[0]:.4g}, "
            f"the run has {run.loss[rows[0]]:.4g}; at the end {losses[-1]:.4g} and {run.loss[-1]:.4g}. "
            "Use the same data."
        )
