"""Parts of a landscape of ResNet-50, each measured on the CPU: `python -m benchmarks.resnet50`.

These are the values used in the estimate of .docs/clusters.md: weights, FLOPs, and the CPU seconds of everything
outside the model. The checkpoints are a random walk, because the time to read and multiply them does not depend on
their contents. Needs `pip install -e ".[transformers]"` and 2 GB of disk.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetForImageClassification

import loss_viz as lv
from loss_viz.planes.local_planes import local_planes
from loss_viz.planes.projection import Projection, fit_projection
from loss_viz.runs.checkpoints import Checkpoints
from loss_viz.runs.weights import step_lengths

N_CHECKPOINTS = 12
N_IMAGES = 8
REPEATS = 2


def build_model() -> nn.Module:
    """Build a ResNet-50 for 224 x 224 images and a thousand classes."""
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()


def time_best(call: Callable[[], object]) -> float:
    """Return CPU seconds, the minimum of a few repeats, which other processes on the machine hardly affect."""
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def count_flops(model: nn.Module) -> float:
    """Count additions and multiplications for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


def write_random_walk(folder: Path, model: nn.Module) -> Checkpoints:
    """Write checkpoints, each a small random step from the one before."""
    torch.manual_seed(1)
    recorder = lv.Recorder(
        model, lambda m: m(torch.ones(1, 3, 64, 64)).logits.square().mean(), folder=folder, max_snapshots=200
    )
    for i in range(N_CHECKPOINTS):
        if i:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1e-3 * torch.randn_like(parameter)
        recorder.record()
    return recorder.run(progress=False).weights


def measure_pca(weights: Checkpoints) -> tuple[float, float, Projection]:
    """Return the seconds for all checkpoints and for half of them, and the projection."""
    half = Checkpoints(weights.paths[::2], weights.layout)
    projection = fit_projection(weights)
    return time_best(lambda: fit_projection(weights)), time_best(lambda: fit_projection(half)), projection


def measure(model: nn.Module) -> None:
    """Print one line for each part."""
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {count_flops(model) / 1e9:.2f} GFLOP per image")
    x, y = torch.randn(N_IMAGES, 3, 224, 224), torch.arange(N_IMAGES)
    objective = lv.Objective(model, lambda m: functional.cross_entropy(m(x).logits, y))
    own = objective.initial_weights[None]
    with torch.no_grad():
        plain = time_best(lambda: functional.cross_entropy(model(x).logits, y))
    inside = time_best(lambda: objective(own))
    print(f"{N_IMAGES / plain:.2f} images/s; a loss on {N_IMAGES} takes {plain:.2f} s, {inside:.2f} s in an Objective")
    with TemporaryDirectory() as folder:
        weights = write_random_walk(Path(folder), model)
        size = weights.paths[0].stat().st_size
        print(f"{size / 1e6:.0f} MB per checkpoint, read in {time_best(lambda: weights[3]):.3f} s")
        whole, half, projection = measure_pca(weights)
        print(f"PCA of {N_CHECKPOINTS} checkpoints {whole:.1f} s, of {N_CHECKPOINTS // 2} {half:.1f} s")
        print(f"lengths of {N_CHECKPOINTS - 1} steps {time_best(lambda: step_lengths(weights)):.1f} s")
        block = np.random.default_rng(0).standard_normal((300, 100_000))
        print(f"Gram product of 300 checkpoints, 100,000 columns: {time_best(lambda: block @ block.T):.2f} s")
        anchors = np.arange(4, N_CHECKPOINTS)
        measuring = time_best(lambda: local_planes(weights, projection, anchors, k=2))
        print(f"measuring {len(anchors)} planes {measuring:.1f} s")
        planes = local_planes(weights, projection, anchors, k=2)
        share = np.full((2, len(anchors)), 1 / len(anchors))
        for n in (1, 2):
            lifting = time_best(lambda n=n: planes.lift(np.zeros((n, 2)), share[:n]))
            print(f"averaging {len(anchors)} planes at {n} point(s) {lifting:.2f} s")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        measure(build_model())


if __name__ == "__main__":
    main()
