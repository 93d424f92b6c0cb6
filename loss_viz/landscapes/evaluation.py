"""Evaluation of the loss at averages of points on planes, locally or on joblib workers.

If `joblib.parallel_config` names a backend, and measured times say that it pays, losses are distributed to threads,
processes, or Dask or Ray workers. The loss and the planes are sent to each process once per call; if the planes are
large, each task carries those that it needs instead. Which backend to use when: .docs/clusters.md.
"""

import pickle
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, UInt8
from joblib import Parallel, delayed, effective_n_jobs, wrap_non_picklable_objects
from joblib.parallel import get_active_backend

from loss_viz.objective.objective import Objective
from loss_viz.planes.plane_set import Planes, PlaneWeights, used_planes
from loss_viz.runs.weights import is_in_memory, take_rows

LIFT_BYTES, LIFT_BYTES_ON_DISK = 2**24, 2**28  # of the weights in a block of points, which reads all rows it needs
CHUNKS_PER_UPDATE = 8  # of the progress bar: a few hundredths of a second
MIN_SECONDS = 1.0  # that workers must save, until their start-up time is known
TASK_SECONDS = 0.25  # duration of a task: long compared with its dispatch, short enough to wait for
READ_SECONDS = 60.0  # of a task that first has to read its planes from disk: two seconds for one of ResNet-50
STUCK_SECONDS = 300.0  # plus ten times its expected duration: then a task is considered lost
MAX_SENT_BYTES = 2**28  # of the recorded weights in memory, of which each process gets a copy
MAX_FAILURES = 2  # with no loss in between: then the rest is evaluated locally

Losses = Float[np.ndarray, "n_part n_scalars"]

Updates = Generator[Losses, None, None]

Objectives = tuple[Objective, ...]

Answer = tuple[Losses, float, str]  # losses, their seconds, and the traceback of the error that ended the task


def evaluate_planes(
    objectives: Sequence[Objective], planes: Planes, points: Float[np.ndarray, "n 2"], weights: PlaneWeights
) -> Iterator[Losses]:
    """Yield the scalars of the networks sum_t w_t theta_t(q), `(n_part, n_scalars)`, part by part, in order.

    Where a function of the user raises an error for some weights, the value is nan.

    Args:
        objectives: the loss, then further scalars.
        planes: the planes.
        points: `(n, 2)`, points of the picture.
        weights: `(n, n_planes)`, weights of the planes at each point; fastest if equal planes are adjacent.
    """
    query, n_workers = _Query(planes, points, weights), effective_n_jobs(None)  # 1 without a joblib configuration
    objectives = tuple(objectives)
    parts = query.evaluate(objectives) if n_workers < 2 else _evaluate_on_workers(objectives, query, n_workers)
    with closing(parts):  # stops the workers at once
        yield from parts


