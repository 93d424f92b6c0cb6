import re

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array

from loss_viz.planes.local_planes import choose_anchors, local_planes
from loss_viz.planes.plane_set import flat_plane, join_planes, parallel_planes
from loss_viz.planes.projection import fit_projection

RNG = np.random.default_rng(1)
WEIGHTS = np.cumsum(RNG.normal(size=(41, 6)), axis=0)


def bases(planes):
    return planes.mix @ planes.rows[planes.index]


def lift_alone(planes, index, points):
    """Return the points of single planes."""
    weights = np.zeros((len(points), len(planes)))
    weights[np.arange(len(points)), index] = 1.0
    return planes.lift(points, weights)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_bases_are_orthonormalized_velocity_and_acceleration(k):
    anchors = np.arange(41)
    planes = local_planes(WEIGHTS, fit_projection(WEIGHTS), anchors, k=k)
    for t in anchors:
        np.testing.assert_allclose(bases(planes)[int(t)], reference.local_basis(WEIGHTS, t, k), atol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_plane_goes_through_three_points_of_the_run(k):
    planes = local_planes(WEIGHTS, fit_projection(WEIGHTS), np.arange(41), k=k)
    for t in range(41):
        side = -1 if t >= 2 * k else 1
        for other in (t + side * k, t + 2 * side * k):
            away = WEIGHTS[other] - WEIGHTS[t]
            basis = bases(planes)[int(t)]
            inside = basis.T @ (basis @ away)
            np.testing.assert_allclose(inside, away, atol=1e-10)


@pytest.mark.parametrize("k", [3, 12, 20])
def test_planes_that_look_forward(k):
    planes = local_planes(WEIGHTS, fit_projection(WEIGHTS), np.arange(41), k=k, forward=True)
    for t in range(41):
        rows = reference.stencil(t, 41, k, forward=True)
        assert planes.index[t].tolist() == [t, *rows]
        np.testing.assert_allclose(bases(planes)[t], reference.span(WEIGHTS, rows), atol=1e-12)


@pytest.mark.parametrize("kind", ["local", "parallel", "flat", "joined"])
@pytest.mark.parametrize("block_bytes", [2**28, 700])  # all columns, or two or three at a time
@pytest.mark.parametrize("to_weights", [np.asarray, csr_array])
def test_lift_averages_the_points_of_the_planes(monkeypatch, kind, block_bytes, to_weights):
    monkeypatch.setattr("loss_viz.runs.weights.BLOCK_BYTES", block_bytes)
    projection = fit_projection(WEIGHTS)
    anchors = np.array([0, 5, 11, 40])
    spans = [reference.local_basis(WEIGHTS, t, 3) for t in anchors]
    if kind == "parallel":
        planes, spans = parallel_planes(WEIGHTS, projection, anchors), [None] * 4
    elif kind == "flat":
        planes, spans = flat_plane(projection, WEIGHTS[7], projection.path[7]), [None]
        anchors = np.array([7])
    else:
        planes = local_planes(WEIGHTS, projection, anchors, k=3)
    if kind == "joined":
        planes = join_planes(planes, local_planes(WEIGHTS, projection, anchors, k=3, forward=True))
        spans += [reference.span(WEIGHTS, reference.stencil(t, 41, 3, forward=True)) for t in anchors]
        anchors = np.append(anchors, anchors)
    rng = np.random.default_rng(3)
    points, weights = rng.normal(size=(9, 2)), rng.random((9, len(anchors)))
    weights[rng.random(weights.shape) < 0.5] = 0.0
    weights[:, :1] += 0.1
    weights /= weights.sum(axis=1, keepdims=True)
    lifted = planes.lift(points, to_weights(weights))
    some = np.unique(rng.integers(0, len(anchors), 3))
    only = weights.copy()
    only[:, np.setdiff1d(np.arange(len(anchors)), some)] = 0
    np.testing.assert_allclose(planes.take(some).lift(points, only[:, some]), planes.lift(points, only), atol=1e-12)
    for i, point in enumerate(points):
        expected = np.zeros(6)
        for share, t, span in zip(weights[i], anchors, spans, strict=True):
            displacement = projection.components.T @ (point - projection.path[t])
            expected += share * (WEIGHTS[t] + reference.move(span, displacement))
        np.testing.assert_allclose(lifted[i], expected, atol=1e-12)


def test_a_plane_passes_through_its_anchor():
    projection = fit_projection(WEIGHTS)
    anchors = np.array([2, 30])
    for planes in (local_planes(WEIGHTS, projection, anchors, k=2), parallel_planes(WEIGHTS, projection, anchors)):
        found = lift_alone(planes, [0, 1], projection.path[anchors])
        np.testing.assert_allclose(found, WEIGHTS[anchors], rtol=1e-14)


def test_the_flat_plane_through_the_mean_is_the_projection_itself():
    projection = fit_projection(WEIGHTS)
    points = RNG.normal(size=(5, 2))
    flat = flat_plane(projection, projection.origin, np.zeros(2))
    np.testing.assert_allclose(lift_alone(flat, 0, points), projection.lift(points), atol=1e-12)


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
    assert np.array_equal(lift_alone(planes, 4, np.array([[3.0, -1.0]]))[0], resting[4])


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
