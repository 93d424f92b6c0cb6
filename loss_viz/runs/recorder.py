"""Record any training: the weights of a model at every step or some of them."""

import warnings
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

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

MEMORY = 2**30  # bytes that are held where nothing else is said
FEWEST, MOST = 25, 2000
FEWEST_STORED = 200
NAME = "step-{:010d}.safetensors"


class Snapshot(NamedTuple):
    """One moment of a training: its arrays, or the file in which they are."""

    step: int
    weights: Float[np.ndarray, " n_params"] | None
    buffers: Float[np.ndarray, " n_buffers"] | None
    path: Path | None


class Snapshots:
    """Snapshots at every so many steps, and one more at the end; when they are too many, every second one is dropped.

    Args:
        layout: of the weights.
        buffer_layout: of the buffers.
        every: one step in so many is kept; doubled each time that there are too many.
        most: how many at most; as many as fit 1 GiB where None.
        folder: where they are written, one file each; None for memory. It must be new or hold no snapshots.

    Raises:
        ValueError: a folder with snapshots of another run in it.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        buffer_layout: ParameterLayout,
        *,
        every: int,
        most: int | None,
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
        fitting = MEMORY // (layout.n * layout.dtype.itemsize)
        self.most = most or int(np.clip(fitting, FEWEST_STORED if folder else FEWEST, MOST))
        self._kept: list[Snapshot] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def steps(self) -> Int[np.ndarray, " n"]:
        """The training step of each."""
        return np.array([snapshot.step for snapshot in self._kept], dtype=np.int64)

    def is_due(self, step: int) -> bool:
        """Whether a step is one of those to be kept, once there is room for it."""
        if step % self.every == 0:
            self._make_room()
        return step % self.every == 0

    def add(self, step: int, weights: Float[Tensor, " n_params"], buffers: Float[Tensor, " n_buffers"]) -> None:
        """Keep a snapshot, in place of one that was only taken because the run was asked for.

        Raises:
            OSError: it cannot be written; those before it are as they were.
        """
        if step % self.every:
            self._make_room()
        if self.folder is None:
            snapshot = Snapshot(step, weights.numpy(), buffers.numpy(), None)
        else:
            path = self.folder / NAME.format(step)
            tensors = self.layout.split(weights) | self.buffer_layout.split(buffers)
            write_snapshot(path, tensors, {"step": str(step)})
            snapshot = Snapshot(step, None, None, path)
        if self._has_tail:
            self._drop(self._kept[-1:])
        self._kept.append(snapshot)

    def gather(self) -> tuple[WeightRows, WeightRows | None]:
        """All weights, and all buffers where they change; what is in files stays there."""
        if self.folder is not None:
            paths = [snapshot.path for snapshot in self._kept if snapshot.path]
            weights, buffers = (Checkpoints(paths, layout) for layout in (self.layout, self.buffer_layout))
            return weights, buffers if self.buffer_layout.n else None
        held = np.stack([snapshot.weights for snapshot in self._kept if snapshot.weights is not None])
        states = np.stack([snapshot.buffers for snapshot in self._kept if snapshot.buffers is not None])
        return held, states if np.ptp(states, axis=0).any() else None

    def _make_room(self) -> None:
        if len(self._kept) - self._has_tail >= self.most:
            self.every *= 2
            self._drop([snapshot for snapshot in self._kept if snapshot.step % self.every])

    @property
    def _has_tail(self) -> bool:
        return bool(self._kept and self._kept[-1].step % self.every)

    def _drop(self, snapshots: list[Snapshot]) -> None:
        for snapshot in snapshots:
            self._kept.remove(snapshot)
            if snapshot.path:
                snapshot.path.unlink(missing_ok=True)


class Recorder:
    """Records the weights of a model while it is trained, in any loop.

    Make it before the first update: that is step 0. Then call `record()` after each `optimizer.step()`, or let
    `attach(optimizer)` do so and leave the loop as it is. `run()` hands over what was recorded, at any time.

    Recording reads the weights and nothing else: the training ends in the same weights, bit for bit. The losses are
    evaluated by `run()`, on data of `loss_fn`'s own and in evaluation mode (see `Objective`), whatever batches the
    training saw. When there are `max_snapshots`, every second one is dropped and half as many are taken from then on:
    they are evenly spread however long the training is.

    Args:
        model: the network; its trainable parameters are recorded, in `model.parameters()` order.
        loss_fn: any `loss_fn(model) -> scalar tensor`, on a fixed set of data.
        every: record one step in so many; the last one is always in the run.
        max_snapshots: how many to keep at most; as many as fit 1 GiB by default, from 25 (on disk 200) to 2000.
        folder: a new or empty folder for the snapshots, one safetensors file each, for models whose snapshots do not
            fit in memory. A training that is cut short loses at most the one being written, and `Run.from_checkpoints`
            opens the folder.
        device: where the losses are evaluated; that of the model by default.
        name: what the run is called in a legend.

    Raises:
        TypeError, ValueError: as `Objective` does; a number below its least; a folder with other snapshots in it.

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
            max_snapshots = check_int("max_snapshots", max_snapshots, 3, advice="Leave it out for what fits 1 GiB.")
        check_type("name", name, str, "a text", advice="Leave it out where there is none.")
        folder = None if folder is None else check_path("folder", folder, advice="Give a new or empty folder.")
        self.objective = Objective(model, loss_fn, device=device)
        self.model = self.objective.model
        self.name = name
        layouts = self.objective.layout, self.objective.buffer_layout
        self._snapshots = Snapshots(*layouts, every=every, most=max_snapshots, folder=folder)
        self.step = 0
        self.note = ""
        self._hooks: list[RemovableHandle] = []
        self._add()
        [loss] = self.objective(self.objective.initial_weights[None])
        if not np.isfinite(loss):
            raise ValueError(
                f"`loss_fn(model)` must be finite at the start, it is {loss}. "
                "Check its data, and the model's first weights."
            )

    def __len__(self) -> int:
        return len(self._snapshots)

    def __repr__(self) -> str:
        where = f" in {self._snapshots.folder}" if self._snapshots.folder else ""
        return f"Recorder({len(self)} snapshots of {self.objective.n_params} weights{where}, up to step {self.step})"

    def record(self) -> None:
        """Note that the weights were updated once; take a snapshot if one is due.

        With gradient accumulation call it once for each update, not for each batch; `attach` does so by itself.
        It raises nothing: where recording cannot go on (weights that are not finite, parameters that are new, gone or
        of another shape, a full disk), a `RuntimeWarning` says so, the run so far is kept and the training goes on.
        """
        self.step += 1
        if not self.note and self._snapshots.is_due(self.step):
            self._add()

    def attach(self, optimizer: Optimizer) -> "Recorder":
        """Record after each step of an optimizer, until the end of a `with` block or `detach()`.

        Returns:
            The recorder, so that `with Recorder(model, loss_fn).attach(optimizer) as recorder` is one line.

        Raises:
            TypeError: no optimizer of PyTorch.
            ValueError: it updates no parameter of the model.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                "Where it is wrapped pass what is inside, or call recorder.record() after each step."
            )
        own = {id(p) for p in self.model.parameters() if p.requires_grad}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "`optimizer` must update the recorded model, none of its parameters are the model's. "
                "Make the optimizer from the same model, after it was moved to its device."
            )
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.record()))
        return self

    def detach(self) -> None:
        """Record no further steps of any optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def finish(self) -> None:
        """Detach, and take the present weights for the last ones; what a `with` block does at its end."""
        self.detach()
        self._catch_up()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def run(self, *, progress: bool = True) -> Run:
        """The run so far, the present weights included. Recording may go on afterwards.

        Args:
            progress: show a progress bar when the losses take more than a second.

        Raises:
            ValueError: nothing was recorded after the start.
        """
        self._catch_up()
        if len(self) < 2:
            raise ValueError(
                "The recorder holds the start alone. Call recorder.record() after each optimizer.step(), or "
                "recorder.attach(optimizer) before the loop, and train."
            )
        weights, buffers = self._snapshots.gather()
        _look_for_repeats(weights)
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
        """Take the present weights too, for the run ends with them."""
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
        """Stop recording and say so; the training goes on, and the run so far is kept."""
        if not self._snapshots:
            raise ValueError(f"{cause}; there is nothing to record. Start from finite weights.")
        self.note = f"{cause}; the run is kept up to step {self._snapshots.steps[-1]}. {repair}".strip()
        self.detach()
        warnings.warn(self.note, RuntimeWarning, stacklevel=4)

    def _find_change(self) -> str:
        """The first parameter that is not as it was at the start, in words."""
        now = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        known = {entry.name: entry.shape for entry in self.objective.layout.entries}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for name in [*known, *trained]:
            if now.get(name) != known.get(name):
                return f"{name!r} was {known.get(name, 'not trained')} and is {now.get(name, 'gone')}"
        return ""


