"""Held-out error of sigma="auto" compared with the best fixed bandwidth: `python -m benchmarks.sigma`.

For each run the held-out error at its anchors, without the planes within 3 % of the diagonal along the run, with
`"auto"` and with each of eight fixed bandwidths. The best of the eight is chosen for each run with knowledge of the
result, so the ratio is to the best that any fixed choice could do. The runs: the defaults, wide and deep networks,
other activations, SGD with momentum, mini-batches, and a small CNN on scikit-learn's digits.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm

import loss_viz as lv

from .fidelity import SEEDS, TARGETS

OTHERS = {
    "1-64-1": {"width": 64, "lr": 1e-3},
    "1-64-1, SGD": {"width": 64, "lr": 0.03, "optimizer": "sgd"},
    "1-16-1, tanh": {"width": 16, "lr": 3e-3, "activation": "tanh"},
    "1-16-16-1": {"width": 16, "depth": 2, "lr": 3e-3},
}


def train_batches(target: str, seed: int) -> lv.Run:
    """Train by SGD with momentum on batches of ten of the hundred points."""
    start = lv.train(target, steps=1, seed=seed, width=64, progress=False)
    model, task = start.model, start.task
    torch.nn.utils.vector_to_parameters(torch.tensor(start.weights[0]), model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    recorder = lv.Recorder(model, task.loss).attach(optimizer)
    for _ in range(2000):
        batch = torch.randint(0, len(task.x), (10,), generator=order)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(task.x[batch]), task.y[batch]).backward()
        optimizer.step()
    return recorder.run()


def train_digits(seed: int) -> lv.Run:
    """Train a small CNN on scikit-learn's digits by Adam on batches of 64."""
    torch.manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    recorder = lv.Recorder(model, lambda m: nn.functional.cross_entropy(m(x[:256]), y[:256])).attach(optimizer)
    for _ in range(300):
        batch = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return recorder.run()


def build_runs() -> Iterator[tuple[str, str, lv.Run]]:
    """Yield group, name and run."""
    for target, seed in product(TARGETS, SEEDS):
        yield "defaults", f"{target}, seed {seed}", lv.train(target, seed=seed, progress=False)
    for (group, settings), target in product(OTHERS.items(), TARGETS[:4]):
        yield group, target, lv.train(target, seed=0, progress=False, **settings)
    for target in TARGETS[:4]:
        yield "mini-batches", target, train_batches(target, 0)
    for seed in range(3):
        yield "digits CNN", f"seed {seed}", train_digits(seed)


def main() -> None:
    """Print one line for each run, and one for each group."""
    ratios: dict[str, list[float]] = {}
    print("group, run: error of auto and of the best fixed bandwidth, in decades; their ratio")
    for group, name, run in tqdm(build_runs(), total=63):
        curve = lv.sigma_curve(lv.landscape(run, resolution=2, progress=False), progress=False)
        least = float(np.nanmin(curve.error))
        ratios.setdefault(group, []).append(curve.auto / least)
        print(f"{group}, {name}: {curve.auto:.3f}, {least:.3f} at {curve.best}; {curve.auto / least:.2f}", flush=True)
    for group, found in ratios.items():
        ratio = np.array(found)
        print(
            f"{group}: auto is no worse in {(ratio <= 1).sum()} of {len(ratio)}, "
            f"ratio median {np.median(ratio):.2f}, worst {ratio.max():.2f}"
        )


if __name__ == "__main__":
    main()
