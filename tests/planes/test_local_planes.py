import re

import numpy as np
import pytest
import reference

import loss_viz as lv
from loss_viz.planes.directions import hessian_eigenvalues_along
from loss_viz.planes.local_planes import choose_anchors, local_planes
from loss_viz.planes.plane_set import parallel_planes, single_plane
from loss_viz.planes.projection import fit_projection

RNG = np.random.default_rng(1)
WEIGHTS = np.cumsum(RNG.normal(size=(41, 6)), axis=0)


def bases(planes):
    return np.stack([planes.bases[i][1] for i in range(len(planes))])


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_bases_are_orthonormalized_velocity_and_acceleration(k):
    anchors = np.arange(41)
    planes = local_planes(WEIGHTS, fit_projection(WEIGHTS), anchors, k=k)
    for t in anchors:
        np.testing.assert_allclose(planes.bases[int(t)][1], reference.local_basis(WEIGHTS, t, k), atol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_plane_goes_through_three_points_of_the_run(k):
    planes = local_planes(WEIGHTS, fit_projection(WEIGHTS), np.arange(41), k=k)
    for t in range(41):
        side = -1 if t >= 2 * k else 1
        for other in (t + side * k, t + 2 * side * k):
            away = WEIGHTS[other] - WEIGHTS[t]
            basis = planes.bases[int(t)][1]
            inside = basis.T @ (basis @ away)
            np.testing.assert_allclose(inside, away, atol=1e-10)


@pytest.mark.parametrize("kind", ["local", "parallel"])
def test_lift_projects_the_displacement_onto_the_plane(kind):
    projection = fit_projection(WEIGHTS)
    anchors = np.array([0, 5, 11, 40])
    planes = (
        local_planes(WEIGHTS, projection, anchors, k=3)
        if kind == "local"
        else parallel_planes(WEIGHTS, projection, anchors)
    )
    points = RNG.normal(size=(9, 2))
    index = np.array([0, 1, 2, 3, 3, 2, 1, 0, 2])
    lifted = planes.lift(index, points)
    for i, point in enumerate(points):
        expected = reference.lift(WEIGHTS, projection.components, projection.path, anchors[index[i]], 3, point, kind)
        np.testing.assert_allclose(lifted[i], expected, atol=1e-12)


def test_a_plane_passes_through_its_anchor():
    projection = fit_projection(WEIGHTS)
    anchors = np.array([2, 30])
    for planes in (local_planes(WEIGHTS, projection, anchors, k=2), parallel_planes(WEIGHTS, projection, anchors)):
        assert np.array_equal(planes.lift(np.array([0, 1]), projection.path[anchors]), WEIGHTS[anchors])


def test_the_single_plane_is_the_projection_itself():
    projection = fit_projection(WEIGHTS)
    points = RNG.normal(size=(5, 2))
    lifted = single_plane(projection).lift(np.zeros(5, dtype=int), points)
    np.testing.assert_allclose(lifted, projection.lift(points), atol=1e-12)


def test_planes_of_a_straight_run_are_lines_and_of_a_resting_one_points():
    line = np.outer(np.arange(9.0), [1.0, 2.0, 2.0])
    planes = local_planes(line, fit_projection(line), np.arange(9), k=2)
    np.testing.assert_allclose(bases(planes)[:, 0], np.tile([1 / 3, 2 / 3, 2 / 3], (9, 1)), atol=1e-12)
    assert not bases(planes)[:, 1].any()

    braking = np.outer(np.arange(9.0) ** 0.5, [1.0, 2.0, 2.0])
    assert not bases(local_planes(braking, fit_projection(braking), np.arange(9), k=2))[:, 1].any()

    resting = np.full((9, 3), 0.7)
    planes = local_planes(resting, fit_projection(resting), np.arange(9), k=2)
    assert not bases(planes).any()
    assert np.array_equal(planes.lift(np.array([4]), np.array([[3.0, -1.0]]))[0], resting[4])


def test_acceleration_alone_spans_a_line_where_the_velocity_vanishes():
    there_and_back = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    planes = local_planes(there_and_back, fit_projection(there_and_back), np.array([3]), k=1)
    assert not bases(planes)[0, 0].any()
    np.testing.assert_allclose(np.abs(bases(planes)[0, 1]), [1.0, 0.0], atol=1e-12)


def test_anchors_are_even_in_half_arc_length_and_half_time():
    # 300 small steps, then 100 that are 9 times as long: three quarters of the arc in a quarter of the time.
    lengths = np.append(np.ones(300), 9 * np.ones(100))
    weights = np.append(0, np.cumsum(lengths))[:, None] * np.array([[3.0, 4.0]]) / 5
    anchors = choose_anchors(weights, 81)
    assert anchors[0] == 0
    assert anchors[-1] == 400
    assert len(anchors) == 81
    assert np.count_nonzero(anchors <= 300) == pytest.approx(81 * (0.25 + 0.75) / 2, abs=1.5)
    spread = (np.append(0, np.cumsum(lengths)) / lengths.sum() + np.linspace(0, 1, 401)) / 2
    np.testing.assert_allclose(np.diff(spread[anchors]), 1 / 80, atol=0.5 / 80)


def test_anchors_are_all_steps_of_a_short_run():
    assert choose_anchors(WEIGHTS, None).tolist() == list(range(41))
    anchors = choose_anchors(WEIGHTS, 1000)
    assert anchors.tolist() == sorted(set(anchors.tolist()))
    assert len(anchors) == 41
    assert choose_anchors(np.full((9, 2), 1.0), 3).tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="`n_anchors` must be a whole number from 2 to 1048576, got 1"):
        choose_anchors(WEIGHTS, 1)


