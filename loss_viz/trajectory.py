"""The record of a run: the weights it passed through, and the loss at each of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from .objective import Objective
from .tasks import Task


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded training run.

    Row t holds the weights before update `step[t]` and the loss **at** those weights; row 0 is the
    initialization. The arrays are read-only.

    Attributes:
        weights: `(n_steps, n_params)`, the trainable parameters in `model.parameters()` order.
        loss: `(n_steps,)`, finite.
        step: `(n_steps,)`, number of updates made so far, increasing.
        objective: `objective(weights (n, n_params)) -> (n,)`, the loss anywhere in weight space.
        task: what was learned, where it is one of the built-in regressions.
        note: a sentence on how the run ended when it ended early, else empty.

    Raises:
        ValueError: shapes that do not belong together, or values that are not finite.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=20, progress=False)
        >>> run.weights.shape, run.loss.shape, int(run.step[-1])
        ((21, 25), (21,), 20)
    """

    weights: Float[np.ndarray, "_ _"]
    loss: Float[np.ndarray, " _"]
    step: Int[np.ndarray, " _"]
    objective: Objective
    task: Task | None = None
    note: str = ""

    def __post_init__(self) -> None:
        n_steps, n_params = self.weights.shape
        if not n_steps == len(self.loss) == len(self.step) or n_params != self.objective.n_params:
            raise ValueError(
                f"A run needs weights (n_steps, {self.objective.n_params}) and one loss and one step for each row; "
                f"got weights {self.weights.shape}, loss {self.loss.shape}, step {self.step.shape}. "
                "Record all three at the same moments."
            )
        if not (np.isfinite(self.weights).all() and np.isfinite(self.loss).all()):
            raise ValueError(
                "A run needs finite weights and losses; some are nan or inf. Keep the rows before the first one."
            )
        for array in (self.weights, self.loss, self.step):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        name = f"{self.task.name!r}, " if self.task else ""
        ends = f"loss {self.loss[0]:.3g} -> {self.loss[-1]:.3g}"
        return f"Run({name}{len(self)} steps of {self.objective.n_params} weights, {ends})"

    def predict(self, row: int) -> Float[np.ndarray, " n_points"]:
        """What the network answers at the points of its task, with the weights of one recorded row.

        Raises:
            ValueError: the run has no task, so that its inputs are not known.
        """
        if self.task is None:
            raise ValueError(
                "`predict` needs a run of a built-in task; this one has none. Call `run.objective.predict`."
            )
        return self.objective.predict(self.weights[row], self.task.x).ravel().double().cpu().numpy()

    @property
    def model(self) -> nn.Module:
        """The network that was trained, with its final weights."""
        return self.objective.model
