"""Where a run lies still before it falls again: the sticky plateaus of its loss curve."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter
from sklearn.isotonic import isotonic_regression

from .trajectory import Run, require_run

GRID = 1000  # the curve is read at so many equal parts of the run's length T
FILTER = 1 / 100  # a median over this share of the recorded rows, and over 5 at least, takes the spikes out
MIN_ROWS = 20
# Flat is where the loss falls by less than 0.05 decades in T/20, which is a decade in T.
WINDOW = GRID // 20
MAX_CHANGE = 0.05
# A plateau is the whole time from 1.2 to 0.8 times its level. Three quarters of its losses lie between the two, or it
# is a swing: of the runs measured, plateaus have 0.99 and more, 0.8 with noise of 20 %, and swings 0.4 to 0.5.
ABOVE, BELOW = np.log10(1.2), -np.log10(0.8)
MIN_SHARE = 0.75
# It is left when the loss falls another 0.2 decades, to half the level, in 0.4 of the time that it stayed. On a steady
# fall that takes 1.1 times as long, for from 1.2 to 0.8 it is 0.18 decades.
FALL = 0.2
EXIT = 0.4
MIN_STEPS = 25  # Adam's momentum overshoots and comes back in a dozen or two, however long the run


@dataclass(frozen=True)
class Plateau:
    """A stretch on which the loss hardly changes, and below which it soon falls.

    Attributes:
        start: first training step.
        end: last training step.
        level: median loss between them.

    Example:
        >>> import loss_viz as lv
        >>> [plateau] = lv.find_plateaus(lv.train("x^3", progress=False))
        >>> plateau.start < 500 < plateau.end, 0.023 < plateau.level < 0.026  # the best straight line has 0.0242
        (True, True)
    """

    start: int
    end: int
    level: float


def find_plateaus(run: Run) -> list[Plateau]:
    """The plateaus of a run, in their order.

    A plateau is where the loss stays between 1.2 and 0.8 times its own level, for a twentieth of the run's length T or
    more and 25 steps at least, and from where it then falls to half of that level in 0.4 of that time. A slow tail at
    the end of a run is none: nothing has shown that it can be left.

    On the logarithm of the loss, after a median filter over T/100: a curve that never rises is fitted by least squares
    (isotonic regression), so that noise and bumps are averaged for as long as the loss lies still. Where this curve
    changes by less than one decade per T, over a window of T/20, the median is a level, and the plateau is the time
    that the curve takes to cross the band around it. All of this is measured in steps, whatever rows were recorded.

    Args:
        run: of 20 rows or more, with losses above 0. In others nothing is found.

    Returns:
        Plateaus that do not overlap. With noise of 15 % on every loss and 500 rows or more, those are found that last
        T/10 and are left by 0.4 decades, with both ends within a tenth of their length.

    Example:
        >>> import loss_viz as lv
        >>> [plateau] = find_plateaus(lv.train("x^3", progress=False))
        >>> plateau.start < 100, plateau.end > 900, round(plateau.level, 3)
        (True, True, 0.025)
    """
    require_run(run)
    if len(run) < MIN_ROWS or run.loss.min() <= 0:
        return []
    step = np.linspace(run.step[0], run.step[-1], GRID + 1)
    decades = np.interp(step, run.step, _without_spikes(np.log10(run.loss)))
    descent = isotonic_regression(decades, increasing=False)
    dwelling = np.zeros(GRID, dtype=bool)
    for flat in _stretches(_is_flat(descent)):
        # Marked before they are judged, so that two halves of one plateau with a small step between them are one.
        dwelling[_dwell(descent, np.median(decades[flat]))] = True
    return [
        Plateau(round(step[rows.start]), round(step[rows.stop - 1]), float(10 ** np.median(decades[rows])))
        for rows in _stretches(dwelling)
        if np.ptp(step[rows]) >= MIN_STEPS and _holds(decades[rows]) and _is_left(descent, rows)
    ]


def _without_spikes(decades: Float[np.ndarray, " n_rows"]) -> Float[np.ndarray, " n_rows"]:
    """A median over a few rows, which leaves a curve that only falls as it is."""
    return median_filter(decades, size=2 * max(2, round(FILTER * len(decades) / 2)) + 1)


def _is_flat(descent: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n-1"]:
    """Which of the parts between two points are covered by a window without a fall to speak of."""
    flat = descent[:-WINDOW] - descent[WINDOW:] < MAX_CHANGE
    return np.convolve(flat, np.ones(WINDOW)) > 0.5


def _dwell(descent: Float[np.ndarray, " n"], level: float) -> slice:
    """The parts of the grid in which a curve that never rises crosses the band around a level."""
    return slice(int((descent > level + ABOVE).sum()), int((descent >= level - BELOW).sum()) - 1)


def _holds(decades: Float[np.ndarray, " n"]) -> bool:
    """Whether the loss itself stays near its median, and does not only swing around it."""
    off = decades - np.median(decades)
    return bool(np.mean((off <= ABOVE) & (off >= -BELOW)) >= MIN_SHARE)


def _is_left(descent: Float[np.ndarray, " n"], rows: slice) -> bool:
    """Whether the loss goes on falling at once, and much faster than it did on the plateau."""
    last = rows.stop - 1
    soon = min(last + round(EXIT * (last - rows.start)), GRID)
    return bool(descent[last] - descent[soon] >= FALL)


def _stretches(parts: Bool[np.ndarray, " n"]) -> list[slice]:
    """The grid points of each unbroken stretch of true parts, both ends included."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], parts.astype(int), [0]])))
    return [slice(first, last + 1) for first, last in edges.reshape(-1, 2).tolist()]
