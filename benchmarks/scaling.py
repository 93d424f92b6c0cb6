"""What more workers bring: `python -m benchmarks.scaling`, with `pip install -e ".[cluster]"`.

A landscape on one thread beside the same on two threads, two processes (loky), and two worker processes of Dask and of
Ray on this machine, in turn: how many times as fast, what the first call costs, and what is sent. With `--docs` the
tables are put into .docs/clusters.md.
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
from loss_viz import lifting

from . import nets, readme
from .pairs import Clock, Pair, Spread, Work, normalize_formula
from .report import describe_machine, table, write_machine

N_WORKERS = 2
DOCS = Path(".docs/clusters.md")
MARKS = "<!-- scaling: written by python -m benchmarks.scaling --docs -->\n", "<!-- end of scaling -->\n"

Draw = Callable[[], lv.Landscape]


@contextmanager
def start_loky() -> Iterator[None]:
    """Two processes, started when there is something to do."""
    with joblib.parallel_config(backend="loky", n_jobs=N_WORKERS):
        yield
    get_reusable_executor().shutdown(wait=True)


@contextmanager
def start_dask() -> Iterator[None]:
    """Two worker processes of Dask, with glibc's own memory management: .docs/clusters.md says why."""
    import dask
    from distributed import Client, LocalCluster

    with (
        patch.dict(os.environ),  # Dask leaves what is meant for its workers in ours, and the next backend's inherit it
        dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}}),
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@contextmanager
def start_ray() -> Iterator[None]:
    """Two workers of Ray."""
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
class Sent:
    """What was handed out: how often, in how many tasks, of how many bytes, and the losses that came back."""

    n_times: int = 0
    n_tasks: int = 0
    n_bytes: int = 0
    n_losses: int = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        """While this lasts."""
        stream = lifting._stream

        def weigh(tasks: Iterator[Any]) -> Iterator[Any]:
            for task in tasks:
                self.n_tasks += 1
                self.n_bytes += len(task[1][2]) if isinstance(task[1][2], bytes) else 0
                yield task

        def watch(tasks: Iterator[Any], *rest: Any) -> Iterator[Any]:
            self.n_times += 1
            for answer in stream(weigh(tasks), *rest):
                self.n_losses += len(answer[0])
                yield answer

        with patch.object(lifting, "_stream", watch):
            yield


@dataclass
class Scaled:
    """A landscape on the workers of one backend, beside the same in one process.

    Attributes:
        net: its name.
        backend: its name.
        start: seconds until there are workers.
        first: seconds of the first landscape after that.
        pair: of the later ones, in turn with one process.
        sent: by one of the later ones.
        n_losses: that one of them evaluates.
        loss_bytes: what a process is sent once each time.
        delay: seconds that the workers took to begin, when they were known already; None where that was not seen.
    """

    net: str
    backend: str
    start: float = 0.0
    first: float = 0.0
    pair: Pair = field(default_factory=lambda: Pair("one process"))
    sent: Sent = field(default_factory=Sent)
    n_losses: int = 0
    loss_bytes: int = 0
    delay: float | None = None


def measure_scaling(name: str, run: lv.Run, draw: Draw, backends: list[str], clock: Clock) -> list[Scaled]:
    """The landscape with each backend that is installed."""
    found, n_losses = [], count_losses(draw)
    for backend in backends:
        row = Scaled(name, backend, n_losses=n_losses, loss_bytes=len(lifting._pack(run.objective)))
        begun = time.perf_counter()
        with ExitStack() as stack:
            try:
                stack.enter_context(BACKENDS[backend]())
            except Exception as error:  # it is not installed, or Ray did not start within its own thirty seconds
                print(f"- {name}, {backend}: {error}", flush=True)
                continue
            row.start = time.perf_counter() - begun
            row.first = clock.time(Work(backend, draw))
            with row.sent.count():
                draw()
            [row.pair] = clock.compare(Work(backend, draw), [Work("one process", partial(alone, draw))], name)
            known = lifting._DELAY.get(joblib.parallel.get_active_backend()[0])
            row.delay = known if row.sent.n_times else None
        found.append(row)
        print(f"- {name}, {backend}: first {row.first:.2g} s, then {row.pair.speedup} times as fast", flush=True)
    return found


def alone(draw: Draw) -> lv.Landscape:
    """The same in this process."""
    with joblib.parallel_config(backend="sequential"):
        return draw()


@contextmanager
def hand_out_all() -> Iterator[None]:
    """Whatever can be handed out is, whether it pays or not."""
    with patch.object(lifting, "_seconds_saved", lambda objective, *_: lifting._SECONDS.get(objective, 0.0)):
        yield


