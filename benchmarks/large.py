"""Large models, on a GPU if there is one: losses per second, and a whole picture, for `python -m benchmarks`.

A ResNet-18 for images of CIFAR's shape, and a transformer of a hundred million weights of which low-rank adapters are
trained (LoRA). The data are random, because the time does not depend on them.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

import loss_viz as lv

from .memory import build_resnet
from .timing import format_number


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        channels: of the first block of the ResNet.
        images: number of images of 32 x 32 in the loss of the ResNet.
        width: width of the transformer.
        depth: number of its layers.
        vocabulary: number of its tokens.
        sequences: number of sequences of 64 tokens in its loss.
        steps: recorded steps of each run.
        resolution: points along a side of the picture.
        seconds: for all of it; a picture that would take longer is drawn with fewer points.
    """

    channels: int = 64
    images: int = 256
    width: int = 768
    depth: int = 12
    vocabulary: int = 20_000
    sequences: int = 8
    steps: int = 20
    resolution: int = 61
    seconds: float = 400.0


TINY = Size(channels=2, images=2, width=16, depth=1, vocabulary=50, sequences=1, steps=3, resolution=5, seconds=20.0)


@dataclass(frozen=True)
class LargeRow:
    """What was measured on one model.

    Attributes:
        network: its name.
        n_params: number of trained weights.
        n_frozen: number of the others.
        rate: losses per second.
        cpu_rate: the same on the CPU with the threads given; None if that is the device.
        resolution: points along a side of the picture.
        seconds: of the picture.
        n_losses: losses in it.
        peak_bytes: peak memory of the GPU; 0 on a CPU.
    """

    network: str
    n_params: int
    n_frozen: int
    rate: float
    cpu_rate: float | None
    resolution: int
    seconds: float
    n_losses: int
    peak_bytes: int


class Adapted(nn.Module):
    """A frozen linear layer with a trained update of rank eight."""

    def __init__(self, n_in: int, n_out: int, rank: int = 8) -> None:
        super().__init__()
        self.frozen = nn.Linear(n_in, n_out).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, n_in) / n_in**0.5)
        self.up = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Add the update to the layer."""
        return self.frozen(x) + x @ self.down.T @ self.up.T


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norms = nn.ModuleList(nn.LayerNorm(width).requires_grad_(False) for _ in range(2))
        self.mix, self.out = Adapted(width, 3 * width), nn.Linear(width, width).requires_grad_(False)
        self.wide, self.narrow = Adapted(width, 4 * width), nn.Linear(4 * width, width).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states after this block."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.mix(self.norms[0](x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))


def build_lora(size: Size) -> nn.Module:
    """Build a causal transformer whose adapters alone are trained; with the default size it has 100 M weights."""
    torch.manual_seed(0)
    embed = nn.Embedding(size.vocabulary, size.width).requires_grad_(False)
    blocks = [TransformerBlock(size.width) for _ in range(size.depth)]
    head = nn.Linear(size.width, size.vocabulary, bias=False).requires_grad_(False)
    head.weight = embed.weight
    return nn.Sequential(embed, *blocks, nn.LayerNorm(size.width).requires_grad_(False), head)


def record(model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], steps: int) -> lv.Run:
    """Train briefly and record every step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    return recorder.run(progress=False)


def measure_rate(run: lv.Run, seconds: float) -> float:
    """Return the losses per second of the run's objective, after the first chunk."""
    weights = run.weights[[-1]].repeat(max(1, run.objective.chunk_size), axis=0)
    run.objective(weights)  # returns numbers on the CPU, so that a GPU has finished
    started, n = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds or not n:
        run.objective(weights)
        n += len(weights)
    return n / taken


def measure_one(
    name: str,
    model: nn.Module,
    loss_on: Callable[[torch.device], Callable[[nn.Module], Tensor]],
    size: Size,
    device: str,
) -> LargeRow:
    """Measure one model within half of the time of `size`."""
    end = time.perf_counter() + size.seconds / 2
    place, cpu = torch.device(device), torch.device("cpu")
    slow = copy.deepcopy(model)
    run = record(model.to(place), loss_on(place), size.steps)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    rate, cpu_rate = measure_rate(run, size.seconds / 40), None
    if place.type == "cuda":
        other = lv.Objective(slow, loss_on(cpu))
        cpu_rate = measure_rate(replace(run, objective=other), size.seconds / 20)
    left = max(1.0, end - time.perf_counter())
    started = time.perf_counter()
    land = lv.landscape(run, resolution=size.resolution, budget=max(500, int(rate * left / 2)), progress=False)
    seconds = time.perf_counter() - started
    n_all = sum(parameter.numel() for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0
    n = run.objective.n_params
    return LargeRow(name, n, n_all - n, rate, cpu_rate, len(land.x), seconds, land.n_evaluations, peak)


def measure_large(device: str, size: Size) -> list[LargeRow]:
    """Measure both models."""
    torch.manual_seed(1)
    images, labels = torch.randn(size.images, 3, 32, 32), torch.randint(0, 10, (size.images,))
    tokens = torch.randint(0, size.vocabulary, (size.sequences, 65))

    def classify(place: torch.device) -> Callable[[nn.Module], Tensor]:
        x, y = images.to(place), labels.to(place)
        return lambda model: functional.cross_entropy(model(x), y)

    def predict(place: torch.device) -> Callable[[nn.Module], Tensor]:
        x = tokens.to(place)
        return lambda model: functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return [
        measure_one(
            f"ResNet-18, {size.images} images of 32 x 32", build_resnet(3, size.channels), classify, size, device
        ),
        measure_one(f"LoRA, {size.sequences} x 64 tokens", build_lora(size), predict, size, device),
    ]


def write_large(rows: list[LargeRow]) -> list[list[object]]:
    """Return the lines of the table."""
    return [
        [
            row.network,
            f"{row.n_params:,} of {row.n_params + row.n_frozen:,}",
            format_number(row.rate),
            "–" if row.cpu_rate is None else format_number(row.rate / row.cpu_rate),
            f"{row.resolution} x {row.resolution}, {row.n_losses:,}",
            format_number(row.seconds),
            format_number(row.peak_bytes / 2**30) if row.peak_bytes else "–",
        ]
        for row in rows
    ]


HEAD = ["network", "weights trained", "losses/s", "times the CPU", "picture, losses", "picture, s", "GPU memory, GiB"]
