"""How a plateau is left: the gradient grows, along directions of weak negative curvature."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .arguments import require_kind
from .geometry import Sharpness, trace_sharpness
from .plateaus import Plateau
from .trajectory import Run, require_run

FALLEN = 0.5  # of the level: below it the plateau has been left
N_STEPS = 16
ENDS = (1.25, 0.8)  # times the least and the largest gradient: between them it grows


@dataclass(frozen=True, eq=False)
class Escape:
    """The way off a plateau.

    Near a saddle the distance from it, and with it the gradient, grows exponentially under gradient descent; an
    optimizer with momentum, or one that scales its steps, as Adam does, leaves faster than the curvature alone tells.

    Attributes:
        start: training step with the smallest gradient on the plateau.
        end: step with the largest gradient before the loss has fallen to half of the level.
        rate: growth of `ln |gradient|` a step, in between; nan where it does not grow.
        gradient: `(n_rows,)`, length of the gradient at each recorded step from `start` to `end`.
        sharpness: the ends of the Hessian's spectrum at some steps from the plateau's start to `end`.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> escape = lv.trace_escape(run, lv.find_plateaus(run)[0], progress=False)
        >>> len(escape.gradient) == escape.end - escape.start + 1, bool(escape.doubling > 0)
        (True, True)
    """

    start: int
    end: int
    rate: float
    gradient: Float[np.ndarray, " n_rows"]
    sharpness: Sharpness

    @property
    def doubling(self) -> float:
        """Steps in which the gradient doubles."""
        return float(np.log(2) / self.rate)


def trace_escape(run: Run, plateau: Plateau, *, progress: bool = True) -> Escape:
    """Measure how a run leaves a plateau.

    Args:
        run: the run.
        plateau: of it, as `find_plateaus` finds it.
        progress: show a progress bar when it takes more than a second.

    Raises:
        TypeError: no run, or no plateau.
        ValueError: the loss cannot be differentiated twice, or the run never leaves the plateau.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> escape = trace_escape(run, lv.find_plateaus(run)[0])
        >>> escape.start < escape.end, bool(escape.rate > 0), bool(escape.sharpness.smallest.min() < 0)
        (True, True, True)
    """
    require_run(run)
    require_kind("plateau", plateau, Plateau, "a Plateau", advice="Pass one of find_plateaus(run).")
    first, last = (int(np.searchsorted(run.step, step)) for step in (plateau.start, plateau.end))
    fallen = np.flatnonzero(run.loss[last:] < FALLEN * plateau.level)
    if not len(fallen):
        raise ValueError(
            f"An escape needs a plateau that is left; this run stays above {FALLEN:g} of its level {plateau.level:.3g} "
            f"after step {plateau.end}. Train longer."
        )
    rows = np.arange(first, last + int(fallen[0]) + 1)
    gradient = _measure_gradients(run, rows)
    low = int(gradient[: last - first + 1].argmin())
    high = low + int(gradient[low:].argmax())
    steps = np.linspace(run.step[rows[0]], run.step[rows[high]], N_STEPS).round().astype(int)
    return Escape(
        start=int(run.step[rows[low]]),
        end=int(run.step[rows[high]]),
        rate=_fit_growth(run.step[rows[low : high + 1]], gradient[low : high + 1]),
        gradient=gradient[low : high + 1],
        sharpness=trace_sharpness(run, steps, progress=progress),
    )


def _measure_gradients(run: Run, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    buffers = None if run.buffers is None else run.buffers[rows]
    return np.linalg.norm(run.objective.gradients(run.weights[rows], buffers), axis=1)


def _fit_growth(step: Int[np.ndarray, " n"], gradient: Float[np.ndarray, " n"]) -> float:
    """Slope of ln |gradient| between the neighbourhoods of its least and its largest value."""
    low, high = ENDS[0] * gradient[0], ENDS[1] * gradient[-1]
    below, above = np.flatnonzero(gradient <= low), np.flatnonzero(gradient >= high)
    part = slice(int(below[-1]), int(above[0]) + 1)
    if high <= low or part.stop - part.start < 3:
        return np.nan
    return float(np.polyfit(step[part].astype(float), np.log(gradient[part]), 1)[0])
