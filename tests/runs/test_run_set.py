"""Several runs: joint PCA, local planes of each run, and figures of all of them."""

import copy
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import reference
import torch
from torch import nn

import loss_viz as lv
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.planes.local_planes import choose_anchors, local_planes
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run_set import as_run_set, stack_runs


@pytest.fixture(scope="module")
def runs():
    return lv.compare("x^3", steps=40, dtype=torch.float64, progress=False)


@pytest.fixture(scope="module")
def land(runs):
    return lv.landscape(runs, k=3, resolution=(7, 5), progress=False)


def test_comparison_starts_from_the_same_weights(runs):
    assert [run.name for run in runs] == ["Adam", "SGD + momentum", "RMSprop"]
    for run in runs[1:]:
        assert np.array_equal(run.weights[0], runs[0].weights[0])
        assert not np.allclose(run.weights[-1], runs[0].weights[-1])


def test_comparison_takes_names_classes_and_functions():
    optimizers = {"fast": lambda p: torch.optim.SGD(p, lr=0.3), "slow": torch.optim.NAdam}
    runs = lv.compare("x", optimizers, steps=5, progress=False)
    assert [(run.name, run.settings["optimizer"]) for run in runs] == [("fast", "SGD"), ("slow", "NAdam")]
    assert [run.name for run in lv.compare("x", [torch.optim.NAdam], steps=5, progress=False)] == ["NAdam"]
    with pytest.raises(ValueError, match="`optimizers` must hold at least one"):
        lv.compare("x", [])


def test_the_plane_is_fitted_to_all_rows(runs, land):
    every = np.concatenate([run.weights for run in runs])
    mean, components, ratio = reference.principal_plane(every)
    np.testing.assert_allclose(land.projection.components, components, atol=1e-9)
    np.testing.assert_allclose(land.path, (every - mean) @ components.T, atol=1e-9)
    np.testing.assert_allclose(land.explained_variance_ratio, ratio, atol=1e-12)
    np.testing.assert_array_equal(land.path_loss, np.concatenate([run.loss for run in runs]))
    assert land.run_set.rows == [slice(0, 41), slice(41, 82), slice(82, 123)]


def test_planes_stay_on_their_own_run(runs):
    run_set = as_run_set([runs[0], runs[1]])
    projection = fit_projection(run_set.weights)
    anchors = np.array([0, 5, 40, 41, 44, 60, 81])
    planes = local_planes(run_set.weights, projection, anchors, k=4, starts=run_set.starts)
    assert planes.path.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for i, row in enumerate(anchors):
        run, t = (runs[0], row) if row < 41 else (runs[1], row - 41)
        alone = np.zeros((2, len(anchors)))
        alone[:, i] = 1.0
        corners = planes.lift(projection.path[row] + np.eye(2), alone)
        owner = reference.nearest([0, 5, 40] if row < 41 else [0, 3, 19, 40], range(41))
        bases = [reference.local_basis(run.weights, s, 4) for s in range(41) if owner[s] == t]
        expected = [run.weights[t] + reference.move_mean(bases, axis) for axis in projection.components]
        np.testing.assert_allclose(corners, expected, atol=1e-10)


def test_kernels_do_not_reach_from_the_end_of_one_run_to_the_start_of_the_next():
    centers = np.array([[0.0, 0], [0.1, 0], [0.11, 0], [0.31, 0]])
    alone = fit_kernel(centers, "auto", diagonal=30.0).width
    apart = fit_kernel(centers, "auto", diagonal=30.0, path=np.array([0, 0, 1, 1])).width
    np.testing.assert_allclose(alone, 0.35 * np.array([0.1, 0.01, 0.01, 0.2]))
    np.testing.assert_allclose(apart, 0.35 * np.array([0.1, 0.1, 0.2, 0.2]))


def test_every_cell_is_the_loss_of_the_average_over_the_anchors_of_all_runs(runs, land):
    anchors = [start + choose_anchors(run.weights, 66) for start, run in zip(land.run_set.starts, runs, strict=True)]
    assert np.array_equal(land.anchors, np.concatenate(anchors))
    picture = reference.Picture(runs, land.anchors, k=3)
    np.testing.assert_allclose(land.loss, reference.grid_heights(picture, land), rtol=1e-9)


def test_parts_of_the_runs(runs):
    run_set = as_run_set(runs)
    assert run_set.cut(None) is run_set
    part = run_set.cut((5, 12))
    assert part.rows == [slice(0, 8), slice(8, 16), slice(16, 24)]
    assert part.names == run_set.names
    np.testing.assert_array_equal(part.weights, np.concatenate([run.weights[5:13] for run in runs]))
    np.testing.assert_array_equal(part.loss, np.concatenate([run.loss[5:13] for run in runs]))
    assert part.step.tolist() == [*range(5, 13)] * 3
    with pytest.raises(ValueError, match="recorded steps from first to last") as error:
        run_set.cut((12, 5))
    assert error.value.argument == "steps"


def test_fidelity_to_every_run(land):
    factor = lv.fidelity(land).factor
    for rows in land.run_set.rows:
        assert np.median(factor[rows]) < 1.02
        assert factor[rows][0] < 1.1


