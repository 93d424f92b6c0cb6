"""Losses of planes at points of the picture: lifted to weights a bounded number at a time, here or on other workers.

Where `joblib.parallel_config` names a backend, and it was measured that there is work enough, it is handed out: to
threads and processes here, and with Dask or Ray to whatever machines they reach. A task carries the planes that it is
about; the loss goes to each process beforehand. When to use which: .docs/clusters.md.
"""

import pickle
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int, UInt8
from joblib import Parallel, delayed, effective_n_jobs, wrap_non_picklable_objects
from joblib.parallel import get_active_backend
from tqdm import tqdm

from loss_viz.objective.objective import Objective
from loss_viz.planes.plane_set import Planes
from loss_viz.runs.weights import take_rows

LIFT_BYTES = 2**24

CHUNKS_PER_UPDATE = 8  # the bar hears of so many chunks at a time: a few hundredths of a second

MIN_SECONDS = 1.0  # that other workers must save, until it is known how long they take to begin

TASK_SECONDS = 0.25  # long beside what it takes to hand it out, short enough to be waited for

MADE_SECONDS = 60.0  # where each task has to make its planes first: two seconds for one of ResNet-50

STUCK_SECONDS = 300.0  # and ten times as long as a task should take: then it is taken for lost

MAX_FAILURES = 2  # without a loss in between: the rest is done here

Losses = Float[np.ndarray, " n_part"]

Updates = Generator[Losses, None, None]

Answer = tuple[Losses, float, str]  # the seconds that they took, and the traceback of an error after them


def evaluate_planes(
    objective: Objective, planes: Planes, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], bar: tqdm
) -> Iterator[Losses]:
    """Losses of plane `index[i]` for `points[i]`, part by part, in their order.

    Args:
        objective: the loss.
        planes: of which some are asked.
        index: which; quickest where like ones are together.
        points: where, on the picture.
        bar: told of every part that is done; what it raises ends the work, on other workers too.
    """
    asked, n_workers = _Query(planes, index, points), effective_n_jobs(None)  # one, unless a configuration says more
    parts = asked.evaluate(objective) if n_workers < 2 else _evaluate_anywhere(objective, asked, n_workers)
    with closing(parts):  # now, and not when the error is forgotten
        for losses in parts:
            yield losses
            bar.update(len(losses))


