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


def maps(planes):
    """Return the columns of B of each plane."""
    return np.stack([column @ planes.rows for column in planes.columns], axis=-1)


def move_axes(spans, projection):
    """Return the mean of both axes of the picture, moved to planes with these spans."""
    return np.stack([reference.move_mean(spans, axis) for axis in projection.components], axis=-1)


def lift_alone(planes, index, points):
    """Return the points of single planes."""
    weights = np.zeros((len(points), len(planes)))
    weights[np.arange(len(points)), index] = 1.0
    return planes.lift(points, weights)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_planes_of_all_steps_are_spanned_by_velocity_and_acceleration(k):
    projection = fit_projection(WEIGHTS)
    planes = local_planes(WEIGHTS, projection, np.arange(41), k=k)
    for t in range(41):
        expected = move_axes([reference.local_basis(WEIGHTS, t, k)], projection)
        np.testing.assert_allclose(maps(planes)[t], expected, atol=1e-12)
        np.testing.assert_allclose(planes.inside[t], projection.components @ expected, atol=1e-12)


@pytest.mark.parametrize("k", [3, 12, 20])
def test_planes_that_look_forward(k):
    projection = fit_projection(WEIGHTS)
    planes = local_planes(WEIGHTS, projection, np.arange(41), k=k, forward=True)
    for t in range(41):
        rows = reference.stencil(t, 41, k, forward=True)
        assert planes.uses[[t]].indices.tolist() == sorted({t, *rows})
        np.testing.assert_allclose(maps(planes)[t], move_axes([reference.span(WEIGHTS, rows)], projection), atol=1e-12)


@pytest.mark.parametrize("forward", [False, True])
def test_a_plane_is_the_mean_of_those_of_the_steps_around_its_anchor(forward):
    projection, anchors = fit_projection(WEIGHTS), [0, 5, 11, 40]
    planes = local_planes(WEIGHTS, projection, np.array(anchors), k=3, forward=forward)
    owner = reference.nearest(anchors, range(41))
    for i, anchor in enumerate(anchors):
        stencils = [reference.stencil(t, 41, 3, forward) for t in range(41) if owner[t] == anchor]
        expected = move_axes([reference.span(WEIGHTS, rows) for rows in stencils], projection)
        np.testing.assert_allclose(maps(planes)[i], expected, atol=1e-12)
        np.testing.assert_allclose(planes.inside[i], projection.components @ expected, atol=1e-12)
        assert planes.uses[[i]].indices.tolist() == sorted({anchor, *np.ravel(stencils).tolist()})


def test_planes_of_large_runs_are_those_of_the_anchors_alone(monkeypatch):
    monkeypatch.setattr("loss_viz.planes.local_planes.MAX_AVERAGED", 41 * 6 - 1)
    projection, anchors = fit_projection(WEIGHTS), np.array([0, 5, 11, 40])
    planes = local_planes(WEIGHTS, projection, anchors, k=3)
    for i, anchor in enumerate(anchors):
        expected = move_axes([reference.local_basis(WEIGHTS, anchor, 3)], projection)
        np.testing.assert_allclose(maps(planes)[i], expected, atol=1e-12)
        assert planes.uses[[i]].indices.tolist() == sorted({anchor, *reference.stencil(anchor, 41, 3)})


@pytest.mark.parametrize("kind", ["local", "parallel", "flat", "joined"])
@pytest.mark.parametrize("block_bytes", [2**28, 700])  # all columns and points, or two or three at a time
@pytest.mark.parametrize("to_weights", [np.asarray, csr_array])
@pytest.mark.parametrize("span_bytes", [2**26, 0])  # the vectors of all planes in memory, or factors of recorded rows
def test_lift_averages_the_points_of_the_planes(monkeypatch, kind, block_bytes, to_weights, span_bytes):
    monkeypatch.setattr("loss_viz.runs.weights.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("loss_viz.planes.plane_set.MAX_SPAN_BYTES", span_bytes)
    if block_bytes == 700:
        monkeypatch.setattr("loss_viz.planes.plane_set.POINTS_PER_PRODUCT", 2)
    projection = fit_projection(WEIGHTS)
    anchors = np.array([0, 5, 11, 20, 24, 33, 40])
    owner = reference.nearest(anchors, range(41))
    near = [[t for t in range(41) if owner[t] == anchor] for anchor in anchors]
    spans = [[reference.local_basis(WEIGHTS, t, 3) for t in steps] for steps in near]
    if kind == "parallel":
        planes, spans = parallel_planes(WEIGHTS, projection, anchors), [None] * 7
    elif kind == "flat":
        planes, spans = flat_plane(projection, WEIGHTS[7], projection.path[7]), [None]
        anchors = np.array([7])
    else:
        planes = local_planes(WEIGHTS, projection, anchors, k=3)
    if kind == "joined":
        planes, order = join_planes(planes, local_planes(WEIGHTS, projection, anchors, k=3, forward=True))
        spans += [[reference.span(WEIGHTS, reference.stencil(t, 41, 3, True)) for t in steps] for steps in near]
        spans, anchors = [spans[i] for i in order], np.append(anchors, anchors)[order]
    rng = np.random.default_rng(3)
    points, weights = rng.normal(size=(9, 2)), rng.random((9, len(anchors)))
    weights[rng.random(weights.shape) < 0.8] = 0.0  # in some rows only planes far apart are left
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
            moved = displacement if span is None else reference.move_mean(span, displacement)
            expected += share * (WEIGHTS[t] + moved)
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
    np.testing.assert_allclose(maps(planes)[:, :, 0], np.tile([1 / 3, 2 / 3, 2 / 3], (9, 1)), atol=1e-12)
    np.testing.assert_allclose(maps(planes)[:, :, 1], 0, atol=1e-12)

    braking = np.outer(np.arange(9.0) ** 0.5, [1.0, 2.0, 2.0])
    planes = local_planes(braking, fit_projection(braking), np.arange(9), k=2)
    np.testing.assert_allclose(maps(planes)[:, :, 0], np.tile([1 / 3, 2 / 3, 2 / 3], (9, 1)), atol=1e-12)
    np.testing.assert_allclose(maps(planes)[:, :, 1], 0, atol=1e-12)

    resting = np.full((9, 3), 0.7)
    planes = local_planes(resting, fit_projection(resting), np.arange(9), k=2)
    assert not maps(planes).any()
    assert np.array_equal(lift_alone(planes, 4, np.array([[3.0, -1.0]]))[0], resting[4])


def test_acceleration_alone_spans_a_line_where_the_velocity_vanishes():
    there_and_back = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    projection = fit_projection(there_and_back)
    planes = local_planes(there_and_back, projection, np.arange(5), k=1)
    expected = np.outer([1.0, 0.0], projection.components[:, 0])
    np.testing.assert_allclose(maps(planes)[3], expected, atol=1e-12)


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
