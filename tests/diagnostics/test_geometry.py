"""Speed, turns, gradients and curvature against one step at a time in float64."""

import numpy as np
import pytest
import reference
import torch
from torch import nn

import loss_viz as lv
from loss_viz.diagnostics.plateaus import Plateau


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, k=3, resolution=3, progress=False)


def slope_at(run, weights):
    """The gradient by autograd on the model itself."""
    kept = nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(torch.as_tensor(np.array(weights)), run.model.parameters())
    slopes = torch.autograd.grad(run.objective.loss_fn(run.model), list(run.model.parameters()))
    nn.utils.vector_to_parameters(kept, run.model.parameters())
    return torch.cat([slope.ravel() for slope in slopes]).numpy()


@pytest.mark.parametrize("t", [0, 4, 6, 33, 60])
def test_each_step_against_the_definitions(run, land, t):
    geometry, w = lv.measure_geometry(land), np.array(run.weights)
    if t >= 6:
        velocity, acceleration = w[t] - w[t - 3], w[t] - 2 * w[t - 3] + w[t - 6]
    else:
        velocity, acceleration = w[t + 3] - w[t], w[t + 6] - 2 * w[t + 3] + w[t]
    assert geometry.speed[t] == pytest.approx(np.linalg.norm(velocity) / 3)
    assert geometry.acceleration[t] == pytest.approx(np.linalg.norm(acceleration) / 9)
    slope = slope_at(run, w[t])
    assert geometry.gradient[t] == pytest.approx(np.linalg.norm(slope))
    basis = reference.local_basis(w, t, 3)
    inside = np.linalg.norm([axis @ slope for axis in basis]) / np.linalg.norm(slope)
    assert geometry.in_local[t] == pytest.approx(inside)
    _, components, _ = reference.principal_plane(w)
    assert geometry.in_picture[t] == pytest.approx(np.linalg.norm(components @ slope) / np.linalg.norm(slope))
    if 3 <= t <= 57:
        before, after = w[t] - w[t - 3], w[t + 3] - w[t]
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert geometry.turning[t] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-4)
    else:
        assert np.isnan(geometry.turning[t])


def test_speed_is_for_each_training_step(run):
    every = lv.Run(run.weights[::4], run.loss[::4], run.step[::4], run.objective, run.task)
    sparse = lv.measure_geometry(lv.landscape(every, k=1, resolution=3, progress=False))
    assert sparse.speed[5] == pytest.approx(np.linalg.norm(run.weights[20] - run.weights[16]) / 4)


def test_several_runs_do_not_look_into_each_other(run):
    both = lv.measure_geometry(lv.landscape([run, run], k=3, resolution=3, progress=False))
    alone = lv.measure_geometry(lv.landscape(run, k=3, resolution=3, progress=False))
    for name in ("speed", "turning", "in_local", "gradient"):
        np.testing.assert_allclose(getattr(both, name)[61:], getattr(alone, name), rtol=1e-6)


def test_gradients_batched_and_one_at_a_time(run):
    weights = np.array(run.weights[::9])
    expected = np.stack([slope_at(run, row) for row in weights])
    np.testing.assert_allclose(run.objective.gradients(weights), expected, rtol=1e-9, atol=1e-12)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, slope):
            return 2 * slope

    layer = nn.Linear(2, 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="one at a time"):
        own = lv.Objective(layer, lambda m: Doubled.apply(m(torch.ones(1, 2, dtype=torch.float64))).sum())
    np.testing.assert_allclose(own.gradients(np.zeros((2, 3))), np.full((2, 3), 2.0))


def test_a_loss_that_cannot_be_differentiated_says_so():
    layer = nn.Linear(2, 1)
    with pytest.warns(RuntimeWarning, match="one at a time"):
        objective = lv.Objective(layer, lambda m: torch.tensor(m(torch.ones(1, 2)).item()))
    with pytest.raises(ValueError, match="needs a loss that PyTorch can differentiate"):
        objective.gradients(np.zeros((1, 3)))


def test_sharpness_is_the_ends_of_the_dense_hessian(run):
    sharpness = lv.measure_sharpness(run, [0, 25, 60], progress=False)
    assert sharpness.step.tolist() == [0, 25, 60]
    for i, t in enumerate((0, 25, 60)):
        values = np.linalg.eigvalsh(reference.dense_hessian(run.model, run.objective.loss_fn, run.weights[t]))
        assert sharpness.largest[i] == pytest.approx(values[-1], rel=1e-5)
        assert sharpness.smallest[i] == pytest.approx(values[0], rel=1e-4)
    assert len(lv.measure_sharpness(run, progress=False).step) == 50
    with pytest.raises(ValueError, match="must lie within the run, from 0 to 60"):
        lv.measure_sharpness(run, [61])


def test_the_gradient_grows_on_the_way_off_a_plateau(post_runs):
    run = post_runs["x^3"]
    [plateau] = lv.find_plateaus(run)
    escape = lv.measure_escape(run, plateau, progress=False)
    assert plateau.start <= escape.start < plateau.end
    assert escape.start < escape.end
    assert run.loss[escape.end] < plateau.level
    lengths = np.linalg.norm(run.objective.gradients(run.weights[escape.start : escape.end + 1]), axis=1)
    np.testing.assert_allclose(escape.gradient, lengths, rtol=1e-6)
    assert escape.gradient[0] == lengths.min()
    assert escape.gradient[-1] == lengths.max()
    assert escape.doubling == pytest.approx(np.log(2) / escape.rate)
    assert 0.001 < escape.rate < 0.1
    assert escape.sharpness.smallest.min() < 0 < escape.sharpness.largest.min()


def test_growth_is_that_of_a_saddle_in_closed_form():
    """Gradient descent on (x² - y²) / 2, from near the saddle: y grows by 1 + lr a step."""

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    objective = lv.Objective(Vector(), lambda m: 1 + (m.w[0] ** 2 - m.w[1] ** 2) / 2)
    steps = np.arange(700)
    weights = np.column_stack([0.5 * 0.98**steps, 1e-5 * 1.02**steps])
    weights = weights[np.abs(weights[:, 1]) < 1.2]
    run = lv.Run(weights, objective(weights), np.arange(len(weights)), objective)
    [plateau] = lv.find_plateaus(run)
    escape = lv.measure_escape(run, plateau, progress=False)
    assert escape.rate == pytest.approx(np.log(1.02), rel=0.05)
    np.testing.assert_allclose(escape.sharpness.largest, 1.0)
    np.testing.assert_allclose(escape.sharpness.smallest, -1.0)


def test_a_plateau_that_is_not_left_has_no_escape(post_runs):
    with pytest.raises(ValueError, match="needs a plateau that is left"):
        lv.measure_escape(post_runs["x^3"], Plateau(1200, 1900, 1e-9))
