"""The loss on batch statistics: against a model in training mode, and without a trace on PyTorch's random state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv

X = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2)


def loss_fn(model):
    return (model(X) - X.sum(1, keepdim=True) ** 2).square().mean()


@pytest.fixture
def run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6, momentum=0.01), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer, recorder = torch.optim.Adam(model.parameters(), 0.05), lv.Recorder(model, loss_fn)
    for _ in range(40):
        optimizer.zero_grad()
        loss_fn(model.train()).backward()
        optimizer.step()
        recorder.record()
    return recorder.run()


def test_losses_on_batch_statistics_are_those_of_training_mode(run):
    model = copy.deepcopy(run.model)
    expected = []
    for row in range(len(run)):
        nn.utils.vector_to_parameters(torch.tensor(run.weights[row]), model.parameters())
        with torch.no_grad():
            expected.append(loss_fn(model.train()).item())
    state = torch.get_rng_state()
    losses = run.objective.with_batch_statistics()(run.weights)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_the_report_warns_where_running_statistics_lag(run):
    report = lv.assess(lv.landscape(run, resolution=5, progress=False))
    assert report.batch_norm_lag.max > 1.5
    assert any("Running statistics" in warning for warning in report.warnings)


def test_other_models_have_no_such_loss():
    run = lv.train("x^2", steps=20, progress=False)
    assert run.objective.with_batch_statistics() is None
    assert lv.assess(lv.landscape(run, resolution=3, progress=False)).batch_norm_lag is None
