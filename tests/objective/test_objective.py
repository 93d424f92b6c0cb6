import copy
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch import nn

from loss_viz.objective.batching import CHUNK_BYTES, reserve_heap, trim_heap
from loss_viz.objective.objective import Objective


def build(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        x, y = torch.randn(11, 3, dtype=dtype), torch.randn(11, 2, dtype=dtype)
    return model, lambda m: nn.functional.mse_loss(m(x), y)


def test_equals_the_model_itself_row_by_row():
    model, loss_fn = build()
    weights = np.random.default_rng(1).normal(size=(23, 32))
    expected = [reference.loss_at(model, loss_fn, row) for row in weights]
    np.testing.assert_allclose(Objective(model, loss_fn)(weights), expected, rtol=1e-13)


def test_predict_equals_the_model():
    model, loss_fn = build()
    model[0].bias.requires_grad_(False)
    objective = Objective(model, loss_fn)
    weights = np.random.default_rng(1).normal(size=27)
    x = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(4, 3)
    answer = objective.predict(weights, x)
    other = copy.deepcopy(model)
    trainable = [p for p in other.parameters() if p.requires_grad]
    torch.nn.utils.vector_to_parameters(torch.tensor(weights), trainable)
    torch.testing.assert_close(answer, other(x).detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1000])
def test_losses_do_not_depend_on_the_chunk_size(chunk_size):
    model, loss_fn = build()
    weights = np.random.default_rng(2).normal(size=(23, 32))
    objective = Objective(model, loss_fn)
    expected = objective(weights)
    objective.chunk_size = chunk_size
    np.testing.assert_allclose(objective(weights), expected, rtol=1e-13)


def test_chunks_fit_the_budget_of_the_largest_tensor():
    model, _ = build(torch.float32)
    x = torch.zeros(1000, 3)
    objective = Objective(model, lambda m: m(x).square().mean())
    assert objective.chunk_size == CHUNK_BYTES // (1000 * 5 * 4)


@pytest.mark.skipif(sys.platform != "linux" or not platform.libc_ver()[0].startswith("glibc"), reason="glibc alone")
def test_trim_heap_returns_freed_memory():
    def measure():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    reserve_heap()
    blocks = [torch.ones(2**20, dtype=torch.uint8) for _ in range(200)]
    del blocks[:-1]  # the last one is at the top of the heap
    before = measure()
    trim_heap()
    assert before - measure() > 150
    assert blocks[0].sum() == 2**20


def test_the_model_is_not_changed():
    model, loss_fn = build()
    model.train()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    objective = Objective(model, loss_fn)
    objective(np.zeros((4, objective.n_params)))
    with pytest.raises(ValueError, match="must have shape"):
        objective(np.zeros((4, 3)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[0].bias.requires_grad
    assert model[2].bias.grad is None
    assert torch.equal(torch.get_rng_state(), rng)


def test_frozen_parameters_are_not_in_the_vector():
    model, loss_fn = build()
    model[0].weight.requires_grad_(False)
    objective = Objective(model, loss_fn)
    assert objective.n_params == 5 + 10 + 2
    trainable = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    assert objective(trainable.numpy()[None])[0] == pytest.approx(loss_fn(model).item(), rel=1e-13)


def test_later_training_of_the_model_has_no_effect():
    model, loss_fn = build()
    model[2].bias.requires_grad_(False)  # not in the vector, but copied too
    objective = Objective(model, loss_fn)
    weights = np.random.default_rng(3).normal(size=(4, 30))
    before = objective(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(objective(weights), before)


@pytest.mark.parametrize("train", [False, True])
def test_running_statistics_are_not_changed(train):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.linspace(-1, 1, 30).reshape(10, 3)
    before = copy.deepcopy(model.state_dict())
    objective = Objective(model, lambda m: m.train(train)(x).square().mean())
    objective(np.ones((3, objective.n_params), dtype=np.float32))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_a_model_that_cannot_be_batched_is_evaluated_one_at_a_time():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([2.0]))

        def forward(self):
            return self.a.sum() if self.a.item() > 0 else -3 * self.a.sum()

    with pytest.warns(RuntimeWarning, match=r"vmap cannot batch this model .* one at a time"):
        objective = Objective(Branching(), lambda m: m())
    assert objective(np.array([[1.0], [-1.0], [4.0]])).tolist() == [1.0, 3.0, 4.0]


def test_the_warning_points_at_the_calling_line(tmp_path):
    """In a separate process, because the shape checks under pytest add a frame."""
    script = tmp_path / "theirs.py"
    script.write_text(
        "import torch, loss_viz as lv\n"
        "model = torch.nn.Linear(1, 1)\n"
        "lv.Objective(model, lambda m: m.weight.sum() * (1 if m.weight.sum().item() else 2))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert f"{script}:3: RuntimeWarning: torch.func.vmap cannot batch this model" in done.stderr


@pytest.mark.parametrize(
    ("loss_fn", "error", "cause", "repair"),
    [
        (lambda m: m(torch.ones(4, 3)), ValueError, "got a tensor of shape (4, 2)", "for example with .mean()"),
        (lambda m: 0.5, TypeError, "must return a scalar tensor, got float", "without .item()"),
        (lambda m: m(torch.rand(4, 3)).mean(), ValueError, "must give the same loss twice", "fixed set of data"),
    ],
)
def test_an_invalid_loss_raises(loss_fn, error, cause, repair):
    with pytest.raises(error) as caught:
        Objective(build(torch.float32)[0], loss_fn)
    assert cause in str(caught.value)
    assert repair in str(caught.value)


def test_a_frozen_model_raises():
    model, loss_fn = build()
    with pytest.raises(ValueError, match="at least one parameter with requires_grad=True"):
        Objective(model.requires_grad_(False), loss_fn)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (11, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["", "0.weight", "0.bias", "1.weight"])
@pytest.mark.parametrize("width", [5, 40])
def test_linear_layers_give_the_loss_of_the_model(shape, bias, frozen, width):
    torch.manual_seed(0)
    layers = nn.Linear(7, width, bias=bias), nn.Linear(width, 1, bias=bias), nn.Tanh(), nn.Linear(1, 16)
    model = nn.Sequential(*layers).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != frozen)
    x = torch.randn(shape, dtype=torch.float64)
    loss_fn = lambda m: (m(x).sin() * torch.arange(16)).mean()  # noqa: E731
    objective = Objective(model, loss_fn)
    assert objective._way == "batch"
    assert objective._own_linear != (bias and frozen == "0.weight" and len(shape) == 2)
    weights = np.random.default_rng(0).normal(size=(6, objective.n_params))
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = []
    for row in weights:
        torch.nn.utils.vector_to_parameters(torch.tensor(row), trainable)
        expected.append(loss_fn(model).item())
    np.testing.assert_allclose(objective(weights), expected, rtol=1e-12)
    gradients = objective.gradients(weights)
    assert gradients.shape == weights.shape
    step = 1e-6 * np.eye(objective.n_params)[3]
    slope = (objective(weights + step) - objective(weights - step)) / 2e-6
    np.testing.assert_allclose(gradients[:, 3], slope, rtol=1e-4, atol=1e-9)
