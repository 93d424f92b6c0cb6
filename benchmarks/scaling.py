"""Speedup by more workers: `python -m benchmarks.scaling`, after `pip install -e ".[cluster]"`.

Compares a landscape on one thread with the same on two threads, two processes (loky), and two worker processes of Dask
and of Ray on this machine, alternately: the speedup, the cost of the first call, and what is sent. With `--docs` the
tables are inserted into .docs/clusters.md.
"""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

import loss_viz as lv
from loss_viz.landscapes import evaluation

from . import networks
from .report import describe_machine, insert, table, write_machine
from .timing import Comparison, Spread, Timer, Workload, format_number

N_WORKERS = 2
DOCS = Path(".docs/clusters.md")
MARKS = "<!-- scaling: written by python -m benchmarks.scaling --docs -->\n", "<!-- end of scaling -->\n"

Draw = Callable[[], lv.Landscape]


@contextmanager
def start_loky() -> Iterator[None]:
    """Use two processes, which start with the first task."""
    with joblib.parallel_config(backend="loky", n_jobs=N_WORKERS):
        yield
    get_reusable_executor().shutdown(wait=True)


@contextmanager
def start_dask() -> Iterator[None]:
    """Use two worker processes of Dask, with glibc's own memory management (see .docs/clusters.md)."""
    import dask
    from distributed import Client, LocalCluster

    with (
        patch.dict(os.environ),  # Dask leaves its workers' variables here, where the next backend would inherit them
        dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}}),
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@contextmanager
def start_ray() -> Iterator[None]:
    """Use two workers of Ray."""
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    try:
        ray.init(num_cpus=N_WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        with joblib.parallel_config(backend="ray", n_jobs=N_WORKERS):
            yield
    finally:
        ray.shutdown()


BACKENDS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "threads": lambda: joblib.parallel_config(backend="threading", n_jobs=N_WORKERS),
    "loky": start_loky,
    "Dask": start_dask,
    "Ray": start_ray,
}


@dataclass
class Traffic:
    """What was sent to workers: number of dispatches, tasks, bytes, and losses returned."""

    n_dispatches: int = 0
    n_tasks: int = 0
    n_bytes: int = 0
    n_losses: int = 0

    @contextmanager
    def record(self) -> Iterator[None]:
        """Count inside this context."""
        stream = evaluation._stream

        def count_tasks(tasks: Iterator[Any]) -> Iterator[Any]:
            for task in tasks:
                self.n_tasks += 1
                self.n_bytes += len(task[1][2]) if isinstance(task[1][2], bytes) else 0
                yield task

        def count_answers(tasks: Iterator[Any], *rest: Any) -> Iterator[Any]:
            self.n_dispatches += 1
            for answer in stream(count_tasks(tasks), *rest):
                self.n_losses += len(answer[0])
                yield answer

        with patch.object(evaluation, "_stream", count_answers):
            yield


@dataclass
class Row:
    """A landscape on the workers of one backend, compared with the same in one process.

    Attributes:
        network: its name.
        backend: its name.
        start: seconds until the cluster has started.
        first: seconds of the first landscape after that.
        comparison: later landscapes, alternating with one process.
        traffic: of one of the later ones.
        n_losses: number of losses that a landscape evaluates.
        loss_bytes: size of the pickled loss, which each process receives once per dispatch.
        startup: seconds until running workers answered, minus the work in the answer; None if nothing was distributed.
    """

    network: str
    backend: str
    start: float = 0.0
    first: float = 0.0
    comparison: Comparison = field(default_factory=lambda: Comparison("one process"))
    traffic: Traffic = field(default_factory=Traffic)
    n_losses: int = 0
    loss_bytes: int = 0
    startup: float | None = None


def measure_backends(name: str, run: lv.Run, draw: Draw, backends: list[str], timer: Timer) -> list[Row]:
    """Measure the landscape with each backend that is installed."""
    rows, n_losses = [], count_losses(draw)
    for backend in backends:
        row = Row(name, backend, n_losses=n_losses, loss_bytes=len(evaluation._pack((run.objective,))))
        started = time.perf_counter()
        with ExitStack() as stack:
            try:
                stack.enter_context(BACKENDS[backend]())
            except Exception as error:  # not installed, or Ray exceeded its own limit of thirty seconds
                print(f"- {name}, {backend}: {error}", flush=True)
                continue
            row.start = time.perf_counter() - started
            row.first = timer.time(Workload(backend, draw))
            with row.traffic.record():
                draw()
            single = Workload("one process", partial(draw_in_process, draw))
            [row.comparison] = timer.compare(Workload(backend, draw), [single], name)
            startup = evaluation._DELAY.get(joblib.parallel.get_active_backend()[0])
            row.startup = startup if row.traffic.n_dispatches else None
        rows.append(row)
        print(f"- {name}, {backend}: first {row.first:.2g} s, then speedup {row.comparison.speedup}", flush=True)
    return rows


def draw_in_process(draw: Draw) -> lv.Landscape:
    """Compute the landscape in this process."""
    with joblib.parallel_config(backend="sequential"):
        return draw()


