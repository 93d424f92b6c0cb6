"""Random and Hessian planes against direct evaluation, filter by filter and against the dense Hessian."""

import itertools
import re

import numpy as np
import pytest
import reference
import torch
from torch import nn
from tqdm import tqdm

import loss_viz as lv
from loss_viz.objective.layout import parameter_layout
from loss_viz.objective.objective import Objective
from loss_viz.planes.directions import hessian_directions, random_directions
from loss_viz.planes.projection import project_onto

SINGLE = ("global", "random", "hessian", "saddle")


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)]
        model = nn.Sequential(*layers).double()
        x, y = torch.randn(6, 1, 4, 4).double(), torch.randn(6, 2).double()
    return model, lambda m: nn.functional.mse_loss(m(x), y)


@pytest.fixture(scope="module")
def cnn_run():
    model, loss_fn = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
        for _ in range(12):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    return recorder.run()


def test_filters_of_the_directions_have_the_norms_of_the_weights():
    model, _ = build()
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    expected, _ = reference.filter_norms(model, weights)
    assert len(expected) == 3 + 2
    directions = random_directions(parameter_layout(model), weights, seed=4)
    for direction in directions:
        norms, rest = reference.filter_norms(model, direction)
        np.testing.assert_allclose(norms, expected, rtol=1e-6)
        assert not rest.any()  # biases and the normalization layer
    cosine = directions[0] @ directions[1] / np.linalg.norm(directions[0]) / np.linalg.norm(directions[1])
    assert abs(cosine) < 0.5
    np.testing.assert_array_equal(random_directions(parameter_layout(model), weights, seed=4), directions)
    assert not np.allclose(random_directions(parameter_layout(model), weights, seed=5), directions)


def test_random_directions_are_gaussian_within_a_filter():
    layer = nn.Linear(2000, 1, bias=False)
    direction = random_directions(parameter_layout(layer), np.ones(2000))[0]
    assert direction.mean() == pytest.approx(0, abs=0.08)
    assert np.mean(np.abs(direction) < 1) == pytest.approx(0.683, abs=0.04)


def test_a_filter_of_zeros_has_a_direction_of_zeros():
    directions = random_directions(parameter_layout(nn.Linear(3, 2, bias=False)), np.array([0.0, 0, 0, 1, 1, 1]))
    assert not directions[:, :3].any()
    assert np.isfinite(directions).all()


@pytest.mark.parametrize("plane", SINGLE)
def test_every_grid_point_is_the_loss_at_its_weights(cnn_run, plane):
    land = lv.landscape(cnn_run, plane=plane, k=2, resolution=(5, 3), seed=2, progress=False)
    assert land.loss.shape == (3, 5)
    origin, axes = land.projection.origin, land.projection.components
    if plane != "global":
        np.testing.assert_array_equal(origin, cnn_run.weights[-1])
    if plane == "random":
        np.testing.assert_array_equal(axes, random_directions(cnn_run.objective.layout, origin, seed=2))
        assert land.x[0] <= -1 < 1 <= land.x[-1]
    for row, column in itertools.product(range(3), range(5)):
        weights = origin + land.x[column] * axes[0] + land.y[row] * axes[1]
        model = cnn_run.model.eval()  # the running statistics are those of the last step
        expected = reference.loss_at(model, cnn_run.objective.loss_fn, weights)
        assert land.loss[row, column] == pytest.approx(expected, rel=1e-10)
    cnn_run.model.train()


@pytest.mark.parametrize("plane", ["random", "hessian"])
def test_the_path_is_the_closest_point_of_the_plane(cnn_run, plane):
    land = lv.landscape(cnn_run, plane=plane, k=2, resolution=3, progress=False)
    axes = land.projection.components
    for t, weights in enumerate(cnn_run.weights):
        nearest, *_ = np.linalg.lstsq(axes.T, weights - land.projection.origin, rcond=None)
        np.testing.assert_allclose(land.path[t], nearest, atol=1e-10)
        away = np.linalg.norm(weights - land.projection.origin - axes.T @ nearest)
        assert land.off_plane[t] == pytest.approx(away, abs=1e-10)
    np.testing.assert_allclose(land.path[-1], 0, atol=1e-12)
    assert land.path_height[-1] == pytest.approx(cnn_run.loss[-1], rel=1e-10)


