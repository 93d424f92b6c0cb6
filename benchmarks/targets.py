"""Targets of the benchmarks, and whether the measurements meet them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .baselines import BATCHED, LOOP
from .cost import IMPORTS, CostCurve
from .speed import NAIVE, Result
from .timing import Comparison, Spread, format_number

MIN_SPEEDUP_OVER_BATCHED = 0.8
MIN_SPEEDUP_OVER_LOOP = {"1-8-1": 30.0, "1-64-1": 4.0, "1-64-64-1": 2.5}
MIN_SPEEDUP_OVER_NAIVE = 1000.0
MAX_TIME_OVER_TOOL = {"1-8-1": 0.5, "1-64-64-1": 1.5, "digits CNN": 1.3}
MAX_EXPONENT = {"cells": 1.05}
MAX_TIME_OVER_GRAM = 1.5
MAX_TIME_OVER_BARE_LOOP = 1.1
MAX_IMPORT_SECONDS = 0.5


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
            targets.append(at_most(name, MAX_TIME_OVER_TOOL[result.network], fastest.time_ratio))
    return targets


def check_growth(curves: Sequence[CostCurve]) -> list[Target]:
    """Check the exponents of the number of evaluations."""
    targets = []
    for curve in curves:
        if curve.quantity in MAX_EXPONENT:
            limit, measured = MAX_EXPONENT[curve.quantity], curve.exponent(curve.evaluations)
            name = f"evaluations against {curve.quantity}: exponent"
            targets.append(Target(name, f"≤ {limit}", f"{measured:.3f}", measured <= limit))
    return targets


def check_projection(comparison: Comparison) -> list[Target]:
    """Check the time of the PCA relative to one matrix product."""
    return [at_most("PCA: time relative to one Gram product", MAX_TIME_OVER_GRAM, comparison.time_ratio)]


def check_recording(comparison: Comparison) -> list[Target]:
    """Check the time of a recorded training relative to the bare loop."""
    return [at_most("recording: time relative to the bare loop", MAX_TIME_OVER_BARE_LOOP, comparison.time_ratio)]


def check_imports(found: dict[str, list[float]]) -> list[Target]:
    """Check the time of `import loss_viz`, which loads submodules, and PyTorch, only on first use."""
    code = next(iter(IMPORTS))
    return [at_most(f"{code}: time", MAX_IMPORT_SECONDS, Spread.of(found[code]), "s")]
