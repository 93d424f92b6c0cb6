"""Plateaus of a loss curve, the known loss that each matches, and how the run leaves it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.polynomial import Polynomial
from scipy.ndimage import median_filter
from scipy.optimize import isotonic_regression

from loss_viz._validation import argument_error, check_float, check_int, check_type
from loss_viz.diagnostics.geometry import Sharpness, measure_sharpness
from loss_viz.runs.run import Run, check_run
from loss_viz.tasks.regression import Task

N_GRID = 1000  # intervals into which a part of the run is divided, whose length is called T below
FILTER = 1 / 100  # the median filter spans this fraction of the recorded rows, at least 5, to remove spikes
MIN_ROWS = 20
MIN_ON = 5  # rows on a plateau
MIN_STEPS = 25  # Adam's momentum overshoots and returns within one or two dozen steps, however long the run

# The whole run is searched, then its first half, its first quarter and so on, which are equally long on a logarithmic
# time axis: a plateau is found wherever the run ends. Noise can imitate a plateau in a part of few rows, or a low one:
# its variance in decades may be this multiple of the number of rows (15 % in 520 rows, 5 % in 60) and of the square of
# the height. Only the whole run is searched at height 1 whatever the noise.
MAX_NOISE = 8e-6

# The limits in decades below belong to the first of these heights; the others find plateaus that are left by less, and
# divide those found before into several. The last one only divides, because late in a run the loss falls by such steps.
HEIGHTS = (1.0, 0.5, 0.25, 0.125, 0.0625)

# The curve is flat where it falls by less than 0.05 decades in T/20, a rate of one decade in T.
WINDOW = N_GRID // 20
MAX_CHANGE = 0.05

# A plateau spans the time from 1.2 to 0.8 times its level. Three quarters of its losses must lie in this band, which
# excludes oscillations: on measured runs the fraction is 0.99 or more on plateaus, 0.8 with 20 % noise, and 0.4 to 0.5
# on oscillations. At the lower heights this limits the noise.
ABOVE, BELOW = np.log10(1.2), -np.log10(0.8)
MIN_SHARE = 0.75

# A plateau ends where the loss falls another 0.2 decades, to half the level, within 0.4 of the plateau's length. A
# steady fall needs 1.1 times its length for that, because 1.2 to 0.8 is 0.18 decades.
FALL = 0.2
EXIT = 0.4

# A plateau that is never left lasts for half of the run, and falls by less than 0.02 decades, or 5 %, in its second
# half, beyond twice the standard error of that. A tail t^-a falls by 0.08 decades there for a = 1, by 0.03 for a = 0.1.
LAST_SHARE = 0.5
MAX_TAIL = 0.02

NAMES = ("constant", "straight line", "parabola", "cubic")
RATIO_RANGE = (0.8, 1.3)  # a network on a plateau may be slightly better or worse than the fit
LEVEL_RATIO = 1.1  # levels of the user's own often lie close together
MAX_DEGREE = 100
EQUAL = 1.01  # on an even target the best cubic equals the best parabola, up to rounding
LEFT = 0.5  # of the level: below it the run has left the plateau
N_SHARPNESS_STEPS = 16
GROWTH_ENDS = (1.25, 0.8)  # times the smallest and the largest gradient: growth is fitted in between


@dataclass(frozen=True, eq=False)
class PolynomialFit:
    """The best polynomial of one degree for a task.

    Attributes:
        degree: degree of the polynomial, 0 or more.
        loss: mean squared error on the points of the task.
        values: `(n_points,)`, the polynomial at these points.
    """

    degree: int
    loss: float
    values: Float[np.ndarray, " n_points"] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the polynomial in a sentence, e.g. `"the best straight line"`."""
        return f"the best {NAMES[self.degree] if self.degree < len(NAMES) else f'polynomial of degree {self.degree}'}"


@dataclass(frozen=True)
class Level:
    """A known loss with which plateaus are compared.

    Attributes:
        name: its name.
        loss: its loss.
    """

    name: str
    loss: float


