"""Recording any training loop: snapshots of the weights, evenly spaced in steps."""

import json
import math
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from loss_viz._validation import argument_error, check_int, check_path, check_type
from loss_viz.objective.objective import LossFn, Objective
from loss_viz.runs.checkpoints import NORMS, Checkpoints, find_checkpoints, write_snapshot
from loss_viz.runs.optimizer_state import (
    Norms,
    check_track,
    explain_missing,
    list_state_names,
    measure_norms,
    stack_norms,
)
from loss_viz.runs.row_memory import RowMemory
from loss_viz.runs.run import Run, evaluate_run
from loss_viz.runs.weights import WeightRows

# Default number of snapshots: as many as fit in `DEFAULT_BYTES`, within these limits.
DEFAULT_BYTES = 2**30
MIN_SNAPSHOTS, MIN_SNAPSHOTS_ON_DISK, MAX_SNAPSHOTS = 25, 200, 2000

NO_NORMS: Norms = MappingProxyType({})

NAME = "step-{:010d}.safetensors"

MAX_EXACT = 2**53  # whole numbers up to this are recorded exactly


Part = frozenset[int]  # parameters, by `id`


class Snapshot(NamedTuple):
    """The weights at one step, or the file that holds them, other tensors that have changed, and optimizer norms.

    As arrays where NumPy has their dtype: thousands of tensors would keep Python's garbage collector busy.
    """

    weights: np.ndarray | Path
    state: Mapping[str, np.ndarray | Tensor]
    norms: Norms


class Look(NamedTuple):
    """What a recorder holds at one moment.

    Attributes:
        snapshots: by step, in increasing order.
        objective: the loss.
        changing: names of the tensors that have changed beside the trained ones.
        step: number of updates so far.
        is_over: whether recording has ended.
        is_read: whether `run()` was called after the last update.
    """

    snapshots: dict[int, Snapshot]
    objective: Objective
    changing: tuple[str, ...]
    step: int
    is_over: bool
    is_read: bool


