"""Folds: places where the path passes over itself, or falls within one kernel, at several losses."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from loss_viz.diagnostics.fidelity import compare_heights
from loss_viz.landscapes.kernels import neighbor_distances
from loss_viz.landscapes.landscape import Landscape, check_landscape

MIN_FACTOR = 1.5
MAX_GAP = 1 / 50  # of the recorded steps: stretches that are closer together count as one fold
PAIRS_PER_BLOCK = 2**20


@dataclass(frozen=True)
class Fold:
    """A stretch of a run that projects to the same place as steps with another loss.

    Attributes:
        run: index of the run.
        start: first training step of the stretch.
        end: last training step.
        step: training step at which the two losses differ most.
        other_run: index of the run of the other step.
        other_step: step at the same place whose loss differs most from that at `step`.
        factor: factor between those two losses; the surface can match only one of them.
    """

    run: int
    start: int
    end: int
    step: int
    other_run: int
    other_step: int
    factor: float


def find_folds(landscape: Landscape) -> list[Fold]:
    """Return the folds of a landscape, run by run.

    A recorded step belongs to a fold if another step lies closer to it on the plane than the kernel is wide there (or
    than half the distance to the next step), and their losses differ by a factor of more than 1.5. Either the path
    passes over one place twice, or the loss falls too steeply for the kernel: the first steps of a run move mostly off
    the plane, so many losses lie at one place. Wide kernels have more folds than narrow ones.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> narrow, wide = (lv.landscape(run, sigma=sigma, resolution=9, progress=False) for sigma in ("auto", 0.2))
        >>> len(find_folds(narrow)), find_folds(wide)[0].factor > 1.5
        (0, True)
    """
    check_landscape(landscape)
    run_set = landscape.run_set
    factor, partner = _find_partners(landscape)
    folds = []
    for run, rows in enumerate(run_set.rows):
        for first, last in _find_stretches(factor[rows] > MIN_FACTOR):
            worst = rows.start + first + int(factor[rows][first : last + 1].argmax())
            other = int(partner[worst])
            folds.append(
                Fold(
                    run=run,
                    start=int(run_set.step[rows.start + first]),
                    end=int(run_set.step[rows.start + last]),
                    step=int(run_set.step[worst]),
                    other_run=int(np.searchsorted(run_set.ends, other, side="right")),
                    other_step=int(run_set.step[other]),
                    factor=float(factor[worst]),
                )
            )
    return folds


def _find_partners(landscape: Landscape) -> tuple[Float[np.ndarray, " n_steps"], Int[np.ndarray, " n_steps"]]:
    """Return, for each row, the largest factor between its loss and that of a row at the same place, and that row."""
    path, loss = landscape.path, landscape.path_loss
    radius = _match_radius(landscape)
    factor, partner = np.ones(len(path)), np.arange(len(path))
    n_rows = max(1, PAIRS_PER_BLOCK // len(path))
    for start in range(0, len(path), n_rows):
        part = slice(start, start + n_rows)
        near = cdist(path[part], path) <= radius[part, None]
        for ends in (np.where(near, loss, -np.inf).argmax(axis=1), np.where(near, loss, np.inf).argmin(axis=1)):
            ratio = compare_heights(landscape.run_set.step[part], loss[ends], loss[part]).factor
            larger = ratio > factor[part]
            factor[part][larger], partner[part][larger] = ratio[larger], ends[larger]
    return factor, partner


def _match_radius(landscape: Landscape) -> Float[np.ndarray, " n_steps"]:
    """Return, for each row, the width of the nearest kernel, or half the distance to the nearer neighbor if larger."""
    path, runs = landscape.path, landscape.run_set.runs
    steps = neighbor_distances(path, np.repeat(np.arange(len(runs)), [len(run) for run in runs])) / 2
    if not len(landscape.anchors):
        return steps
    nearest = cdist(path, landscape.planes.position).argmin(axis=1)
    return np.maximum(landscape.kernel.width[nearest], steps)


def _find_stretches(flags: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each stretch of true values, with short gaps bridged."""
    marked = np.flatnonzero(flags)
    if not len(marked):
        return
    breaks = np.flatnonzero(np.diff(marked) > max(1, round(MAX_GAP * len(flags))))
    for part in np.split(marked, breaks + 1):
        yield int(part[0]), int(part[-1])