@dataclass(frozen=True)
class Plateau:
    """A stretch of a run on which the loss hardly changes.

    Attributes:
        start: first training step.
        end: last training step; the last of the run if the plateau is never left.
        level: median loss between them.
        fit: polynomial fit or level whose loss matches, or None; not part of comparisons between plateaus.
    """

    start: int
    end: int
    level: float
    fit: PolynomialFit | Level | None = field(default=None, compare=False)


class Curve(NamedTuple):
    """The loss of the first part of a run, on a grid of `N_GRID` intervals.

    Attributes:
        step: training steps.
        decades: log10 of the loss, without spikes.
        descent: its best fit that never rises.
        rows: number of recorded rows before each.
        noise: square of the height from which on plateaus can be told from noise.
        is_whole: whether it is the whole run.
    """

    step: Float[np.ndarray, " n"]
    decades: Float[np.ndarray, " n"]
    descent: Float[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    noise: float
    is_whole: bool


def find_plateaus(run: Run, levels: Mapping[str, float | int] | None = None) -> list[Plateau]:
    """Return the plateaus of a run, in order.

    On a plateau the loss stays between 1.2 and 0.8 times its level for 25 steps and 5 recorded rows or more, and then
    falls to half that level within 0.4 of the plateau's length. The same is asked with all these limits divided by 2,
    4, 8 and 16, in decades. So plateaus are found that are left by 8 % or more, and two that follow each other are two
    if they differ by more than their noise: three quarters of the losses on each must stay within its limits. The
    lowest limits only divide plateaus that the others find.

    Every plateau is found that is longer than a tenth of the time from the start of the run to its end, however long
    the run goes on after it.

    A plateau that the run never leaves ends with it. It must last for half of the run, and its loss must fall by less
    than 5 % in its second half, by the slope there plus twice its standard error. A tail t^-a falls by more if a is
    larger than 0.07, and is then no plateau; a slower one cannot be told apart.

    The log of the loss is median-filtered over T/100, and a non-increasing curve is fitted by least squares (isotonic
    regression), which averages noise and bumps. Where this curve changes by less than one decade per T over a window
    of T/20, its median is a level, and the plateau is the time the curve takes to cross the band around the level. T is
    the length of the run, then half of it, a quarter, and so on. All of this is measured in training steps, whichever
    of them were recorded.

    `Plateau.fit` is the one of `levels` whose loss is nearest to the level of the plateau in ratio, if it is within a
    factor of 1.1; else the polynomial fit of degree 5 or less (see `fit_polynomials`) with the nearest loss, if level /
    loss lies within 0.8 to 1.3, and of fits whose losses agree within 1 %, the one of lowest degree. The sticky
    plateaus of Liu, "Seeing sticky plateau" (2026), match the best straight line for x³ and sin(3x). What this does not
    show: that the network draws this polynomial, or predicts as the level's name says. Compare `plateau.fit.values`
    with `run.predict(row)`.

    Args:
        run: run of at least 20 rows with losses above 0; in other runs no plateau is found.
        levels: losses above 0 by name, such as `{"half the vocabulary": math.log(5)}`; see also `class_levels` and
            `ngram_levels`.

    Returns:
        Plateaus that do not overlap. `fit` is None if nothing matches. With 15 % noise on every loss and at least 500
        rows, plateaus that last T/10 and are left by 0.4 decades are found, with both ends within a tenth of their
        length.

    Raises:
        TypeError: if `run` is not a run, or `levels` not a dict of numbers.
        ValueError: if a level is not above 0.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> [plateau] = find_plateaus(run)
        >>> plateau.start < 100, plateau.end > 900, round(plateau.level, 3), plateau.fit.name
        (True, True, 0.025, 'the best straight line')
        >>> find_plateaus(run, levels={"a line": 0.0242})[0].fit
        Level(name='a line', loss=0.0242)
    """
    check_run(run)
    known = _check_levels(levels)
    if len(run) < MIN_ROWS or run.loss.min() <= 0:
        return []
    found: list[Plateau] = []
    for curve in _list_curves(run.step, np.log10(run.loss)):
        for height in HEIGHTS:
            if curve.noise <= height**2 or (curve.is_whole and height == 1):
                _divide(found, plateaus := _find_at_height(curve, height))
                if height > HEIGHTS[-1]:
                    found += [one for one in plateaus if all(map(partial(_are_apart, one), found))]
    found.sort(key=lambda plateau: plateau.start)
    return [Plateau(one.start, one.end, one.level, _match(run.task, known, one.level)) for one in found]


def _list_curves(step: Int[np.ndarray, " n_rows"], decades: Float[np.ndarray, " n_rows"]) -> Iterator[Curve]:
    """Yield the curve of the whole run, of its first half, its first quarter, ..., while noise and rows allow it."""
    end, n_rows = float(step[-1] - step[0]), len(step)
    while n_rows >= MIN_ROWS:
        grid = np.linspace(step[0], step[n_rows - 1], N_GRID + 1)
        smooth = np.interp(grid, step[:n_rows], _remove_spikes(decades[:n_rows]))
        descent = isotonic_regression(smooth, increasing=False).x
        off = decades[:n_rows] - np.interp(step[:n_rows], grid, descent)
        deviation = 1.4826 * np.median(np.abs(off))  # the standard deviation of normal noise, whatever the spikes
        rows = np.searchsorted(step, grid)
        yield Curve(grid, smooth, descent, rows, deviation**2 / n_rows / MAX_NOISE, n_rows == len(step))
        end /= 2
        n_rows = int(np.searchsorted(step, step[0] + end, side="right")) if end >= 2 * MIN_STEPS else 0


def _find_at_height(curve: Curve, height: float) -> list[Plateau]:
    """Return the plateaus of one curve, with limits of a height; their steps are rounded."""
    step, decades, descent = curve[:3]
    on_plateau = np.zeros(N_GRID, dtype=bool)
    for flat in _stretches(_is_flat(descent, height)):
        # All are marked before any is judged: two halves of one plateau with a small step between them become one.
        on_plateau[_cross_band(descent, np.median(decades[flat]), height)] = True
    return [
        Plateau(round(step[rows.start]), round(step[rows.stop - 1]), float(10 ** np.median(decades[rows])))
        for rows in _stretches(on_plateau)
        if np.ptp(step[rows]) >= MIN_STEPS
        and np.ptp(curve.rows[rows]) >= MIN_ON
        and _stays_near_median(decades[rows], height)
        and (_is_left(descent, rows, height) or (curve.is_whole and _lasts(decades, rows, height)))
    ]


def _divide(found: list[Plateau], others: list[Plateau]) -> None:
    """Replace each known plateau by those inside it, if there are several."""
    for known in tuple(found):
        inside = [other for other in others if known.start <= (other.start + other.end) / 2 <= known.end]
        if len(inside) > 1:
            found.remove(known)
            found += inside


def _are_apart(one: Plateau, other: Plateau) -> bool:
    return one.end <= other.start or other.end <= one.start


def _remove_spikes(decades: Float[np.ndarray, " n_rows"]) -> Float[np.ndarray, " n_rows"]:
    """Return a median over a few rows, which does not change a curve that only falls."""
    return median_filter(decades, size=2 * max(2, round(FILTER * len(decades) / 2)) + 1)


def _is_flat(descent: Float[np.ndarray, " n"], height: float) -> Bool[np.ndarray, " n-1"]:
    """Return which intervals are covered by a window without a significant fall."""
    flat = descent[:-WINDOW] - descent[WINDOW:] < height * MAX_CHANGE
    return np.convolve(flat, np.ones(WINDOW)) > 0.5


def _cross_band(descent: Float[np.ndarray, " n"], level: float, height: float) -> slice:
    """Return the intervals in which a non-increasing curve crosses the band around a level."""
    first = int((descent > level + height * ABOVE).sum())
    return slice(first, int((descent >= level - height * BELOW).sum()) - 1)


def _stays_near_median(decades: Float[np.ndarray, " n"], height: float) -> bool:
    """Return whether the loss stays near its median instead of oscillating around it."""
    off = decades - np.median(decades)
    return bool(np.mean((off <= height * ABOVE) & (off >= -height * BELOW)) >= MIN_SHARE)


def _is_left(descent: Float[np.ndarray, " n"], rows: slice, height: float) -> bool:
    """Return whether the loss then falls much faster than on the plateau."""
    last = rows.stop - 1
    soon = min(last + round(EXIT * (last - rows.start)), N_GRID)
    return bool(descent[last] - descent[soon] >= height * FALL)


def _lasts(decades: Float[np.ndarray, " n"], rows: slice, height: float) -> bool:
    """Return whether a plateau lasts to the end of the run, and is no slow tail."""
    if rows.stop <= N_GRID or rows.stop - rows.start < LAST_SHARE * N_GRID:
        return False
    half = decades[(rows.start + rows.stop) // 2 :]
    time = np.linspace(-0.5, 0.5, len(half))
    slope = (time @ half) / (time @ time)
    scatter = half - half.mean() - slope * time
    error = np.sqrt((scatter @ scatter) / len(half) / (time @ time))
    return bool(-slope + 2 * error < height * MAX_TAIL)


def _stretches(flags: Bool[np.ndarray, " n"]) -> list[slice]:
    """Return the grid points of each unbroken stretch of true intervals, both ends included."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [slice(first, last + 1) for first, last in edges.reshape(-1, 2).tolist()]


def _check_levels(levels: Mapping[str, float | int] | None) -> list[Level]:
    advice = "Pass losses by name, as in levels={'half the vocabulary': math.log(5)}."
    check_type("levels", levels, (Mapping, type(None)), "a dict of losses", advice=advice)
    known = []
    for name, loss in (levels or {}).items():
        check_type("levels", name, str, "a dict with names as keys", advice=advice)
        loss = check_float("levels", loss, "a dict of losses", advice=advice)
        if not 0 < loss < math.inf:
            raise argument_error("levels", f"`levels` must be losses above 0, {name!r} is {loss:g}. {advice}")
        known.append(Level(name, loss))
    return known


def _match(task: Task | None, levels: list[Level], loss: float) -> PolynomialFit | Level | None:
    """Return the level near a loss, else the polynomial fit, as `find_plateaus` describes."""
    nearest = min(levels, key=lambda level: abs(math.log(loss / level.loss)), default=None)
    if nearest is not None and 1 / LEVEL_RATIO <= loss / nearest.loss <= LEVEL_RATIO:
        return nearest
    return _match_fit(task, loss) if task else None


def fit_polynomials(task: Task, max_degree: int = 5) -> list[PolynomialFit]:
    """Return the best polynomials for a task, degree by degree.

    Least squares on the points of the task, p_d = argmin mean((p(x) - y)²) over polynomials p of degree d or less, in
    float64. The degree stays below the number of points n: degree n - 1 already fits them exactly.

    Args:
        task: inputs and targets at `n_points` points.
        max_degree: largest degree, 0 or more.

    Returns:
        One fit per degree, starting at 0, with losses that never rise.

    Raises:
        TypeError: if `task` is not a `Task`.
        ValueError: if `max_degree` is not a whole number from 0 to 100.

    Example:
        >>> from loss_viz.tasks.regression import build_task
        >>> for fit in fit_polynomials(build_task("x^3"), max_degree=2):
        ...     print(f"{fit.name}: {fit.loss:.4f}")
        the best constant: 0.1516
        the best straight line: 0.0242
        the best parabola: 0.0242
    """
    check_type("task", task, Task, "a Task", advice="Pass run.task.")
    max_degree = check_int(
        "max_degree", max_degree, 0, MAX_DEGREE, advice="With 1, the best straight line is the last."
    )
    x, y = task.to_numpy()
    fits = [Polynomial.fit(x, y, degree)(x) for degree in range(min(max_degree + 1, len(x)))]
    return [PolynomialFit(degree, float(np.mean((values - y) ** 2)), values) for degree, values in enumerate(fits)]


def _match_fit(task: Task, level: float) -> PolynomialFit | None:
    """Return the fit whose loss is near a level, as `find_plateaus` describes."""
    fits = [fit for fit in fit_polynomials(task) if fit.loss > 0]  # an exact fit has no ratio
    nearest = min(fits, key=lambda fit: abs(np.log(level / fit.loss)), default=None)
    if nearest is None or not RATIO_RANGE[0] <= level / nearest.loss <= RATIO_RANGE[1]:
        return None
    return next(fit for fit in fits if fit.loss <= EQUAL * nearest.loss)


@dataclass(frozen=True, eq=False)
class Escape:
    """How a run leaves a plateau.

    Near a saddle the distance from it, and with it the gradient, grows exponentially under gradient descent. An
    optimizer with momentum, or one that scales its steps as Adam does, leaves faster than the curvature alone implies.

    Attributes:
        start: training step with the smallest gradient on the plateau.
        end: step with the largest gradient before the loss has fallen to half the level.
        rate: growth of `ln |gradient|` per step in between; nan if it does not grow.
        gradient: `(n_rows,)`, norm of the gradient at each recorded step from `start` to `end`.
        sharpness: largest and smallest Hessian eigenvalue at some steps from the plateau's start to `end`.
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


def measure_escape(run: Run, plateau: Plateau, *, progress: bool = True) -> Escape:
    """Measure how a run leaves a plateau.

    Args:
        run: the run.
        plateau: one of `find_plateaus(run)`.
        progress: show a progress bar if the work takes more than a second.

    Raises:
        TypeError: if `run` is not a run or `plateau` not a plateau.
        ValueError: if the loss cannot be differentiated twice, or the run never leaves the plateau.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> escape = measure_escape(run, lv.find_plateaus(run)[0])
        >>> escape.start < escape.end, bool(escape.doubling > 0), bool(escape.sharpness.smallest.min() < 0)
        (True, True, True)
    """
    check_run(run)
    check_type("plateau", plateau, Plateau, "a Plateau", advice="Pass one of find_plateaus(run).")
    first, last = (int(np.searchsorted(run.step, step)) for step in (plateau.start, plateau.end))
    left = np.flatnonzero(run.loss[last:] < LEFT * plateau.level)
    later = [one.start for one in find_plateaus(run) if one.start >= plateau.end]
    if later:  # the next plateau may be higher than half of this one
        left = np.append(left[:1], np.searchsorted(run.step, later[0]) - last)
    if not len(left):
        raise ValueError(
            f"An escape needs a plateau that is left; this run stays above {LEFT:g} of its level {plateau.level:.3g} "
            f"after step {plateau.end}. Train longer."
        )
    rows = np.arange(first, last + int(left.min()) + 1)
    gradient = np.linalg.norm(run.objective.gradients(*run.state(rows)), axis=1)
    low = int(gradient[: last - first + 1].argmin())
    high = low + int(gradient[low:].argmax())
    steps = np.linspace(run.step[rows[0]], run.step[rows[high]], N_SHARPNESS_STEPS).round().astype(int)
    return Escape(
        start=int(run.step[rows[low]]),
        end=int(run.step[rows[high]]),
        rate=_fit_growth(run.step[rows[low : high + 1]], gradient[low : high + 1]),
        gradient=gradient[low : high + 1],
        sharpness=measure_sharpness(run, steps, progress=progress),
    )


def _fit_growth(step: Int[np.ndarray, " n"], gradient: Float[np.ndarray, " n"]) -> float:
    """Return the slope of ln |gradient|, from near its smallest to near its largest value."""
    low, high = GROWTH_ENDS[0] * gradient[0], GROWTH_ENDS[1] * gradient[-1]
    below, above = np.flatnonzero(gradient <= low), np.flatnonzero(gradient >= high)
    part = slice(int(below[-1]), int(above[0]) + 1)
    if high <= low or part.stop - part.start < 3:
        return np.nan
    return float(np.polyfit(step[part].astype(float), np.log(gradient[part]), 1)[0])
