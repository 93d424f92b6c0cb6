"""How much slower a training is while the panel follows it: `python -m benchmarks.live`.

The same loop runs in slices that alternate: with the panel, and without. Each pair gives one ratio; printed are the
median and the range of the ratios, and the panel's own CPU time as a share of the time.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

import loss_viz as lv
from loss_viz.panel.controller import TRAINING_SHARE

from .timing import Spread


def build(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, nn.Module]:
    """Return a network, the data of its loss, and the criterion."""
    torch.manual_seed(0)
    if name == "mlp":
        x = torch.linspace(-1, 1, 100)[:, None]
        model = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 1))
        return model, x, torch.sin(3 * x), nn.MSELoss()
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    layers = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(512, 10)), x, torch.tensor(digits.target), nn.CrossEntropyLoss()


def measure(name: str, seconds: float, pairs: int) -> tuple[Spread, float, int]:
    """Return the ratios of the time of a step with the panel and without, the panel's share, and its surfaces."""
    model, x, y, criterion = build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = torch.Generator().manual_seed(0)

    def step() -> None:
        rows = torch.randint(0, len(x), (64,), generator=batch)
        optimizer.zero_grad()
        criterion(model(x[rows]), y[rows]).backward()
        optimizer.step()

    def time_step() -> float:
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            step()
            n += 1
        return (time.perf_counter() - started) / n

    time_step()
    ratios, shares, surfaces = [], [], 0
    for pair in range(pairs):
        taken = {}
        for followed in (True, False) if pair % 2 else (False, True):
            with lv.Recorder(model, lambda m: criterion(m(x), y)).attach(optimizer) as recorder:
                explorer = lv.Explorer(recorder) if followed else None
                taken[followed] = time_step()
                if explorer is not None:
                    shares.append(explorer._controller.pacer.spent / seconds)
                    surfaces += explorer._controller.growing_surface_step is not None
                    explorer.close()
        ratios.append(taken[True] / taken[False])
    return Spread.of(ratios), median(shares), surfaces


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a slice")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="number of threads of PyTorch in the training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"The panel may take {TRAINING_SHARE:.0%} of the time. Training with the panel : without it")
    for name in ("mlp", "cnn"):
        ratio, share, surfaces = measure(name, options.seconds, options.pairs)
        print(f"{name}: {ratio}; CPU time of the panel {share:.1%}; a surface in {surfaces} of {options.pairs} slices")


if __name__ == "__main__":
    main()
