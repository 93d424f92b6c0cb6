"""Side-by-side timing: on a machine that others use too, only ratios of neighboring measurements are meaningful."""

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

from loss_viz.objective.batching import trim_heap

N_SLICES = 5


@dataclass(frozen=True)
class Workload:
    """A call to be timed, and the number of units of work that it does (evaluations, planes, landscapes)."""

    name: str
    call: Callable[[], object]
    units: float = 1.0


@dataclass(frozen=True)
class Spread:
    """Median and range of some numbers."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{format_number(self.median)} [{format_number(self.min)}, {format_number(self.max)}]"


@dataclass
class Comparison:
    """loss_viz and one baseline: seconds per unit of work in each repeat, one list for each.

    Attributes:
        baseline: its name.
        ours: seconds of loss_viz, measured right before or right after the baseline.
        theirs: seconds of the baseline; empty if it did not run.
        note: what the numbers do not show, or why there are none.
        difference: largest relative difference of the losses, if both evaluate the same points.
        memory: peak memory of one call of loss_viz and of the baseline, in MB beyond what the process had before.
    """

    baseline: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    note: str = ""
    difference: float | None = None
    memory: tuple[float, float] | None = None

    @property
    def speedup(self) -> Spread:
        """Time of the baseline divided by that of loss_viz."""
        return Spread.of([theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)])

    @property
    def time_ratio(self) -> Spread:
        """Time of loss_viz divided by that of the baseline."""
        return Spread.of([ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)])


class Timer:
    """Times blocks of calls, each block long enough to be measured reliably.

    Args:
        device: device of the work; a GPU is synchronized before the time is read.
        repeats: number of comparisons with each baseline.
        min_seconds: minimum duration of a block.
        clock: what is read; `time.process_time` measures CPU time instead.
    """

    def __init__(
        self,
        device: torch.device,
        repeats: int,
        min_seconds: float = 0.15,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = device
        self.repeats = repeats
        self.min_seconds = min_seconds
        self.clock = clock

    def time(self, work: Workload, n_calls: int = 1) -> float:
        """Return seconds per unit of work, averaged over a block of calls."""
        self._synchronize()
        start = self.clock()
        for _ in range(n_calls):
            work.call()
        self._synchronize()
        return (self.clock() - start) / (n_calls * work.units)

    def count_calls(self, work: Workload) -> int:
        """Return the number of calls that fill a block, after a warm-up call; 1 if that call took far longer."""
        if self.time(work) * work.units > 10 * self.min_seconds:
            return 1
        n_calls = 1
        while (taken := self.time(work, n_calls) * n_calls * work.units) < self.min_seconds:
            n_calls = max(n_calls + 1, int(1.2 * n_calls * self.min_seconds / taken))
        return n_calls

    def compare(self, ours: Workload, baselines: Sequence[Workload], desc: str) -> list[Comparison]:
        """Time each baseline right before or right after loss_viz; the order alternates between repeats."""
        if not baselines:
            return []
        n_calls = {work.name: self.count_calls(work) for work in (ours, *baselines)}
        comparisons = {work.name: Comparison(work.name) for work in baselines}
        for repeat in tqdm(range(self.repeats), desc=desc, leave=False):
            gc.collect()
            for i in range(0, len(baselines), 2):
                others = list(baselines[i : i + 2])
                if repeat % 2:
                    others.reverse()
                order = [*others[:1], ours, *others[1:]] if len(others) == 2 or repeat % 2 else [ours, *others]
                seconds = self.time_alternately(order, n_calls)
                for work in others:
                    comparisons[work.name].ours.append(seconds[ours.name])
                    comparisons[work.name].theirs.append(seconds[work.name])
        return list(comparisons.values())

    def time_alternately(self, works: Sequence[Workload], n_calls: dict[str, int]) -> dict[str, float]:
        """Return seconds per unit of each; their blocks are cut into alternating slices to share disturbances."""
        n_slices = min(N_SLICES, *(n_calls[work.name] for work in works))
        seconds = dict.fromkeys((work.name for work in works), 0.0)
        for _ in range(n_slices):
            for work in works:
                seconds[work.name] += self.time(work, ceil(n_calls[work.name] / n_slices)) / n_slices
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_memory(call: Callable[[], object]) -> float:
    """Return the peak resident memory of a call in MB, beyond what the process had before; nan outside Linux."""
    if not sys.platform.startswith("linux"):
        return math.nan
    gc.collect()
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _read_status("VmRSS")
    call()
    return (_read_status("VmHWM") - before) / 1000


def _read_status(name: str) -> int:
    """Return an entry of the process's status in kB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def format_number(number: float) -> str:
    """Return three significant digits, without an exponent unless the number is very large or small."""
    if number == 0 or 1e-3 <= abs(number) < 1e3:
        return f"{number:.3g}"
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.1e}"
