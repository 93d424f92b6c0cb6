"""How the cost of a landscape grows, what the PCA costs beside one matrix product, and what the import costs."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np
import torch
from tqdm.auto import tqdm

import loss_viz as lv
from loss_viz.landscapes.landscape import blend_surface
from loss_viz.planes.projection import fit_projection

from .nets import place_task
from .pairs import Clock, Pair, Work

RESOLUTIONS = (31, 61, 121, 241)
STEPS = (500, 1000, 2000, 4000, 8000)
ANCHORS = (50, 100, 200, 400, 800)
WIDTHS = (8, 16, 32, 64, 128, 256, 512)
SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2)
PCA_SHAPE = (2000, 100_000)

SURFACE = "recorded steps, without the heights under them"
GRAM = "one Gram product of the centred matrix, float64"
IMPORTS = {
    "import loss_viz": "import loss_viz",
    "and train, landscape and a figure": "from loss_viz import train, landscape, surface_figure",
}


@dataclass
class Growth:
    """Cost against one quantity, everything else being as it is by default.

    Attributes:
        axis: the quantity.
        values: of it.
        evaluations: that a landscape took at each.
        seconds: likewise, the median of some repeats.
    """

    axis: str
    values: list[float]
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def exponent(self, costs: list[int] | list[float]) -> float:
        """The p of cost ~ value^p, by least squares of the logarithms."""
        return float(np.polyfit(np.log(self.values), np.log(costs), 1)[0])


def measure_growth(clock: Clock) -> list[Growth]:
    """Evaluations and seconds of `lv.landscape` against each quantity; x^3 on 1-8-1 but for the width.

    Recorded steps are ever more rows of one run of 8000 updates: the path stays the same.
    """

    def train(steps: int | None = None, width: int | None = None, lr: float | None = None) -> lv.Run:
        run = lv.train("x^3", steps=steps, width=width, lr=lr, progress=False)
        return place_task("", run, side=1, device=clock.device).run

    def thin(run: lv.Run, every: int) -> lv.Run:
        return replace(run, weights=run.weights[::every], loss=run.loss[::every], step=run.step[::every])

    draw = partial(lv.landscape, progress=False)
    run, long = train(), train(steps=max(STEPS))
    wide = {width: train(width=width, lr=3e-3, steps=500) for width in tqdm(WIDTHS, desc="widths", leave=False)}
    # Cells rather than points on a side: it is they that are evaluated.
    return [
        trace("cells", {r * r: partial(draw, run, resolution=r) for r in RESOLUTIONS}, clock),
        trace("recorded steps", {n: partial(draw, thin(long, max(STEPS) // n)) for n in STEPS}, clock),
        trace(SURFACE, {n: partial(draw, thin(long, max(STEPS) // n)) for n in STEPS}, clock, count_surface),
        trace("anchors", {n: partial(draw, run, n_anchors=n) for n in ANCHORS}, clock),
        trace("parameters", {run.objective.n_params: partial(draw, run) for run in wide.values()}, clock),
        trace("sigma", {sigma: partial(draw, run, sigma=sigma) for sigma in SIGMAS}, clock),
    ]


def count_surface(land: lv.Landscape) -> int:
    """Evaluations without those of the heights under the run; they are kept, so that nothing is evaluated again."""
    return blend_surface(land.sampling, land.kernel, tqdm(disable=True)).n_evaluations


def trace(
    axis: str,
    draws: Mapping[float, Callable[[], lv.Landscape]],
    clock: Clock,
    count: Callable[[lv.Landscape], int] = lambda land: land.n_evaluations,
) -> Growth:
    """The growth along one axis; all its points are gone through once before the next repeat."""
    first, *_ = draws.values()
    first()  # warms up
    seconds: dict[float, list[float]] = {value: [] for value in draws}
    evaluations: dict[float, int] = {}
    for _ in tqdm(range(min(3, clock.repeats)), desc=f"growth with {axis}", leave=False):
        for value, call in draws.items():
            start = time.perf_counter()
            land = call()
            seconds[value].append(time.perf_counter() - start)
            evaluations[value] = count(land)
    return Growth(axis, list(draws), list(evaluations.values()), [median(taken) for taken in seconds.values()])


def measure_projection(clock: Clock) -> Pair:
    """The PCA of many random weights beside the product that no exact one can do without."""
    weights = np.random.default_rng(0).standard_normal(PCA_SHAPE, dtype=np.float32)
    centred = weights.astype(np.float64)
    centred -= centred.mean(axis=0)
    slow = Clock(torch.device("cpu"), min(3, clock.repeats))  # both take many seconds
    [pair] = slow.compare(
        Work("loss_viz", lambda: fit_projection(weights)), [Work(GRAM, lambda: centred @ centred.T)], "projection"
    )
    pair.note = f"{PCA_SHAPE[0]:,} x {PCA_SHAPE[1]:,} random weights in float32"
    return pair


def measure_imports(repeats: int = 5) -> dict[str, list[float]]:
    """Seconds that an import takes beyond `import torch`, each in a new process, the two in turn."""
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for code in ("import torch", *IMPORTS.values()):
        start_python(code)  # reads the files once
    for _ in tqdm(range(repeats), desc="imports", leave=False):
        for name, code in IMPORTS.items():
            torch_alone = start_python("import torch")
            found[name].append(start_python(code) - torch_alone)
    return found


def start_python(code: str) -> float:
    """Seconds of a new process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start
