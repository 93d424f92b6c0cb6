"""Random, Hessian and own axes against direct evaluation, filter by filter and against the dense Hessian."""

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


@pytest.fixture(scope="module")
def single(cnn_run):
    """Return a run of one finished network, whose running statistics are those of the recorded run's end."""
    model = reference.network(cnn_run.model, cnn_run.weights[-1], cnn_run.buffers[-1])
    return lv.Run.from_model(model, cnn_run.objective.loss_fn)


@pytest.mark.parametrize("axes", ["random", "hessian", "saddle"])
@pytest.mark.parametrize("center", ["last", "mean", 4, None])
def test_every_grid_point_is_the_loss_at_its_weights(cnn_run, single, axes, center):
    """On a flat plane through the center; None stands for a run of a single network."""
    run = single if center is None else cnn_run
    settings = {"axes": axes, "center": center or "last", "seed": 2}
    land = lv.landscape(run, resolution=(5, 3), progress=False, **settings)
    assert (land.plane, land.loss.shape) == ("flat", (3, 5))
    rows = np.array(run.weights)
    row = {"last": -1, "mean": -1, 4: 4, None: 0}[center]
    origin = rows.mean(axis=0) if center == "mean" else rows[row]
    found, directions = land.projection.origin, land.projection.components
    np.testing.assert_allclose(found, origin, atol=1e-12)
    if axes == "random":
        np.testing.assert_allclose(directions, random_directions(run.objective.layout, origin, seed=2), rtol=1e-9)
        assert land.x[0] <= -1 < 1 <= land.x[-1]
    buffers = None if run.buffers is None else run.buffers[row]
    names = [entry.name for entry in run.objective.buffer_layout.entries]
    for i, j in itertools.product(range(3), range(5)):
        weights = origin + land.x[j] * directions[0] + land.y[i] * directions[1]
        expected = reference.loss_at(run.model, run.objective.loss_fn, weights, buffers, names)
        assert land.loss[i, j] == pytest.approx(expected, rel=1e-10)
    if center is None:
        assert land.path.tolist() == [[0, 0]]
        assert land.path_height[0] == pytest.approx(run.loss[0], rel=1e-10)
        assert min(np.ptp(land.x), np.ptp(land.y)) == (2 if axes == "random" else 1)


@pytest.mark.parametrize("plane", ["local", "parallel"])
def test_random_axes_can_carry_bent_surfaces(plane):
    """Axes need not be orthonormal: at the steps the surface has their losses."""
    run = lv.train("x^3", steps=40, dtype=torch.float64, progress=False)
    land = lv.landscape(run, axes="random", plane=plane, k=3, sigma=1e-6, n_anchors=None, resolution=3, progress=False)
    np.testing.assert_allclose(land.path_height, run.loss, rtol=1e-6)


@pytest.mark.parametrize("axes", ["random", "hessian"])
def test_the_path_is_the_closest_point_of_the_plane(cnn_run, axes):
    land = lv.landscape(cnn_run, axes=axes, resolution=3, progress=False)
    directions = land.projection.components
    for t, weights in enumerate(cnn_run.weights):
        nearest, *_ = np.linalg.lstsq(directions.T, weights - land.projection.origin, rcond=None)
        np.testing.assert_allclose(land.path[t], nearest, atol=1e-10)
        away = np.linalg.norm(weights - land.projection.origin - directions.T @ nearest)
        assert land.off_plane[t] == pytest.approx(away, abs=1e-10)
    np.testing.assert_allclose(land.path[-1], 0, atol=1e-12)
    assert land.path_height[-1] == pytest.approx(cnn_run.loss[-1], rel=1e-10)


def test_axes_of_your_own_are_made_orthonormal(cnn_run):
    u, v = np.random.default_rng(0).normal(size=(2, cnn_run.objective.n_params))
    land = lv.landscape(cnn_run, axes=[u, 3 * v + 5 * u], plane="flat", resolution=(5, 3), progress=False)
    rest = v - (v @ u) / (u @ u) * u
    expected = [u / np.linalg.norm(u), rest / np.linalg.norm(rest)]
    np.testing.assert_allclose(land.projection.components, expected, atol=1e-12)
    assert land.projection.axes == ("axis 1", "axis 2")
    for i, j in itertools.product(range(3), range(5)):
        weights = cnn_run.weights[-1] + land.x[j] * expected[0] + land.y[i] * expected[1]
        loss = reference.loss_at(cnn_run.model, cnn_run.objective.loss_fn, weights, cnn_run.buffers[-1])
        assert land.loss[i, j] == pytest.approx(loss, rel=1e-10)


