"""How fast: losses of many weight vectors, and whole landscapes, beside what else could be used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import loss_viz as lv

from .nets import Net
from .pairs import Clock, Pair, Work
from .peers import PEERS, Plane, build_plane, explain, hush, measure_difference, name_version
from .rivals import loop, tune

LOOP = "plain loop"
NAIVE = "one evaluation per cell and step, one by one"
SAMPLE = 2000


@dataclass
class Beside:
    """What was measured of one net, and each rival beside it.

    Attributes:
        net: its name.
        what: what loss_viz did.
        evaluations: how many losses that took, in one call.
        pairs: the rivals.
    """

    net: str
    what: str
    evaluations: int
    pairs: list[Pair]

    def find(self, rival: str) -> Pair:
        """The pair with a rival."""
        return next(pair for pair in self.pairs if pair.rival == rival)

    @property
    def peers(self) -> list[Pair]:
        """The other packages that ran."""
        names = {name_version(name) for name in PEERS}
        return [pair for pair in self.pairs if pair.rival in names and pair.theirs]


def prepare_peers(net: Net, plane: Plane) -> tuple[list[Work], dict[str, Pair]]:
    """The peers that run, as work of one plane each, and what is known of each before it is timed."""
    works, known = [], {}
    for package, adapt in tqdm(PEERS.items(), desc=f"{net.name}: checking peers", leave=False):
        name = name_version(package)
        try:
            adapted = adapt(net, plane)
            difference, note = measure_difference(adapted, net)
        except Exception as error:  # a peer may fail in any way, and the table says how
            known[name] = Pair(name, note=explain(error, net.x.device))
            continue
        works.append(Work(name, hush(adapted.call)))
        known[name] = Pair(name, note=note, difference=difference)
    return works, known


def complete(pairs: Sequence[Pair], known: dict[str, Pair]) -> list[Pair]:
    """The times of the peers, with what was known of them; those without times too."""
    timed = {pair.rival: pair for pair in pairs}
    for name, before in known.items():
        if name in timed:
            timed[name].note, timed[name].difference = before.note, before.difference
    return [timed.get(name, before) for name, before in known.items()]


def measure_objective(net: Net, clock: Clock) -> Beside:
    """Evaluations per second of `run.objective(weights)`, beside loops, hand-batched code and the peers' planes.

    Beside the peers loss_viz computes the weights on the plane too, for they do so.
    """
    n = net.side**2
    objective, weights = net.run.objective, net.scatter(n)
    rivals = {LOOP: (loop(net, weights), "")} | tune(net, weights, clock)
    own = objective(weights)
    ours = Work("loss_viz", lambda: objective(weights), n)
    works = [Work(name, call, n) for name, (call, _) in rivals.items()]
    pairs = clock.compare(ours, works, f"{net.name}: objective")
    for pair in pairs:
        call, pair.note = rivals[pair.rival]
        pair.difference = float(np.abs(call() / own - 1).max())
    plane = build_plane(net, net.side)
    works, known = prepare_peers(net, plane)
    ours = Work("loss_viz", lambda: objective(plane.lift()), n)
    works = [Work(work.name, work.call, n) for work in works]
    pairs += complete(clock.compare(ours, works, f"{net.name}: peers"), known)
    return Beside(net.name, f"objective of {n} weight vectors", n, pairs)


def measure_landscape(net: Net, clock: Clock, resolution: int = 50) -> Beside:
    """A whole landscape (PCA, local planes, sweep, heights under the path) beside one global plane of each peer."""
    works, known = prepare_peers(net, build_plane(net, resolution))
    land = lv.landscape(net.run, resolution=resolution, progress=False)
    ours = Work("loss_viz", lambda: lv.landscape(net.run, resolution=resolution, progress=False))
    pairs = complete(clock.compare(ours, works, f"{net.name}: landscape"), known)
    for pair in pairs:
        pair.difference = None  # they evaluate other points
        pair.note = f"one plane, {resolution**2:,} evaluations" if pair.theirs else pair.note
    return Beside(net.name, f"landscape, {resolution} x {resolution}", land.n_evaluations, pairs)


def measure_naive(net: Net, clock: Clock) -> Beside:
    """`lv.landscape(run)` as it is called by default, beside a loop over all cells and steps.

    The loop runs over a sample of weight vectors, and its time is scaled by the number of all.
    """
    land = lv.landscape(net.run, progress=False)
    n_naive = land.loss.size * len(net.run)
    ours = Work("loss_viz", lambda: lv.landscape(net.run, progress=False))
    naive = Work(NAIVE, loop(net, net.scatter(SAMPLE)), SAMPLE / n_naive)
    pairs = clock.compare(ours, [naive], f"{net.name}: naive sweep")
    pairs[0].note = f"{n_naive:,} evaluations, scaled from {SAMPLE:,}"
    size = f"{len(land.x)} x {len(land.y)}"
    return Beside(net.name, f"landscape, {size}, {len(net.run)} steps", land.n_evaluations, pairs)
