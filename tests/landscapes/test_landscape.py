"""Landscapes against closed forms, their grid and fields, parts of a run, and their limiting cases."""

import copy
import itertools
import re

import numpy as np
import pytest
import reference
import torch
from torch import nn

import loss_viz as lv
from loss_viz.objective.objective import Objective
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


class TwoParameters(nn.Module):
    """f(x) = a (silu(w x) + silu(-w x)), an even function of x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.a = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x):
        return self.a * (nn.functional.silu(self.w * x) + nn.functional.silu(-self.w * x))


@pytest.fixture(scope="module")
def two_parameters():
    model, x = TwoParameters(), torch.linspace(-1, 1, 100, dtype=torch.float64)

    def loss_fn(m):
        return (m(x) - x**2).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
        for _ in range(400):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    return recorder.run(progress=False)


@pytest.mark.parametrize("plane", ["parallel", "local", "flat"])
@pytest.mark.parametrize("sigma", ["auto", 0.06])
@pytest.mark.parametrize("zoom", [1.0, 0.1, 1e-3])
def test_a_network_of_two_weights_is_drawn_as_it_is(two_parameters, plane, sigma, zoom):
    """Every plane is the whole weight space, so the surface is the loss itself, however closely it is looked at."""
    run = two_parameters
    mean, axes, _ = reference.principal_plane(np.array(run.weights))
    middle, extent = (run.weights[60] - mean) @ axes.T, 2 * np.ptp((run.weights - mean) @ axes.T, axis=0) * zoom
    bounds = tuple((m - 0.5 * e, m + 0.6 * e) for m, e in zip(middle.tolist(), extent.tolist(), strict=True))
    land = lv.landscape(run, plane=plane, k=5, sigma=sigma, resolution=(9, 7), bounds=bounds, progress=False)
    if plane == "local":
        assert all(len(reference.local_basis(run.weights, int(t), 5)) == 2 for t in land.anchors)
    assert np.allclose([land.x[0], land.x[-1], land.y[0], land.y[-1]], np.ravel(bounds))
    x = np.linspace(-1, 1, 100)
    for row, column in itertools.product(range(7), range(9)):
        w, a = mean + np.array([land.x[column], land.y[row]]) @ axes
        even = w * x / (1 + np.exp(-w * x)) - w * x / (1 + np.exp(w * x))
        assert land.loss[row, column] == pytest.approx(np.mean((a * even - x**2) ** 2), rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("plane", "center"), [("parallel", "last"), ("flat", "mean"), ("flat", "last"), ("flat", 20)])
@pytest.mark.parametrize("blend", ["planes", "losses"])
def test_a_coordinate_of_the_picture_as_the_loss_gives_back_the_axis(curve, axis, plane, center, blend):
    projection = fit_projection(curve)
    direction, mean = torch.tensor(projection.components[axis]), torch.tensor(projection.origin)
    probe = run_along(curve, lambda w: direction @ (w - mean) + 10)
    land = lv.landscape(probe, resolution=(5, 3), plane=plane, center=center, blend=blend, progress=False)
    np.testing.assert_allclose(land.loss, np.meshgrid(land.x, land.y)[axis] + 10, rtol=1e-12)


def test_quadratic_bowl_in_closed_form(curve):
    """For L = w'Aw/2 the surface of a flat plane is the quadratic in its coordinates, to rounding."""
    a = np.random.default_rng(4).normal(size=(6, 6))
    a = a @ a.T
    bowl = run_along(curve, lambda w: 0.5 * w @ torch.tensor(a) @ w)
    projection = fit_projection(curve)
    for center, origin, position in (
        ("mean", projection.origin, np.zeros(2)),
        ("last", curve[-1], projection.path[-1]),
        (30, curve[30], projection.path[30]),
    ):
        land = lv.landscape(bowl, plane="flat", center=center, resolution=(5, 3), progress=False)
        for row, column in itertools.product(range(3), range(5)):
            w = origin + (np.array([land.x[column], land.y[row]]) - position) @ projection.components
            assert land.loss[row, column] == pytest.approx(0.5 * w @ a @ w, rel=1e-12)


