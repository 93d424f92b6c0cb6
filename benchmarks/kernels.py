"""Kernels and planes compared on some fifty runs: `python -m benchmarks.kernels` writes benchmarks/kernels.md.

Each rule, a choice of planes and of the constants of `sigma="auto"`, is measured with 200 anchors: the factor between
surface and loss under the path, and at the anchors without the run within 3 % of the diagonal (no plane may use a step
that is left out). The constants were chosen with knowledge of the runs "tuned on"; those "held back" have other
targets, seeds, batch sizes and optimizers. Version 0.1 averaged the losses on local planes with narrower kernels, each
plane of a single step instead of the mean of those around its anchor.
Then the surface of 200 anchors is compared with that of 400. Only made-up data and scikit-learn's digits are used; all
is seeded, takes about ten minutes on one core, and writes the same table each time on one machine.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

import loss_viz as lv
from loss_viz.landscapes import held_out, kernels
from loss_viz.planes import local_planes

from .fidelity import TARGETS
from .report import table
from .trainings import REAL_HELD_BACK, REAL_TUNED

PAGE = Path("benchmarks/kernels.md")
OTHER_TARGETS = ("x^5", "cos(4x)", "tanh(5x)", "x^2 + sin(4x)", "abs(x - 0.3)")
WIDE = {"width": 64, "lr": 1e-3}
DEEP = {"width": 64, "depth": 2, "lr": 1e-3}
MAX_PATH = {"median": 1.01, "p90": 1.05, "start": 1.02}
MAX_WORSE = 1.05  # held out, compared with version 0.1
FAR_RADIUS = 0.1  # of the diagonal
NEAR = 0.1  # least support at which surfaces of 200 and 400 anchors are compared
MAX_CHANGE = {"p90": 0.01, "worst": 0.1}  # in decades
CONVERGENCE_RESOLUTION = 41


@dataclass(frozen=True)
class Case:
    """A run of the study.

    Attributes:
        name: its name in the table.
        group: `"tuned on"` or `"held back"`.
        kind: `"small"` or `"real"`.
        train: trains it.
        is_doubled: whether its surface is also drawn with 400 anchors.
    """

    name: str
    group: str
    kind: str
    train: Callable[[], lv.Run]
    is_doubled: bool = False


@dataclass(frozen=True)
class Rule:
    """A choice of planes and kernels.

    Attributes:
        name: its name in the table.
        settings: arguments of `landscape`.
        constants: constants of `kernels`, `held_out` and `local_planes` to replace, by name.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the constants inside this context."""
        with ExitStack() as stack:
            for name, value in self.constants.items():
                module = next(one for one in (kernels, held_out, local_planes) if hasattr(one, name))
                stack.enter_context(patch.object(module, name, value))
            yield


@dataclass(frozen=True)
class Errors:
    """Errors of one rule on one run.

    Attributes:
        median: factor under the path.
        p90: factor under the path.
        start: factor at the first step.
        held: mean of |log10| held out, steps within 3 % of the diagonal left out.
        held_p90: factor held out.
        far: as `held`, with steps within 10 % left out; no planes are chosen by it.
    """

    median: float
    p90: float
    start: float
    held: float
    held_p90: float
    far: float


SINGLE = {"MAX_AVERAGED": 0}  # planes of single steps
OLD_KERNEL = {"SPACING_SHARE": 0.35, "GROWTH": 0.14, "MAX_WIDTH": 0.003} | SINGLE
OLD_SETTINGS = {"plane": "local", "k": 5, "blend": "losses"}
DEFAULT = Rule("default")
OLD = "version 0.1"
OLD_RULES = (
    Rule(OLD, OLD_SETTINGS, OLD_KERNEL | {"STRETCH": 0.0}),
    Rule(OLD, OLD_SETTINGS, OLD_KERNEL),
)  # the one that is better held out is taken, as version 0.1 did


def long_stride(run: lv.Run) -> int:
    """Return the longer of the two strides that the default tries."""
    return max(5, (len(run) - 1) // 20)


def list_rules(run: lv.Run) -> list[Rule]:
    """Return the rules that are compared, other than that of version 0.1."""
    return [
        DEFAULT,
        Rule("local, k = 5", {"plane": "local", "k": 5}),
        Rule("local, k = n / 20", {"plane": "local", "k": long_stride(run)}),
        Rule("parallel", {"plane": "parallel"}),
        *(Rule(f"growth {value}", constants={"GROWTH": value}) for value in (0.14, 0.3, 0.8)),
        *(Rule(f"width up to {value} of the diagonal", constants={"MAX_WIDTH": value}) for value in (0.003, 0.1)),
        Rule("1.0 spacings", constants={"SPACING_SHARE": 1.0}),
        *(Rule(f"stretch {value}", constants={"STRETCH": float(value)}) for value in (1, 10)),
        Rule("round", constants={"STRETCH": 0.0}),
        Rule("planes of single steps", constants=SINGLE),
        Rule("planes of the smallest error", constants={"TIE": 1.0}),
    ]


def list_cases() -> list[Case]:
    """Return the runs, those tuned on first."""
    train = partial(partial, lv.train, progress=False)
    cases = [
        Case(f"`{target}`, seed {seed}", "tuned on", "small", train(target, seed=seed), seed == 0)
        for target in TARGETS
        for seed in (0, 1)
    ]
    cases += [Case(f"`{t}`, 1-64-1", "tuned on", "small", train(t, seed=0, **WIDE)) for t in ("x^2", "x^3", "sin(3x)")]
    cases.append(Case("`x^3`, 1-64-64-1", "tuned on", "small", train("x^3", seed=0, steps=1000, **DEEP)))
    cases += [Case(name, "tuned on", "real", build) for name, build in REAL_TUNED.items()]
    cases += [
        Case(f"`{target}`, seed {seed}", "held back", "small", train(target, seed=seed, steps=1500))
        for target in OTHER_TARGETS
        for seed in (10, 11, 12)
    ]
    cases += [
        Case(f"`{t}`, seed 13", "held back", "small", train(t, seed=13)) for t in ("x^2", "x^3", "sin(3x)", "sin(5x)")
    ]
    cases.append(Case("`cos(4x)`, 1-64-64-1", "held back", "small", train("cos(4x)", seed=10, steps=1000, **DEEP)))
    cases += [Case(name, "held back", "real", build) for name, build in REAL_HELD_BACK.items()]
    return cases


@dataclass(frozen=True)
class Result:
    """What was measured on one run.

    Attributes:
        case: the run.
        n_steps: number of recorded steps.
        planes: the planes that the default chose.
        errors: of each rule, by name.
        causes: facts about a run on which the default misses a goal; empty if it meets them.
        change: p90 and largest difference to the surface of 400 anchors, in decades, and the same with planes of
            single steps; None if they were not drawn.
    """

    case: Case
    n_steps: int
    planes: str
    errors: dict[str, Errors]
    causes: str
    change: tuple[float, ...] | None

    @property
    def ratio(self) -> float:
        """Held-out error of the default as a multiple of that of version 0.1."""
        return self.errors[DEFAULT.name].held / self.errors[OLD].held


def measure(rule: Rule, run: lv.Run) -> tuple[Errors, lv.Landscape]:
    """Measure a rule on a run."""
    with rule.applied():
        land = lv.landscape(run, resolution=2, progress=False, **rule.settings)
        path, held = lv.fidelity(land), lv.fidelity(land, held_out=True, progress=False)
        far = held_out.held_out_error(land.sampling, "auto", FAR_RADIUS, tqdm(disable=True))
    decades = np.log10(held.factor[np.isfinite(held.factor)])
    return Errors(path.median, path.p90, path.start, float(decades.mean()), held.p90, far), land


def measure_case(case: Case) -> Result:
    """Train a run and measure every rule on it."""
    run = case.train()
    errors, lands = {}, {}
    for rule in list_rules(run):
        errors[rule.name], lands[rule.name] = measure(rule, run)
    errors[OLD] = min((measure(rule, run)[0] for rule in OLD_RULES), key=lambda found: found.held)
    land = lands[DEFAULT.name]
    planes = f"local, k = {land.k}" if land.plane == "local" else land.plane
    found = Result(case, len(run), planes, errors, "", None)
    if case.is_doubled:
        found = replace(found, change=(*measure_change(run), *measure_change(run, SINGLE)))
    return replace(found, causes=describe(land)) if misses(found) else found


def measure_change(run: lv.Run, constants: Mapping[str, float] | None = None) -> tuple[float, float]:
    """Return p90 and largest |log10| between surfaces of 200 and 400 anchors, where the run is near."""
    with Rule("", constants=constants or {}).applied():
        few, many = (
            lv.landscape(run, resolution=CONVERGENCE_RESOLUTION, n_anchors=n, progress=False) for n in (200, 400)
        )
    change = np.abs(np.log10(few.loss / many.loss))[few.support >= NEAR]
    return float(np.quantile(change, 0.9)), float(change.max())


def misses(result: Result) -> list[str]:
    """Return the goals that the default misses on a run."""
    own = result.errors[DEFAULT.name]
    missed = [f"{name} {getattr(own, name):.3g}" for name, limit in MAX_PATH.items() if getattr(own, name) > limit]
    return missed + ([f"held out {result.ratio:.2f} times version 0.1"] if result.ratio > MAX_WORSE else [])


def describe(land: lv.Landscape) -> str:
    """Return what tells the causes of an error apart: folds, steps between anchors, and noise of mini-batches."""
    factor, height, loss = lv.fidelity(land).factor, land.path_height, land.path_loss
    off = np.flatnonzero(factor > MAX_PATH["p90"])
    bridged = np.exp(np.interp(land.run_set.step, land.run_set.step[land.anchors], np.log(loss[land.anchors])))
    spikes = np.abs(np.log(bridged[off] / loss[off])) > np.log(MAX_PATH["p90"])
    rows, heights = held_out.held_out_heights(land.sampling, "auto", held_out.BLOCK_RADIUS, tqdm(disable=True))
    above = np.mean(height[off] < loss[off]) if len(off) else 0.0
    return (
        f"{len(off)} of {len(loss)} steps off by more than {MAX_PATH['p90']:g}, {spikes.sum()} of them spikes between "
        f"anchors, {above:.0%} above the surface; {len(lv.find_folds(land))} folds; held out, the run is above the "
        f"surface at {np.mean(heights < loss[rows]):.0%} of the anchors"
    )


def write_rules(results: Sequence[Result]) -> str:
    """Return one line for each rule: means over groups of runs."""
    groups = {
        f"{name} ({sum(map(within, results))})": [one for one in results if within(one)]
        for name, within in (
            ("tuned on", lambda one: one.case.group == "tuned on"),
            ("held back", lambda one: one.case.group == "held back"),
            ("small", lambda one: one.case.kind == "small"),
            ("real", lambda one: one.case.kind == "real"),
        )
    }
    head = ["rule", *(f"{name}: {what}" for name in groups for what in ("path", "held out"))]
    rows = []
    for rule in results[0].errors:
        cells = []
        for members in groups.values():
            found = [one.errors[rule] for one in members]
            path = [mean_factor([getattr(one, name) for one in found]) for name in MAX_PATH]
            held, far = (np.nanmean([getattr(one, name) for one in found]) for name in ("held", "far"))
            p90 = mean_factor([one.held_p90 for one in found])
            ratio = mean_factor([one.errors[rule].held / one.errors[OLD].held for one in members])
            cells += [" / ".join(f"{value:.3f}" for value in path), f"{held:.4f} / {p90:.2f} / {ratio:.2f} / {far:.3f}"]
        rows.append([rule, *cells])
    return table(head, rows)


def mean_factor(factors: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(factors))))


def write_runs(results: Sequence[Result]) -> str:
    """Return one line for each run: the default beside version 0.1."""
    rows = []
    for one in results:
        own, old = one.errors[DEFAULT.name], one.errors[OLD]
        paths = [f"{errors.median:.3f} / {errors.p90:.3f} / {errors.start:.3f}" for errors in (own, old)]
        held = [f"{errors.held:.4f} / {errors.held_p90:.3g}" for errors in (own, old)]
        rows.append([one.case.group, one.case.name, one.n_steps, one.planes, *paths, *held, f"{one.ratio:.2f}"])
    head = ["group", "run", "steps", "planes", "path", f"path, {OLD}", "held out", f"held out, {OLD}", "ratio"]
    return table(head, rows)


def write_misses(results: Sequence[Result]) -> str:
    """Return one line for each run on which the default misses a goal."""
    rows = [[one.case.name, one.planes, "; ".join(misses(one)), one.causes] for one in results if one.causes]
    return table(["run", "planes", "missed", "measured"], rows)


def write_changes(results: Sequence[Result]) -> str:
    """Return how much the surface changes with twice as many anchors."""
    rows = [[one.case.name, *(f"{value:.4f}" for value in one.change)] for one in results if one.change]
    head = [f"{name}, decades{of}" for of in ("", ", planes of single steps") for name in ("p90", "worst")]
    return table(["run", *head], rows)


def write_goals(results: Sequence[Result]) -> str:
    """Return the goals beside what was measured."""
    own = [one.errors[DEFAULT.name] for one in results]
    rows = [
        [
            f"under the path: {name} at most {limit:g}",
            "nine runs of ten",
            f"{sum(getattr(one, name) <= limit for one in own)} of {len(own)}",
        ]
        for name, limit in MAX_PATH.items()
    ]
    means = [np.mean([one.errors[name].held for one in results]) for name in (DEFAULT.name, OLD)]
    rows.append(["mean held-out error beside version 0.1", "0.75", f"{means[0] / means[1]:.2f}"])
    rows.append(["geometric mean of the ratios", "0.75", f"{mean_factor([one.ratio for one in results]):.2f}"])
    worse = sum(one.ratio > MAX_WORSE for one in results)
    rows.append([f"runs held out worse than {MAX_WORSE:g} times version 0.1", "0", f"{worse} of {len(results)}"])
    for i, (name, limit) in enumerate(MAX_CHANGE.items()):
        found = [one.change[i] for one in results if one.change]
        if found:
            met = sum(value <= limit for value in found)
            rows.append([f"200 against 400 anchors: {name} at most {limit:g} decades", "all", f"{met} of {len(found)}"])
    return table(["goal", "limit", "measured"], rows)


def write(results: Sequence[Result]) -> str:
    """Return the page."""
    return "\n\n".join(
        [
            "# Kernels and planes",
            "Written by `python -m benchmarks.kernels`; what is measured is said there.",
            "## Goals",
            write_goals(results),
            "## Rules",
            "Path: geometric means of median / p90 / start of the factor between surface and loss. Held out: mean of "
            "|log10| in decades / geometric mean of the p90 factor / geometric mean of the ratio to version 0.1 / mean "
            f"of |log10| with {FAR_RADIUS:.0%} of the diagonal left out, by which nothing is chosen.",
            write_rules(results),
            "## Runs",
            "The default beside version 0.1. Path: median / p90 / start. Held out: mean of |log10| / p90 factor.",
            write_runs(results),
            "## Misses",
            write_misses(results),
            "## 200 against 400 anchors",
            f"|log10| between the two surfaces where `support` is at least {NEAR:g}.",
            write_changes(results),
        ]
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        results = [measure_case(case) for case in tqdm(list_cases(), desc="runs")]
    text = write(results)
    print(text)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
