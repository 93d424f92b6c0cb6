"""Landscapes against the reference implementation and closed forms, and their limiting cases."""

import copy
import itertools
import re

import numpy as np
import pytest
import reference
import torch
from torch import nn
from tqdm.auto import tqdm

import loss_viz as lv
from loss_viz.landscapes.blending import PlaneLosses
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.objective.objective import Objective
from loss_viz.planes.local_planes import choose_anchors, local_planes
from loss_viz.planes.plane_set import parallel_planes
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run import Run


class Vector(nn.Module):
    """A model that consists of its weights, so that any function of them can be a loss."""

    def __init__(self, n_params):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n_params, dtype=torch.float64))


def run_along(weights, loss):
    """Return a run through `weights` whose loss is any function of the vector."""
    objective = Objective(Vector(weights.shape[1]), lambda model: loss(model.w))
    return Run(weights.copy(), objective(weights), np.arange(len(weights)), objective)


@pytest.fixture(scope="module")
def curve():
    """A smooth curve in six dimensions that does not lie in a plane."""
    t = np.linspace(0, 3, 50)[:, None]
    return np.cos(t * np.arange(1, 7) * 0.4) + 0.1 * t


def heights_at(run, points, **settings):
    return lv.landscape(run, resolution=2, progress=False, **settings).at(points)


@pytest.mark.parametrize("sigma", ["auto", 0.003, 0.06, 0.5])
@pytest.mark.parametrize("plane", ["local", "parallel"])
@pytest.mark.parametrize("n_anchors", [9, None])
def test_every_cell_is_within_one_percent_of_the_full_sum(run, sigma, plane, n_anchors):
    land = lv.landscape(run, k=3, sigma=sigma, resolution=(5, 3), plane=plane, n_anchors=n_anchors, progress=False)
    assert land.loss.shape == (3, 5)
    anchors = choose_anchors(run.weights, n_anchors)
    assert np.array_equal(land.anchors, anchors)
    shaped = land.kernel.shape is not None
    for row, column in itertools.product(range(3), range(5)):
        point = np.array([land.x[column], land.y[row]])
        expected = reference.blended_height(run, point, anchors.tolist(), k=3, sigma=sigma, plane=plane, shaped=shaped)
        assert land.loss[row, column] == pytest.approx(expected, rel=0.01)
    for t in (0, 17, 60):
        expected = reference.blended_height(
            run, land.path[t], anchors.tolist(), k=3, sigma=sigma, plane=plane, shaped=shaped
        )
        assert land.path_height[t] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("sigma", ["auto", 0.02, 0.06])
def test_skipped_terms_stay_within_one_percent_where_losses_span_decades(sigma):
    """The whole picture of sin(3x), whose losses span five decades, against the sum over every anchor."""
    run = lv.train("sin(3x)", dtype=torch.float64, progress=False)
    land = lv.landscape(run, sigma=sigma, resolution=(23, 17), progress=False)
    grid = np.stack(np.meshgrid(land.x, land.y), axis=-1).reshape(-1, 2)
    full = reference.full_sum(run.objective, land.planes, land.kernel, grid)
    np.testing.assert_allclose(land.loss.ravel(), full, rtol=0.01)
    assert land.n_evaluations < 0.5 * len(land.planes) * (len(grid) + len(run))


def test_a_threshold_on_the_weights_alone_would_not_do(post_landscapes):
    """Without a bound on the losses the same cells are wrong by more than one percent."""
    land = post_landscapes["sin(3x)"]
    grid = np.stack(np.meshgrid(land.x[::4], land.y[::4]), axis=-1).reshape(-1, 2)
    full, cut = (
        reference.full_sum(land.run.objective, land.planes, land.kernel, grid, least=least) for least in (0.0, 1e-3)
    )
    weights = land.kernel.weights(grid)
    cut /= (weights * (weights > 1e-3)).sum(axis=1)
    assert np.abs(cut / full - 1).max() > 0.02
    np.testing.assert_allclose(land.at(grid), full, rtol=0.01)


