"""The plateaus of a loss curve, the polynomial fit that each matches, and how the run leaves it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.polynomial import Polynomial
from scipy.ndimage import median_filter
from sklearn.isotonic import isotonic_regression

from loss_viz._validation import check_int, check_type
from loss_viz.diagnostics.geometry import Sharpness, measure_sharpness
from loss_viz.runs.run import Run, check_run
from loss_viz.tasks.regression import Task

N_GRID = 1000  # the curve is read at so many equal parts of the run's length T

FILTER = 1 / 100  # a median over this share of the recorded rows, and over 5 at least, takes the spikes out

MIN_ROWS = 20

# Flat is where the loss falls by less than 0.05 decades in T/20, which is a decade in T.
WINDOW = N_GRID // 20

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
    check_run(run)
    if len(run) < MIN_ROWS or run.loss.min() <= 0:
        return []
    step = np.linspace(run.step[0], run.step[-1], N_GRID + 1)
    decades = np.interp(step, run.step, _without_spikes(np.log10(run.loss)))
    descent = isotonic_regression(decades, increasing=False)
    dwelling = np.zeros(N_GRID, dtype=bool)
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
    soon = min(last + round(EXIT * (last - rows.start)), N_GRID)
    return bool(descent[last] - descent[soon] >= FALL)


def _stretches(parts: Bool[np.ndarray, " n"]) -> list[slice]:
    """The grid points of each unbroken stretch of true parts, both ends included."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], parts.astype(int), [0]])))
    return [slice(first, last + 1) for first, last in edges.reshape(-1, 2).tolist()]


NAMES = ("constant", "straight line", "parabola", "cubic")

# A net on a plateau may already be a little better than the fit whose loss it shows, or still a little worse.
RATIO_RANGE = (0.8, 1.3)

MAX_DEGREE = 100

EQUAL = 1.01  # on an even target the best cubic is the best parabola, but for rounding


@dataclass(frozen=True, eq=False)
class PolynomialFit:
    """The best polynomial of one degree for a task, and the loss at which a run lies that has learned no more.

    Attributes:
        degree: of the polynomial, 0 or more.
        loss: its mean squared error on the points of the task.
        values: `(n_points,)`, what it answers at these points.

    Example:
        >>> import loss_viz as lv
        >>> _, line = lv.fit_polynomials(lv.train("x^3", steps=1, progress=False).task, max_degree=1)
        >>> line.name, round(line.loss, 4), line.values.shape
        ('the best straight line', 0.0242, (100,))
    """

    degree: int
    loss: float
    values: Float[np.ndarray, " n_points"]

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return f"the best {NAMES[self.degree] if self.degree < len(NAMES) else f'polynomial of degree {self.degree}'}"


def fit_polynomials(task: Task, max_degree: int = 5) -> list[PolynomialFit]:
    """The best polynomials for a task, degree by degree.

    Least squares on the points of the task, p_d = argmin mean((p(x) - y)²) over the polynomials p of degree d or less,
    in float64. No degree is fitted that the points do not determine: n of them have an exact fit of degree n - 1.

    Args:
        task: `n_points` inputs and targets.
        max_degree: the last one fitted, 0 or more.

    Returns:
        One level for each degree from 0 on; the losses never rise.

    Raises:
        TypeError, ValueError: no task; `max_degree` is no whole number of 0 or more.

    Example:
        >>> from loss_viz.tasks.regression import build_task
        >>> for level in fit_polynomials(build_task("x^3"), max_degree=2):
        ...     print(f"{level.name}: {level.loss:.4f}")
        the best constant: 0.1516
        the best straight line: 0.0242
        the best parabola: 0.0242
    """
    check_type("task", task, Task, "a Task", advice="Pass that of a run, run.task.")
    max_degree = check_int(
        "max_degree", max_degree, 0, MAX_DEGREE, advice="With 1, the best straight line is the last."
    )
    x, y = (tensor.ravel().double().cpu().numpy() for tensor in (task.x, task.y))
    fits = [Polynomial.fit(x, y, degree)(x) for degree in range(min(max_degree + 1, len(x)))]
    return [PolynomialFit(degree, float(np.mean((values - y) ** 2)), values) for degree, values in enumerate(fits)]


def match_polynomial(run: Run, plateau: Plateau) -> PolynomialFit | None:
    """What the network has learned on a plateau: the polynomial whose loss it shows.

    It is the one whose loss is nearest to that of the plateau in ratio, if plateau.level / loss lies in 0.8 to 1.3; of
    fits with equal losses, to one in a hundred, the lowest degree. The sticky plateaus of Liu's post "Seeing sticky
    plateau" (2026) are the best straight line for x³ and sin(3x).

    What this does not show: that the network draws this polynomial. Compare `level.values` with `run.predict(row)`.

    Args:
        run: one of a built-in task.
        plateau: one of `find_plateaus(run)`.

    Returns:
        The level, or None if no polynomial up to degree 5 matches or the run has no task.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> [plateau] = lv.find_plateaus(run)
        >>> match_polynomial(run, plateau).name
        'the best straight line'
    """
    check_run(run)
    check_type("plateau", plateau, Plateau, "a Plateau", advice="Pass one of find_plateaus(run).")
    if run.task is None:
        return None
    levels = [level for level in fit_polynomials(run.task) if level.loss > 0]  # an exact fit has no ratio
    nearest = min(levels, key=lambda level: abs(np.log(plateau.level / level.loss)), default=None)
    if nearest is None or not RATIO_RANGE[0] <= plateau.level / nearest.loss <= RATIO_RANGE[1]:
        return None
    return next(level for level in levels if level.loss <= EQUAL * nearest.loss)


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
        >>> escape = lv.measure_escape(run, lv.find_plateaus(run)[0], progress=False)
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


def measure_escape(run: Run, plateau: Plateau, *, progress: bool = True) -> Escape:
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
        >>> escape = measure_escape(run, lv.find_plateaus(run)[0])
        >>> escape.start < escape.end, bool(escape.rate > 0), bool(escape.sharpness.smallest.min() < 0)
        (True, True, True)
    """
    check_run(run)
    check_type("plateau", plateau, Plateau, "a Plateau", advice="Pass one of find_plateaus(run).")
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
        sharpness=measure_sharpness(run, steps, progress=progress),
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
