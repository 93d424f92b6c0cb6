"""One update is one step, whatever makes it: several optimizers, wrappers, two-phase steps, compiled steps."""

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv

X = torch.linspace(-1, 1, 60).reshape(15, 4)
Y = X.sum(1, keepdim=True).sin()
N = 20


def mse(m):
    return nn.functional.mse_loss(m(X), Y)


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def flatten(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def split(model, kind=torch.optim.SGD):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.Adam(matrices, 0.02), kind(rest, 0.1)


class Wrapped(torch.optim.Optimizer):
    """An Optimizer by class that never calls its constructor, as accelerate returns."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Lookahead(torch.optim.Optimizer):
    """An optimizer that steps another one, and then moves the weights itself."""

    def __init__(self, inner):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner, self.slow = inner, [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
            slow.lerp_(p, 0.5)
            p.copy_(slow)


class SharpnessAware(torch.optim.Optimizer):
    """Two half steps, neither of which is called step()."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.clone()
            p.add_(0.05 * p.grad)

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old"])
        self.inner.step()


class PerLayer:
    """One optimizer for each parameter, stepped in turn."""

    def __init__(self, model):
        self.optimizers = [torch.optim.SGD([p], 0.1) for p in model.parameters()]

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def one(model):
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    return [optimizer], optimizer.step


def pair(model):
    first, second = split(model)
    return [first, second], lambda: (first.step(), second.step())


def pair_of_which_one_is_attached(model):
    first, second = split(model)
    return [first], lambda: (first.step(), second.step())


def pair_of_which_the_second_is_attached(model):
    first, second = split(model, torch.optim.AdamW)
    return [second], lambda: (first.step(), second.step())


def wrapped(model):
    outer = Wrapped(torch.optim.SGD(model.parameters(), 0.1))
    return [outer], outer.step


def nested(model):
    outer = Lookahead(torch.optim.SGD(model.parameters(), 0.1))
    return [outer], outer.step


def per_layer(model):
    outer = PerLayer(model)
    return outer.optimizers, outer.step


def with_closure(model):
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = mse(model)
        loss.backward()
        return loss

    return [optimizer], lambda: optimizer.step(closure)


def two_halves(model):
    optimizer = SharpnessAware(model.parameters())

    def step():
        optimizer.first_step()
        model.zero_grad()
        mse(model).backward()
        optimizer.second_step()

    return [optimizer], step


def beside_another_model(model):
    other = build()
    mse(other).backward()
    own, foreign = torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(other.parameters(), 0.1)
    return [own], lambda: (foreign.step(), own.step(), foreign.step())


KINDS = (
    *(one, pair, pair_of_which_one_is_attached, pair_of_which_the_second_is_attached, wrapped, nested, per_layer),
    *(with_closure, two_halves, beside_another_model),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("every", [1, 3])
def test_each_update_is_one_row(kind, every):
    model = build()
    optimizers, step = kind(model)
    recorder = lv.Recorder(model, mse, every=every).attach(*optimizers)
    weights, true = [flatten(model)], [mse(model).item()]
    for _ in range(N):
        model.zero_grad()
        mse(model).backward()
        step()
        weights.append(flatten(model))
        true.append(mse(model).item())
    run = recorder.run(progress=False)
    rows = sorted({*range(0, N + 1, every), N})
    assert run.step.tolist() == rows
    np.testing.assert_array_equal(run.weights, np.stack(weights)[rows])
    np.testing.assert_allclose(run.loss, np.array(true)[rows], rtol=1e-5)


@pytest.mark.parametrize("n_critic", [1, 5])
def test_two_networks_of_which_one_is_stepped_more_often(n_critic):
    model = nn.ModuleDict({"critic": build(), "generator": build()})
    critic, generator = (torch.optim.SGD(model[name].parameters(), 0.05) for name in model)

    def loss_fn(m):
        return mse(m["critic"]) + mse(m["generator"])

    with lv.Recorder(model, loss_fn).attach(critic, generator) as recorder:
        for _ in range(8):
            for _ in range(n_critic):
                model.zero_grad()
                loss_fn(model).backward()
                critic.step()
            generator.step()
    run = recorder.run(progress=False)
    assert len(run) == 8 * n_critic + 1
    np.testing.assert_array_equal(run.weights[-1], flatten(model))
    assert (np.diff(run.weights, axis=0) != 0).any(axis=1).all()


def test_an_optimizer_for_each_phase():
    model = build()
    first, second = split(model)
    recorder, weights = lv.Recorder(model, mse).attach(first), []
    for optimizer in [first] * N + [second] * N:
        model.zero_grad()
        mse(model).backward()
        optimizer.step()
        weights.append(flatten(model))
    run = recorder.run(progress=False)
    assert len(run) == 2 * N + 1
    np.testing.assert_array_equal(run.weights[1:], weights)


def test_a_step_that_fails_is_none():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = lv.Recorder(model, mse).attach(optimizer)

    def fail():
        raise ZeroDivisionError

    for i in range(N):
        model.zero_grad()
        mse(model).backward()
        if i % 4 == 0:
            with pytest.raises(ZeroDivisionError):
                optimizer.step(fail)
        optimizer.step()
    assert len(recorder.run(progress=False)) == N + 1


def test_what_is_no_optimizer_is_refused():
    model = build()
    recorder = lv.Recorder(model, mse)
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer, got int"):
        recorder.attach(3)
    with pytest.raises(ValueError, match="none of its parameters are the model's"):
        recorder.attach(torch.optim.SGD(build().parameters(), 0.1))


@pytest.mark.slow
def test_a_compiled_update_does_not_compile_the_recorder(caplog):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(0.02))
    recorder = lv.Recorder(model, mse).attach(optimizer)
    update = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(N):
        model.zero_grad()
        mse(model).backward()
        update()
    assert len(recorder.run(progress=False)) == N + 1
    assert not [record for record in caplog.records if "loss_viz" in record.getMessage()]
