"""Evaluation of the losses of planes at points of the picture, locally or on joblib workers.

If `joblib.parallel_config` names a backend, and measured times say that it pays, losses are distributed to threads,
processes, or Dask or Ray workers. A task carries only the planes it needs; the loss is sent to each process once per
call. Which backend to use when: .docs/clusters.md.
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

CHUNKS_PER_UPDATE = 8  # of the progress bar: a few hundredths of a second

MIN_SECONDS = 1.0  # that workers must save, until their start-up time is known

TASK_SECONDS = 0.25  # duration of a task: long compared with its dispatch, short enough to wait for

BUILD_SECONDS = 60.0  # of a task that first has to build its planes: two seconds for one of ResNet-50

STUCK_SECONDS = 300.0  # plus ten times its expected duration: then a task is considered lost

MAX_FAILURES = 2  # with no loss in between: then the rest is evaluated locally

Losses = Float[np.ndarray, " n_part"]

Updates = Generator[Losses, None, None]

Answer = tuple[Losses, float, str]  # losses, their seconds, and the traceback of the error that ended the task


def evaluate_planes(
    objective: Objective, planes: Planes, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], bar: tqdm
) -> Iterator[Losses]:
    """Yield the losses of plane `index[i]` at `points[i]`, part by part, in order.

    Args:
        objective: the loss.
        planes: the planes.
        index: indices of planes; fastest if equal ones are adjacent.
        points: points of the picture.
        bar: progress bar, advanced once per part; exceptions it raises stop the work, also on workers.
    """
    query, n_workers = _Query(planes, index, points), effective_n_jobs(None)  # 1 without a joblib configuration
    parts = query.evaluate(objective) if n_workers < 2 else _evaluate_on_workers(objective, query, n_workers)
    with closing(parts):  # stops the workers at once
        for losses in parts:
            yield losses
            bar.update(len(losses))


@dataclass(frozen=True, eq=False)
class _Query:
    """Points on planes at which losses are requested."""

    planes: Planes
    index: Int[np.ndarray, " n"]
    points: Float[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int | None = None) -> "_Query":
        return replace(self, index=self.index[start:stop], points=self.points[start:stop])

    def take(self) -> "_Query":
        """Return the query with only the planes it needs."""
        return _Query(*self.planes.take(self.index), self.points)

    def evaluate(self, objective: Objective) -> Updates:
        """Yield the losses, in whole chunks of the objective, because other batch sizes round differently."""
        chunk, buffers = objective.chunk_size, self.planes.buffers
        n_rows = chunk * max(1, min(CHUNKS_PER_UPDATE, LIFT_BYTES // (3 * self.planes.bases.row_bytes * chunk)))
        for start in range(0, len(self), n_rows):
            index, points = (array[start : start + n_rows] for array in (self.index, self.points))
            yield objective(self.planes.lift(index, points), take_rows(buffers, index))


Known = WeakKeyDictionary[Any, float]

_SECONDS: Known = WeakKeyDictionary()  # of a local loss, at best; 0 after the first evaluation, which warms up

_WORKER_SECONDS: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()  # of a loss on a worker, by backend

_DELAY: Known = WeakKeyDictionary()  # start-up time of each backend in the last call


def _evaluate_on_workers(objective: Objective, query: _Query, n_workers: int) -> Updates:
    """Yield losses from workers where that pays, else local ones; losses that workers fail to return are repeated."""
    backend, n_done, n_failures, failed = get_active_backend()[0], 0, 0, False
    while n_done < len(query):
        rest = query.part(n_done)
        if failed or n_failures == MAX_FAILURES or _seconds_saved(objective, len(rest), backend, n_workers) <= 0:
            losses = _evaluate_locally(objective, rest)  # also after a failure: raises an error of the loss itself
            n_done, failed = n_done + len(losses), False
            yield losses
            continue
        try:
            with closing(_dispatch(objective, rest, backend, n_workers)) as parts:
                for losses in parts:
                    n_done, n_failures = n_done + len(losses), 0
                    yield losses
        except Exception as error:  # each backend has its own errors for a lost worker
            n_failures, failed = n_failures + 1, True
            warnings.warn(
                f"Workers failed ({type(error).__name__}: {str(error).strip()[-1000:]}); {len(query) - n_done} losses "
                f"{'are evaluated here' if n_failures == MAX_FAILURES else 'are distributed again'}.",
                RuntimeWarning,
                stacklevel=2,
            )


def _seconds_saved(objective: Objective, n: int, backend: Any, n_workers: int) -> float:
    """Estimate the seconds that workers save on `n` losses."""
    here = _SECONDS.get(objective, 0.0)
    remote = _WORKER_SECONDS[backend].get(objective, here) if backend in _WORKER_SECONDS else here
    n_busy = min(n_workers, -(-n // objective.chunk_size))
    return n * (here - remote / n_busy) - _DELAY.get(backend, MIN_SECONDS)


def _evaluate_locally(objective: Objective, query: _Query) -> Losses:
    known, started = _SECONDS.get(objective), time.perf_counter()
    losses = next((query if known else query.part(0, objective.chunk_size)).evaluate(objective))
    seconds = (time.perf_counter() - started) / len(losses)
    _SECONDS[objective] = 0.0 if known is None else min(known or seconds, seconds)
    return losses


def _dispatch(objective: Objective, query: _Query, backend: Any, n_workers: int) -> Updates:
    chunk, seconds, begun = objective.chunk_size, _SECONDS[objective], time.perf_counter()
    known = _WORKER_SECONDS.setdefault(backend, WeakKeyDictionary())
    limit = TASK_SECONDS if query.planes.bases.in_memory else BUILD_SECONDS
    shared, key = getattr(backend, "supports_sharedmem", False), uuid.uuid4().hex
    payload = objective if shared else _broadcast(backend, np.frombuffer(_pack(objective), np.uint8))

    def cut() -> Iterator[Any]:
        start = 0
        while start < len(query):
            share = (len(query) - start) / (2 * n_workers)  # tasks become shorter towards the end
            stop = start + chunk * max(1, int(min(share, limit / seconds) / chunk))
            task = query.part(start, stop).take()
            yield delayed(_run_task)(key, payload, task if shared else _pack(task))
            start = stop

    stuck, first = STUCK_SECONDS + 10 * max(limit, chunk * seconds), True
    with closing(_stream(cut(), backend, n_workers, stuck)) as answers:
        for losses, taken, trace in answers:
            if first:  # the very first call includes starting the workers
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
    """Return a handle to the pickled objective, sent to each worker once per call instead of with every task."""
    if hasattr(backend, "client"):  # Dask; to every worker, because one may be lost
        return backend.client.scatter(payload_bytes, broadcast=True, hash=False)
    if hasattr(backend, "ray_remote_args"):
        return import_module("ray").put(payload_bytes)
    return payload_bytes  # loky shares large arrays between its processes in a file


def _stream(tasks: Iterator[Any], backend: Any, n_workers: int, timeout: float) -> Generator[Answer, None, None]:
    """Yield answers in the order of the tasks; backends without generators get two tasks per worker at a time."""
    if not backend.supports_return_generator:
        with Parallel(batch_size=1, timeout=timeout) as parallel:
            while wave := list(islice(tasks, 2 * n_workers)):
                yield from parallel(wave)
        return
    answers = Parallel(batch_size=1, timeout=timeout, return_as="generator")(tasks)
    try:
        yield from (answer for answer in answers)  # closed below, without warnings
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about answers not retrieved
            answers.close()


_OPENED: dict[str, Objective] = {}  # the latest objective sent to this process

_OPENING = threading.Lock()


def _run_task(key: str, payload: Any, task: Any) -> Answer:
    """Run a task on a worker. Errors are returned as text, because not every exception can be pickled."""
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
