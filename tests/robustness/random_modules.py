"""Random models and losses with the habits of real code, and their losses by the plainest means: the model itself."""

import copy
from functools import partial

import numpy as np
import torch
from torch import nn

N_STEPS = 10


class Masked(nn.Module):
    """A flag for each weight, some of which are cleared during the training."""

    def __init__(self, width, dtype):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.register_buffer("keep", torch.ones(width, width, dtype=dtype), persistent=dtype == torch.bool)

    def forward(self, z):
        return z @ (self.inner.weight * self.keep).mT

    def after(self, step):
        self.keep[step % len(self.keep), step % 3] = 0


class Counting(nn.Module):
    """A whole number that counts training steps, and scales the output."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, z):
        return self.inner(z) * (1 + 0.05 * self.count)

    def after(self, step):
        self.count += 1


class Normalizing(nn.Module):
    """Statistics that are replaced, not written to."""

    def __init__(self, width, buffer):
        super().__init__()
        self.inner = nn.Linear(width, width)
        if buffer:
            self.register_buffer("mean", torch.zeros(width))
        else:
            self.mean = torch.zeros(width)

    def forward(self, z):
        return self.inner(z - self.mean)

    def after(self, step):
        self.mean = self.mean + 0.1


class Twins(nn.Module):
    """A frozen copy that follows as an average."""

    def __init__(self, width):
        super().__init__()
        self.online = nn.Linear(width, width)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, z):
        return self.online(z) - 0.5 * self.target(z)

    def after(self, step):
        with torch.no_grad():
            for new, old in zip(self.online.parameters(), self.target.parameters(), strict=True):
                old.data = old.data.lerp(new.data, 0.2)


class Merging(nn.Module):
    """A low-rank update that is merged in evaluation mode."""

    def __init__(self, width, mode):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.base.requires_grad_(mode)
        self.down, self.up = nn.Parameter(torch.randn(2, width) / 3), nn.Parameter(torch.zeros(width, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.base.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, z):
        return self.base(z) if self.merged else self.base(z) + z @ self.down.T @ self.up.T


class Keeping(nn.Module):
    """Results of the last forward pass, kept on the module."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, z):
        self.features = torch.tanh(self.inner(z))
        return self.features


class Spectral(nn.Module):
    """Complex weights."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 2 + 1, dtype=torch.cdouble) / 2)
        self.n = width

    def forward(self, z):
        return torch.fft.irfft(torch.fft.rfft(z) * self.weight, n=self.n)


def wrap_forward(model, layer):
    """Wrap the forward pass of a layer by a function that holds the layer."""
    own = layer.forward
    layer.forward = lambda z: 1.1 * own(z)


def hook_by_name(model, layer):
    """Add an update that names the model."""
    model.extra = nn.Parameter(torch.randn(6, 6) / 5)
    layer.register_forward_hook(lambda _, given, out: out + given[0] @ model.extra)


def hook_that_collects(model, layer):
    """Collect what passes, in a list."""
    model.collected = []
    kept = model.collected
    layer.register_forward_hook(lambda _, given, out: kept.append(out.detach()))


def tie(model, layer):
    """Use one weight twice."""
    model.again = nn.Linear(6, 6)
    model.again.weight = layer.weight
    layer.register_forward_hook(lambda _, given, out: out + model.again(given[0]))


def freeze(model, layer):
    layer.requires_grad_(False)


def leave(model, layer):
    """Do nothing."""


HABITS = (wrap_forward, hook_by_name, hook_that_collects, tie, freeze, leave, leave)


def layers(rng):
    """Return the candidates, each a function without arguments."""
    w = 6
    return [
        lambda: nn.Linear(w, w),
        lambda: nn.Linear(w, w),
        lambda: nn.BatchNorm1d(w),
        lambda: nn.BatchNorm1d(w, momentum=None),
        lambda: nn.LayerNorm(w),
        lambda: nn.Dropout(0.3),
        nn.Tanh,
        lambda: Masked(w, [torch.bool, torch.uint8, torch.float64][rng.integers(3)]),
        lambda: Counting(w),
        lambda: Normalizing(w, buffer=True),
        lambda: Normalizing(w, buffer=bool(rng.integers(4))),
        lambda: Twins(w),
        lambda: Merging(w, bool(rng.integers(2))),
        lambda: Keeping(w),
        lambda: Spectral(w),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(w, w)),
    ]


class Outer:
    """A loss that is an object, and holds the model."""

    def __init__(self, model, loss):
        self.model, self.loss = model, loss

    def __call__(self, m):
        return self.loss(m) + 0.02 * sum(p.abs().square().sum() for p in self.model.parameters())


def build_loss(rng, model):
    """Return a loss, and a module that is trained with the model or None."""
    x, y = torch.randn(24, 6), torch.randn(24, 6)

    def plain(m):
        return nn.functional.mse_loss(m(x), y)

    def penalized(m):
        return plain(m) + 0.01 * sum(p.abs().square().sum() for p in m.parameters() if p.requires_grad)

    def outer(m):
        return plain(m) + 0.05 * sum(p.abs().square().sum() for p in model.parameters())

    head = nn.Linear(6, 6)

    def with_head(m):
        return nn.functional.mse_loss(head(m(x)), y)

    temperature = torch.tensor(0.5, requires_grad=True)

    def with_temperature(m):
        return plain(m) * (1 + temperature**2)

    def residual(m):
        at = x.clone().requires_grad_()
        [slope] = torch.autograd.grad(m(at).sum(), at, create_graph=True)
        return (slope - m(at)).square().mean()

    def scaled(m, scale):
        return scale * plain(m)

    choices = [
        (plain, []),
        (penalized, []),
        (outer, []),
        (with_head, list(head.parameters())),
        (with_temperature, [temperature]),
        (residual, []),
        (partial(scaled, scale=2.0), []),
        (Outer(model, plain), []),
    ]
    return choices[rng.integers(len(choices))]


def build(seed):
    """Return a model, its loss, and the parameters to train, all from one seed."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    candidates = layers(rng)
    chosen = [candidates[i]() for i in rng.integers(0, len(candidates), rng.integers(1, 4))]
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), *chosen, nn.Linear(6, 6))
    HABITS[rng.integers(len(HABITS))](model, model[0])
    loss_fn, more = build_loss(rng, model)
    trained = [p for p in model.parameters() if p.requires_grad] + more
    return model, loss_fn, trained


def loss_of_live(model, loss_fn):
    """Return the loss of the model as it stands, in evaluation mode."""
    collected = list(getattr(model, "collected", []))
    model.eval()
    loss = loss_fn(model).item()
    model.train()
    if hasattr(model, "collected"):
        model.collected[:] = collected
    return loss


def train(model, loss_fn, trained, record):
    """Train for some steps, call `record` after each, and return the true losses."""
    optimizer = torch.optim.Adam(trained, 0.02)
    losses = [loss_of_live(model, loss_fn)]
    for step in range(N_STEPS):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        for module in model.modules():
            if hasattr(module, "after"):
                module.after(step)
        record()
        losses.append(loss_of_live(model, loss_fn))
    return np.array(losses)