@pytest.mark.parametrize("axis", [0, 1])
def test_coordinate_probe_gives_back_the_axis(curve, axis):
    """If the loss is a coordinate of the picture, each grid point has the value of its axis."""
    projection = fit_projection(curve)
    direction = torch.tensor(projection.components[axis])
    mean = torch.tensor(projection.origin)
    probe = run_along(curve, lambda w: direction @ (w - mean) + 10)
    for plane in ("parallel", "global", "final"):
        land = lv.landscape(probe, resolution=(5, 3), plane=plane, progress=False)
        wanted = np.meshgrid(land.x, land.y)[axis] + 10
        tolerance = 0.005 if plane == "parallel" else 1e-12
        np.testing.assert_allclose(land.loss, wanted, rtol=tolerance)


def test_one_local_plane_sees_the_coordinates_that_lie_in_it(curve):
    """With one anchor and the loss linear along an axis of its plane, the surface is exact."""
    projection = fit_projection(curve)
    planes = local_planes(curve, projection, np.array([20]), k=4)
    axis = planes.bases[0][1][1]
    objective = Objective(Vector(6), lambda m: torch.tensor(axis) @ m.w)
    points = np.random.default_rng(0).normal(size=(8, 2))
    kernel = fit_kernel(planes.position, "auto", diagonal=projection.diagonal)
    heights, _ = PlaneLosses(points, planes, objective).blend(kernel, tqdm(disable=True))
    expected = axis @ curve[20] + (points - projection.path[20]) @ projection.components @ axis
    np.testing.assert_allclose(heights, expected, rtol=1e-12)