@dataclass(frozen=True, eq=False)
class _Query:
    """Points of the picture and the weights of the planes there."""

    planes: Planes
    points: Float[np.ndarray, "n 2"]
    weights: PlaneWeights

    def __len__(self) -> int:
        return len(self.points)

    def part(self, start: int, stop: int | None = None) -> "_Query":
        return replace(self, points=self.points[start:stop], weights=self.weights[start:stop])

    def take(self) -> "_Query":
        """Return the query with only the planes it needs."""
        used = used_planes(self.weights)
        return _Query(self.planes.take(used), self.points, self.weights[:, used])

    def evaluate(self, objectives: Objectives) -> Updates:
        """Yield the scalars, in whole chunks of the objective, because other batch sizes round differently."""
        chunk, row_bytes = objectives[0].chunk_size, self.planes.row_bytes
        limit = LIFT_BYTES if is_in_memory(self.planes.rows) else LIFT_BYTES_ON_DISK
        n_chunks = min(CHUNKS_PER_UPDATE, limit // (row_bytes * chunk))
        n_rows = chunk * max(1, n_chunks)
        for start in range(0, len(self), n_rows):
            part = self.part(start, start + n_rows)
            lifted, buffers = self.planes.lift(part.points, part.weights), self.planes.average_buffers(part.weights)
            yield np.stack([_evaluate(objective, lifted, buffers) for objective in objectives], axis=1)


def _evaluate(
    objective: Objective, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None
) -> Float[np.ndarray, " n"]:
    """Return the scalars at weight vectors; nan where the function raises an error."""
    try:
        return objective(weights, buffers)
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _is_broken(objective):
            raise
        if len(weights) == 1:
            return np.array([np.nan])
    rows = range(len(weights))
    return np.concatenate([_evaluate(objective, weights[i : i + 1], take_rows(buffers, slice(i, i + 1))) for i in rows])


def _is_broken(objective: Objective) -> bool:
    """Return whether the function fails at the weights of the model too, as when its data are gone."""
    try:
        objective(objective.initial_weights[None])
    except Exception:
        return True
    return False


Known = WeakKeyDictionary[Any, float]
_SECONDS: Known = WeakKeyDictionary()  # of a local loss, at best; 0 after the first evaluation, which warms up
_WORKER_SECONDS: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()  # of a loss on a worker, by backend
_DELAY: Known = WeakKeyDictionary()  # start-up time of each backend in the last call


def _evaluate_on_workers(objectives: Objectives, query: _Query, n_workers: int) -> Updates:
    """Yield losses from workers where that pays, else local ones; losses that workers fail to return are repeated."""
    backend, n_done, n_failures, failed = get_active_backend()[0], 0, 0, False
    loss = objectives[0]  # whose times stand for all scalars together
    while n_done < len(query):
        rest = query.part(n_done)
        if failed or n_failures == MAX_FAILURES or _seconds_saved(loss, len(rest), backend, n_workers) <= 0:
            losses = _evaluate_locally(objectives, rest)  # also after a failure: raises an error of the loss itself
            n_done, failed = n_done + len(losses), False
            yield losses
            continue
        try:
            with closing(_dispatch(objectives, rest, backend, n_workers)) as parts:
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


def _evaluate_locally(objectives: Objectives, query: _Query) -> Losses:
    objective = objectives[0]
    known, started = _SECONDS.get(objective), time.perf_counter()
    losses = next((query if known else query.part(0, objective.chunk_size)).evaluate(objectives))
    seconds = (time.perf_counter() - started) / len(losses)
    _SECONDS[objective] = 0.0 if known is None else min(known or seconds, seconds)
    return losses


def _dispatch(objectives: Objectives, query: _Query, backend: Any, n_workers: int) -> Updates:
    objective = objectives[0]
    chunk, seconds, begun = objective.chunk_size, _SECONDS[objective], time.perf_counter()
    known = _WORKER_SECONDS.setdefault(backend, WeakKeyDictionary())
    limit = TASK_SECONDS if is_in_memory(query.planes.rows) else READ_SECONDS
    shared, key = getattr(backend, "supports_sharedmem", False), uuid.uuid4().hex
    payload, common = objectives, None
    if not shared:
        common = _copy_to_send(query.planes)
        payload = _broadcast(backend, np.frombuffer(_pack((objectives, common)), np.uint8))

    def cut() -> Iterator[Any]:
        start = 0
        while start < len(query):
            share = (len(query) - start) / (2 * n_workers)  # tasks become shorter towards the end
            stop = start + chunk * max(1, int(min(share, limit / seconds) / chunk))
            task = query.part(start, stop)
            sent: Any = task
            if not shared:
                sent = _pack(task.take() if common is None else (task.points, task.weights))
            yield delayed(_run_task)(key, payload, sent)
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


def _copy_to_send(planes: Planes) -> Planes | None:
    """Return the planes without what they have computed, and rows that none uses; None if the rows fill too much."""
    if is_in_memory(planes.rows) and len(planes.rows) * planes.row_bytes > MAX_SENT_BYTES:
        return None
    return planes.take(np.arange(len(planes)))


def _pack(thing: Any) -> bytes:
    return pickle.dumps(wrap_non_picklable_objects(thing, keep_wrapper=False))


def _broadcast(backend: Any, payload_bytes: UInt8[np.ndarray, " n"]) -> Any:
    """Return a handle to the pickled loss and planes, sent to each worker once per call instead of with every task."""
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


_OPENED: dict[str, tuple[Objectives, Planes | None]] = {}  # the latest ones sent to this process
_OPENING = threading.Lock()


def _run_task(key: str, payload: Any, task: Any) -> Answer:
    """Run a task on a worker. Errors are returned as text, because not every exception can be pickled."""
    losses, trace, started = [], "", time.perf_counter()
    try:
        if isinstance(task, bytes):
            (payload, planes), task, started = _open(key, payload), pickle.loads(task), time.perf_counter()
            task = task if planes is None else _Query(planes, *task)
        for part in task.evaluate(payload):
            losses.append(part)
    except Exception:
        trace = traceback.format_exc(limit=-3)
    return np.concatenate(losses or [np.empty((0, 1))]), time.perf_counter() - started, trace


def _open(key: str, payload: Any) -> tuple[Objectives, Planes | None]:
    with _OPENING:
        if key not in _OPENED:
            payload_bytes = payload if isinstance(payload, np.ndarray) else import_module("ray").get(payload)
            _OPENED.clear()
            _OPENED[key] = pickle.loads(payload_bytes.data)
        return _OPENED[key]
