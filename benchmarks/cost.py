"""How the cost of a landscape grows with its settings, and the cost of the PCA and of the import."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

import loss_viz as lv
from loss_viz.planes.projection import fit_projection

from .networks import build_digits, move_trained
from .timing import Comparison, Timer, Workload

RESOLUTIONS = (31, 61, 121, 241)
STEPS = (500, 1000, 2000, 4000, 10_000, 20_000)
ANCHORS = (50, 100, 200, 400, 800)
WIDTHS = (8, 16, 32, 64, 128, 256, 512)
N_PARAMS = (10_000, 100_000, 1_000_000, 11_000_000)  # of the large models
PCA_SHAPE = (2000, 100_000)

GRAM = "one Gram product of the centered matrix, float64"
IMPORT = "import loss_viz"
FIRST = "import loss_viz as lv; lv.surface_figure(lv.landscape(lv.train('x^3', progress=False), progress=False))"
IMPORTS = {IMPORT: "pass", "from loss_viz import train, landscape, surface_figure": "import torch", FIRST: "pass"}


@dataclass
class CostCurve:
    """Cost of a landscape against one quantity, with everything else at its default.

    Attributes:
        quantity: its name.
        values: its values.
        evaluations: losses evaluated at each value.
        seconds: median of some repeats at each value.
    """

    quantity: str
    values: list[float]
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def exponent(self, costs: list[int] | list[float]) -> float:
        """Return the exponent p of cost ~ value^p, by least squares on the logarithms."""
        return float(np.polyfit(np.log(self.values), np.log(costs), 1)[0])


def measure_growth(timer: Timer) -> list[CostCurve]:
    """Measure evaluations and seconds of `lv.landscape` against each quantity, for x^3 on 1-8-1 or other widths.

    For the recorded steps, one run of 20,000 steps is thinned, so that the path stays the same.
    """

    def train(steps: int | None = None, width: int | None = None, lr: float | None = None) -> lv.Run:
        run = lv.train("x^3", steps=steps, width=width, lr=lr, progress=False)
        return move_trained("", run, side=1, device=timer.device).run

    def thin(run: lv.Run, every: int) -> lv.Run:
        return replace(run, weights=run.weights[::every], loss=run.loss[::every], step=run.step[::every])

    draw = partial(lv.landscape, progress=False)
    run, long = train(), train(steps=max(STEPS))
    wide = {width: train(width=width, lr=3e-3, steps=500) for width in tqdm(WIDTHS, desc="widths", leave=False)}
    # The cost is proportional to the number of cells, not to the points along a side.
    return [
        measure_cost("cells", {r * r: partial(draw, run, resolution=r) for r in RESOLUTIONS}, timer),
        measure_cost("recorded steps", {n: partial(draw, thin(long, max(STEPS) // n)) for n in STEPS}, timer),
        measure_cost("anchors", {n: partial(draw, run, n_anchors=n) for n in ANCHORS}, timer),
        measure_cost("parameters", {run.objective.n_params: partial(draw, run) for run in wide.values()}, timer),
        measure_cost("large models", {n: partial(draw_walk, n) for n in N_PARAMS}, timer),
    ]


def draw_walk(n_params: int, n_steps: int = 30) -> lv.Landscape:
    """Draw a random walk of many weights with a loss that reads each of them once."""
    model = nn.Linear(n_params - 1, 1)
    x = torch.ones(1, n_params - 1) / n_params
    objective = lv.Objective(model, lambda m: m(x).square().mean())
    steps = np.random.default_rng(0).standard_normal((n_steps, n_params), dtype=np.float32)
    weights = np.cumsum(steps, axis=0, out=steps)
    loss = objective(weights)
    run = lv.Run(weights=weights, loss=loss, step=np.arange(n_steps), objective=objective)
    return lv.landscape(run, resolution=9, n_anchors=20, plane="parallel", progress=False)


def measure_cost(quantity: str, draws: Mapping[float, Callable[[], lv.Landscape]], timer: Timer) -> CostCurve:
    """Measure the cost against one quantity; each repeat goes through all its values."""
    first, *_ = draws.values()
    first()  # warm-up
    seconds: dict[float, list[float]] = {value: [] for value in draws}
    evaluations: dict[float, int] = {}
    for _ in tqdm(range(min(3, timer.repeats)), desc=f"cost against {quantity}", leave=False):
        for value, call in draws.items():
            start = time.perf_counter()
            land = call()
            seconds[value].append(time.perf_counter() - start)
            evaluations[value] = land.n_evaluations
    return CostCurve(quantity, list(draws), list(evaluations.values()), [median(taken) for taken in seconds.values()])


def measure_projection(timer: Timer) -> Comparison:
    """Compare the PCA of random weights with the matrix product that every exact PCA needs."""
    weights = np.random.default_rng(0).standard_normal(PCA_SHAPE, dtype=np.float32)
    centered = weights.astype(np.float64)
    centered -= centered.mean(axis=0)
    slow = Timer(torch.device("cpu"), min(3, timer.repeats))  # both take many seconds
    gram = Workload(GRAM, lambda: centered @ centered.T)
    [comparison] = slow.compare(Workload("loss_viz", lambda: fit_projection(weights)), [gram], "projection")
    comparison.note = f"{PCA_SHAPE[0]:,} x {PCA_SHAPE[1]:,} random weights in float32"
    return comparison


def measure_recording(timer: Timer, n_updates: int = 100, batch: int = 64) -> Comparison:
    """Compare the training of a CNN with batch normalization on digits, recorded at every step, with the bare loop."""
    [cnn, _] = build_digits(torch.device("cpu"))
    x, y = cnn.x, cnn.y
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimizer, draw = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    recorder = lv.Recorder(model, lambda m: nn.functional.cross_entropy(m(x), y))

    def train() -> None:
        for _ in range(n_updates):
            rows = torch.randint(0, len(x), (batch,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    def record() -> None:
        with recorder.attach(optimizer):
            train()

    bare = Workload(f"the bare loop, batches of {batch}", train)
    [comparison] = timer.compare(Workload("loss_viz", record), [bare], "recording")
    comparison.note = f"CNN with batch normalization on digits, {n_updates} updates"
    return comparison


def build_million() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Build a perceptron of a million weights, and a batch of 64."""
    torch.manual_seed(0)
    layers = nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 10)
    return nn.Sequential(*layers), torch.randn(64, 784), torch.arange(64) % 10