def _look_for_repeats(weights: WeightRows) -> None:
    pairs = np.linspace(0, len(weights) - 2, min(len(weights) - 1, 50)).astype(int)
    moves = np.array([not np.array_equal(weights[int(i)], weights[int(i) + 1]) for i in pairs])
    share = 1 - moves[: moves.nonzero()[0].max(initial=0) + 1].mean()  # a run that has come to rest may do so
    if share > 0.5:
        warnings.warn(
            f"{share:.0%} of the snapshots hold the weights of the one before. Where gradients are accumulated "
            "call record() once for each optimizer.step(), or attach the optimizer.",
            RuntimeWarning,
            stacklevel=3,
        )


class CallbackRecorder:
    """A `Recorder` that is made when a framework starts a training; `recorder` is None before.

    The arguments are those of `Recorder`, all but the model, which the framework hands over.
    """

    _nothing = ""  # what `run` says before the first training

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
            Recorder,
            loss_fn=loss_fn,
            every=every,
            max_snapshots=max_snapshots,
            folder=folder,
            device=device,
            name=name,
        )

    def run(self, *, progress: bool = True) -> Run:
        """The run of the latest training so far; see `Recorder.run`.

        Args:
            progress: show a progress bar when the losses take more than a second.

        Raises:
            ValueError: no training has started, or it made no update.
        """
        if self.recorder is None:
            raise ValueError(self._nothing)
        return self.recorder.run(progress=progress)

    def _finish(self) -> None:
        if self.recorder is not None:
            self.recorder.finish()
