"""What a network has learned where its loss lies still: the best polynomial of some degree, as a rule."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Polynomial

from .arguments import read_whole, require_kind
from .plateaus import Plateau
from .tasks import Task
from .trajectory import Run, require_run

NAMES = ("constant", "straight line", "parabola", "cubic")
# A net on a plateau may already be a little better than the fit whose loss it shows, or still a little worse.
RATIO_RANGE = (0.8, 1.3)
MAX_DEGREE = 100
EQUAL = 1.01  # on an even target the best cubic is the best parabola, but for rounding


@dataclass(frozen=True, eq=False)
class Level:
    """The best polynomial of one degree for a task, and the loss at which a run lies that has learned no more.

    Attributes:
        degree: of the polynomial, 0 or more.
        loss: its mean squared error on the points of the task.
        values: `(n_points,)`, what it answers at these points.

    Example:
        >>> import loss_viz as lv
        >>> _, line = lv.fit_levels(lv.train("x^3", steps=1, progress=False).task, max_degree=1)
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


def fit_levels(task: Task, max_degree: int = 5) -> list[Level]:
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
        >>> from loss_viz.tasks import build_task
        >>> for level in fit_levels(build_task("x^3"), max_degree=2):
        ...     print(f"{level.name}: {level.loss:.4f}")
        the best constant: 0.1516
        the best straight line: 0.0242
        the best parabola: 0.0242
    """
    require_kind("task", task, Task, "a Task", advice="Pass that of a run, run.task.")
    max_degree = read_whole(
        "max_degree", max_degree, 0, MAX_DEGREE, advice="With 1, the best straight line is the last."
    )
    x, y = (tensor.ravel().double().cpu().numpy() for tensor in (task.x, task.y))
    fits = [Polynomial.fit(x, y, degree)(x) for degree in range(min(max_degree + 1, len(x)))]
    return [Level(degree, float(np.mean((values - y) ** 2)), values) for degree, values in enumerate(fits)]


def name_level(run: Run, plateau: Plateau) -> Level | None:
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
        >>> name_level(run, plateau).name
        'the best straight line'
    """
    require_run(run)
    require_kind("plateau", plateau, Plateau, "a Plateau", advice="Pass one of find_plateaus(run).")
    if run.task is None:
        return None
    levels = [level for level in fit_levels(run.task) if level.loss > 0]  # an exact fit has no ratio
    nearest = min(levels, key=lambda level: abs(np.log(plateau.level / level.loss)), default=None)
    if nearest is None or not RATIO_RANGE[0] <= plateau.level / nearest.loss <= RATIO_RANGE[1]:
        return None
    return next(level for level in levels if level.loss <= EQUAL * nearest.loss)
