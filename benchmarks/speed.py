"""Speed of loss evaluations and of whole landscapes, compared with baselines and other tools."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import loss_viz as lv

from .baselines import LOOP, build_loop, tune_by_hand
from .networks import Network
from .other_tools import ADAPTERS, Plane, build_plane, explain_failure, measure_difference, name_version, silence
from .timing import Comparison, Timer, Workload, measure_memory

NAIVE = "one evaluation per cell and step, in a loop"
N_SAMPLED = 2000


@dataclass
class Result:
    """The comparisons of one workload on one network.

    Attributes:
        network: its name.
        workload: what loss_viz computed.
        n_evaluations: number of losses evaluated in one call.
        comparisons: one for each baseline.
    """

    network: str
    workload: str
    n_evaluations: int
    comparisons: list[Comparison]

    @property
    def timed(self) -> list[Comparison]:
        """Comparisons with the baselines that ran."""
        return [comparison for comparison in self.comparisons if comparison.theirs]

    @property
    def other_tools(self) -> list[Comparison]:
        """Comparisons with the other packages that ran."""
        names = {name_version(name) for name in ADAPTERS}
        return [comparison for comparison in self.timed if comparison.baseline in names]

    def find(self, baseline: str) -> Comparison | None:
        """Return the comparison with a baseline, or None if it did not run."""
        return next((comparison for comparison in self.timed if comparison.baseline == baseline), None)


def prepare_tools(net: Network, plane: Plane) -> tuple[list[Workload], dict[str, Comparison]]:
    """Return the tools that run, as workloads of one plane each, and notes and differences of all."""
    works, checked = [], {}
    for package, adapt in tqdm(ADAPTERS.items(), desc=f"{net.name}: checking other tools", leave=False):
        name = name_version(package)
        try:
            tool = adapt(net, plane)
            difference, note = measure_difference(tool, net)
        except Exception as error:  # a tool may fail in any way; the table states how
            checked[name] = Comparison(name, note=explain_failure(error, net.x.device))
            continue
        works.append(Workload(name, silence(tool.call)))
        checked[name] = Comparison(name, note=note, difference=difference)
    return works, checked


def merge(timed: Sequence[Comparison], checked: dict[str, Comparison]) -> list[Comparison]:
    """Add the notes and differences to the timed comparisons, and keep the tools that did not run."""
    by_name = {comparison.baseline: comparison for comparison in timed}
    for name, before in checked.items():
        if name in by_name:
            by_name[name].note, by_name[name].difference = before.note, before.difference
    return [by_name.get(name, before) for name, before in checked.items()]


def measure_objective(net: Network, timer: Timer) -> Result:
    """Compare evaluations per second of `run.objective(weights)` with a loop, hand-batched code and the other tools.

    In the comparison with the other tools, loss_viz computes the weights on the plane too, because they do.
    """
    n = net.side**2
    objective, weights = net.run.objective, net.sample_weights(n)
    baselines = {LOOP: (build_loop(net, weights), "")} | tune_by_hand(net, weights, timer)
    own = objective(weights)
    ours = Workload("loss_viz", lambda: objective(weights), n)
    works = [Workload(name, call, n) for name, (call, _) in baselines.items()]
    comparisons = timer.compare(ours, works, f"{net.name}: objective")
    for comparison in comparisons:
        call, comparison.note = baselines[comparison.baseline]
        comparison.difference = float(np.abs(call() / own - 1).max())
    plane = build_plane(net, net.side)
    works, checked = prepare_tools(net, plane)
    ours = Workload("loss_viz", lambda: objective(plane.lift_grid()), n)
    works = [Workload(work.name, work.call, n) for work in works]
    comparisons += merge(timer.compare(ours, works, f"{net.name}: other tools"), checked)
    return Result(net.name, f"objective of {n} weight vectors", n, comparisons)


def measure_landscape(net: Network, timer: Timer, resolution: int = 50) -> Result:
    """Compare a whole landscape (PCA, choice of planes, grid, path) with one plane of each other tool."""
    works, checked = prepare_tools(net, build_plane(net, resolution))
    land = lv.landscape(net.run, resolution=resolution, progress=False)
    ours = Workload("loss_viz", lambda: lv.landscape(net.run, resolution=resolution, progress=False))
    comparisons = merge(timer.compare(ours, works, f"{net.name}: landscape"), checked)
    peaks = {work.name: measure_memory(work.call) for work in (ours, *works)}
    for comparison in comparisons:
        comparison.difference = None  # they evaluate other points
        if comparison.theirs:
            comparison.memory = peaks[ours.name], peaks[comparison.baseline]
        comparison.note = f"one plane, {resolution**2:,} evaluations" if comparison.theirs else comparison.note
    return Result(net.name, f"{resolution} x {resolution}", land.n_evaluations, comparisons)


def measure_naive(net: Network, timer: Timer) -> Result:
    """Compare `lv.landscape(run)` with its defaults with a loop over all cells and steps.

    The loop evaluates a sample of weight vectors, and its time is scaled to the full number.
    """
    land = lv.landscape(net.run, progress=False)
    n_naive = land.loss.size * len(net.run)
    ours = Workload("loss_viz", lambda: lv.landscape(net.run, progress=False))
    naive = Workload(NAIVE, build_loop(net, net.sample_weights(N_SAMPLED)), N_SAMPLED / n_naive)
    comparisons = timer.compare(ours, [naive], f"{net.name}: naive loop")
    comparisons[0].note = f"{n_naive:,} evaluations, scaled from {N_SAMPLED:,}"
    size = f"{len(land.x)} x {len(land.y)}, {len(net.run)} steps"
    return Result(net.name, size, land.n_evaluations, comparisons)