@pytest.mark.parametrize(
    ("k", "cause", "repair"),
    [
        (0, "`k` must be a whole number of at least 1, got 0", "Use 5"),
        (21, "`k`=21 needs at least 2k + 1 = 43 recorded steps, the run has 41", "`k` of at most 20"),
    ],
)
def test_a_stride_that_does_not_fit_is_refused(k, cause, repair):
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        local_planes(WEIGHTS, fit_projection(WEIGHTS), np.arange(41), k=k)
    assert repair in str(error.value)


def test_valley_planes_hold_velocity_and_the_steepest_direction(run):
    land = lv.landscape(run, k=3, plane="valley", resolution=(5, 3), n_anchors=6, progress=False)
    weights = np.array(run.weights)
    for i, t in enumerate(land.anchors.tolist()):
        origin, axes = land.planes.bases[i]
        np.testing.assert_array_equal(origin, weights[t])
        velocity = weights[t] - weights[t - 3] if t >= 6 else weights[t + 3] - weights[t]
        _, vectors = np.linalg.eigh(reference.dense_hessian(run.model, run.objective.loss_fn, weights[t]))
        for wanted in (velocity / np.linalg.norm(velocity), vectors[:, -1]):
            assert np.linalg.norm(axes @ wanted) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(land.planes.overlap[i], axes @ land.projection.components.T, atol=1e-12)
    _, [wall] = hessian_eigenvalues_along(run.objective, run.weights, np.array([60]))
    assert wall @ wall == pytest.approx(1.0)
    assert lv.fidelity(land).start == pytest.approx(1.0, abs=0.01)


def test_valley_planes_that_do_not_fit_in_memory_are_refused(run, monkeypatch):
    monkeypatch.setattr("loss_viz.landscapes.grid.HELD_BYTES", 16 * 25 * 10)
    with pytest.raises(ValueError, match="two axes for each of 61 anchors in memory") as error:
        lv.landscape(run, plane="valley", resolution=3, progress=False)
    assert "`n_anchors` of at most 10" in str(error.value)