def test_one_run_in_a_list_is_that_run(runs):
    alone = lv.landscape(runs[0], k=3, resolution=(5, 4), progress=False)
    listed = lv.landscape([runs[0]], k=3, resolution=(5, 4), progress=False)
    np.testing.assert_array_equal(alone.loss, listed.loss)
    assert alone.run is runs[0]


def test_runs_of_any_lengths_and_dtypes(runs):
    short = lv.train("x^3", steps=9, optimizer="sgd", progress=False)
    land = lv.landscape({"long": runs[0], "short": short}, k=2, resolution=4, progress=False)
    assert land.path.shape == (41 + 10, 2)
    assert land.run_set.names == ("long", "short")
    assert land.run_set.nearest_rows(30) == [30, 41 + 9]  # the short one waits at its end
    with pytest.raises(ValueError, match="`k`=5 needs at least 2k \\+ 1 = 11 recorded steps, the run has 10"):
        lv.landscape([runs[0], short], k=5, progress=False)


def test_each_run_keeps_its_batch_norm_statistics():
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.linspace(-1, 1, 32)[:, None]

    def loss_fn(m):
        return (m(x) - x**2).square().mean()

    recorded = []
    for lr in (0.05, 0.0):
        model = copy.deepcopy(start)
        if not lr:
            model.eval()  # its statistics rest
        optimizer = torch.optim.SGD(model.parameters(), lr=lr or 0.2)
        with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
            for _ in range(15):
                optimizer.zero_grad()
                loss_fn(model).backward()
                optimizer.step()
        recorded.append(recorder.run())
    assert recorded[0].buffers is not None
    assert recorded[1].buffers is None
    for order in (recorded, recorded[::-1]):
        land = lv.landscape(order, k=2, resolution=3, n_anchors=None, progress=False)
        factor = lv.fidelity(land).factor
        assert all(np.median(factor[rows]) < 1.02 for rows in land.run_set.rows)


@pytest.mark.parametrize(
    ("make", "error", "cause"),
    [
        (lambda run: [], ValueError, "`runs` must contain at least one run, got none"),
        (lambda run: [run, lv.train("x^3", steps=5, width=4, progress=False)], ValueError, "must have the same model"),
        (lambda run: [run, lv.train("x^2", steps=5, progress=False)], ValueError, "must have the same loss"),
    ],
)
def test_different_models_or_losses_raise(runs, make, error, cause):
    with pytest.raises(error, match=re.escape(cause)):
        lv.landscape(make(runs[0]), k=1, progress=False)


def test_other_types_raise(runs):
    with pytest.raises(TypeError, match="`runs` must be a run, or a list or dict of runs, got int"):
        stack_runs.__wrapped__([runs[0], 3])


def test_unnamed_runs_get_distinct_names():
    a, b, c = (lv.train("x", steps=3, seed=seed, progress=False) for seed in (1, 2, 2))
    assert as_run_set([a, b]).names == ("seed = 1", "seed = 2")
    assert as_run_set([a, b, c]).names == ("seed = 1", "seed = 2 1", "seed = 2 2")
    assert as_run_set({"one": a, "two": b}).names == ("one", "two")
    other = lv.train("x", steps=3, seed=1, optimizer="sgd", lr=0.3, progress=False)
    assert as_run_set([a, other]).names == ("adam", "sgd")
    bare = [lv.Run(run.weights, run.loss, run.step, run.objective) for run in (a, a)]
    assert as_run_set(bare).names == ("run 1", "run 2")


def test_figures_draw_every_run_in_its_colour(runs, land):
    for figure in (lv.surface_figure(land, step=20), lv.compare_figure(land, step=20)):
        for i, run in enumerate(runs):
            [path] = [t for t in figure.data if t.name == run.name and isinstance(t, go.Scatter3d) and len(t.x) > 1]
            rows = land.run_set.rows[i]
            assert np.array_equal(np.column_stack([path.x, path.y]), land.path[rows])
            np.testing.assert_array_equal(path.customdata[:, 1], run.loss)
            balls = [t for t in figure.data if t.legendgroup == run.name and t.name == "ball"]
            assert min(balls[0].z) == pytest.approx(run.loss[20], rel=1e-9)
            assert balls[0].color == path.line.colorscale[0][1]
        assert figure.layout.showlegend
        shown = [t.name for t in figure.data if t.showlegend]
        assert shown == [run.name for run in runs]
    curves = [t for t in lv.compare_figure(land).data if isinstance(t, go.Scatter)]
    assert all(np.array_equal(curve.y, run.loss) for curve, run in zip(curves, runs, strict=True))
    above = lv.contour_figure(land, step=20)
    lines = [t for t in above.data if isinstance(t, go.Scatter)]
    assert [t.name for t in lines if t.mode == "lines+markers"] == [run.name for run in runs]
    assert [t.x[0] for t in lines if t.mode == "markers"] == [land.path[row, 0] for row in (20, 61, 102)]


def test_the_balls_race(land):
    figure = lv.animate(land, n_frames=12)
    assert len(figure.frames) <= 12
    for frame in (figure.frames[0], figure.frames[5], figure.frames[-1]):
        rows = land.run_set.nearest_rows(int(frame.name))
        assert [figure.data[i].name for i in frame.traces] == ["error", "ball"] * 3
        for row, ball in zip(rows, frame.data[1::2], strict=True):
            assert min(ball.z) == pytest.approx(land.path_loss[row], rel=1e-9)