def test_a_constant_loss_gives_a_constant_surface(curve):
    run = run_along(curve, lambda w: 0 * w.sum() + 0.3)
    for blend in ("planes", "losses"):
        land = lv.landscape(run, resolution=(6, 4), blend=blend, progress=False)
        np.testing.assert_allclose(land.loss, 0.3, rtol=1e-12)


def test_grid_spans_the_path_and_thirty_percent_a_side(run):
    land = lv.landscape(run, resolution=(7, 4), progress=False)
    low, high = land.path.min(axis=0), land.path.max(axis=0)
    diagonal = np.linalg.norm(high - low)
    for axis, i, n in ((land.x, 0, 7), (land.y, 1, 4)):
        span = max(high[i] - low[i], 0.1 * diagonal)
        centre = (low[i] + high[i]) / 2
        np.testing.assert_allclose(axis, np.linspace(centre - 0.8 * span, centre + 0.8 * span, n))


@pytest.mark.parametrize(
    "settings", [{"k": 3}, {"plane": "parallel", "sigma": 0.05}, {"plane": "flat", "blend": "losses"}]
)
def test_bounds_cut_out_a_part_of_the_same_surface(run, settings):
    whole = lv.landscape(run, resolution=(6, 5), progress=False, **settings)
    bounds = ((whole.path[40, 0], whole.path[40, 0] + 0.3), (-0.2, 0.05))
    part = lv.landscape(run, resolution=(5, 3), bounds=bounds, progress=False, **settings)
    np.testing.assert_allclose(part.x, np.linspace(*bounds[0], 5))
    np.testing.assert_allclose(part.y, np.linspace(*bounds[1], 3))
    grid = np.stack(np.meshgrid(part.x, part.y), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(part.loss.ravel(), whole.at(grid), rtol=1e-12)
    np.testing.assert_allclose(part.path_height, whole.path_height, rtol=1e-12)
    distance = np.linalg.norm(grid[:, None] - part.path, axis=-1).min(axis=1)
    expected = np.exp(-(distance**2) / (2 * (0.03 * part.projection.diagonal) ** 2))
    np.testing.assert_allclose(part.support.ravel(), expected, rtol=1e-9)


def test_steps_draw_a_part_of_the_run_on_a_plane_of_its_own(run):
    sparse = lv.Run(run.weights[::2], run.loss[::2], run.step[::2], run.objective)
    land = lv.landscape(sparse, steps=(11, 50), resolution=(5, 3), progress=False)
    rows = slice(6, 26)
    part = lv.Run(sparse.weights[rows], sparse.loss[rows], sparse.step[rows], run.objective)
    assert part.step[[0, -1]].tolist() == [12, 50]
    alone = lv.landscape(part, resolution=(5, 3), progress=False)
    for name in ("x", "y", "loss", "support", "path", "path_loss", "path_height", "off_plane", "anchors"):
        np.testing.assert_array_equal(getattr(land, name), getattr(alone, name))
    assert (land.plane, land.k, land.choice) == (alone.plane, alone.k, alone.choice)
    other = lv.train("x^3", steps=30, seed=3, dtype=torch.float64, progress=False)
    both = lv.landscape([run, other], steps=(10, 60), k=3, resolution=3, progress=False)
    assert [len(one) for one in both.runs] == [51, 21]


def test_the_fields_of_a_landscape(run):
    land = lv.landscape(run, k=4, sigma=0.06, resolution=(6, 5), n_anchors=11, progress=False)
    diagonal = np.linalg.norm(np.ptp(land.path, axis=0))
    np.testing.assert_allclose(land.sigma_absolute, 0.06 * diagonal)
    assert (land.k, land.sigma, land.plane, land.requested) == (4, 0.06, "local", (6, 5))
    assert (land.given.plane, land.given.k, land.given.resolution) == ("auto", 4, (6, 5))
    assert np.array_equal(land.path_loss, run.loss)
    np.testing.assert_allclose(land.at(land.path[[5, 9]]), land.path_height[[5, 9]], rtol=1e-12)
    grid = np.stack(np.meshgrid(land.x, land.y), axis=-1)
    np.testing.assert_allclose(land.at(grid.reshape(-1, 2)).reshape(5, 6), land.loss, rtol=1e-12)
    distance = np.linalg.norm(grid[:, :, None] - land.path, axis=-1).min(axis=-1)
    np.testing.assert_allclose(land.support, np.exp(-(distance**2) / (2 * (0.03 * diagonal) ** 2)), rtol=1e-9)
    mean, components, ratio = reference.principal_plane(run.weights)
    np.testing.assert_allclose(land.explained_variance_ratio, ratio, atol=1e-9)
    inside = mean + land.path @ components
    np.testing.assert_allclose(land.off_plane, np.linalg.norm(run.weights - inside, axis=1), atol=1e-9)
    for array in (land.loss, run.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


def test_the_plane_does_not_depend_on_k_sigma_or_grid(run):
    views = (
        {"k": 2, "resolution": 4},
        {"k": 9, "sigma": 0.1, "resolution": (3, 6), "bounds": ((0.0, 1.0), (0.0, 1.0))},
    )
    one, other = (lv.landscape(run, progress=False, **view) for view in views)
    assert np.array_equal(one.path, other.path)


def test_losses_that_overflow_are_shown_as_they_are(curve):
    """inf far from the path stays inf, and does not spread to the path."""
    run = run_along(curve, lambda w: torch.exp(torch.exp(3 * (w - w.detach().clamp(-1.7, 1.7)).abs().sum() * 5)))
    for blend in ("planes", "losses"):
        land = lv.landscape(run, resolution=(9, 7), blend=blend, progress=False)
        assert np.isinf(land.loss).any()
        assert not np.isnan(land.loss).any()
        assert np.isfinite(land.path_height).all()


def test_degenerate_runs_have_landscapes():
    standing = run_along(np.full((5, 3), 0.7), lambda w: w.square().sum())
    for plane in ("local", "auto", "flat"):
        np.testing.assert_allclose(
            lv.landscape(standing, plane=plane, resolution=3, progress=False).loss[1, 1], 3 * 0.49
        )

    one_weight = run_along(np.linspace(2, 1, 11)[:, None], lambda w: w.square().sum())
    land = lv.landscape(one_weight, k=2, resolution=(9, 3), progress=False)
    assert lv.fidelity(land).max < 1.01
    assert land.loss[0] == pytest.approx(land.loss[2], rel=1e-14)

    straight = run_along(np.outer(np.linspace(1, 0.2, 30), [1.0, -1.0, 2.0]), lambda w: w.square().sum())
    land = lv.landscape(straight, resolution=(9, 3), progress=False)
    assert lv.fidelity(land).max < 1.05
    assert np.ptp(land.y) == pytest.approx(0.16 * np.ptp(land.path[:, 0]))


@pytest.mark.parametrize("k", [1, 30])
def test_k_at_its_bounds(run, k):
    assert np.isfinite(lv.landscape(run, k=k, resolution=(4, 3), progress=False).loss).all()


WRONG = [
    ({"k": 0}, "`k` must be a whole number from 1 to 10000, got 0", "Use 'auto', or 5"),
    ({"k": 31}, "`k`=31 needs at least 2k + 1 = 63 recorded steps, the run has 61", "at most 30"),
    ({"k": "long"}, "`k` must be 'auto' or a whole number", "Use 'auto'"),
    ({"sigma": 0.0}, "`sigma` must be 'auto' or a fraction", "0.06"),
    ({"sigma": -0.1}, "got -0.1", "0.06"),
    ({"sigma": float("nan")}, "got nan", "0.06"),
    ({"sigma": "wide"}, "got 'wide'", "0.06"),
    ({"resolution": 1}, "`resolution` must be a whole number of at least 2", "Use 61"),
    ({"resolution": (5, 1)}, "got (5, 1)", "Use 61"),
    ({"resolution": (5000, 5000)}, "of at most 16,777,216 points", "Use 61"),
    ({"plane": "global"}, "`plane` must be one of auto, local, parallel, flat; got 'global'", "default"),
    ({"plane": "valley"}, "got 'valley'", "default"),
    ({"blend": "both"}, "`blend` must be one of planes, losses; got 'both'", "default"),
    ({"axes": "pc"}, "`axes` must be one of pca, random, hessian, saddle; got 'pc'", "(u, v)"),
    ({"axes": ("PC1", "PC3")}, "got 'PC3'", "0.weight"),
    ({"axes": ("PC1", "PC1")}, "two independent directions", "Choose others"),
    ({"axes": (np.full(25, np.nan), "PC1")}, "must be finite", "run.weights"),
    ({"center": "middle"}, "`center` must be 'last', 'mean' or a training step", "Use 'last'"),
    ({"center": 61}, "`center` must be within the run, from 0 to 60; got 61", ""),
    ({"steps": (50, 10)}, "`steps` must be (first, last)", "Use None"),
    ({"steps": (61, 90)}, "the run has steps 0 to 60", "Use None"),
    ({"steps": (-1, 10)}, "`steps` must be a whole number", "Use None"),
    ({"steps": (7, 7)}, "`axes`='pca' needs at least 2 recorded steps, the run has 1", "'random'"),
    ({"bounds": ((0.0, 1.0), (1.0, 1.0))}, "with x0 < x1 and y0 < y1", "Use None"),
    ({"bounds": ((0.0, 1.0), (0.0, np.inf))}, "`bounds` must be ((x0, x1), (y0, y1))", "Use None"),
    ({"n_anchors": 1}, "`n_anchors` must be a whole number from 2 to 1048576, got 1", "Use 200"),
    ({"seed": -1}, "`seed` must be a whole number", "Use 0"),
    ({"budget": 0}, "`budget` must be a whole number of at least 1", "Leave it out"),
    ({"budget": 10}, "`budget` must be at least", "coarsest picture"),
]


@pytest.mark.parametrize(("given", "cause", "repair"), WRONG, ids=[str(given)[:40] for given, *_ in WRONG])
def test_bad_input_is_refused_with_cause_and_repair_before_any_loss(run, monkeypatch, given, cause, repair):
    counts, evaluate = [], run.objective._evaluate
    monkeypatch.setattr(run.objective, "_evaluate", lambda w, b: counts.append(len(w)) or evaluate(w, b))
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        lv.landscape(run, progress=False, **given)
    assert repair in str(error.value)
    assert error.value.argument == ("axes" if given == {"steps": (7, 7)} else next(iter(given)))
    assert not counts


def test_points_of_another_shape_are_refused(run):
    land = lv.landscape(run, resolution=2, progress=False)
    with pytest.raises(ValueError, match=re.escape("must have shape (n, 2), got (2,). For one point pass point[None]")):
        land.at(np.zeros(2))
    for bad, cause in ((np.nan, "must be finite"), (1e200, "must lie within 1e")):
        with pytest.raises(ValueError, match=cause):
            land.at(np.array([[0.0, bad]]))
        with pytest.raises(ValueError, match=cause):
            land.network_at(np.array([0.0, bad]))
    assert land.at(np.empty((0, 2))).shape == (0,)


def test_a_run_must_be_consistent(run):
    with pytest.raises(ValueError, match="one loss and one step for each row"):
        Run(run.weights, run.loss[:-1], run.step, run.objective)
    with pytest.raises(ValueError, match="finite weights and losses"):
        Run(run.weights, np.append(run.loss[:-1], np.inf), run.step, run.objective)


def test_public_calls_leave_model_and_random_state_alone(run):
    before = copy.deepcopy(run.model.state_dict())
    rng = torch.get_rng_state()
    land = lv.landscape(run, resolution=4, metrics={"size": lambda m: m[0].weight.abs().max()}, progress=False)
    land.at(np.zeros((2, 2)))
    network = land.network_at(np.zeros(2))
    with torch.no_grad():
        network[0].weight.add_(1.0)
    with pytest.raises(ValueError, match="sigma"):
        lv.landscape(run, sigma=-1.0, progress=False)
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