def count_losses(draw: Draw) -> int:
    """Losses that are evaluated on the way to a landscape, those for its bounds and the choice of kernels too."""
    n_losses, call = 0, lv.Objective.__call__

    def count(self: lv.Objective, weights: Any, *rest: Any) -> Any:
        nonlocal n_losses
        n_losses += len(weights)
        return call(self, weights, *rest)

    with patch.object(lv.Objective, "__call__", count):
        alone(draw)
    return n_losses


def write_speed(rows: list[Scaled]) -> str:
    """How many times as fast two workers are."""
    cells = []
    for net in dict.fromkeys(row.net for row in rows):
        mine = {row.backend: row for row in rows if row.net == net}
        single = Spread.of([seconds for row in mine.values() for seconds in row.pair.theirs])
        speeds = [str(mine[name].pair.speedup) if name in mine else "–" for name in BACKENDS]
        cells.append([net, f"{next(iter(mine.values())).n_losses:,}", normalize_formula(single.median), *speeds])
    return table(["net", "losses", "one process, s", *(f"{name}, {N_WORKERS}" for name in BACKENDS)], cells)


def write_costs(rows: list[Scaled]) -> str:
    """What it takes to begin, and what is sent."""
    cells = []
    for row in rows:
        sent, apart = row.sent, row.backend != "threads"
        share = f"{sent.n_losses / row.n_losses:.0%} in {sent.n_tasks}" if sent.n_tasks else "none"
        weight = [normalize_formula(n / 1e3) for n in (sent.n_bytes / max(1, sent.n_tasks), row.loss_bytes)]
        later = Spread.of(row.pair.ours)
        delay = "–" if row.delay is None else normalize_formula(row.delay)
        start = normalize_formula(row.start) if row.start > 0.01 else "–"
        sizes = weight if apart and sent.n_tasks else ["–"] * 2
        cells.append([row.net, row.backend, start, normalize_formula(row.first), later, delay, share, *sizes])
    head = ["net", "workers", "cluster, s", "first call, s", "later calls, s", "to begin, s", "losses handed out"]
    return table([*head, "a task, kB", "the loss, once, kB"], cells)


def measure(clock: Clock, backends: list[str]) -> list[Scaled]:
    """All rows: four nets, and the smallest one handed out nevertheless."""
    small, _, deep = nets.build_mlps(clock.device)
    cnn = nets.build_digits(clock.device)[0]
    draw_small, draw_deep = (partial(lv.landscape, net.run, progress=False) for net in (small, deep))
    draw_cnn = partial(lv.landscape, cnn.run, resolution=31, n_anchors=50, progress=False)
    rows = measure_scaling(small.name, small.run, draw_small, backends, clock)
    with hand_out_all():  # Ray would start its workers anew for each of a dozen blinks
        some = [name for name in backends if name != "Ray"]
        rows += measure_scaling(f"{small.name}, though it does not pay", small.run, draw_small, some, clock)
    rows += measure_scaling(deep.name, deep.run, draw_deep, backends, clock)
    rows += measure_scaling(f"{cnn.name}, 31 x 31", cnn.run, draw_cnn, backends, clock)
    # Pieces of seconds, on few cells: what a larger model or more data is like, within the time of a benchmark.
    wide = lv.train("sin(3x)", width=256, depth=2, n_points=10_000, lr=1e-3, steps=60, progress=False)
    draw_wide = partial(lv.landscape, wide, resolution=15, n_anchors=20, progress=False)
    return rows + measure_scaling("1-256-256-1 on 10,000 points, 15 x 15", wide, draw_wide, backends, clock)


def main() -> None:
    """Measure, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three repeats in place of five")
    parser.add_argument("--only", choices=list(BACKENDS), help="one kind of workers alone")
    parser.add_argument("--docs", action="store_true", help=f"put the tables into {DOCS}")
    chosen = parser.parse_args()
    if chosen.docs and chosen.only:
        parser.error("--docs needs all kinds of workers; leave out --only.")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    warnings.filterwarnings("ignore", category=ResourceWarning)
    torch.set_num_threads(1)
    tables = []

    def say(text: str) -> None:
        tables.append(text)
        print(f"{text}\n", flush=True)

    with threadpool_limits(1):
        clock = Clock(torch.device("cpu"), 3 if chosen.quick else 5)
        rows = measure(clock, [chosen.only] if chosen.only else list(BACKENDS))
        say(write_speed(rows))
        say(write_costs(rows))
    facts = describe_machine(torch.device("cpu"))
    facts["peers"] = [f"{name} {version(name)}" for name in ("joblib", "distributed", "ray") if find_spec(name)]
    say(write_machine(facts) + (" Three repeats." if chosen.quick else " Five repeats."))
    if chosen.docs:
        readme.insert("\n\n".join(tables) + "\n", DOCS, MARKS)


if __name__ == "__main__":
    main()
