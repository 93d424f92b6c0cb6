"""Memory of a landscape of eleven million weights from two hundred checkpoints on disk: `python -m benchmarks.memory`.

Trains a ResNet-18 on scikit-learn's digits, records 200 steps to a folder (9 GB), and computes the landscape of that
folder in a separate process; another process only builds the model and evaluates its loss. Prints the peak resident
memory of both, as `/usr/bin/time -v` reports it, and the difference.

With `--folder` the checkpoints are kept there and reused by the next call.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import loss_viz as lv

N_STEPS = 199  # 200 checkpoints with the initial weights


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.shortcut = shortcut if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the convolutions."""
        return functional.relu(self.inner(x) + self.shortcut(x))


def build_resnet(n_channels: int, width: int = 64) -> nn.Module:
    """Build a ResNet-18 for small images; with the usual width it has 11.2 million weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(n_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for factor, stride in ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
        layers.append(Block(n_in, factor * width, stride))
        n_in = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10))


def build_loss() -> tuple[Tensor, Tensor, Callable[[nn.Module], Tensor]]:
    """Return all images and labels, and the loss on 64 of them."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    return x, y, lambda model: functional.cross_entropy(model(x[:64]), y[:64])


def write_checkpoints(folder: Path) -> None:
    """Train briefly on mini-batches, and record to the folder."""
    model = build_resnet(1)
    x, y, loss_fn = build_loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with lv.Recorder(model, loss_fn, folder=folder, max_snapshots=N_STEPS + 1).attach(optimizer):
        for _ in range(N_STEPS):
            batch = torch.randint(0, len(x), (32,))
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def evaluate_only() -> None:
    """Build the model and its data and evaluate the loss once, for comparison."""
    _, _, loss_fn = build_loss()
    model = build_resnet(1)
    objective = lv.Objective(model, loss_fn)
    objective(objective.initial_weights[None])


def draw(folder: Path, resolution: int, n_anchors: int) -> None:
    """Compute the landscape from the folder."""
    _, _, loss_fn = build_loss()
    started = time.perf_counter()
    run = lv.Run.from_checkpoints(build_resnet(1), loss_fn, folder)
    opened = time.perf_counter()
    land = lv.landscape(run, resolution=resolution, n_anchors=n_anchors)
    done = time.perf_counter()
    print(f"{run}, {land.n_evaluations:,} losses; opened in {opened - started:.0f} s, drawn in {done - opened:.0f} s")
    print(f"{lv.fidelity(land)}, PC1 and PC2 explain {land.explained_variance_ratio.sum():.1%}")


def measure_peak(*arguments: str) -> float:
    """Run this script with other arguments and return its peak resident memory in GB."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.memory", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{arguments} ended with {status}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Measure both processes and print the difference."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="folder of the checkpoints; temporary by default")
    parser.add_argument("--resolution", type=int, default=11)
    parser.add_argument("--anchors", type=int, default=50, help="planes along the run, which cost time but no memory")
    parser.add_argument("--part", choices=["write", "evaluate", "draw"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "evaluate":
        return evaluate_only()
    if options.part == "draw":
        return draw(options.folder, options.resolution, options.anchors)
    if options.part == "write":
        return write_checkpoints(options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        where = ["--folder", str(folder)]
        if not any(folder.glob("*.safetensors")):
            measure_peak("--part", "write", *where)
        stored = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        own = measure_peak("--part", "evaluate")
        peak = measure_peak(
            "--part", "draw", *where, "--resolution", str(options.resolution), "--anchors", str(options.anchors)
        )
    print(
        f"{stored:.1f} GB of checkpoints; peak {peak:.2f} GB, {own:.2f} GB with the model and its data only: "
        f"{peak - own:.2f} GB for the landscape"
    )


if __name__ == "__main__":
    main()
