"""Further scalars of a model as heights, their cost, and functions that fail at some weights."""

import pickle

import numpy as np
import pytest
import reference
import torch
from joblib import wrap_non_picklable_objects
from torch import nn

import loss_viz as lv


def size(model):
    return torch.cat([p.abs().ravel() for p in model.parameters()]).max()


@pytest.fixture(scope="module")
def positive(run):
    return lambda model: (model(run.task.x[:, None]) > 0).sum()


@pytest.mark.parametrize("blend", ["planes", "losses"])
def test_metrics_are_those_of_the_networks(run, positive, blend):
    metrics = {"size": size, "positive": positive}
    land = lv.landscape(run, k=3, resolution=(5, 3), blend=blend, metrics=metrics, progress=False)
    plain = lv.landscape(run, k=3, resolution=(5, 3), blend=blend, progress=False)
    np.testing.assert_array_equal(land.loss, plain.loss)
    assert list(land.metrics) == list(metrics)
    picture = reference.Picture([run], land.anchors, k=3, blend=blend)
    for name, metric in metrics.items():
        shown = land.metric(name)
        picture.true_loss = lambda w, b, f=metric: float(reference.loss_at(run.model, f, w, b))
        np.testing.assert_allclose(shown.loss, reference.grid_heights(picture, land), rtol=1e-9)
        true = [reference.loss_at(run.model, metric, row) for row in run.weights]
        np.testing.assert_allclose(shown.path_loss, true, rtol=1e-12)
        heights = [picture.height(point) for point in picture.path[::9]]
        np.testing.assert_allclose(shown.path_height[::9], heights, rtol=1e-9)
        np.testing.assert_allclose(shown.at(land.path[::9]), shown.path_height[::9], rtol=1e-12)
        assert (shown.height_name, dict(shown.metrics)) == (name, {})
        if blend == "planes":
            network = shown.network_at(np.array([land.x[1], land.y[2]]))
            assert metric(network).item() == pytest.approx(shown.loss[2, 1], rel=1e-12)
    with pytest.raises(ValueError, match=r"`name` must be one of the metrics .*\(size, positive\)") as error:
        land.metric("accuracy")
    assert error.value.argument == "name"


class Counted(nn.Module):
    """A network that counts its forward passes and cannot be batched."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
        self.calls = []  # shared by the copies

    def __deepcopy__(self, memo):
        other = Counted()
        other.load_state_dict(self.state_dict())
        other.calls = self.calls
        return other

    def forward(self):
        self.calls.append(self.w.detach().sum().item())
        return self.w * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot batch")
def test_each_scalar_costs_one_pass_for_each_point():
    model = Counted()
    objective = lv.Objective(model, lambda m: m().square().sum())
    t = np.linspace(0, 2, 20)[:, None]
    walk = np.cos(t * [1, 2, 3]) + 1
    run = lv.Run(walk, objective(walk), np.arange(20), objective)
    assert run.check.passed  # once, before any picture
    passes = []
    for metrics in ({}, {"sum": lambda m: m().sum()}):
        model.calls.clear()
        land = lv.landscape(run, plane="parallel", resolution=(7, 5), metrics=metrics, progress=False)
        passes.append(len(model.calls))
    assert passes[0] == 7 * 5 + 20 == land.n_evaluations
    n_along_path, n_probes = 20, 10
    assert 2 * passes[0] + n_along_path <= passes[1] <= 2 * passes[0] + n_along_path + n_probes


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64))


def definite(model):
    """Fail for some weights, and for a whole batch if it contains such weights."""
    a, b, c = model.w
    return torch.linalg.cholesky(torch.stack([torch.stack([a, b]), torch.stack([b, c])])).sum()


def smooth(model):
    return model.w.square().sum()


@pytest.mark.parametrize("failing", ["loss", "metric"])
@pytest.mark.parametrize("blend", ["planes", "losses"])
def test_heights_where_a_function_fails_are_nan_and_the_others_right(failing, blend):
    t = np.linspace(0, 1, 30)
    walk = np.stack([1 - 0.5 * t, 0.1 * np.sin(4 * t), 0.3 + 0.1 * t**2], axis=1)
    loss, metric = (definite, smooth) if failing == "loss" else (smooth, definite)
    objective = lv.Objective(Vector(), loss)
    run = lv.Run(walk, objective(walk), np.arange(30), objective)
    bounds = ((-1.0, 1.0), (-0.5, 0.5))
    land = lv.landscape(
        run, plane="parallel", blend=blend, bounds=bounds, resolution=(9, 7), metrics={"other": metric}, progress=False
    )
    right = land.loss if failing == "metric" else land.metrics["other"].surface
    wrong = land.loss if failing == "loss" else land.metrics["other"].surface
    picture = reference.Picture([run], land.anchors, plane="parallel", blend=blend)
    picture.true_loss = lambda w, b=None: float(w @ w)
    np.testing.assert_allclose(right, reference.grid_heights(picture, land), rtol=1e-9)

    def evaluate(w, b=None):
        matrix = np.array([[w[0], w[1]], [w[1], w[2]]])
        return np.linalg.cholesky(matrix).sum() if np.linalg.eigvalsh(matrix)[0] > 0 else np.nan

    picture.true_loss = evaluate
    expected = reference.grid_heights(picture, land)
    assert 5 < np.isnan(expected).sum() < 55
    np.testing.assert_allclose(wrong, expected, rtol=1e-6)
    assert np.isfinite(land.path_height).all()


def test_a_function_that_fails_everywhere_is_not_hidden(run):
    broken = []

    def loss_fn(model):
        if broken:
            raise FileNotFoundError("the data are gone")
        return run.task.loss(model)

    own = lv.Run(run.weights, run.loss, run.step, lv.Objective(run.model, loss_fn))
    broken.append(True)
    with pytest.raises(FileNotFoundError, match="the data are gone"):
        lv.landscape(own, k=3, resolution=3, progress=False)


@pytest.mark.parametrize("metric", [lambda m: m[0].weight, lambda m: "large"])
def test_a_metric_that_is_no_number_is_refused(run, metric):
    with pytest.raises((TypeError, ValueError), match=r"`metrics`\['wrong'\]") as error:
        lv.landscape(run, resolution=3, metrics={"wrong": metric}, progress=False)
    assert error.value.argument == "metrics"


def test_a_metric_ignores_what_only_the_loss_holds():
    """The weights of a criterion are part of the state of a run; a metric of the model is evaluated without them."""
    model, criterion = nn.Linear(2, 3).double(), nn.Linear(3, 1).double()
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], 0.1)
    recorder = lv.Recorder(model, lambda m: (criterion(m(x)) - 1).square().mean()).attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        (criterion(model(x)) - 1).square().mean().backward()
        optimizer.step()
    run = recorder.run(progress=False)
    assert run.buffers.shape == (9, 4)
    land = lv.landscape(run, metrics={"size": lambda m: m(x).square().mean()}, resolution=(3, 5), progress=False)
    shown = land.metric("size")
    for i, point in enumerate(land.sampling.points):
        network = land.network_at(point)
        assert shown.loss.ravel()[i] == pytest.approx(network(x).square().mean().item(), rel=1e-10)
    objective = lv.Objective(model, lambda m: m(x).square().mean()).with_layout(run.objective.buffer_layout)
    sent = pickle.loads(pickle.dumps(wrap_non_picklable_objects(objective, keep_wrapper=False)))  # as to a worker
    weights, buffers = run.state([0, 8])
    np.testing.assert_allclose(sent(weights, buffers), objective(weights, buffers), rtol=1e-12)
