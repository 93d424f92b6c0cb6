"""Losses of planes at points of the picture: lifted to weights a bounded number at a time, here or on other workers.

Where `joblib.parallel_config` names a backend the work is spread over it: threads and processes here, and with Dask
whatever machines it reaches. A task carries the loss and the planes that it is about.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

from .objective import Objective
from .planes import Planes

LIFT_BYTES = 2**24
CHUNKS_PER_UPDATE = 8  # the bar hears of so many chunks at a time: a few hundredths of a second
TASKS_PER_WORKER = 4  # so that none waits long for the last one

Index = Int[np.ndarray, " n"]
Points = Float[np.ndarray, "n 2"]
Losses = Float[np.ndarray, " n_part"]


def evaluate_planes(objective: Objective, planes: Planes, index: Index, points: Points, bar: tqdm) -> Iterator[Losses]:
    """Losses of plane `index[i]` for `points[i]`, part by part, in their order.

    Args:
        objective: the loss.
        planes: of which some are asked.
        index: which; quickest where like ones are together.
        points: where, on the picture.
        bar: told of every part that is done; what it raises ends the work.
    """
    n_workers = effective_n_jobs(None)  # one, unless a configuration says more
    if n_workers > 1 and len(index) > objective.chunk_size:
        parts = _evaluate_afar(objective, planes, index, points, n_workers)
    else:
        parts = _evaluate_here(objective, planes, index, points)
    for losses in parts:
        yield losses
        bar.update(len(losses))


def _evaluate_here(objective: Objective, planes: Planes, index: Index, points: Points) -> Iterator[Losses]:
    chunk = objective.chunk_size
    n_rows = max(chunk, min(CHUNKS_PER_UPDATE * chunk, LIFT_BYTES // (3 * planes.frames.row_bytes)))
    for part in _slices(len(index), n_rows):
        weights = planes.lift(index[part], points[part])
        yield objective(weights, None if planes.buffers is None else planes.buffers[index[part]])


def _evaluate_afar(
    objective: Objective, planes: Planes, index: Index, points: Points, n_workers: int
) -> Iterator[Losses]:
    """The same on joblib's workers; what they leave undone when one of them is lost is done here."""
    n_rows = max(objective.chunk_size, -(-len(index) // (n_workers * TASKS_PER_WORKER)))
    parts = _slices(len(index), n_rows)
    n_done = 0
    try:
        tasks = (delayed(_carry_out)(objective, *planes.take(index[part]), points[part]) for part in parts)
        for losses in _hand_out(tasks, n_workers):
            yield losses
            n_done += 1
        return
    except Exception as error:  # each backend has one of its own for a worker that is gone
        warnings.warn(
            f"{type(error).__name__} on a worker ({str(error).strip()[:200]}); the remaining {len(parts) - n_done} "
            f"of {len(parts)} parts are evaluated here.",
            RuntimeWarning,
            stacklevel=2,
        )
    rest = slice(parts[n_done].start, None)  # an error of the user's own comes again, where it can be looked at
    yield from _evaluate_here(objective, planes, index[rest], points[rest])


def _hand_out(tasks: Iterator[Any], n_workers: int) -> Iterator[Losses]:
    """Results in their order, as they come; where the backend cannot hand them on singly, one for each worker."""
    try:
        parallel = Parallel(return_as="generator")
    except ValueError:
        while wave := list(islice(tasks, n_workers)):
            yield from Parallel()(wave)
    else:
        yield from parallel(tasks)


def _carry_out(objective: Objective, planes: Planes, index: Index, points: Points) -> Losses:
    return np.concatenate(list(_evaluate_here(objective, planes, index, points)))


def _slices(n: int, n_rows: int) -> list[slice]:
    return [slice(start, start + n_rows) for start in range(0, n, n_rows)]
