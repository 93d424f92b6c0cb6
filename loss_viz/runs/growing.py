"""The run so far of a training that goes on, from a recorder or from a folder of snapshots."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from loss_viz._validation import check_path
from loss_viz.objective.layout import ParameterLayout
from loss_viz.objective.objective import LossCheck, LossFn, Objective
from loss_viz.runs.checkpoint_file import find_weights, open_checkpoint
from loss_viz.runs.checkpoints import (
    Checkpoints,
    find_changing,
    list_checkpoints,
    order_checkpoints,
    read_norms,
)
from loss_viz.runs.recorder import Look, Recorder, join_state
from loss_viz.runs.run import Run, evaluate_run, open_checkpoints
from loss_viz.runs.tensor_names import add_file_names

MAX_ROWS, MAX_BYTES = 400, 2**28  # of the sample of a run that is drawn while it grows
BLOCK_SECONDS = 0.05  # of CPU time, between two updates of a progress bar
SAMPLE_SECONDS = 1.0  # after which a sample is drawn without the rows that are still to be evaluated
UNCHECKED = LossCheck(0, 1.0)  # a check copies the model, which the training may be changing

Rows = tuple[Float[np.ndarray, " n_params"], Float[np.ndarray, " n_buffers"] | None]


class Progress(NamedTuple):
    """How far a training has come.

    Attributes:
        steps: step of each snapshot so far.
        position: differs whenever the training has gone on.
        is_over: whether the training has ended.
        is_read: whether the run was asked for after the last step, so that the training may have ended.
        note: what is waited for; empty if nothing is.
        problem: what cannot be read; empty if all can.
    """

    steps: Sequence[int]
    position: Any
    is_over: bool = False
    is_read: bool = False
    note: str = ""
    problem: str = ""


class Sample:
    """Up to 400 rows of a growing run, each read and evaluated once."""

    def __init__(self) -> None:
        self._rows: dict[Any, tuple[Rows, float]] = {}
        self._about: Any = None
        self._seconds = 0.0  # CPU time of one loss

    def update(
        self, keys: Sequence[Any], objective: Objective, read: Callable[[Any], Rows | None], bar: tqdm
    ) -> list[tuple[Any, Rows, float]]:
        """Return key, weights, buffers and loss of evenly spaced rows, the last one among them.

        Args:
            keys: what identifies each row of the run so far, in order.
            objective: the loss.
            read: returns weights and buffers of a row, or None if it cannot be read now.
            bar: progress bar, advanced with the evaluations.
        """
        about = id(objective.model), tuple(entry.name for entry in objective.buffer_layout.entries)
        if about != self._about:
            self._rows, self._about = {}, about
        limit, stride = min(MAX_ROWS, max(4, MAX_BYTES // (8 * objective.n_params))), 1
        while len(keys) > stride * limit:  # by doubling, so that most rows of the last sample are in the next one
            stride *= 2
        wanted = dict.fromkeys([*keys[::stride], keys[-1]])
        self._rows = {key: row for key, row in self._rows.items() if key in wanted}
        new = [key for key in reversed(wanted) if key not in self._rows]  # the latest first
        end = time.monotonic() + SAMPLE_SECONDS
        while new and time.monotonic() < end:
            n = max(1, int(BLOCK_SECONDS / self._seconds)) if self._seconds else 1
            block, new = new[:n], new[n:]
            self._evaluate({key: rows for key in block if (rows := read(key)) is not None}, objective)
            bar.update(len(block))
        return [(key, *self._rows[key]) for key in wanted if key in self._rows]

    def _evaluate(self, found: dict[Any, Rows], objective: Objective) -> None:
        if not found:
            return
        started = time.thread_time()
        weights = np.stack([weights for weights, _ in found.values()])
        states = [buffers for _, buffers in found.values() if buffers is not None]
        losses = objective(weights, np.stack(states) if states else None)
        self._seconds = (time.thread_time() - started) / len(found)
        self._rows.update((key, (rows, loss)) for (key, rows), loss in zip(found.items(), losses.tolist(), strict=True))


def _build_run(rows: list[tuple[Any, Rows, float]], steps: list[int], objective: Objective, name: str) -> Run | None:
    """Return the run of some rows up to the first one that is not finite."""
    good = [np.isfinite(loss) and bool(np.isfinite(weights).all()) for _, (weights, _), loss in rows]
    rows = rows[: good.index(False)] if False in good else rows
    if not rows:
        return None
    states = [buffers for _, (_, buffers), _ in rows if buffers is not None]
    run = Run(
        np.stack([weights for _, (weights, _), _ in rows]),
        np.array([loss for *_, loss in rows]),
        np.array(steps[: len(rows)], dtype=np.int64),
        objective,
        buffers=np.stack(states) if states else None,
        name=name,
    )
    vars(run)["check"] = UNCHECKED
    return run


class RecorderGrowth:
    """The growing run of a `Recorder`, whose training goes on in the same process.

    The recorder's lock is held only while the list of its snapshots is copied. While the training goes on nothing is
    changed that it uses, too, such as PyTorch's random state.

    Args:
        recorder: the recorder.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._look = recorder.look()
        self._sample = Sample()
        objective = recorder.objective
        start = np.zeros(1, dtype=np.int64)
        weights = objective.initial_weights[None]
        self.start = evaluate_run(objective, weights, start, name=recorder.name, check=UNCHECKED, progress=False)

    def look(self) -> Progress:
        """Return how far the training has come."""
        look = self._look = self._recorder.look()
        steps = list(look.snapshots)
        note = "" if len(steps) > 1 else "Waiting for the first step of the training."
        if not look.is_over and look.objective.beside_training() is None:
            steps, note = [], "The loss draws random numbers, as the training may: waiting for the end of the training."
        return Progress(steps, (look.step, len(look.snapshots)), look.is_over, look.is_read, note)

    def sample(self, bar: tqdm) -> Run | None:
        """Return some steps of the run."""
        look = self._look_beside()
        objective = look.objective.following(look.changing)
        read = partial(_read_snapshot, look, objective=objective)
        rows = self._sample.update(list(look.snapshots), objective, read, bar)
        return _build_run(rows, [step for step, *_ in rows], objective, self._recorder.name)

    def whole(self, bar: tqdm) -> Run:
        """Return the run of all snapshots, as `Recorder.run` does."""
        if self._look.is_over:
            return self._recorder.run_of(self._look, bar=bar)
        return self._recorder.run_of(self._look_beside(), check=UNCHECKED, bar=bar)

    def _look_beside(self) -> Look:
        """Return the last look, with a loss that may be evaluated while the training goes on."""
        return self._look._replace(objective=self._look.objective.beside_training() or self._look.objective)