def measure_million(timer: Timer, n_updates: int = 2000) -> Comparison:
    """Compare the CPU time of a cheap loop, recorded at every step until 1 GiB is full, with the bare loop."""

    def train(recorded: bool) -> None:
        model, x, y = build_million()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        recorder = lv.Recorder(model, lambda m: nn.functional.cross_entropy(m(x), y)) if recorded else None
        if recorder:
            recorder.attach(optimizer)
        for _ in range(n_updates):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if recorder:
            recorder.detach()

    slow = Timer(torch.device("cpu"), min(3, timer.repeats), clock=time.process_time)
    bare = Workload("the bare loop, CPU time", partial(train, recorded=False))
    [comparison] = slow.compare(Workload("loss_viz", partial(train, recorded=True)), [bare], "a million weights")
    comparison.note = f"{sum(p.numel() for p in build_million()[0].parameters()):,} weights, {n_updates:,} updates"
    return comparison


SNAPSHOTS = """
import torch
import loss_viz as lv
from benchmarks.cost import build_million
from benchmarks.timing import measure_memory
torch.set_num_threads(1)
model, x, y = build_million()
loss_fn = lambda m: torch.nn.functional.cross_entropy(m(x), y)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
recorder = lv.Recorder(model, loss_fn).attach(optimizer)
runs = []
def train():
    for _ in range(recorder._snapshots.limit - 1):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
    runs.append(recorder.run(progress=False))
megabytes = measure_memory(train)
print(1e6 * megabytes / runs[0].weights.nbytes)
"""


def measure_snapshots() -> list[float]:
    """Return the peak memory of recording 1 GiB of snapshots and reading the run, in multiples of their size."""
    done = subprocess.run([sys.executable, "-c", SNAPSHOTS], check=True, capture_output=True, text=True)
    return [float(done.stdout)]


def measure_imports(repeats: int = 5) -> dict[str, list[float]]:
    """Measure the seconds that each of `IMPORTS` takes beyond its baseline, in new processes, alternately."""
    found: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for code in IMPORTS:
        time_process(code)  # warms up the file cache
    for _ in tqdm(range(repeats), desc="imports", leave=False):
        for code, baseline in IMPORTS.items():
            seconds = time_process(baseline)
            found[code].append(time_process(code) - seconds)
    return found


def time_process(code: str) -> float:
    """Return the seconds that a new Python process takes for some code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start
