"""Timing side by side: on a machine that others use too, only a ratio of neighbours means something."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

import torch
from tqdm.auto import tqdm

N_SLICES = 5


@dataclass(frozen=True)
class Work:
    """Something to be timed: a call, and how many units of work it does (evaluations, planes, landscapes)."""

    name: str
    call: Callable[[], object]
    units: float = 1.0


@dataclass(frozen=True)
class Spread:
    """Median and range of a few numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of some values, one at least."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{normalize_formula(self.median)} [{normalize_formula(self.least)}, {normalize_formula(self.most)}]"


@dataclass
class Pair:
    """One rival beside loss_viz: seconds per unit of work in each repeat, one list for each of the two.

    Attributes:
        rival: its name.
        ours: seconds of loss_viz, measured right before or right after.
        theirs: seconds of the rival.
        note: what the numbers do not say, or why there are none.
        difference: the largest relative difference of the losses, where both evaluate the same points.
    """

    rival: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    note: str = ""
    difference: float | None = None

    @property
    def speedup(self) -> Spread:
        """How many times as fast loss_viz is."""
        return Spread.of([theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)])

    @property
    def share(self) -> Spread:
        """The time of loss_viz over that of the rival."""
        return Spread.of([ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)])


class Clock:
    """Times blocks of calls that are long enough to mean something.

    Args:
        device: where the work is done; a GPU is waited for before the clock is read.
        repeats: how often each rival is put beside loss_viz.
        least: seconds that a block takes at least.
    """

    def __init__(self, device: torch.device, repeats: int, least: float = 0.15) -> None:
        self.device = device
        self.repeats = repeats
        self.least = least

    def time(self, work: Work, n_calls: int = 1) -> float:
        """Seconds per unit of work, over a block of calls."""
        self._wait()
        start = time.perf_counter()
        for _ in range(n_calls):
            work.call()
        self._wait()
        return (time.perf_counter() - start) / (n_calls * work.units)

    def count_calls(self, work: Work) -> int:
        """Calls that fill a block, from calls that come after one that warms up; 1 where that one took far longer."""
        if self.time(work) * work.units > 10 * self.least:
            return 1
        n_calls = 1
        while (taken := self.time(work, n_calls) * n_calls * work.units) < self.least:
            n_calls = max(n_calls + 1, int(1.2 * n_calls * self.least / taken))
        return n_calls

    def compare(self, ours: Work, rivals: Sequence[Work], desc: str) -> list[Pair]:
        """Each rival right before or right after loss_viz, which of the two changes from repeat to repeat."""
        if not rivals:
            return []
        n_calls = {work.name: self.count_calls(work) for work in (ours, *rivals)}
        pairs = {work.name: Pair(work.name) for work in rivals}
        for repeat in tqdm(range(self.repeats), desc=desc, leave=False):
            gc.collect()
            for i in range(0, len(rivals), 2):
                sampling = list(rivals[i : i + 2])
                if repeat % 2:
                    sampling.reverse()
                turns = [*sampling[:1], ours, *sampling[1:]] if len(sampling) == 2 or repeat % 2 else [ours, *sampling]
                seconds = self.time_in_turn(turns, n_calls)
                for work in sampling:
                    pairs[work.name].ours.append(seconds[ours.name])
                    pairs[work.name].theirs.append(seconds[work.name])
        return list(pairs.values())

    def time_in_turn(self, works: Sequence[Work], n_calls: dict[str, int]) -> dict[str, float]:
        """Seconds per unit of each, their blocks cut into slices that alternate: what disturbs one disturbs all."""
        n_slices = min(N_SLICES, *(n_calls[work.name] for work in works))
        seconds = dict.fromkeys((work.name for work in works), 0.0)
        for _ in range(n_slices):
            for work in works:
                seconds[work.name] += self.time(work, ceil(n_calls[work.name] / n_slices)) / n_slices
        return seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def normalize_formula(number: float) -> str:
    """Three digits, without an exponent where there need be none."""
    if number == 0 or 1e-3 <= abs(number) < 1e3:
        return f"{number:.3g}"
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.1e}"
