"""What the callbacks of all training frameworks share: how to make a recorder, and its run."""

from functools import partial
from pathlib import Path

import torch

from .objective import LossFn
from .recorder import Recorder
from .trajectory import Run


class Recording:
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
        storage: str | Path | None = None,
        device: str | torch.device | None = None,
        name: str = "",
    ) -> None:
        self.recorder: Recorder | None = None
        self._make = partial(
            Recorder,
            loss_fn=loss_fn,
            every=every,
            max_snapshots=max_snapshots,
            storage=storage,
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
