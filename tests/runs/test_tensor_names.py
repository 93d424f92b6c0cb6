"""Tensors are found in files under the names that wrappers give them, in the file or in the model."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


class Net(nn.Module):
    """A body and a head."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.BatchNorm1d(4, dtype=torch.float64))
            self.head = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.body(x).tanh())


class Holder(nn.Module):
    """A model with a layer that happens to be called `module`, beside a tensor of the same name."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = nn.Linear(3, 1, bias=False, dtype=torch.float64)
            self.weight = nn.Parameter(torch.randn(1, 3, dtype=torch.float64))

    def forward(self, x):
        return self.module(x) * (x @ self.weight.mT)


class Compiled(nn.Module):
    """A module inside another, under the name that `torch.compile` gives it."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


def compile_body(net):
    net.body = Compiled(net.body)


def spread_body(net):
    net.body = nn.DataParallel(net.body)


def both(net):
    net.body[0] = nn.DataParallel(net.body[0])
    net.head = Compiled(net.head)


def leave(net):
    pass


def loss(model):
    return model(X).square().mean()


def write(folder, make, change):
    """Write five checkpoints and return the losses of the models in them."""
    losses = []
    for step in range(5):
        model = make(seed=step)
        with torch.no_grad():
            for buffer in model.buffers():
                buffer += step
        losses.append(loss(model.eval()).item())
        change(model)
        torch.save({"step": step, "model": model.state_dict()}, folder / f"step_{step}.pt")
    return losses


@pytest.mark.parametrize("inside", [leave, compile_body, spread_body, both])
@pytest.mark.parametrize("in_model", [leave, compile_body, spread_body, both])
def test_wrappers_inside_a_model_and_inside_a_file(inside, in_model, tmp_path):
    losses = write(tmp_path, Net, inside)
    model = Net(seed=9)
    in_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # data parallelism cannot be batched
        run = lv.Run.from_checkpoints(model, loss, tmp_path, progress=False)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-12)


def test_a_layer_that_is_called_like_a_wrapper(tmp_path):
    losses = write(tmp_path, Holder, leave)
    run = lv.Run.from_checkpoints(Holder(seed=9), loss, tmp_path, progress=False)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-12)
