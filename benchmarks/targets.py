"""Targets of the benchmarks, and whether the measurements meet them."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import cost
from .baselines import BATCHED, LOOP
from .cost import CostCurve
from .large import LargeRow
from .speed import NAIVE, Result
from .timing import Comparison, Spread, format_number

MIN_SPEEDUP_OVER_BATCHED = 0.8
MIN_SPEEDUP_OVER_LOOP = {"1-8-1": 30.0, "1-64-1": 4.0, "1-64-64-1": 2.5}
MIN_SPEEDUP_OVER_NAIVE = 1000.0
MAX_TIME_OVER_TOOL = {"1-8-1": 0.5, "1-64-64-1": 1.5, "digits CNN": 1.3}
MAX_EXPONENT = {"cells": 1.05}
MAX_SECONDS_EXPONENT = {"cells": 1.05, "recorded steps": 0.3, "anchors": 1.05, "parameters": 1.05, "large models": 1.05}
MAX_TIME_OVER_GRAM = 1.0
MAX_TIME_OVER_BARE_LOOP = 1.1
MAX_SECONDS = {cost.IMPORT: 0.1, cost.FIRST: 3.0}
MAX_CPU_RATIO, MAX_PEAK = 1.3, 1.3  # of a recorded training with a million weights
MIN_TIMES_CPU = 50.0


@dataclass
class Target:
    """A limit on a median, the measured value, and whether it meets the limit."""

    name: str
    limit: str
    measured: str
    met: bool


def at_least(name: str, limit: float, measured: Spread, unit: str = "×") -> Target:
    """Return a target with a lower limit."""
    return Target(name, f"≥ {format_number(limit)} {unit}", f"{measured} {unit}", measured.median >= limit)


def at_most(name: str, limit: float, measured: Spread, unit: str = "×") -> Target:
    """Return a target with an upper limit."""
    return Target(name, f"≤ {format_number(limit)} {unit}", f"{measured} {unit}", measured.median <= limit)


def find_fastest(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the fastest baseline relative to loss_viz; absolute times of different moments are not comparable."""
    return min(comparisons, key=lambda comparison: comparison.speedup.median)


def check_objective(results: Sequence[Result]) -> list[Target]:
    """Check the speedups over hand-batched code and over the plain loop."""
    targets = []
    for result in results:
        batched = [one for one in result.timed if one.baseline.startswith(f"{BATCHED} ")]
        if batched:
            fastest = find_fastest(batched)
            name = f"objective, {result.network}: speedup over {fastest.baseline}"
            targets.append(at_least(name, MIN_SPEEDUP_OVER_BATCHED, fastest.speedup))
    for result in results:
        if loop := result.find(LOOP):
            name = f"objective, {result.network}: speedup over the plain loop"
            targets.append(at_least(name, MIN_SPEEDUP_OVER_LOOP.get(result.network, 1), loop.speedup))
    return targets


def check_landscape(results: Sequence[Result]) -> list[Target]:
    """Check the speedup over the naive loop, and the time relative to the fastest other tool."""
    targets = []
    for result in results:
        if naive := result.find(NAIVE):
            name = f"landscape, {result.workload}: speedup over the naive loop"
            targets.append(at_least(name, MIN_SPEEDUP_OVER_NAIVE, naive.speedup))
        if result.other_tools:
            fastest = find_fastest(result.other_tools)
            name = f"landscape, {result.workload}, {result.network}: time relative to one plane of {fastest.baseline}"
            targets.append(at_most(name, MAX_TIME_OVER_TOOL.get(result.network, 1.1), fastest.time_ratio))
    return targets


def check_growth(curves: Sequence[CostCurve]) -> list[Target]:
    """Check the exponents of the number of evaluations, and of the seconds."""
    targets = []
    for curve in curves:
        for name, costs, limits in (
            ("evaluations", curve.evaluations, MAX_EXPONENT),
            ("seconds", curve.seconds, MAX_SECONDS_EXPONENT),
        ):
            if curve.quantity in limits:
                limit, measured = limits[curve.quantity], curve.exponent(costs)
                text = f"{name} against {curve.quantity}: exponent"
                targets.append(Target(text, f"≤ {limit}", f"{measured:.3f}", measured <= limit))
    return targets


def check_projection(comparison: Comparison) -> list[Target]:
    """Check the time of the PCA relative to one matrix product."""
    return [at_most("PCA: time relative to one Gram product", MAX_TIME_OVER_GRAM, comparison.time_ratio)]


def check_recording(comparison: Comparison) -> list[Target]:
    """Check the time of a recorded training relative to the bare loop."""
    return [at_most("recording: time relative to the bare loop", MAX_TIME_OVER_BARE_LOOP, comparison.time_ratio)]


def check_million(comparison: Comparison, peaks: Sequence[float]) -> list[Target]:
    """Check CPU time and memory of recording a million weights."""
    return [
        at_most(
            "recording a million weights: CPU time relative to the bare loop", MAX_CPU_RATIO, comparison.time_ratio
        ),
        at_most("1 GiB of snapshots: peak memory", MAX_PEAK, Spread.of(peaks), "GiB"),
    ]


def check_imports(found: dict[str, list[float]]) -> list[Target]:
    """Check the time of the import, which loads submodules and PyTorch only on first use, and of a first picture."""
    return [at_most(f"`{code}`: time", limit, Spread.of(found[code]), "s") for code, limit in MAX_SECONDS.items()]


def check_large(rows: Sequence[LargeRow]) -> list[Target]:
    """Check the speed of a GPU relative to two cores."""
    return [
        at_least(
            f"{row.network}: losses per second, times the CPU", MIN_TIMES_CPU, Spread.of([row.rate / row.cpu_rate])
        )
        for row in rows
        if row.cpu_rate
    ]
