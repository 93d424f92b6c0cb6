"""What the measurements should come to, and what they came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from .growth import IMPORTS, SURFACE, Growth
from .pairs import Pair, Spread, normalize_formula
from .rivals import BATCHED
from .speed import LOOP, NAIVE, Beside

LEAST_OF_BATCHED = 0.8
LEAST_OF_LOOP = {"1-8-1": 30.0, "1-64-1": 4.0, "1-64-64-1": 2.5}
LEAST_OF_NAIVE = 1000.0
MOST_OF_PEER = {"1-8-1": 0.5, "1-64-64-1": 4.0}
MOST_EXPONENT = {"cells": 1.05, SURFACE: 0.1}
MOST_OF_GRAM = 1.5
MOST_OF_IMPORT = 0.5  # seconds


@dataclass
class Target:
    """One limit: its name, what was asked, what came, and whether the median keeps to it."""

    name: str
    limit: str
    came: str
    met: bool


def at_least(name: str, limit: float, came: Spread, unit: str = "×") -> Target:
    """A target for something that should be large."""
    return Target(name, f"≥ {normalize_formula(limit)} {unit}", f"{came} {unit}", came.median >= limit)


def at_most(name: str, limit: float, came: Spread, unit: str = "×") -> Target:
    """A target for something that should be small."""
    return Target(name, f"≤ {normalize_formula(limit)} {unit}", f"{came} {unit}", came.median <= limit)


def judge_objective(rows: Sequence[Beside]) -> list[Target]:
    """Beside the hand-batched code, and beside the plain loop."""
    judged = []
    for row in rows:
        if batched := [pair for pair in row.pairs if pair.rival.startswith(f"{BATCHED} ")]:
            fastest = find_fastest(batched)
            name = f"objective, {row.net}: speed over {fastest.rival}"
            judged.append(at_least(name, LEAST_OF_BATCHED, fastest.speedup))
    return judged + [
        at_least(f"objective, {row.net}: speed over the plain loop", LEAST_OF_LOOP.get(row.net, 1), speedup)
        for row in rows
        for speedup in [row.find(LOOP).speedup]
    ]


def judge_landscape(rows: Sequence[Beside]) -> list[Target]:
    """Beside the naive sweep, and beside the fastest of the peers."""
    judged = []
    for row in rows:
        for pair in row.pairs:
            if pair.rival == NAIVE:
                judged.append(at_least(f"{row.what}: speed over the naive sweep", LEAST_OF_NAIVE, pair.speedup))
        if row.peers:
            fastest = find_fastest(row.peers)
            name = f"{row.what}, {row.net}: time over one plane of the fastest peer ({fastest.rival})"
            judged.append(at_most(name, MOST_OF_PEER[row.net], fastest.share))
    return judged


def find_fastest(pairs: Sequence[Pair]) -> Pair:
    """The rival of the least time beside that of loss_viz, for those of another moment do not compare."""
    return min(pairs, key=lambda pair: pair.speedup.median)


def judge_growth(rows: Sequence[Growth]) -> list[Target]:
    """Exponents of the number of evaluations."""
    judged = []
    for row in rows:
        if row.axis in MOST_EXPONENT:
            limit, came = MOST_EXPONENT[row.axis], row.exponent(row.evaluations)
            judged.append(
                Target(f"evaluations against {row.axis}: exponent", f"≤ {limit}", f"{came:.3f}", came <= limit)
            )
    return judged


def judge_projection(pair: Pair) -> list[Target]:
    """The PCA beside one product."""
    return [at_most("PCA: time over one Gram product", MOST_OF_GRAM, pair.share)]


def judge_imports(found: dict[str, list[float]]) -> list[Target]:
    """The front door, which loads no more than is asked for."""
    name = next(iter(IMPORTS))
    return [at_most(f"{name}: time beyond import torch", MOST_OF_IMPORT, Spread.of(found[name]), "s")]