class Snapshots:
    """Snapshots of every `every`-th step and of the last one; when there are too many, every second one is dropped.

    Args:
        objective: loss of the model before the first step.
        every: steps between snapshots; doubled each time there are too many.
        limit: maximum number of snapshots; as many as fit in 1 GiB if None.
        folder: folder for the snapshots, one file each, without snapshots of another run; None keeps them in memory.

    Raises:
        ValueError: if the folder holds snapshots of another run.
        OSError: if the folder cannot be created.
    """

    def __init__(self, objective: Objective, *, every: int, limit: int | None, folder: Path | None) -> None:
        self.objective = objective
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
        self._limit = limit
        self._bytes = objective.initial_weights.nbytes  # of the last snapshot
        self._last = dict(objective.initial_state)
        self._values: dict[str, np.ndarray | Tensor] = {}  # of the tensors that have changed
        self._kept: dict[int, Snapshot] = {}  # by step, in increasing order
        self._memory = self._get_memory()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def limit(self) -> int:
        """Maximum number of snapshots."""
        least = MIN_SNAPSHOTS_ON_DISK if self.folder else MIN_SNAPSHOTS
        return self._limit or max(least, min(DEFAULT_BYTES // self._bytes, MAX_SNAPSHOTS))

    @property
    def steps(self) -> Int[np.ndarray, " n"]:
        """Training step of each snapshot."""
        return np.array(list(self._kept), dtype=np.int64)

    def is_due(self, step: int) -> bool:
        """Return whether to take a snapshot at a step, after dropping old ones if there are too many."""
        if step % self.every == 0:
            self._make_room()
        return step % self.every == 0

    def restart(self, objective: Objective) -> None:
        """Drop all snapshots, and compare with another initial state from now on."""
        self._drop(list(self._kept))
        self.objective, self._last, self._values = objective, dict(objective.initial_state), {}
        self._memory = self._get_memory()

    def _get_memory(self) -> RowMemory:
        layout = self.objective.layout
        return RowMemory(layout.n, layout.dtype, 1 if self.folder else self.limit)

    def join(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " n_params"]:
        """Return the weights among these tensors, in the memory of the next snapshot."""
        return self.objective.layout.join(tensors, out=torch.from_numpy(self._memory.row))

    def add(
        self, step: int, weights: Float[Tensor, " n_params"], tensors: Mapping[str, Tensor], norms: Norms = NO_NORMS
    ) -> None:
        """Add a snapshot, replacing a last one that is not a multiple of `every`.

        Args:
            step: training step.
            weights: what `join` returned.
            tensors: all tensors of the model, by name.
            norms: of tensors in the optimizers' state.

        Raises:
            ValueError: if whole numbers are too large to be recorded, or a large frozen parameter has changed.
            OSError: if it cannot be written; the earlier ones are kept.
        """
        if step % self.every:
            self._make_room()
        initial, uncopied = self.objective.initial_state, self.objective.uncopied
        self.objective.check_frozen()
        state = {
            name: last if name in uncopied else self._share(name, tensors[name].detach())
            for name, last in self._last.items()
        }
        moved = [name for name, tensor in state.items() if tensor is not self._last[name]]
        self._values.update((name, _as_array(state[name])) for name in moved)
        self._bytes = weights.nbytes + sum(state[name].nbytes for name in moved)
        kept: np.ndarray | Path = weights.numpy()
        if self.folder is not None:
            kept = self.folder / NAME.format(step)
            chosen = [name for name in state if name in self._values or not isinstance(tensors[name], nn.Parameter)]
            stored = self.objective.layout.split(weights) | {name: state[name] for name in chosen}
            write_snapshot(kept, stored, {"step": str(step)} | ({NORMS: json.dumps(norms)} if norms else {}))
        else:
            self._last = state
            self._memory.keep()
        if self._has_tail:
            self._drop([self._last_step])
        now = {name: value for name, value in self._values.items() if state[name] is not initial[name]}
        self._kept[step] = Snapshot(kept, now if self.folder is None else {}, norms)

    def _share(self, name: str, tensor: Tensor) -> Tensor:
        """Return the last tensor of this name if it has the same values, else a copy of the new one on the CPU."""
        last = self._last[name]
        if torch.equal(tensor.to(last.device), last):
            return last
        if tensor.dtype in (torch.int64, torch.uint64) and tensor.double().abs().max() > MAX_EXACT:
            raise ValueError(f"{name!r} holds whole numbers beyond 2^53, which cannot be recorded exactly")
        return tensor.to("cpu", copy=True)

    def has_weights(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether the last snapshot holds the weights among these tensors."""
        last = self._kept[self._last_step].weights
        known = Checkpoints([last], self.objective.layout)[0] if isinstance(last, Path) else last
        return np.array_equal(known, self.objective.layout.join(tensors).numpy())

    def look(self) -> tuple[dict[int, Snapshot], tuple[str, ...]]:
        """Return the snapshots by step, and the names of the other tensors that have changed."""
        self._memory.lend()
        return dict(self._kept), tuple(self._values)

    def share(self, step: int, kept: Snapshot, moved: Snapshot) -> None:
        """Keep a snapshot in other memory."""
        if self._kept.get(step) is kept:
            self._kept[step] = moved

    def _make_room(self) -> None:
        if len(self._kept) - self._has_tail >= self.limit:
            self.every *= 2
            self._drop([step for step in self._kept if step % self.every])
            self._memory.restart()
            for step, kept in self._kept.items():  # close the gaps
                if isinstance(kept.weights, np.ndarray):
                    self._kept[step] = _move(kept, self._memory.keep())

    @property
    def _has_tail(self) -> bool:
        return bool(self._kept and self._last_step % self.every)

    @property
    def _last_step(self) -> int:
        return next(reversed(self._kept))

    def _drop(self, steps: list[int]) -> None:
        for step in steps:
            kept = self._kept.pop(step).weights
            if isinstance(kept, Path):
                kept.unlink(missing_ok=True)


def gather_snapshots(
    look: Look, share: Callable[[int, Snapshot, Snapshot], None]
) -> tuple[Objective, WeightRows, WeightRows | None]:
    """Return all weights, and all other tensors that change; rows on disk are read on demand.

    Rows in memory are moved to one matrix, one by one, so that there is never a second copy of all of them.

    Args:
        look: snapshots, which share the memory of the result afterwards.
        share: called with the step of each row, its snapshot before and after.

    Returns:
        The objective with those tensors in its `buffer_layout`; weights; the other tensors, or None.
    """
    objective, snapshots = look.objective.following(look.changing), look.snapshots
    layout = objective.buffer_layout
    paths = [one.weights for one in snapshots.values() if isinstance(one.weights, Path)]
    if paths:
        buffers = Checkpoints(paths, layout, objective.initial_state) if layout.n else None
        return objective, Checkpoints(paths, objective.layout), buffers
    rows = torch.empty(len(snapshots), objective.n_params, dtype=objective.layout.dtype, device="cpu").numpy()
    for row, step in zip(rows, snapshots, strict=True):
        kept, snapshots[step] = snapshots[step], _move(snapshots[step], row)
        share(step, kept, snapshots[step])
    kept_state = [join_state(one, objective) for one in snapshots.values()] if layout.n else []
    return objective, rows, np.stack(kept_state) if layout.n else None


def _move(snapshot: Snapshot, row: Float[np.ndarray, " n_params"]) -> Snapshot:
    """Return a snapshot in memory with its weights in `row`."""
    row[:] = snapshot.weights
    return snapshot._replace(weights=row)


def join_state(snapshot: Snapshot, objective: Objective) -> Float[np.ndarray, " n_buffers"]:
    """Return the tensors of a snapshot in memory that `objective.buffer_layout` lists, as one vector."""
    given = {name: torch.as_tensor(value) for name, value in snapshot.state.items()}
    return objective.buffer_layout.join(dict(objective.initial_state) | given).numpy()


def _as_array(tensor: Tensor) -> np.ndarray | Tensor:
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16, for example
        return tensor


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
            in memory. A training that is killed loses at most the snapshot being written; `load_run` opens the folder.
        track: names of tensors in the state of the attached optimizers, such as `["exp_avg_sq"]` for the second moment
            of Adam. Their Euclidean norms over all parameters, in this process, are in `run.optimizer_state`.
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
        track: Sequence[str] = (),
        device: str | torch.device | None = None,
        name: str = "",
    ) -> None:
        every = check_int("every", every, 1, advice="With 1 every step is recorded.")
        if max_snapshots is not None:
            max_snapshots = check_int(
                "max_snapshots", max_snapshots, 3, advice="Leave it out for as many as fit in 1 GiB."
            )
        check_type("name", name, str, "a string", advice="Leave it out if there is none.")
        self.track = check_track(track)
        place = None if folder is None else check_path("folder", folder, advice="Pass a new or empty folder.")
        self.objective = Objective(model, loss_fn, device=device)
        self.model = self.objective.model
        self.name = name
        self._snapshots = Snapshots(self.objective, every=every, limit=max_snapshots, folder=place)
        self._known = _describe(self.objective.tensors())
        self._frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        self._own = frozenset(map(id, self.model.parameters()))
        self.step = 0
        self.note = ""
        self._is_finished = self._is_detached = False
        self._read_at = -1  # step at which `run()` was called last
        self._lock = threading.RLock()
        self._hooks: list[RemovableHandle] = []
        self._parts: set[Part] = set()  # the parts of the model that have optimizers of their own
        self._stepped: set[Part] = set()  # those updated since the last step
        self._optimizers: dict[int, weakref.ref[Any]] = {}  # those that hold state, by `id`, the last one stepped last
        self._is_track_checked = not self.track
        self._running: list[int] = []  # optimizers within their step, by `id`: a wrapper calls an inner one
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
        errors: if recording cannot continue (weights that are not finite, parameters or buffers that were added,
        removed or resized, a full disk), a `RuntimeWarning` says so, the run so far is kept and training continues.
        """
        with self._lock:
            self.step += 1
            self._is_finished = False
            self._stepped.clear()
            if not self.note and self._snapshots.is_due(self.step):
                self._add()

    def attach(self, optimizer: Any, *more: Any) -> "Recorder":
        """Record after each update by optimizers, until the end of a `with` block or `detach()`.

        An update is one step of each optimizer of the model, so that several that are stepped in turn (Muon for
        matrices and AdamW for the rest, the two of a GAN) count once; one that is stepped more often than the others
        counts each time. A step inside another optimizer's step, as of a wrapper, is part of it. Any optimizer of the
        model's parameters is noticed, also one that is not given here.

        Args:
            optimizer: of `torch.optim`, or a wrapper of one with the same `param_groups`.
            more: others of the same model.

        Returns:
            The recorder, for `with Recorder(model, loss_fn).attach(optimizer) as recorder`.

        Raises:
            TypeError: if an optimizer has no `param_groups`.
            ValueError: if it updates no parameter of the model, or none of the optimizers, which have a state already,
                holds a tensor in `track`. Otherwise a `RuntimeWarning` says so after the first update.
        """
        several = (optimizer, *more)
        parts = [self._check_optimizer(one) for one in several]
        if self.track and all(list_state_names([one], self._own) for one in several):
            missing, present = self._find_missing([*self._list_optimizers(), *several])
            if missing:
                raise argument_error("track", explain_missing(missing, present))
        self._parts.update(parts)
        for one in several:
            self._follow(one)
        if self.step == 0 and self._measure_norms():
            self._add()  # the start once more, with the state of a training that goes on
        self._is_detached = False
        if not self._hooks:
            self._hooks += [
                register_optimizer_step_pre_hook(_uncompiled(self._before_step)),
                register_optimizer_step_post_hook(_uncompiled(self._after_step)),
            ]
        return self

    def follow(self, optimizer: Any) -> None:
        """Read the tensors in `track` from an optimizer whose steps are counted by `record()`.

        Optimizers that are attached are followed already.

        Args:
            optimizer: as for `attach`.

        Raises:
            TypeError, ValueError: as for `attach`.
        """
        self._check_optimizer(optimizer)
        self._follow(optimizer)

    def _check_optimizer(self, optimizer: Any) -> Part:
        if not isinstance(getattr(optimizer, "param_groups", None), list):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                "If it is wrapped pass the inner one, or call recorder.record() after each step."
            )
        part = self._part_of(optimizer)
        if not part & {id(p) for p in self.model.parameters() if p.requires_grad}:
            raise ValueError(
                "`optimizer` must update the recorded model, none of its parameters are the model's. "
                "Create it from the same model, after the model was moved to its device."
            )
        return part

    def _follow(self, optimizer: Any) -> None:
        """Read the state of an optimizer from now on; where several hold one for a parameter, the latest counts."""
        if self.track:
            self._optimizers.pop(id(optimizer), None)
            self._optimizers[id(optimizer)] = weakref.ref(optimizer)

    def _list_optimizers(self) -> list[Any]:
        found = (known() for known in self._optimizers.values())
        return [optimizer for optimizer in found if optimizer is not None]

    def _measure_norms(self) -> Norms:
        return measure_norms(self._list_optimizers(), self._own, self.track) if self.track else NO_NORMS

    def _find_missing(self, optimizers: Sequence[Any]) -> tuple[list[str], list[str]]:
        """Return the tracked names that no optimizer has in its state, and the names that some have."""
        present = list_state_names(optimizers, self._own)
        return [name for name in self.track if name not in present], present

    def _check_track(self) -> None:
        """Warn once, after the first update, if a tracked tensor is not there."""
        self._is_track_checked = True
        missing, present = self._find_missing(self._list_optimizers())
        if missing:
            unknown = (
                "`track` needs the optimizer whose state is read, none is known. Call recorder.attach(optimizer), or "
                "recorder.follow(optimizer) if record() counts its steps."
            )
            cause = explain_missing(missing, present) if self._optimizers else unknown
            warnings.warn(cause, RuntimeWarning, stacklevel=5)

    def _part_of(self, optimizer: Any) -> Part:
        """Return which parameters of the model an optimizer updates, by `id`."""
        return frozenset(id(p) for group in optimizer.param_groups for p in group["params"]) & self._own

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        with self._lock:
            part = self._part_of(optimizer)
            if id(optimizer) in self._running:  # its last step raised an error
                del self._running[self._running.index(id(optimizer)) :]
            if not self._running and any(part & known for known in self._stepped):
                self.record()  # without those that were not stepped this time
            if part:
                self._running.append(id(optimizer))
                self._follow(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        with self._lock:
            if id(optimizer) not in self._running:
                return
            del self._running[self._running.index(id(optimizer)) :]
            if self._running:
                return
            part = self._part_of(optimizer)
            is_new = not any(part & known for known in self._parts)
            if is_new and self.step == 1:  # of the first update, which was taken for complete
                self.step, self._stepped = 0, set(self._parts)
            # One that overlaps is the same optimizer with other parameters than before.
            self._parts = {known for known in self._parts if not part & known} | {part}
            self._stepped = {known for known in self._stepped if not part & known} | {part}
            if self._stepped >= self._parts:
                self.record()

    def detach(self) -> None:
        """Stop recording the steps of all optimizers."""
        self._is_detached = self._is_detached or bool(self._hooks)
        while self._hooks:
            self._hooks.pop().remove()

    def finish(self) -> None:
        """Detach and record the current weights, as a `with` block does at its end."""
        self.detach()
        self._catch_up()
        self._is_finished = True

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def look(self) -> Look:
        """Return what is recorded so far. The model is not read, so that the training may go on in another thread."""
        with self._lock:
            snapshots, changing = self._snapshots.look()
            is_over = self._is_finished or self._is_detached or bool(self.note)
            return Look(
                snapshots, self._snapshots.objective, changing, self.step, is_over, is_read=self._read_at == self.step
            )

    def run_of(self, look: Look, **options: Any) -> Run:
        """Return the run of some snapshots; `options` are those of `evaluate_run`."""
        objective, weights, buffers = gather_snapshots(look, self._share)
        norms = stack_norms([kept.norms for kept in look.snapshots.values()], self.track)
        step = np.array(list(look.snapshots), dtype=np.int64)
        about: dict[str, Any] = {"optimizer_state": norms, "name": self.name, "note": self.note}
        return evaluate_run(objective, weights, step, buffers=buffers, **about, **options)

    def _share(self, step: int, kept: Snapshot, moved: Snapshot) -> None:
        with self._lock:
            self._snapshots.share(step, kept, moved)

    def run(self, *, progress: bool = True) -> Run:
        """Return the run so far, including the current weights. Recording may continue afterwards.

        Args:
            progress: show a progress bar if evaluating the losses takes more than a second.

        Raises:
            ValueError: if nothing was recorded after the start.
        """
        self._catch_up()
        is_open = not (self.note or self._is_finished)
        moved = is_open and not self._snapshots.has_weights(self.objective.tensors())
        if len(self) < 2:
            seen = "The weights have moved, but no step was seen" if moved else "The recorder holds only the start"
            raise ValueError(
                f"{seen}. Call recorder.record() after each update, or recorder.attach(optimizer) before the loop, and "
                "train."
            )
        if moved:
            warnings.warn(
                f"The weights of the model are no longer those of step {self.step}, with which the run ends. If an "
                "update was missed call recorder.record() after each; weights that were put back (best, averaged) are "
                "no part of the run.",
                RuntimeWarning,
                stacklevel=2,
            )
        look = self.look()
        run = self.run_of(look, progress=progress)
        if len(run) > 1:
            _warn_about_repeats(run.weights)
        self._read_at = look.step
        if run.note and run.note != self.note:
            warnings.warn(run.note, RuntimeWarning, stacklevel=2)
        return run

    def _catch_up(self) -> None:
        """Record the current weights, with which the run ends."""
        with self._lock:
            if self._stepped:
                self.record()
            if self._snapshots.steps[-1] != self.step and not self.note:
                self._add()

    def _add(self) -> None:
        try:
            tensors = self.objective.tensors()
            if change := self._find_change(tensors):
                if not self._restart(tensors):
                    self._end(f"At step {self.step} the model has changed, {change}", "Make a new Recorder after that.")
                return
            self._own = frozenset(map(id, tensors.values()))
            weights = self._snapshots.join(tensors)
            # A finite sum has finite terms, and is found three times as soon.
            if not math.isfinite(weights.sum().item()) and not weights.isfinite().all():
                self._end(f"The weights are no longer finite at step {self.step}")
                return
            if self.step and not self._is_track_checked:
                self._check_track()
            self._snapshots.add(self.step, weights, tensors, self._measure_norms())
        except Exception as error:  # nothing that happens here may end the training
            if not self._snapshots:
                raise
            self._end(f"Recording could not go on at step {self.step}: {error}")

    def _restart(self, tensors: Mapping[str, Tensor]) -> bool:
        """Begin the run at this step if buffers took another shape in the first update, and return whether they did."""
        weights = {entry.name for entry in self.objective.layout.entries}
        now = _describe(tensors)
        if len(self) > 1 or any(now.get(name) != self._known[name] for name in weights):
            return False
        if any(p.requires_grad and name not in weights for name, p in self.model.named_parameters()):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first objective has warned already
            self.objective = Objective(self.model, self.objective.loss_fn, device=self.objective.device)
        self._snapshots.restart(self.objective)
        self._known = now
        self._snapshots.add(self.step, self._snapshots.join(tensors), tensors, self._measure_norms())
        warnings.warn(
            f"Buffers of the model took their shape in the first update; the run starts at step {self.step}.",
            RuntimeWarning,
            stacklevel=5,
        )
        return True

    def _end(self, cause: str, repair: str = "") -> None:
        """Stop recording with a warning, and keep the run so far."""
        if not self._snapshots:
            raise ValueError(f"{cause}; there is nothing to record. Start from finite weights.")
        self.note = f"{cause}; the run is kept up to step {self._snapshots.steps[-1]}. {repair}".strip()
        self.detach()
        warnings.warn(self.note, RuntimeWarning, stacklevel=4)

    def _find_change(self, tensors: Mapping[str, Tensor]) -> str:
        """Describe the first tensor that differs from the start in name, shape, dtype or requires_grad."""
        now, known = _describe(tensors), self._known
        for name in [*known, *now] if now != known else ():
            if now.get(name) != known.get(name):
                was, this = known.get(name, ("not there", "")), now.get(name, ("gone", ""))
                part = int(was[0] == this[0])  # the dtype only where the shape is the same
                return f"{name!r} was {_write(was[part])} and is {_write(this[part])}"
        for name in self._frozen:
            if tensors[name].requires_grad:
                return f"{name!r} was not trained and is {_write(now[name][0])}"
        return ""


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Return shape and dtype of tensors, by name."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _write(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """Keep a hook out of a compiled update, which would compile it again for each step."""
    uncompiled: list[Callable[..., None]] = []

    def call(*given: Any) -> None:
        if not uncompiled and "torch._dynamo" in sys.modules:  # not before, because it would import the compiler
            uncompiled.append(torch.compiler.disable(hook))
        (uncompiled or [hook])[0](*given)

    return call


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
        track: Sequence[str] = (),
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
            track=check_track(track),
            device=device,
            name=name,
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
