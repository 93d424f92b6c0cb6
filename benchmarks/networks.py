"""The benchmarked networks, each trained briefly, with their data, their loss and their runs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import loss_viz as lv

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network, and everything that a baseline needs to evaluate the same loss.

    Attributes:
        name: its name in the tables.
        run: the run that trained it; its objective is on the device.
        x: inputs, on the device.
        y: targets, on the device.
        criterion: the loss of outputs and targets, a mean over the data.
        side: side x side points are evaluated in one call, chosen to take about a quarter of a second in a plain loop.
    """

    name: str
    run: lv.Run
    x: Tensor
    y: Tensor
    criterion: Criterion
    side: int

    def loss(self, model: nn.Module) -> Tensor:
        """Return the loss of a model on all the data."""
        return self.criterion(model(self.x), self.y)

    def with_weights(self, weights: np.ndarray) -> nn.Module:
        """Return a copy of the network with other weights, in evaluation mode, as loss_viz evaluates it."""
        model = copy.deepcopy(self.run.model).eval()
        for parameter, part in zip(model.parameters(), self.split(weights), strict=True):
            if parameter.requires_grad:
                parameter.data.copy_(part)
        return model

    def split(self, vector: np.ndarray) -> list[Tensor]:
        """Split a flat vector into tensors of the parameters' shapes, on the device; zeros for frozen parameters."""
        parameters = list(self.run.model.parameters())
        flat = torch.tensor(vector, dtype=parameters[0].dtype, device=self.x.device)
        parts = iter(flat.split([parameter.numel() for parameter in parameters if parameter.requires_grad]))
        return [
            next(parts).reshape(parameter.shape) if parameter.requires_grad else torch.zeros_like(parameter)
            for parameter in parameters
        ]

    def sample_weights(self, n: int, spread: float = 0.1) -> np.ndarray:
        """Sample weight vectors `(n, n_params)` around the trained one."""
        final = self.run.weights[-1]
        noise = np.random.default_rng(0).standard_normal((n, len(final))).astype(final.dtype)
        return final + spread * np.sqrt(np.square(final).mean()) * noise


class Encoder(nn.Module):
    """A transformer encoder of one layer that reads an image row by row."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(torch.randn(8, width) / 10)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten logits for each image, given as rows `(n_images, 8, 8)`."""
        return self.head(self.layer(self.embed(x) + self.position).mean(dim=1))


class LowRankLinear(nn.Module):
    """A frozen linear layer and a trainable product of two narrow matrices beside it (LoRA, Hu et al. 2021)."""

    def __init__(self, frozen: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of both."""
        return self.frozen(x) + self.up(self.down(x))


class LowRankEncoder(nn.Module):
    """A frozen encoder whose feed-forward layers, spelled out, and head have low-rank updates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Encoder(width).requires_grad_(False)
        self.attention, layer = self.body.layer.self_attn, self.body.layer
        self.first, self.second = LowRankLinear(layer.linear1), LowRankLinear(layer.linear2)
        self.head = LowRankLinear(self.body.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten logits for each image, given as rows `(n_images, 8, 8)`."""
        layer = self.body.layer
        h = self.body.embed(x) + self.body.position
        h = layer.norm1(h + self.attention(h, h, h, need_weights=False)[0])
        h = layer.norm2(h + self.second(functional.relu(self.first(h))))
        return self.head(h.mean(dim=1))


def build_cnn() -> nn.Module:
    """Build two convolutions and a linear layer."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


def move_network(
    name: str, run: lv.Run, x: Tensor, y: Tensor, criterion: Criterion, side: int, device: torch.device
) -> Network:
    """Return the network of a run with model, data and objective on the device."""
    x, y = x.to(device), y.to(device)
    model = copy.deepcopy(run.model).to(device).eval()
    objective = lv.Objective(model, lambda m: criterion(m(x), y))
    return Network(name, replace(run, objective=objective), x, y, criterion, side)


def move_trained(name: str, run: lv.Run, side: int, device: torch.device) -> Network:
    """Return the network of a run of `lv.train` on the device."""
    task = run.task
    if task is None:
        raise ValueError("`run` must come from lv.train, but it has no task.")
    return move_network(name, run, task.x, task.y, functional.mse_loss, side, device)


def build_mlps(device: torch.device) -> list[Network]:
    """Train 1-8-1 with the defaults of `lv.train`, 1-64-1, and 1-64-64-1 on 256 points."""
    small = lv.train("x^3", progress=False)
    wide = lv.train("x^3", width=64, lr=1e-3, steps=500, progress=False)
    deep = lv.train("sin(3x)", width=64, depth=2, n_points=256, lr=1e-3, steps=500, progress=False)
    return [
        move_trained("1-8-1", small, 64, device),
        move_trained("1-64-1", wide, 40, device),
        move_trained("1-64-64-1", deep, 32, device),
    ]


def train_digits(name: str, build: Callable[[], nn.Module], n_images: int, *, flat: bool, side: int) -> Network:
    """Train for a hundred steps on some of scikit-learn's digits, on the CPU."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:n_images], dtype=torch.float32) / 16
    x = x.reshape(-1, 8, 8) if flat else x.reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[:n_images])
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with lv.Recorder(model, lambda m: functional.cross_entropy(m(x), y)).attach(optimizer) as recorder:
        for _ in range(100):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return Network(name, recorder.run(progress=False), x, y, functional.cross_entropy, side)


def build_digits(device: torch.device) -> list[Network]:
    """Train a small CNN on 256 images and a small transformer encoder on 128."""
    trained = [
        train_digits("digits CNN", build_cnn, 256, flat=False, side=16),
        train_digits("digits transformer", Encoder, 128, flat=True, side=10),
    ]
    return [move_to(net, device) for net in trained]


def build_wide(device: torch.device) -> list[Network]:
    """Train an encoder of 100,000 weights, and low-rank updates of a frozen one, on 64 images."""
    trained = [
        train_digits("transformer, 100 k", partial(Encoder, 112), 64, flat=True, side=10),
        train_digits("LoRA", partial(LowRankEncoder, 112), 64, flat=True, side=10),
    ]
    return [move_to(net, device) for net in trained]


def move_to(net: Network, device: torch.device) -> Network:
    """Return the same network on a device."""
    return move_network(net.name, net.run, net.x, net.y, net.criterion, net.side, device)
