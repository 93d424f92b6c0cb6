"""What a landscape of ResNet-50 is made of, measured piece by piece on the CPU: `python -m benchmarks.resnet50`.

The figures that .docs/clusters.md reckons with: weights, multiplications, and the seconds of one core that go by
outside of the model. Its checkpoints are random walks: how long they take to read and to multiply does not depend on
what is in them. Needs `pip install -e ".[transformers]"` and 2 GB of disk.
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


def build() -> nn.Module:
    """ResNet-50 for 224 x 224 images and a thousand classes."""
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()


def time_best(call: Callable[[], object]) -> float:
    """Seconds of one core, the least of a few: what others do on the machine meanwhile does not count."""
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def count_flops(model: nn.Module) -> float:
    """Additions and multiplications for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


def walk(folder: Path, model: nn.Module) -> Checkpoints:
    """Checkpoints on disk, each a small random step from the one before."""
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
    """Seconds for all checkpoints and for half of them."""
    half = Checkpoints(weights.paths[::2], weights.layout)
    projection = fit_projection(weights)
    return time_best(lambda: fit_projection(weights)), time_best(lambda: fit_projection(half)), projection


def measure(model: nn.Module) -> None:
    """One line a piece."""
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {count_flops(model) / 1e9:.2f} GFLOP an image")
    x, y = torch.randn(N_IMAGES, 3, 224, 224), torch.arange(N_IMAGES)
    objective = lv.Objective(model, lambda m: functional.cross_entropy(m(x).logits, y))
    own = objective.initial_weights[None]
    with torch.no_grad():
        plain = time_best(lambda: functional.cross_entropy(model(x).logits, y))
    inside = time_best(lambda: objective(own))
    print(f"{N_IMAGES / plain:.2f} images/s; a loss of {N_IMAGES} takes {plain:.2f} s, {inside:.2f} s in an objective")
    with TemporaryDirectory() as folder:
        weights = walk(Path(folder), model)
        size = weights.paths[0].stat().st_size
        print(f"{size / 1e6:.0f} MB a checkpoint, read in {time_best(lambda: weights[3]):.3f} s")
        whole, half, projection = measure_pca(weights)
        print(f"PCA of {N_CHECKPOINTS} checkpoints {whole:.1f} s, of {N_CHECKPOINTS // 2} {half:.1f} s")
        print(f"lengths of {N_CHECKPOINTS - 1} steps {time_best(lambda: step_lengths(weights)):.1f} s")
        block = np.random.default_rng(0).standard_normal((300, 100_000))
        print(f"Gram product of 300 checkpoints, 100,000 columns: {time_best(lambda: block @ block.T):.2f} s")
        anchors = np.arange(4, N_CHECKPOINTS)
        measuring = time_best(lambda: local_planes(weights, projection, anchors, k=2))
        print(f"measuring {len(anchors)} planes {measuring:.1f} s")
        planes = local_planes(weights, projection, anchors, k=2)
        making = time_best(lambda: [planes.lift(np.array([i]), np.zeros((1, 2))) for i in (0, 1)]) / 2
        planes.lift(np.array([2]), np.zeros((1, 2)))
        lifting = time_best(lambda: planes.lift(np.array([2]), np.ones((1, 2))))
        print(f"making a plane {making - lifting:.2f} s, lifting a point of it {lifting:.2f} s")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        measure(build())


if __name__ == "__main__":
    main()
