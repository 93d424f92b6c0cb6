"""Small real trainings on scikit-learn's digits and made-up data, recorded step by step, for `benchmarks.kernels`."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import loss_viz as lv

from .networks import build_cnn

N_IMAGES = 512
MODULUS = 11
Criterion = Callable[[Tensor, Tensor], Tensor]


class TokenEncoder(nn.Module):
    """A transformer encoder of one layer that reads a sequence of tokens and classifies it."""

    def __init__(self, n_tokens: int, length: int, n_classes: int, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_tokens, width)
        self.position = nn.Parameter(torch.randn(length, width) / 10)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each sequence."""
        return self.head(self.layer(self.embed(tokens) + self.position).mean(dim=1))


def build_mlp() -> nn.Module:
    """Build a perceptron of 32 hidden units for the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def build_tanh(width: int = 32) -> nn.Module:
    """Build a perceptron of two hidden layers with tanh."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )


def build_norm_cnn() -> nn.Module:
    """Build two convolutions with batch normalization and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def load_images(n: int = N_IMAGES) -> tuple[Tensor, Tensor]:
    """Return some digits `(n, 1, 8, 8)` and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:n], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels[:n])


def load_sums() -> tuple[Tensor, Tensor]:
    """Return all pairs of numbers below a modulus, and their sums."""
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    return pairs, pairs.sum(dim=1) % MODULUS


def load_majorities() -> tuple[Tensor, Tensor]:
    """Return random sequences of four kinds of tokens, and which kind is the most frequent."""
    tokens = torch.randint(0, 4, (256, 9), generator=torch.Generator().manual_seed(0))
    return tokens, functional.one_hot(tokens, 4).sum(dim=1).argmax(dim=1)


def square(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the squared error to one-hot labels."""
    return functional.mse_loss(logits, functional.one_hot(labels, logits.shape[1]).to(logits.dtype))


def train(
    build: Callable[[], nn.Module],
    load: Callable[[], tuple[Tensor, Tensor]],
    optimizer: str,
    *,
    steps: int,
    batch: int | None,
    seed: int,
    criterion: Criterion = functional.cross_entropy,
    **settings: Any,
) -> lv.Run:
    """Train and record every step; the recorded loss is that on all the data.

    Args:
        build: builds the model.
        load: loads inputs and labels.
        optimizer: name of a class of `torch.optim`.
        steps: number of steps.
        batch: size of the batches; None for all the data in each step.
        seed: seed of the initial weights and of the batches.
        criterion: the loss of outputs and labels.
        **settings: arguments of the optimizer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x, y = load()
        model = build()
        tuned = getattr(torch.optim, optimizer)(model.parameters(), **settings)
        recorder = lv.Recorder(model, lambda m: criterion(m(x), y)).attach(tuned)
        for _ in range(steps):
            part = slice(None) if batch is None else torch.randint(0, len(x), (batch,))
            tuned.zero_grad()
            criterion(model(x[part]), y[part]).backward()
            tuned.step()
        return recorder.run(progress=False)


Trainings = Mapping[str, Callable[[], lv.Run]]

build_adder = partial(TokenEncoder, MODULUS, 2, MODULUS)
build_counter = partial(TokenEncoder, 4, 9, 4)
load_few = partial(load_images, 128)

REAL_TUNED: Trainings = MappingProxyType(
    {
        "digits MLP, SGD, batches of 32": partial(
            train, build_mlp, load_images, "SGD", lr=0.1, steps=400, batch=32, seed=0
        ),
        "digits MLP, Adam, batches of 32": partial(
            train, build_mlp, load_images, "Adam", lr=3e-3, steps=400, batch=32, seed=0
        ),
        "digits CNN, batch norm, momentum": partial(
            train, build_norm_cnn, load_images, "SGD", lr=0.02, momentum=0.9, steps=300, batch=32, seed=0
        ),
        "transformer, sums, AdamW": partial(
            train, build_adder, load_sums, "AdamW", lr=3e-3, weight_decay=0.1, steps=300, batch=32, seed=0
        ),
        "digits, edge of stability": partial(
            train, build_tanh, load_few, "SGD", lr=1.0, steps=450, batch=None, seed=0, criterion=square
        ),
    }
)

REAL_HELD_BACK: Trainings = MappingProxyType(
    {
        "digits MLP, momentum, batches of 48": partial(
            train, build_mlp, load_images, "SGD", lr=0.05, momentum=0.9, steps=400, batch=48, seed=1
        ),
        "digits MLP, AdamW, batches of 16": partial(
            train, build_mlp, load_images, "AdamW", lr=2e-3, weight_decay=0.01, steps=400, batch=16, seed=2
        ),
        "digits CNN, RMSprop, batches of 64": partial(
            train, build_cnn, load_images, "RMSprop", lr=1e-3, steps=300, batch=64, seed=1
        ),
        "transformer, majority, Adam": partial(
            train, build_counter, load_majorities, "Adam", lr=3e-3, steps=300, batch=24, seed=1
        ),
        "digits, edge of stability, wider": partial(
            train, partial(build_tanh, 48), load_few, "SGD", lr=0.7, steps=450, batch=None, seed=1, criterion=square
        ),
    }
)