def _read_snapshot(look: Look, step: int, *, objective: Objective) -> Rows | None:
    kept, layout = look.snapshots[step], objective.buffer_layout
    if isinstance(kept.weights, np.ndarray):
        # A copy, because a view would keep a whole block of snapshots in memory.
        return kept.weights.copy(), join_state(kept, objective) if layout.n else None
    return _read_file(kept.weights, objective, objective.layout, layout)


class FolderGrowth:
    """The growing run in a folder of snapshots or checkpoints, which a training in another process writes.

    Each file is read once. One that cannot be read is taken for half-written, and read again when it has changed.

    Args:
        folder: the folder, which need not exist yet.
        model: model, built as it is in the training.
        loss_fn: loss of a model on fixed data.
        device: device of the evaluation; the model's by default.
        name: name in legends.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        loss_fn: LossFn,
        *,
        device: str | torch.device | None = None,
        name: str = "",
    ) -> None:
        self._folder = check_path("folder", folder, advice="Pass the folder that the training writes to.").expanduser()
        self.start = Run.from_model(model, loss_fn, device=device, name=name)
        self._objective = self.start.objective
        self._name = name
        self._good: dict[Path, tuple[int, int]] = {}  # time and size of files that can be read
        self._bad: dict[Path, tuple[tuple[int, int], str]] = {}  # and of others, with the reason
        self._paths: list[Path] = []
        self._steps: list[int] = []
        self._n_compared = 0
        self._sample = Sample()

    def look(self) -> Progress:
        """Return how far the training has come; only new files are opened."""
        found = {path: about for path in list_checkpoints(self._folder) if (about := _describe(path))}
        self._good = {path: about for path, about in self._good.items() if found.get(path) == about}
        lasting = {path: bad for path, bad in self._bad.items() if found.get(path) == bad[0]}
        self._bad = dict(lasting)
        for path, about in found.items():
            if path not in self._good and path not in self._bad:
                self._try(path, about)
        note = ""
        if self._good:
            self._paths, steps = order_checkpoints(list(self._good))
            self._steps = steps.tolist()
        else:
            self._paths, self._steps = [], []
            what = "a checkpoint in" if self._folder.is_dir() else "the folder"
            note = f"Waiting for {what} {self._folder}."
        problem = next((reason for _, reason in lasting.values()), "")
        return Progress(self._steps, tuple(self._paths), note=note, problem=problem)

    def _try(self, path: Path, about: tuple[int, int]) -> None:
        try:
            with open_checkpoint(path) as stored:
                list(stored)
            Checkpoints([path], add_file_names(self._objective.layout, self._objective.model))[:, :1]
            self._good[path] = about
        except (OSError, ValueError) as error:
            self._bad[path] = about, str(error)

    def sample(self, bar: tqdm) -> Run | None:
        """Return some steps of the run."""
        if len(self._paths) >= 2 * self._n_compared:  # tensors that change are looked for ever less often
            self._objective = self._objective.following(find_changing(self._paths, self._objective))
            self._n_compared = len(self._paths)
        objective, steps = self._objective, dict(zip(self._paths, self._steps, strict=True))
        keys = {(path, self._good[path]): path for path in self._paths}
        rows = self._sample.update(list(keys), objective, lambda key: _read_checkpoint(keys[key], objective), bar)
        return _build_run(rows, [steps[keys[key]] for key, *_ in rows], objective, self._name)

    def whole(self, bar: tqdm) -> Run:
        """Return the run of all files that can be read, as `Run.from_checkpoints` does."""
        objective, weights, buffers = open_checkpoints(self.start.objective, self._paths)
        about: dict[str, Any] = {"optimizer_state": read_norms(self._paths), "name": self._name}
        return evaluate_run(
            objective, weights, np.array(self._steps, dtype=np.int64), buffers=buffers, **about, bar=bar
        )


GrowingRun = RecorderGrowth | FolderGrowth


def _describe(path: Path) -> tuple[int, int] | None:
    """Return time and size of a checkpoint; None if it has vanished."""
    try:
        about = (find_weights(path) or path).stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


def _read_checkpoint(path: Path, objective: Objective) -> Rows | None:
    layouts = (add_file_names(one, objective.model) for one in (objective.layout, objective.buffer_layout))
    return _read_file(path, objective, *layouts)


def _read_file(path: Path, objective: Objective, layout: ParameterLayout, others: ParameterLayout) -> Rows | None:
    """Return the weights and the other tensors in a file; None if it has vanished or been dropped."""
    try:
        weights = Checkpoints([path], layout)[0]
        return weights, Checkpoints([path], others, objective.initial_state)[0] if others.n else None
    except (OSError, ValueError):
        return None
