"""The stability margin against closed forms, and against a fine scan of each step in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.diagnostics.margin import MAX_RATIO


class Vector(nn.Module):
    def __init__(self, n, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=dtype))


def run_of(weights, loss_fn, step=None):
    weights = np.asarray(weights, dtype=float)
    objective = lv.Objective(Vector(weights.shape[1]), lambda m: loss_fn(m.w))
    return lv.Run(weights, objective(weights), np.arange(len(weights)) if step is None else step, objective)


def descend(start, curvature, lr, n):
    return np.array([np.array(start) * (1 - lr * np.array(curvature)) ** t for t in range(n)])


def assert_holds(margin, expected):
    """The bracket contains the margin and is as narrow as it is said to be; otherwise it says that it has no end."""
    for lower, upper, true in zip(margin.lower, margin.upper, expected, strict=True):
        assert lower <= true < upper
        assert lower == 0 or upper == np.inf or upper <= MAX_RATIO * lower


def scan(model, loss_fn, start, end, multiples):
    """The first multiple of a step at which the loss is higher, on the model itself, one after another."""
    losses = []
    for s in [0.0, *multiples]:
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.as_tensor(start + s * (end - start)), model.parameters())
            losses.append(float(loss_fn(model)))
    return next((s for s, loss in zip(multiples, losses[1:], strict=True) if not loss <= losses[0]), np.inf)


@pytest.mark.parametrize("lr", [0.003, 0.05, 0.3, 0.9, 1.3])
def test_gradient_descent_on_one_curvature(lr):
    """With λ = 2 the loss rises beyond 2 / (lr λ) steps, whatever the start."""
    run = run_of(descend([3.0], [2.0], lr, 6), lambda w: w.square().sum())
    assert_holds(lv.measure_margin(run, progress=False), [1 / lr] * 5)


def test_gradient_descent_on_a_bowl():
    """Along the gradient g the loss rises beyond 2 g·g / (lr g·A g)."""
    curvature, lr = np.array([1.0, 5.0, 30.0]), 0.04
    weights = descend([1.0, -2.0, 0.5], curvature, lr, 40)
    run = run_of(weights, lambda w: (torch.tensor(curvature) * w.square()).sum() / 2)
    slopes = weights[:-1] * curvature
    expected = 2 * (slopes**2).sum(axis=1) / (lr * (curvature * slopes**2).sum(axis=1))
    assert np.ptp(expected) > 5
    assert_holds(lv.measure_margin(run, progress=False), expected)


def test_what_lies_beyond_the_range_is_said():
    run = run_of([[0.0], [1.0], [1.0], [0.0], [0.001]], lambda w: -w.sum())
    margin = lv.measure_margin(run, progress=False)
    np.testing.assert_array_equal(margin.lower, [1024, np.nan, 0, 1024])
    np.testing.assert_array_equal(margin.upper, [np.inf, np.nan, 1 / 64, np.inf])
    assert repr(margin) == "Margin(4 steps, least margin between 0 and 0.0156)"


def test_a_loss_that_is_not_finite_counts_as_higher():
    run = run_of([[1.0], [2.0]], lambda w: -torch.log(9.5 - w).sum() - 10 * w.sum())
    assert_holds(lv.measure_margin(run, progress=False), [8.5])


def test_rounding_is_no_rise():
    """Probabilities sum to 1 at all weights, in float32 up to their last digits."""
    objective = lv.Objective(Vector(64, torch.float32), lambda m: m.w.softmax(0).sum())
    weights = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    run = lv.Run(weights, objective(weights), np.arange(50), objective)
    assert len(set(run.loss)) > 1
    assert set(lv.measure_margin(run, progress=False).upper) == {np.inf}


def test_a_line_with_hills_has_its_first_crossing():
    """The loss falls, rises over its start at 2.6, and falls again: the bracket holds the first crossing."""
    run = run_of([[0.0], [1.0]], lambda w: (-w * (w - 2.6) * (w - 40) * (w - 41) * -1).sum())
    multiples = np.arange(0.01, 60, 0.01)
    first = scan(Vector(1), lambda m: run.objective.loss_fn(m), np.zeros(1), np.ones(1), multiples)
    assert first == pytest.approx(2.6, abs=0.02)
    assert_holds(lv.measure_margin(run, progress=False), [2.6])


def test_a_hill_between_two_tried_multiples_is_missed():
    """As documented: the hill from 6 to 8 lies between 4 and 16, where the loss is below that of the start."""
    run = run_of([[0.0], [1.0]], lambda w: (-w + 100 * torch.relu(1 - (w - 7).abs()) + torch.relu(w - 90) * 99).sum())
    margin = lv.measure_margin(run, progress=False)
    assert margin.lower[0] > 60
    narrow = np.arange(5, 10, 0.01)
    assert scan(Vector(1), run.objective.loss_fn, np.zeros(1), np.ones(1), narrow) == pytest.approx(6.06, abs=0.05)


@pytest.fixture(scope="module")
def batches():
    """Batches of 8 of 40 examples, whose steps lead up and down on all of them; every second step is recorded."""
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    recorder = lv.Recorder(model, lambda m: nn.functional.mse_loss(m(x), y), every=2).attach(optimizer)
    for _ in range(40):
        part = torch.randint(40, (8,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()
    return recorder.run(progress=False), lambda m: nn.functional.mse_loss(m(x), y)


def test_mini_batches_against_a_fine_scan(batches):
    run, loss_fn = batches
    margin = lv.measure_margin(run, progress=False)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    multiples = np.geomspace(1 / 640, 64, 250)
    true = [scan(model, loss_fn, *run.weights[[t, t + 1]], multiples) for t in range(len(run) - 1)]
    np.testing.assert_array_equal(margin.step, np.arange(0, 40, 2))
    assert min(true) < 1 < max(true)
    for lower, upper, first in zip(margin.lower, margin.upper, true, strict=True):
        assert lower / 1.05 <= first <= upper * 1.05 or (upper == np.inf and first == np.inf)
        assert lower == 0 or upper == np.inf or upper <= MAX_RATIO * lower


def test_buffers_stay_as_they_were_before_the_step():
    """Batch normalization with recorded statistics: L(W + s move) has those of the step, also at s = 1."""
    torch.manual_seed(0)
    x = torch.randn(32, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=0.9), nn.Linear(3, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    recorder = lv.Recorder(model, lambda m: m(x).square().mean()).attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        model.train()(3 * x[torch.randperm(32)[:16]]).square().mean().backward()
        optimizer.step()
    run = recorder.run(progress=False)
    margin = lv.measure_margin(run, progress=False)
    for t in range(0, len(run) - 1, 2):
        start, end = run.weights[[t, t + 1]]
        multiples = np.geomspace(1 / 640, 1024, 140)
        losses = run.objective(start + multiples[:, None] * (end - start), run.buffers[[t] * len(multiples)])
        rises = np.flatnonzero(losses > run.loss[t] * (1 + 1e-12))
        first = multiples[rises[0]] if len(rises) else np.inf
        assert margin.lower[t] / 1.11 <= first <= margin.upper[t] * 1.11


def test_the_first_spike_of_sin_3x_is_announced(post_runs):
    """As measured in a trial, by other code: 310 at step 1225, 14 at 1250, below 1.05 at 1260; a spike at 1276.

    The trainings of two processors differ by rounding, and 14 is between 4 and 16.
    """
    margin = lv.measure_margin(post_runs["sin(3x)"], progress=False)
    assert margin.lower[1225] < 310 < margin.upper[1225]
    assert margin.lower[1250] >= 4
    assert margin.upper[1250] <= 16
    assert margin.upper[1260] <= 2
    assert margin.n_evaluations / len(margin.step) < 6


def test_some_steps_have_the_margins_of_all(run):
    every, some = lv.measure_margin(run, progress=False), lv.measure_margin(run, [0, 30, 60], progress=False)
    assert some.step.tolist() == [0, 30, 59]  # the last row has no next one
    np.testing.assert_array_equal(some.lower, every.lower[some.step])
    np.testing.assert_array_equal(some.upper, every.upper[some.step])
    with pytest.raises(ValueError, match="must lie within the run, from 0 to 60") as caught:
        lv.measure_margin(run, [61])
    assert caught.value.argument == "steps"
    with pytest.raises(ValueError, match="must have a step to measure"):
        lv.measure_margin(run.cut(slice(0, 1)))


def test_ctrl_c_keeps_the_margins_that_are_known(run, monkeypatch):
    monkeypatch.setattr("loss_viz.diagnostics.margin.N_ROWS", 20)
    every, calls = lv.measure_margin(run, progress=False), []

    class Interrupted(lv.Objective):
        def __call__(self, weights, buffers=None):
            calls.append(len(weights))
            if sum(calls) > limit:
                raise KeyboardInterrupt
            return super().__call__(weights, buffers)

    own = lv.Run(run.weights, run.loss, run.step, Interrupted(run.model, run.objective.loss_fn))
    calls.clear()
    limit = np.inf
    lv.measure_margin(own, [0], progress=False)  # the first calls of an objective may be checks
    first = sum(lv.measure_margin(run, range(part, part + 20), progress=False).n_evaluations for part in (0, 20))
    calls.clear()
    limit = first
    with pytest.warns(RuntimeWarning, match="margins are known up to step 39"):
        part = lv.measure_margin(own, progress=False)
    np.testing.assert_array_equal(part.step, np.arange(40))
    np.testing.assert_array_equal(part.lower, every.lower[:40])
    calls.clear()
    limit = 0
    with pytest.raises(KeyboardInterrupt):
        lv.measure_margin(own, progress=False)
