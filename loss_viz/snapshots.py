"""Where snapshots of a training are kept: evenly spread over its steps, in memory or in a folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from .checkpoints import Checkpoints, find_checkpoints, write_snapshot
from .parameters import Layout
from .rows import Rows

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
        self, layout: Layout, buffer_layout: Layout, *, every: int, most: int | None, folder: Path | None
    ) -> None:
        self.layout, self.buffer_layout = layout, buffer_layout
        self.every = every
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("step-*.safetensors")):
                n = len(find_checkpoints(folder)[0])
                raise ValueError(
                    f"`storage` must be a new or empty folder, {folder} holds {n} snapshots of another run. "
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

    def gather(self) -> tuple[Rows, Rows | None]:
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
