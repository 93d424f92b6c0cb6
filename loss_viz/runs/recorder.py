"""Recording any training loop: snapshots of the weights, evenly spaced in steps."""

import warnings
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from loss_viz._validation import check_int, check_path, check_type
from loss_viz.objective.layout import ParameterLayout
from loss_viz.objective.objective import LossFn, Objective
from loss_viz.runs.checkpoints import Checkpoints, find_checkpoints, write_snapshot
from loss_viz.runs.run import Run, evaluate_run
from loss_viz.runs.weights import WeightRows

# Default number of snapshots: as many as fit in `DEFAULT_BYTES`, within these limits.
DEFAULT_BYTES = 2**30
MIN_SNAPSHOTS, MIN_SNAPSHOTS_ON_DISK, MAX_SNAPSHOTS = 25, 200, 2000

NAME = "step-{:010d}.safetensors"

Arrays = tuple[np.ndarray, np.ndarray]  # weights and buffers


class Snapshots:
    """Snapshots of every `every`-th step and of the last one; when there are too many, every second one is dropped.

    Args:
        layout: order and shapes of the parameters.
        buffer_layout: order and shapes of the buffers.
        every: steps between snapshots; doubled each time there are too many.
        limit: maximum number of snapshots; as many as fit in 1 GiB if None.
        folder: folder for the snapshots, one file each, without snapshots of another run; None keeps them in memory.

    Raises:
        ValueError: if the folder holds snapshots of another run.
        OSError: if the folder cannot be created.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        buffer_layout: ParameterLayout,
        *,
        every: int,
        limit: int | None,
        folder: Path | None,
    ) -> None:
        self.layout, self.buffer_layout = layout, buffer_layout
        self.every = every
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("step-*.safetensors")):
                n = len(find_checkpoints(folder)[0])
                raise ValueError(
                    f"`folder` must be a new or empty folder, {folder} holds {n} snapshots of another run. "
                    "Open them with Run.from_checkpoints, or choose another folder."
                )
        n_fitting = DEFAULT_BYTES // (layout.n * layout.dtype.itemsize)
        least = MIN_SNAPSHOTS_ON_DISK if folder else MIN_SNAPSHOTS
        self.limit = limit or int(np.clip(n_fitting, least, MAX_SNAPSHOTS))
        self._kept: dict[int, Path | Arrays] = {}  # by step, in increasing order

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def steps(self) -> Int[np.ndarray, " n"]:
        """Training step of each snapshot."""
        return np.array(list(self._kept), dtype=np.int64)

    def is_due(self, step: int) -> bool:
        """Return whether to take a snapshot at a step, after dropping old ones if there are too many."""
        if step % self.every == 0:
            self._make_room()
        return step % self.every == 0

    def add(self, step: int, weights: Float[Tensor, " n_params"], buffers: Float[Tensor, " n_buffers"]) -> None:
        """Add a snapshot, replacing a last one that is not a multiple of `every`.

        Raises:
            OSError: if it cannot be written; the earlier ones are kept.
        """
        if step % self.every:
            self._make_room()
        kept: Path | Arrays = (weights.numpy(), buffers.numpy())
        if self.folder is not None:
            kept = self.folder / NAME.format(step)
            tensors = self.layout.split(weights) | self.buffer_layout.split(buffers)
            write_snapshot(kept, tensors, {"step": str(step)})
        if self._has_tail:
            self._drop([max(self._kept)])
        self._kept[step] = kept

    def gather(self) -> tuple[WeightRows, WeightRows | None]:
        """Return all weights, and all buffers if they change; rows on disk are read on demand."""
        if self.folder is not None:
            paths = [kept for kept in self._kept.values() if isinstance(kept, Path)]
            weights, buffers = (Checkpoints(paths, layout) for layout in (self.layout, self.buffer_layout))
            return weights, buffers if self.buffer_layout.n else None
        rows, states = map(np.stack, zip(*self._kept.values(), strict=True))
        return rows, states if np.ptp(states, axis=0).any() else None

    def _make_room(self) -> None:
        if len(self._kept) - self._has_tail >= self.limit:
            self.every *= 2
            self._drop([step for step in self._kept if step % self.every])

    @property
    def _has_tail(self) -> bool:
        return bool(self._kept and max(self._kept) % self.every)

    def _drop(self, steps: list[int]) -> None:
        for step in steps:
            kept = self._kept.pop(step)
            if isinstance(kept, Path):
                kept.unlink(missing_ok=True)


class Recorder:
    """Records the weights of a model during training, in any loop.

    Create it before the first update, which is step 0. Then call `record()` after each `optimizer.step()`, or use
    `attach(optimizer)` and leave the loop unchanged. `run()` returns the recorded run at any time.

    Recording only reads the weights: the training ends with the same weights, bit for bit. The losses are evaluated by
    `run()`, on the data of `loss_fn` and in evaluation mode (see `Objective`), not on the training batches. When there
    are `max_snapshots`, every second one is dropped and the interval between new ones doubles, so that they are evenly
    spaced however long the training takes.

    Args:
        model: network; its trainable parameters are recorded, in `model.parameters()` order.
        loss_fn: any `loss_fn(model) -> scalar tensor`, on a fixed set of data.
        every: steps between snapshots; the last step is always in the run.
        max_snapshots: maximum number of snapshots; as many as fit in 1 GiB by default, from 25 (on disk 200) to 2000.
        folder: new or empty folder for the snapshots, one safetensors file each, for models whose snapshots do not fit
            in memory. A training that is killed loses at most the snapshot being written; `Run.from_checkpoints` opens
            the folder.
        device: device on which the losses are evaluated; the model's by default.
        name: name in legends.

    Raises:
        TypeError: as `Objective`, or if an argument has another type.
        ValueError: as `Objective`, or if a number is too small or the folder holds other snapshots.

    Example:
        >>> import torch, loss_viz as lv
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with lv.Recorder(model, lambda m: (m(x) - 3 * x).square().mean()).attach(optimizer) as recorder:
        ...     for _ in range(30):
        ...         optimizer.zero_grad()
        ...         (model(x) - 3 * x).square().mean().backward()
        ...         _ = optimizer.step()
        >>> run = recorder.run()
        >>> len(run), int(run.step[-1]), bool(run.loss[-1] < run.loss[0])
        (31, 30, True)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        every: int = 1,
        max_snapshots: int | None = None,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
        name: str = "",
    ) -> None:
        every = check_int("every", every, 1, advice="With 1 every step is recorded.")
        if max_snapshots is not None:
            max_snapshots = check_int(
                "max_snapshots", max_snapshots, 3, advice="Leave it out for as many as fit in 1 GiB."
            )
        check_type("name", name, str, "a string", advice="Leave it out if there is none.")
        place = None if folder is None else check_path("folder", folder, advice="Pass a new or empty folder.")
        self.objective = Objective(model, loss_fn, device=device)
        self.model = self.objective.model
        self.name = name
        layouts = self.objective.layout, self.objective.buffer_layout
        self._snapshots = Snapshots(*layouts, every=every, limit=max_snapshots, folder=place)
        self.step = 0
        self.note = ""
        self._hooks: list[RemovableHandle] = []
        self._add()
        [loss] = self.objective(self.objective.initial_weights[None])
        if not np.isfinite(loss):
            raise ValueError(
                f"`loss_fn(model)` must be finite at the start, it is {loss}. Check its data and the initial weights."
            )

    def __len__(self) -> int:
        return len(self._snapshots)

    def __repr__(self) -> str:
        where = f" in {self._snapshots.folder}" if self._snapshots.folder else ""
        return f"Recorder({len(self)} snapshots of {self.objective.n_params} weights{where}, up to step {self.step})"

    def record(self) -> None:
        """Count one update of the weights, and take a snapshot if one is due.

        With gradient accumulation call it once per update, not per batch; `attach` does so by itself. It raises no
        errors: if recording cannot continue (weights that are not finite, parameters that were added, removed or
        resized, a full disk), a `RuntimeWarning` says so, the run so far is kept and training continues.
        """
        self.step += 1
        if not self.note and self._snapshots.is_due(self.step):
            self._add()

    def attach(self, optimizer: Optimizer) -> "Recorder":
        """Record after each step of an optimizer, until the end of a `with` block or `detach()`.

        Returns:
            The recorder, for `with Recorder(model, loss_fn).attach(optimizer) as recorder`.

        Raises:
            TypeError: if `optimizer` is not a PyTorch optimizer.
            ValueError: if it updates no parameter of the model.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                "If it is wrapped pass the inner one, or call recorder.record() after each step."
            )
        own = {id(p) for p in self.model.parameters() if p.requires_grad}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "`optimizer` must update the recorded model, none of its parameters are the model's. "
                "Create it from the same model, after the model was moved to its device."
            )
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.record()))
        return self

    def detach(self) -> None:
        """Stop recording the steps of all optimizers."""
        while self._hooks:
            self._hooks.pop().remove()

    def finish(self) -> None:
        """Detach and record the current weights, as a `with` block does at its end."""
        self.detach()
        self._catch_up()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def run(self, *, progress: bool = True) -> Run:
        """Return the run so far, including the current weights. Recording may continue afterwards.

        Args:
            progress: show a progress bar if evaluating the losses takes more than a second.

        Raises:
            ValueError: if nothing was recorded after the start.
        """
        self._catch_up()
        if len(self) < 2:
            raise ValueError(
                "The recorder holds only the start. Call recorder.record() after each optimizer.step(), or "
                "recorder.attach(optimizer) before the loop, and train."
            )
        weights, buffers = self._snapshots.gather()
        _warn_about_repeats(weights)
        run = evaluate_run(
            self.objective,
            weights,
            self._snapshots.steps,
            buffers=buffers,
            name=self.name,
            note=self.note,
            progress=progress,
        )
        if run.note and run.note != self.note:
            warnings.warn(run.note, RuntimeWarning, stacklevel=2)
        return run

    def _catch_up(self) -> None:
        """Record the current weights, with which the run ends."""
        if self._snapshots.steps[-1] != self.step and not self.note:
            self._add()

    def _add(self) -> None:
        if change := self._find_change():
            self._end(f"At step {self.step} the model has changed, {change}", "Make a new Recorder after that.")
            return
        weights = self.objective.layout.join(dict(self.model.named_parameters()))
        buffers = self.objective.buffer_layout.join(dict(self.model.named_buffers()))
        if not weights.isfinite().all():
            self._end(f"The weights are no longer finite at step {self.step}")
            return
        try:
            self._snapshots.add(self.step, weights, buffers)
        except OSError as error:
            if not self._snapshots:
                raise
            self._end(f"Recording could not go on at step {self.step}: {error}")

    def _end(self, cause: str, repair: str = "") -> None:
        """Stop recording with a warning, and keep the run so far."""
        if not self._snapshots:
            raise ValueError(f"{cause}; there is nothing to record. Start from finite weights.")
        self.note = f"{cause}; the run is kept up to step {self._snapshots.steps[-1]}. {repair}".strip()
        self.detach()
        warnings.warn(self.note, RuntimeWarning, stacklevel=4)

    def _find_change(self) -> str:
        """Describe the first parameter that differs from the start in name, shape or requires_grad."""
        now = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        known = {entry.name: entry.shape for entry in self.objective.layout.entries}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for name in [*known, *trained]:
            if now.get(name) != known.get(name):
                return f"{name!r} was {known.get(name, 'not trained')} and is {now.get(name, 'gone')}"
        return ""


def _warn_about_repeats(weights: WeightRows) -> None:
    pairs = np.linspace(0, len(weights) - 2, min(len(weights) - 1, 50)).astype(int)
    moves = np.array([not np.array_equal(weights[int(i)], weights[int(i) + 1]) for i in pairs])
    share = 1 - moves[: moves.nonzero()[0].max(initial=0) + 1].mean()  # repeats at the end of a converged run are fine
    if share > 0.5:
        warnings.warn(
            f"{share:.0%} of the snapshots hold the weights of the one before. With gradient accumulation call "
            "record() once for each optimizer.step(), or attach the optimizer.",
            RuntimeWarning,
            stacklevel=3,
        )


class CallbackRecorder:
    """A `Recorder` that is created when a framework starts training; `recorder` is None before.

    The arguments are those of `Recorder` without the model, which the framework provides.
    """

    _no_training = ""  # error of `run` before the first training

    def __init__(
        self,
        loss_fn: LossFn,
        *,
        every: int = 1,
        max_snapshots: int | None = None,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
        name: str = "",
    ) -> None:
        self.recorder: Recorder | None = None
        self._make = partial(
            Recorder, loss_fn=loss_fn, every=every, max_snapshots=max_snapshots, folder=folder, device=device, name=name
        )

    def run(self, *, progress: bool = True) -> Run:
        """Return the run of the latest training so far; see `Recorder.run`.

        Args:
            progress: show a progress bar if evaluating the losses takes more than a second.

        Raises:
            ValueError: if no training has started, or it made no update.
        """
        if self.recorder is None:
            raise ValueError(self._no_training)
        return self.recorder.run(progress=progress)

    def _finish(self) -> None:
        if self.recorder is not None:
            self.recorder.finish()