def test_axes_by_name(cnn_run):
    rows = np.array(cnn_run.weights)
    _, components, _ = reference.principal_plane(rows)
    model = reference.network(cnn_run.model, rows[-1], cnn_run.buffers[-1])
    _, vectors = np.linalg.eigh(reference.dense_hessian(model, cnn_run.objective.loss_fn, rows[-1]))
    wanted = {"PC1": components[0], "PC2": components[1], "sharpest": vectors[:, -1]}
    names = [name for name, parameter in model.named_parameters() for _ in range(parameter.numel())]
    for part in ("0", "4.weight"):
        columns = [i for i, name in enumerate(names) if name == part or name.startswith(part + ".")]
        wanted[part] = np.zeros(len(names))
        wanted[part][columns] = reference.principal_plane(rows[:, columns])[1][0]
    for pair in (("PC1", "sharpest"), ("PC2", "PC1"), ("0", "4.weight"), ("4.weight", "sharpest")):
        land = lv.landscape(cnn_run, axes=pair, plane="flat", resolution=3, progress=False)
        assert land.projection.axes == pair
        first, second = land.projection.components
        assert abs(first @ wanted[pair[0]]) == pytest.approx(1, abs=1e-6)
        rest = wanted[pair[1]] - (wanted[pair[1]] @ first) * first
        assert abs(second @ rest) == pytest.approx(np.linalg.norm(rest), rel=1e-6)
        assert abs(first @ second) < 1e-12


@pytest.mark.parametrize("axes", ["own", "pca"])
@pytest.mark.parametrize("center", [0, 10, 20, "last", "mean"])
def test_a_flat_plane_passes_through_three_checkpoints(run, axes, center):
    rows = [0, 30, 60]
    three = lv.Run(run.weights[rows], run.loss[rows], np.array([0, 10, 20]), run.objective)
    own = three.weights[1] - three.weights[0], three.weights[2] - three.weights[0]
    if axes == "own" and center == "mean":
        center = "last"
    given = own if axes == "own" else "pca"
    land = lv.landscape(three, axes=given, plane="flat", center=center, resolution=3, progress=False)
    np.testing.assert_allclose(land.path_height, three.loss, rtol=1e-9)
    np.testing.assert_allclose(land.at(land.path), three.loss, rtol=1e-9)
    np.testing.assert_allclose(land.off_plane, 0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_dependent_axes_are_refused(run, scale):
    u = np.arange(25.0)
    almost = u + 1e-9 * np.eye(25)[3]
    for pair in ((u, scale * u), (u, 0 * u), (0 * u, u), ("PC1", "PC1"), (u, -scale * almost)):
        with pytest.raises(ValueError, match="two independent directions") as error:
            lv.landscape(run, axes=pair, resolution=3, progress=False)
        assert error.value.argument == "axes"
    steep = (scale * u, scale * (u + np.eye(25)[3]))
    assert np.isfinite(lv.landscape(run, axes=steep, plane="flat", resolution=3, progress=False).loss).all()


def test_a_run_of_one_network_has_no_principal_axes(single):
    with pytest.raises(ValueError, match="needs at least 2 recorded steps, the run has 1") as error:
        lv.landscape(single, progress=False)
    assert error.value.argument == "axes"
    assert len(single) == 1
    u, v = np.random.default_rng(0).normal(size=(2, single.objective.n_params))
    land = lv.landscape(single, axes=(u, v), resolution=(5, 3), progress=False)
    assert land.loss[1, 2] == pytest.approx(single.loss[0], rel=1e-10)


@pytest.mark.parametrize(("axes", "ends"), [("hessian", [-1, -2]), ("saddle", [-1, 0])])
@pytest.mark.parametrize("steps", [0, 60])
def test_eigenvalues_are_those_of_the_dense_hessian(axes, ends, steps):
    """For the default network in float32, at the start and on the plateau."""
    run = lv.train("x^3", steps=60, progress=False)
    at = run.weights[steps].astype(np.float64)
    dense = reference.dense_hessian(run.model, run.objective.loss_fn, at)
    values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    found, directions = hessian_directions(run.objective, at, axes=axes)
    np.testing.assert_allclose(found, values[ends], rtol=1e-4, atol=1e-4 * values[-1])
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-6)
    for axis, value, end in zip(directions, values[ends], ends, strict=True):
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
    for axes, values in (("hessian", (5, 3)), ("saddle", (5, -2))):
        land = lv.landscape(run, axes=axes, resolution=(5, 3), progress=False)
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
    with pytest.raises(ValueError, match="eigenvectors of the Hessian could not be found"):
        hessian_directions(objective, np.full(4, 1e30))


def test_models_without_such_a_plane_are_refused():
    vector = nn.Linear(1, 1, bias=False)
    objective = Objective(vector, lambda m: m.weight.square().sum())
    with pytest.raises(ValueError, match="Eigenvectors need at least 2 weights, the model has 1"):
        hessian_directions(objective, np.ones(1))
    with pytest.raises(ValueError, match="`axes`='random' needs a weight matrix or filter"):
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
