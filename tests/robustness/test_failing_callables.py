"""What users hand over to be called may raise: their own error comes back as it is, and nothing half-done is kept."""

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv


class Own(Exception):
    """Somebody's own error."""


def fail(*_):
    raise Own("mine")


class Failing(nn.Module):
    """A unit that fails at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise Own("mine")
        return torch.tanh(x)


class FailingStep(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        raise Own("mine")


CALLS = {
    "a target": lambda: lv.train(fail, progress=False),
    "an activation": lambda: lv.train("x", activation=fail, progress=False),
    "a unit at once": lambda: lv.train("x", activation=lambda: Failing(0), progress=False),
    "a unit later on": lambda: lv.train("x", activation=lambda: Failing(7), progress=False),
    "an optimizer": lambda: lv.train("x", optimizer=fail, progress=False),
    "a step": lambda: lv.train("x", optimizer=lambda p: FailingStep(p, lr=0.1), progress=False),
    "optimizers that are compared": lambda: lv.compare("x", {"a": "adam", "b": fail}, steps=3, progress=False),
    "a loss": lambda: lv.Recorder(nn.Linear(1, 1), fail),
    "a loss of an objective": lambda: lv.Objective(nn.Linear(1, 1), fail),
}


@pytest.mark.parametrize("what", CALLS)
def test_the_error_of_a_callable_comes_back_as_it_is(what):
    with pytest.raises(Own) as error:
        CALLS[what]()
    assert str(error.value) == "mine"


class Moody:
    """A loss that fails after some calls, until it is told to go on."""

    def __init__(self):
        self.left, self.error, self.x = 10**9, Own, torch.linspace(-1, 1, 20)[:, None]

    def __call__(self, model):
        self.left -= 1
        if self.left < 0:
            raise self.error("mine")
        return (model(self.x) - self.x**2).square().mean()


def record(folder=None):
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), Moody()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with lv.Recorder(model, loss_fn, folder=folder).attach(optimizer) as recorder:
        for _ in range(30):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    return recorder, loss_fn


LOOKS = {
    "a landscape": lambda run, _: lv.landscape(run, resolution=5, progress=False),
    "a cached landscape": lambda run, folder: lv.landscape(run, resolution=5, cache=folder / "losses", progress=False),
    "a saddle": lambda run, _: lv.landscape(run, resolution=5, axes="saddle", progress=False),
    "sharpness": lambda run, _: lv.measure_sharpness(run, [0, 20], progress=False),
    "gradients": lambda run, _: run.objective.gradients(run.weights[:2]),
    "losses": lambda run, _: run.objective(run.weights[:2]),
    "a page": lambda run, folder: lv.export_html(run, folder / "a.html", k=[3], sigma=["auto"], progress=False),
}


@pytest.mark.parametrize("what", LOOKS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_loss_that_fails_later_fails_as_it_does_and_leaves_nothing(what, after, tmp_path):
    recorder, loss_fn = record()
    run = recorder.run(progress=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    n_calls = count_calls(LOOKS[what], run, loss_fn, tmp_path / "other")
    if after >= n_calls:
        pytest.skip("it is called less often")
    loss_fn.left = after
    with pytest.raises(Own, match=r"^mine$"):
        LOOKS[what](run, tmp_path)
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*"))
    loss_fn.left = 10**9
    again, plain = LOOKS[what](run, tmp_path), lv.landscape(run, resolution=5, progress=False)
    if what == "a cached landscape":
        np.testing.assert_array_equal(again.loss, plain.loss)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert run.model.training


def count_calls(look, run, loss_fn, folder):
    folder.mkdir()
    loss_fn.left = 10**9
    look(run, folder)
    return 10**9 - loss_fn.left


@pytest.mark.parametrize("stored", [False, True])
def test_a_recording_outlives_a_loss_that_fails(stored, tmp_path):
    recorder, loss_fn = record(tmp_path / "snapshots" if stored else None)
    loss_fn.left = 0
    with pytest.raises(Own, match=r"^mine$"):
        recorder.run(progress=False)
    loss_fn.left = 10**9
    run = recorder.run(progress=False)
    assert run.step.tolist() == list(range(31))
    with pytest.raises(Own, match=r"^mine$"), recorder:  # of the block, whose end takes the last weights
        fail()
    assert len(recorder.run(progress=False)) == 31


@pytest.mark.parametrize("error", [Own, ValueError, SystemExit, KeyboardInterrupt])
def test_a_panel_tells_the_error_and_draws_again(error):
    recorder, loss_fn = record()
    run = recorder.run(progress=False)
    explorer = lv.Explorer(run, resolution=5, k=3)
    assert explorer.wait(60.0)
    land = explorer.landscape
    loss_fn.left, loss_fn.error = 0, error
    explorer.k = 4
    assert not explorer.wait(20.0)
    assert explorer.landscape is land
    assert "mine" in explorer.work["text"]
    loss_fn.left = 10**9
    explorer.k = 2
    assert explorer.wait(60.0)
    assert explorer.landscape.k == 2
    explorer.close()