@contextmanager
def distribute_everything() -> Iterator[None]:
    """Distribute all losses, even if that takes longer."""
    with patch.object(evaluation, "_seconds_saved", lambda objective, *_: evaluation._SECONDS.get(objective, 0.0)):
        yield


def count_losses(draw: Draw) -> int:
    """Count the losses that a landscape evaluates, including those for the choice of planes."""
    n_losses, call = 0, lv.Objective.__call__

    def count(self: lv.Objective, weights: Any, *rest: Any) -> Any:
        nonlocal n_losses
        n_losses += len(weights)
        return call(self, weights, *rest)

    with patch.object(lv.Objective, "__call__", count):
        draw_in_process(draw)
    return n_losses


def write_speed(rows: list[Row]) -> str:
    """Return the speedup by two workers."""
    lines = []
    for network in dict.fromkeys(row.network for row in rows):
        found = {row.backend: row for row in rows if row.network == network}
        single = Spread.of([seconds for row in found.values() for seconds in row.comparison.theirs])
        speedups = [str(found[name].comparison.speedup) if name in found else "–" for name in BACKENDS]
        n_losses = next(iter(found.values())).n_losses
        lines.append([network, f"{n_losses:,}", format_number(single.median), *speedups])
    return table(["network", "losses", "one process, s", *(f"{name}, {N_WORKERS}" for name in BACKENDS)], lines)


def write_costs(rows: list[Row]) -> str:
    """Return the start-up times, and what is sent."""
    lines = []
    for row in rows:
        traffic, is_sent = row.traffic, row.backend != "threads" and row.traffic.n_tasks
        share = f"{traffic.n_losses / row.n_losses:.0%} in {traffic.n_tasks}" if traffic.n_tasks else "none"
        sizes = [format_number(n / 1e3) for n in (traffic.n_bytes / max(1, traffic.n_tasks), row.loss_bytes)]
        start = format_number(row.start) if row.start > 0.01 else "–"
        startup = "–" if row.startup is None else format_number(row.startup)
        times = [start, format_number(row.first), Spread.of(row.comparison.ours), startup]
        lines.append([row.network, row.backend, *times, share, *(sizes if is_sent else ["–"] * 2)])
    head = ["network", "workers", "cluster, s", "first call, s", "later calls, s", "start-up, s"]
    return table([*head, "losses distributed, in tasks", "per task, kB", "loss, kB"], lines)


def measure(timer: Timer, backends: list[str]) -> list[Row]:
    """Measure four networks, and the smallest one once more with all losses distributed."""
    small, _, deep = networks.build_mlps(timer.device)
    cnn = networks.build_digits(timer.device)[0]
    draw_small, draw_deep = (partial(lv.landscape, net.run, progress=False) for net in (small, deep))
    draw_cnn = partial(lv.landscape, cnn.run, resolution=31, n_anchors=50, progress=False)
    rows = measure_backends(small.name, small.run, draw_small, backends, timer)
    with distribute_everything():
        without_ray = [name for name in backends if name != "Ray"]  # joblib restarts its workers for each dispatch
        rows += measure_backends(f"{small.name}, all distributed", small.run, draw_small, without_ray, timer)
    rows += measure_backends(deep.name, deep.run, draw_deep, backends, timer)
    rows += measure_backends(f"{cnn.name}, 31 x 31", cnn.run, draw_cnn, backends, timer)
    # A picture of about twenty seconds, as larger models or more data have it.
    wide = lv.train("sin(3x)", width=256, depth=2, n_points=10_000, lr=1e-3, steps=60, progress=False)
    draw_wide = partial(lv.landscape, wide, resolution=31, n_anchors=20, progress=False)
    slow = Timer(timer.device, min(3, timer.repeats))
    return rows + measure_backends("1-256-256-1 on 10,000 points, 31 x 31", wide, draw_wide, backends, slow)


def main() -> None:
    """Measure and print, and insert the tables into the documentation if requested."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three repeats instead of five")
    parser.add_argument("--only", choices=list(BACKENDS), help="measure one backend only")
    parser.add_argument("--docs", action="store_true", help=f"insert the tables into {DOCS}")
    options = parser.parse_args()
    if options.docs and options.only:
        parser.error("--docs needs all backends; leave out --only.")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    warnings.filterwarnings("ignore", category=ResourceWarning)
    torch.set_num_threads(1)
    tables = []

    def show(text: str) -> None:
        tables.append(text)
        print(f"{text}\n", flush=True)

    with threadpool_limits(1):
        timer = Timer(torch.device("cpu"), 3 if options.quick else 5)
        rows = measure(timer, [options.only] if options.only else list(BACKENDS))
        show(write_speed(rows))
        show(write_costs(rows))
    machine = describe_machine(torch.device("cpu"))
    machine["packages"] = [f"{name} {version(name)}" for name in ("joblib", "distributed", "ray") if find_spec(name)]
    show(write_machine(machine) + (" Three repeats." if options.quick else " Five repeats, three of the largest."))
    if options.docs:
        insert("\n\n".join(tables) + "\n", DOCS, MARKS)


if __name__ == "__main__":
    main()