def test_quadratic_bowl_in_closed_form(curve):
    """For L = w'Aw/2 the surface of a single plane is the quadratic in its coordinates, to rounding."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=(6, 6))
    a = a @ a.T
    bowl = run_along(curve, lambda w: 0.5 * w @ torch.tensor(a) @ w)
    projection = fit_projection(curve)
    for plane, origin, position in (
        ("global", projection.origin, np.zeros(2)),
        ("final", curve[-1], projection.path[-1]),
    ):
        land = lv.landscape(bowl, resolution=(5, 3), plane=plane, progress=False)
        for row, column in itertools.product(range(3), range(5)):
            w = origin + (np.array([land.x[column], land.y[row]]) - position) @ projection.components
            assert land.loss[row, column] == pytest.approx(0.5 * w @ a @ w, rel=1e-12)


def test_one_anchor_gives_its_own_loss(run):
    """A surface blended from one anchor has the true loss at that anchor."""
    projection = fit_projection(run.weights)
    for t in (0, 3, 31, 60):
        for planes in (
            local_planes(run.weights, projection, np.array([t]), k=3),
            parallel_planes(run.weights, projection, np.array([t])),
        ):
            kernel = fit_kernel(planes.position, 0.06, diagonal=projection.diagonal)
            height, _ = PlaneLosses(projection.path[[t]], planes, run.objective).blend(kernel, tqdm(disable=True))
            assert height[0] == pytest.approx(run.loss[t], rel=1e-12)


def test_a_constant_loss_gives_a_constant_surface(curve):
    run = run_along(curve, lambda w: 0 * w.sum() + 0.3)
    land = lv.landscape(run, resolution=(6, 4), progress=False)
    np.testing.assert_allclose(land.loss, 0.3, rtol=1e-12)


@pytest.mark.parametrize("sigma", [1e-6, 1e3])
def test_tiny_and_huge_sigma_are_the_nearest_anchor_and_the_mean(run, sigma):
    projection = fit_projection(run.weights)
    planes = local_planes(run.weights, projection, np.arange(61), k=3)
    points = np.random.default_rng(5).normal(size=(7, 2)) * 0.3
    heights = heights_at(run, points, k=3, sigma=sigma, n_anchors=None)
    for point, height in zip(points, heights, strict=True):
        losses = run.objective(planes.lift(np.arange(61), np.tile(point, (61, 1))))
        nearest = np.linalg.norm(projection.path - point, axis=1).argmin()
        assert height == pytest.approx(losses[nearest] if sigma < 1 else losses.mean(), rel=0.01)


def test_kernels_are_normalized_gaussians_of_the_stated_widths():
    centers = np.array([[0.0, 0.0], [0.1, 0.0], [0.1, 0.05], [0.1, 0.05], [1.0, 1.0]])
    kernel = fit_kernel(centers, "auto", diagonal=2.0)
    np.testing.assert_allclose(kernel.width, [0.006, 0.006, 2e-5, 2e-5, 0.006])
    points = np.array([[0.3, 0.2], [0.1, 0.05], [50.0, -3.0]])
    for point, weights in zip(points, kernel.weights(points), strict=True):
        distance = np.linalg.norm(centers - point, axis=1)
        width = np.sqrt(kernel.width**2 + (0.14 * distance.min()) ** 2)
        logs = -2 * np.log(width) - distance**2 / (2 * width**2)
        raw = np.exp(logs - logs.max())
        np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-9, atol=1e-300)
    assert np.isfinite(fit_kernel(centers, 1e-6, diagonal=2.0).weights(points)).all()


@pytest.mark.parametrize("chunk_size", [1, 13])
def test_chunks_and_blocks_do_not_change_the_numbers(run, monkeypatch, chunk_size):
    expected = lv.landscape(run, resolution=(5, 4), progress=False)
    whole = copy.copy(run.objective)
    whole.chunk_size = chunk_size
    other = Run(run.weights, run.loss, run.step, whole, run.task)
    monkeypatch.setattr("loss_viz.landscapes.blending.PAIRS_PER_BLOCK", 200)
    monkeypatch.setattr("loss_viz.landscapes.evaluation.LIFT_BYTES", 2000)
    land = lv.landscape(other, resolution=(5, 4), progress=False)
    np.testing.assert_allclose(land.loss, expected.loss, rtol=0.01)
    np.testing.assert_allclose(land.path_height, expected.path_height, rtol=0.01)


def test_grid_spans_the_path_and_thirty_percent_a_side(run):
    land = lv.landscape(run, resolution=(7, 4), progress=False)
    low, high = land.path.min(axis=0), land.path.max(axis=0)
    diagonal = np.linalg.norm(high - low)
    for axis, i in ((land.x, 0), (land.y, 1)):
        span = max(high[i] - low[i], 0.1 * diagonal)
        assert axis[-1] - axis[0] == pytest.approx(1.6 * span)
        assert (axis[-1] + axis[0]) / 2 == pytest.approx((low[i] + high[i]) / 2)
    assert len(land.x) == 7
    assert len(land.y) == 4


def test_the_fields_of_a_landscape(run):
    land = lv.landscape(run, k=4, sigma=0.06, resolution=(6, 5), n_anchors=11, progress=False)
    diagonal = np.linalg.norm(np.ptp(land.path, axis=0))
    np.testing.assert_allclose(land.sigma_absolute, 0.06 * diagonal)
    assert (land.k, land.sigma, land.plane) == (4, 0.06, "local")
    assert np.array_equal(land.path_loss, run.loss)
    np.testing.assert_allclose(land.at(land.path[[5, 9]]), land.path_height[[5, 9]], rtol=0.01)
    grid = np.stack(np.meshgrid(land.x, land.y), axis=-1)
    distance = np.linalg.norm(grid[:, :, None] - land.path, axis=-1).min(axis=-1)
    np.testing.assert_allclose(land.support, np.exp(-(distance**2) / (2 * (0.03 * diagonal) ** 2)), rtol=1e-9)
    mean, components, ratio = reference.principal_plane(run.weights)
    np.testing.assert_allclose(land.explained_variance_ratio, ratio, atol=1e-9)
    inside = mean + land.path @ components
    np.testing.assert_allclose(land.off_plane, np.linalg.norm(run.weights - inside, axis=1), atol=1e-9)
    assert land.n_evaluations > 0
    with pytest.raises(ValueError, match="read-only"):
        land.loss[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        run.weights[0, 0] = 0


def test_the_plane_does_not_depend_on_k_sigma_or_grid(run):
    lands = [
        lv.landscape(run, k=k, sigma=sigma, resolution=resolution, progress=False)
        for k, sigma, resolution in ((2, "auto", 4), (9, 0.1, (3, 6)))
    ]
    assert np.array_equal(lands[0].path, lands[1].path)


def test_losses_that_overflow_are_shown_as_they_are(curve):
    """inf far from the path stays inf, and does not spread to the path."""
    run = run_along(curve, lambda w: torch.exp(torch.exp(3 * (w - w.detach().clamp(-1.7, 1.7)).abs().sum() * 5)))
    land = lv.landscape(run, resolution=(9, 7), progress=False)
    assert np.isinf(land.loss).any()
    assert not np.isnan(land.loss).any()
    assert np.isfinite(land.path_height).all()


def test_degenerate_runs_have_landscapes():
    standing = run_along(np.full((5, 3), 0.7), lambda w: w.square().sum())
    np.testing.assert_allclose(lv.landscape(standing, k=1, resolution=3, progress=False).loss, 3 * 0.49)

    one_weight = run_along(np.linspace(2, 1, 11)[:, None], lambda w: w.square().sum())
    land = lv.landscape(one_weight, k=2, resolution=(9, 3), progress=False)
    assert lv.fidelity(land).max < 1.01
    assert np.array_equal(land.loss[0], land.loss[2])

    straight = run_along(np.outer(np.linspace(1, 0.2, 30), [1.0, -1.0, 2.0]), lambda w: w.square().sum())
    land = lv.landscape(straight, resolution=(9, 3), progress=False)
    assert lv.fidelity(land).max < 1.05
    assert np.ptp(land.y) == pytest.approx(0.16 * np.ptp(land.path[:, 0]))


@pytest.mark.parametrize("k", [1, 30])
def test_k_at_its_bounds(run, k):
    assert np.isfinite(lv.landscape(run, k=k, resolution=(4, 3), progress=False).loss).all()


@pytest.mark.parametrize(
    ("arguments", "cause", "repair"),
    [
        ({"k": 0}, "`k` must be a whole number of at least 1, got 0", "Use 5"),
        ({"k": 31}, "`k`=31 needs at least 2k + 1 = 63 recorded steps, the run has 61", "at most 30"),
        ({"sigma": 0.0}, "`sigma` must be 'auto' or a fraction", "0.06"),
        ({"sigma": -0.1}, "got -0.1", "0.06"),
        ({"sigma": float("nan")}, "got nan", "0.06"),
        ({"sigma": "wide"}, "got 'wide'", "0.06"),
        ({"resolution": 1}, "`resolution` must be a whole number of at least 2", "Use 61"),
        ({"resolution": (5, 1)}, "got (5, 1)", "Use 61"),
        ({"plane": "globl"}, "`plane` must be one of local, valley, parallel, global, final, random", "default"),
        ({"n_anchors": 1}, "`n_anchors` must be a whole number from 2 to 1048576, got 1", "Use 200"),
    ],
)
def test_bad_input_is_refused_with_cause_and_repair(run, arguments, cause, repair):
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        lv.landscape(run, progress=False, **arguments)
    assert repair in str(error.value)


def test_points_of_another_shape_are_refused(run):
    land = lv.landscape(run, resolution=2, progress=False)
    with pytest.raises(ValueError, match=re.escape("must have shape (n, 2), got (2,). For one point pass point[None]")):
        land.at(np.zeros(2))
    with pytest.raises(ValueError, match="must be finite"):
        land.at(np.array([[0.0, np.nan]]))


def test_a_run_must_be_consistent(run):
    with pytest.raises(ValueError, match="one loss and one step for each row"):
        Run(run.weights, run.loss[:-1], run.step, run.objective)
    with pytest.raises(ValueError, match="finite weights and losses"):
        Run(run.weights, np.append(run.loss[:-1], np.inf), run.step, run.objective)


def test_public_calls_leave_model_and_random_state_alone(run):
    before = copy.deepcopy(run.model.state_dict())
    rng = torch.get_rng_state()
    land = lv.landscape(run, resolution=4, progress=False)
    land.at(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="sigma"):
        lv.landscape(run, sigma=-1.0, progress=False)
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
