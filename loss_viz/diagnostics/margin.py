"""The stability margin: how many times longer each step of a run could have been before the loss rises."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import argument_error
from loss_viz.diagnostics.geometry import find_rows
from loss_viz.runs.run import Run, check_run
from loss_viz.runs.weights import row_blocks, take_rows

RANGE = (1 / 64, 1024.0)  # multiples of the step that are tried
RUNG = 4.0  # factor between them, until the loss rises between two neighbors
MAX_RATIO = 2.0  # of the ends of a bracket
ROUNDING = 8  # machine epsilons by which two equal losses may differ
N_ROWS = 128  # of a block, after which Ctrl-C keeps what is measured


@dataclass(frozen=True, eq=False)
class Margin:
    """How many times longer the steps of a run could have been before the loss rises, from `measure_margin`.

    The margin lies between `lower` and `upper`, which are at most a factor of 2 apart. Both are nan where the weights
    do not move. Where no multiple of the step up to 1024 raises the loss, `lower` is 1024 and `upper` infinite. Where
    1/64 of the step raises it already, `lower` is 0 and `upper` 1/64.

    Attributes:
        step: `(n,)`, training step before each move.
        lower: `(n,)`, multiple of the step at which the loss is not higher than before it.
        upper: `(n,)`, multiple at which it is higher.
        n_evaluations: number of losses that were evaluated.
    """

    step: Int[np.ndarray, " n"]
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    n_evaluations: int

    def __repr__(self) -> str:
        shown = self.lower[np.isfinite(self.lower)]
        least = f", least margin between {shown.min():.3g} and {np.nanmin(self.upper):.3g}" if len(shown) else ""
        return f"Margin({len(self.step)} steps{least})"


def measure_margin(
    run: Run,
    steps: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    *,
    bar: tqdm | None = None,
    progress: bool = True,
) -> Margin:
    """Measure how many times longer each step of a run could have been before the loss rises.

    `margin(t) = min s > 0 with L(W[t] + s (W[t+1] - W[t])) > L(W[t])`. Below 1, the recorded step raised the loss.
    Where the loss along the step is a parabola that starts downhill, the margin is twice the multiple that minimizes
    it; for gradient descent on a single curvature λ it is `2 / (lr λ)`. It needs no Hessian. It is the critical
    learning rate of Kalra et al., "A scalable measure of loss landscape curvature" (2026), in units of the current one.

    Multiples of the step a factor of 4 apart are tried, upwards from 1 or downwards; where the loss rises between two
    of them, the bracket is narrowed to a factor of 2. All steps are evaluated together. Only the loss at the tried
    multiples is known: a hill between two of them is missed, and then the margin is too large. A rise within 8 machine
    epsilons is rounding and does not count; a loss that is not finite counts as a rise.

    A step is the move from one recorded row to the next: with `every=10`, ten updates at once. Buffers, such as the
    statistics of batch normalization, stay as they were before it. The loss is the recorded one: with mini-batches, a
    step may lead uphill on all data from the start.

    Args:
        run: run of at least two rows.
        steps: training steps at which to measure; all but the last by default.
        bar: progress bar to advance once per step; exceptions that it raises stop the work.
        progress: show a progress bar if the work takes more than a second.

    Returns:
        The margins. Ctrl-C returns those that are known, with a warning.

    Raises:
        TypeError: if `run` is not a run, or `steps` are not numbers.
        ValueError: if the run has a single row, or a step lies outside it.

    Example:
        >>> import loss_viz as lv
        >>> margin = measure_margin(lv.train("x^2", steps=60, progress=False), progress=False)
        >>> margin.step.shape, bool((margin.lower < margin.upper).all())
        ((60,), True)
    """
    check_run(run)
    if len(run) < 2:
        raise argument_error("run", "`run` must have a step to measure, this one has a single row. Record a training.")
    rows = np.arange(len(run) - 1)
    if steps is not None:
        rows = np.unique(find_rows(run, steps, advice="Leave them out for all.").clip(max=len(run) - 2))
    found: list[np.ndarray] = []
    n_evaluations = 0
    off = not progress or bar is not None
    with progress_bar(total=len(rows), desc="margin", delay=1, leave=False, disable=off) as own:
        meter = own if bar is None else bar  # a bar without a total counts as false
        for part in row_blocks((len(rows), 4 * run.weights.shape[1]), most=N_ROWS):
            try:
                brackets, n = _bracket(run, rows[part], meter)
            except KeyboardInterrupt:
                if not found:
                    raise
                text = f"Interrupted: margins are known up to step {run.step[rows[part.start - 1]]}."
                warnings.warn(text, RuntimeWarning, stacklevel=2)
                break
            found.append(brackets)
            n_evaluations += n
            meter.update(len(rows[part]))
    lower, upper = np.concatenate(found, axis=1)
    return Margin(run.step[rows[: len(lower)]], lower, upper, n_evaluations)


def _bracket(run: Run, rows: Int[np.ndarray, " n"], bar: tqdm) -> tuple[Float[np.ndarray, "2 n"], int]:
    """Return the ends of the brackets at some rows, and the number of losses evaluated; the bar may stop the work."""
    both = np.unique([rows, rows + 1])
    weights, losses = run.weights[both].astype(np.float64), run.objective(*run.state(both))
    here, next_ = np.searchsorted(both, rows), np.searchsorted(both, rows + 1)
    start, move, buffers = weights[here], weights[next_] - weights[here], take_rows(run.buffers, rows)
    highest = losses[here] + ROUNDING * torch.finfo(run.objective.layout.dtype).eps * np.abs(losses[here])
    lower, upper = np.zeros(len(rows)), np.full(len(rows), np.inf)
    if buffers is None:  # the loss after the step is known
        rises = ~(losses[next_] <= highest)
        upper[rises] = lower[~rises] = 1.0
    is_still = ~move.any(axis=1)
    lower[is_still] = upper[is_still] = np.nan
    n_evaluations = len(both)
    while len(active := np.flatnonzero(_is_open(lower, upper))):
        trial = _next_trial(lower[active], upper[active])
        losses = run.objective(start[active] + trial[:, None] * move[active], take_rows(buffers, active))
        n_evaluations += len(active)
        bar.update(0)
        rises = ~(losses <= highest[active])
        upper[active[rises]], lower[active[~rises]] = trial[rises], trial[~rises]
    return np.stack([lower, upper]), n_evaluations


def _is_open(lower: Float[np.ndarray, " n"], upper: Float[np.ndarray, " n"]) -> np.ndarray:
    """Return which brackets are to be narrowed; those of steps that do not move are nan."""
    low, high = RANGE
    return (lower < high) & (upper > low) & (upper > MAX_RATIO * lower)


def _next_trial(lower: Float[np.ndarray, " n"], upper: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the multiple to try next: 1, then a rung up or down, then the middle of the bracket in log scale."""
    with np.errstate(invalid="ignore"):
        middle = np.sqrt(lower * upper)
    one_sided = np.where(lower == 0, np.where(np.isinf(upper), 1.0, upper / RUNG), lower * RUNG)
    return np.where((lower == 0) | np.isinf(upper), one_sided, middle)