@dataclass(frozen=True, eq=False)
class _Query:
    """Points on planes at which losses are asked for; a task is some of them."""

    planes: Planes
    index: Int[np.ndarray, " n"]
    points: Float[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int | None = None) -> "_Query":
        return replace(self, index=self.index[start:stop], points=self.points[start:stop])

    def take(self) -> "_Query":
        """With no more of the planes than it is about."""
        return _Query(*self.planes.take(self.index), self.points)

    def evaluate(self, objective: Objective) -> Updates:
        """The losses, as many at a time as are lifted in one go: whole chunks, for others would round differently."""
        chunk, buffers = objective.chunk_size, self.planes.buffers
        n_rows = chunk * max(1, min(CHUNKS_PER_UPDATE, LIFT_BYTES // (3 * self.planes.bases.row_bytes * chunk)))
        for start in range(0, len(self), n_rows):
            index, points = (array[start : start + n_rows] for array in (self.index, self.points))
            yield objective(self.planes.lift(index, points), take_rows(buffers, index))


Known = WeakKeyDictionary[Any, float]

_SECONDS: Known = WeakKeyDictionary()  # that a loss takes here, at best; 0 where only the first ones were evaluated

_AFAR: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()  # likewise on a worker of each backend

_DELAY: Known = WeakKeyDictionary()  # with which each backend began to answer, the last time


def _evaluate_anywhere(objective: Objective, asked: _Query, n_workers: int) -> Updates:
    """The same on other workers, as soon as that pays; what they leave undone is asked for again."""
    backend, n_done, n_failures, failed = get_active_backend()[0], 0, 0, False
    while n_done < len(asked):
        rest = asked.part(n_done)
        if failed or n_failures == MAX_FAILURES or _seconds_saved(objective, len(rest), backend, n_workers) <= 0:
            losses = _time_part(objective, rest)  # after a failure, too: what the loss itself raises comes from here
            n_done, failed = n_done + len(losses), False
            yield losses
            continue
        try:
            with closing(_dispatch(objective, rest, backend, n_workers)) as parts:
                for losses in parts:
                    n_done, n_failures = n_done + len(losses), 0
                    yield losses
        except Exception as error:  # each backend has several of its own for a worker that is gone
            n_failures, failed = n_failures + 1, True
            warnings.warn(
                f"Workers failed ({type(error).__name__}: {str(error).strip()[-1000:]}); {len(asked) - n_done} losses "
                f"{'are evaluated here' if n_failures == MAX_FAILURES else 'are asked for again'}.",
                RuntimeWarning,
                stacklevel=2,
            )


def _seconds_saved(objective: Objective, n: int, backend: Any, n_workers: int) -> float:
    """Seconds by which workers would be sooner with `n` losses."""
    here = _SECONDS.get(objective, 0.0)
    afar = _AFAR[backend].get(objective, here) if backend in _AFAR else here
    n_busy = min(n_workers, -(-n // objective.chunk_size))
    return n * (here - afar / n_busy) - _DELAY.get(backend, MIN_SECONDS)


def _time_part(objective: Objective, asked: _Query) -> Losses:
    known, started = _SECONDS.get(objective), time.perf_counter()
    losses = next((asked if known else asked.part(0, objective.chunk_size)).evaluate(objective))
    seconds = (time.perf_counter() - started) / len(losses)
    _SECONDS[objective] = 0.0 if known is None else min(known or seconds, seconds)  # the first one warms up
    return losses


def _dispatch(objective: Objective, asked: _Query, backend: Any, n_workers: int) -> Updates:
    chunk, seconds, begun = objective.chunk_size, _SECONDS[objective], time.perf_counter()
    known = _AFAR.setdefault(backend, WeakKeyDictionary())
    limit = TASK_SECONDS if asked.planes.bases.in_memory else MADE_SECONDS
    shared, key = getattr(backend, "supports_sharedmem", False), uuid.uuid4().hex
    payload = objective if shared else _broadcast(backend, np.frombuffer(_pack(objective), np.uint8))

    def cut() -> Iterator[Any]:
        start = 0
        while start < len(asked):
            share = (len(asked) - start) / (2 * n_workers)  # none should wait long for the last one
            stop = start + chunk * max(1, int(min(share, limit / seconds) / chunk))
            task = asked.part(start, stop).take()
            yield delayed(_run_task)(key, payload, task if shared else _pack(task))
            start = stop

    stuck, first = STUCK_SECONDS + 10 * max(limit, chunk * seconds), True
    with closing(_stream(cut(), backend, n_workers, stuck)) as answers:
        for losses, taken, trace in answers:
            if first:  # the very first time says only how long workers take to start
                delay, first = time.perf_counter() - begun - taken, False
                _DELAY[backend] = delay if backend in _DELAY else MIN_SECONDS
            if len(losses):
                seconds = taken / len(losses)
                known[objective] = min(seconds, known.get(objective, seconds))
                yield losses
            if trace:
                raise RuntimeError(trace)


def _pack(thing: Any) -> bytes:
    return pickle.dumps(wrap_non_picklable_objects(thing, keep_wrapper=False))


def _broadcast(backend: Any, payload_bytes: UInt8[np.ndarray, " n"]) -> Any:
    """What stands for the loss in a task, so that its bytes go to a process once a call, and not with each task."""
    if hasattr(backend, "client"):  # Dask; on each of the workers, for one may be lost
        return backend.client.scatter(payload_bytes, broadcast=True, hash=False)
    if hasattr(backend, "ray_remote_args"):
        return import_module("ray").put(payload_bytes)
    return payload_bytes  # loky lays large arrays into a file that its processes share


def _stream(tasks: Iterator[Any], backend: Any, n_workers: int, timeout: float) -> Generator[Answer, None, None]:
    """Answers in the order of the tasks; of a backend that gives all of them at once, two to a worker at a time."""
    if not backend.supports_return_generator:
        with Parallel(batch_size=1, timeout=timeout) as parallel:
            while wave := list(islice(tasks, 2 * n_workers)):
                yield from parallel(wave)
        return
    answers = Parallel(batch_size=1, timeout=timeout, return_as="generator")(tasks)
    try:
        yield from (answer for answer in answers)  # so that they are closed here, and quietly
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that not all of them were wanted
            answers.close()


_OPENED: dict[str, Objective] = {}  # the latest one that was sent to this process

_OPENING = threading.Lock()


def _run_task(key: str, payload: Any, task: Any) -> Answer:
    """A task, where it is done; nothing is raised, for not every error can be sent."""
    losses, trace, started = [np.empty(0)], "", time.perf_counter()
    try:
        if isinstance(task, bytes):
            payload, task, started = _open(key, payload), pickle.loads(task), time.perf_counter()
        for part in task.evaluate(payload):
            losses.append(part)
    except Exception:
        trace = traceback.format_exc(limit=-3)
    return np.concatenate(losses), time.perf_counter() - started, trace


def _open(key: str, payload: Any) -> Objective:
    with _OPENING:
        if key not in _OPENED:
            payload_bytes = payload if isinstance(payload, np.ndarray) else import_module("ray").get(payload)
            _OPENED.clear()
            _OPENED[key] = pickle.loads(payload_bytes.data)
        return _OPENED[key]
