"""Where a run lies still before it falls again: the sticky plateaus of its loss curve."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy.ndimage import median_filter

from .trajectory import Run

# In shares of the run's length T, and in decades of the loss. The slope is taken over a window, after a median
# filter against spikes; a stretch counts when it is flatter than one decade per T, and long, and left again.
FILTER = 1 / 100
WINDOW = 1 / 50
MIN_LENGTH = 1 / 20
MIN_ROWS = 20  # Adam's swing on a short run is flat for a dozen steps at a time, which is no plateau
MAX_DECADES = 1.0
MIN_FALL = 0.3


@dataclass(frozen=True)
class Plateau:
    """A stretch on which the loss hardly changes, and below which it falls later.

    Attributes:
        start: first training step.
        end: last training step.
        level: median loss between them.
    """

    start: int
    end: int
    level: float


def find_plateaus(run: Run) -> list[Plateau]:
    """The plateaus of a run, in their order.

    On the logarithm of the loss, after a median filter over T/100: the maximal stretches on which it changes by less
    than 1/T decades a step over a window of T/50, of at least T/20 and 20 rows, after which it falls by 0.3 decades
    or more. A slow tail at the end of a run is none: nothing has shown that it can be left.

    Example:
        >>> import loss_viz as lv
        >>> [plateau] = find_plateaus(lv.train("x^3", progress=False))
        >>> plateau.start < 100, plateau.end > 900, round(plateau.level, 3)
        (True, True, 0.025)
    """
    length = len(run) - 1
    window = max(1, round(WINDOW * length))
    if length < 1 / WINDOW or run.loss.min() <= 0:
        return []
    decades = median_filter(np.log10(run.loss), size=2 * round(FILTER * length / 2) + 1, mode="nearest")
    flat = np.abs(decades[window:] - decades[:-window]) * length < MAX_DECADES * window
    found = []
    for first, last in _stretches(flat):
        rows = slice(first, last + window + 1)
        level = np.median(decades[rows])
        fall = level - decades[rows.stop :].min(initial=np.inf)
        if last + window - first >= max(MIN_LENGTH * length, MIN_ROWS) and fall >= MIN_FALL:
            found.append(Plateau(int(run.step[first]), int(run.step[rows.stop - 1]), float(10**level)))
    return found


def _stretches(flags: Bool[np.ndarray, " n"]) -> Int[np.ndarray, "n_stretches 2"]:
    """First and last index of each unbroken stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return edges.reshape(-1, 2) - [0, 1]