@pytest.mark.parametrize(("plane", "ends"), [("hessian", [-1, -2]), ("saddle", [-1, 0])])
@pytest.mark.parametrize("steps", [0, 60])
def test_eigenvalues_are_those_of_the_dense_hessian(plane, ends, steps):
    """For the default network in float32, at the start and on the plateau."""
    run = lv.train("x^3", steps=60, progress=False)
    at = run.weights[steps].astype(np.float64)
    dense = reference.dense_hessian(run.model, run.objective.loss_fn, at)
    values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    found, axes = hessian_directions(run.objective, at, plane=plane)
    np.testing.assert_allclose(found, values[ends], rtol=1e-4, atol=1e-4 * values[-1])
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-6)
    for axis, value, end in zip(axes, values[ends], ends, strict=True):
        assert axis[np.abs(axis).argmax()] > 0
        np.testing.assert_allclose(dense @ axis, value * axis, atol=2e-3 * values[-1])
        gap = np.abs(np.delete(values, end) - value).min()
        if gap > 0.01 * values[-1]:  # else any mixture of the two eigenvectors is valid
            assert abs(axis @ vectors[:, end]) > 0.999


def test_curvature_of_the_surface_is_the_eigenvalue():
    """Around a critical point the surface is L + (λ₁ x² + λ₂ y²) / 2."""
    a = np.diag([5.0, 3.0, 1.0, -2.0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 1, bias=False).double()
    matrix = torch.tensor(a)
    objective = Objective(model, lambda m: 0.5 * (m.weight @ matrix @ m.weight.T).sum() + 7)
    walk = np.outer(np.linspace(1, 0, 9), [1.0, 1.0, 1.0, 0.5])
    run = lv.Run(walk, objective(walk), np.arange(9), objective)
    for plane, values in (("hessian", (5, 3)), ("saddle", (5, -2))):
        land = lv.landscape(run, plane=plane, k=1, resolution=(5, 3), progress=False)
        x, y = np.meshgrid(land.x, land.y)
        np.testing.assert_allclose(land.loss, 7 + 0.5 * (values[0] * x**2 + values[1] * y**2), rtol=1e-6)
        assert land.projection.axes[1] == f"eigenvector, λ = {values[1]}"


def test_two_weights_are_too_few_for_lanczos():
    model = nn.Linear(1, 1).double()
    objective = Objective(model, lambda m: 3 * m.weight.square().sum() + m.bias.square().sum())
    values, axes = hessian_directions(objective, np.array([0.3, 0.2]))
    np.testing.assert_allclose(values, [6, 2])
    np.testing.assert_allclose(axes, np.eye(2))


def test_infinite_curvature_is_refused():
    model = nn.Linear(3, 1)
    objective = Objective(model, lambda m: m.weight.pow(4).sum() + m.bias.sum())
    with pytest.raises(ValueError, match="eigenvectors of `plane`='hessian' could not be found"):
        hessian_directions(objective, np.full(4, 1e30))


def test_models_without_such_a_plane_are_refused():
    vector = nn.Linear(1, 1, bias=False)
    objective = Objective(vector, lambda m: m.weight.square().sum())
    with pytest.raises(ValueError, match="`plane`='hessian' needs at least 2 weights, the model has 1"):
        hessian_directions(objective, np.ones(1))
    with pytest.raises(ValueError, match="`plane`='random' needs a weight matrix or filter"):
        random_directions(parameter_layout(nn.BatchNorm1d(3)), np.ones(6))
    line = np.outer(np.ones(2), np.arange(3.0))
    with pytest.raises(ValueError, match=re.escape("The two directions must span a plane")):
        project_onto(line, line[0], line, axes=("a", "b"))


def test_products_are_counted_and_can_be_stopped():
    run = lv.train("x^2", steps=20, progress=False)

    class Stop(Exception):
        pass

    class Bar(tqdm):
        def update(self, n=1):
            self.n += n
            if self.n > 3:
                raise Stop

    bar = Bar(total=0, disable=True)
    with pytest.raises(Stop):
        hessian_directions(run.objective, run.weights[0].astype(float), bar=bar)
    assert bar.total == 4
