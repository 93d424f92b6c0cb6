"""The figures of diagnostics show what was measured."""

import numpy as np
import pytest

import loss_viz as lv


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, k=3, resolution=(9, 7), progress=False)


def trace(figure, name):
    [found] = [trace for trace in figure.data if trace.name == name]
    return found


def test_the_fidelity_figure_shows_both_losses_and_both_factors(land):
    figure = lv.fidelity_figure(land)
    fit, without = lv.fidelity(land), lv.fidelity(land, held_out=True)
    np.testing.assert_array_equal(trace(figure, "surface").y, land.path_height)
    np.testing.assert_array_equal(trace(figure, "true loss").y, land.path_loss)
    np.testing.assert_array_equal(trace(figure, "factor").y, fit.factor)
    np.testing.assert_array_equal(trace(figure, "held out").x, without.step)
    np.testing.assert_array_equal(trace(figure, "held out").y, without.factor)
    assert len(lv.fidelity_figure(land, held_out=False).data) == 3


def test_the_sigma_figure_shows_factors_and_marks(land):
    curve = lv.sigma_curve(land)
    figure = lv.sigma_figure(curve, sigma=0.03)
    np.testing.assert_allclose(trace(figure, "fixed σ").y, 10**curve.error)
    places = [shape.x0 for shape in figure.layout.shapes] + [shape.y0 for shape in figure.layout.shapes]
    for place in (0.06, 0.03, 10**curve.auto):
        assert place in places


def test_the_map_stands_over_the_picture(land):
    factors = lv.disagreement_map(land)
    figure = lv.map_figure(land, factors, "disagreement")
    np.testing.assert_allclose(trace(figure, "disagreement").z, np.log10(factors))
    np.testing.assert_array_equal(trace(figure, "trajectory").x, land.path[:, 0])
    with pytest.raises(ValueError, match=r"`factors` must have shape \(7, 9\), got \(9, 7\)\. Pass what"):
        lv.map_figure(land, factors.T, "disagreement")


def test_the_geometry_figure_has_a_row_for_each_measure(run, land):
    geometry, sharpness = lv.measure_geometry(land), lv.measure_sharpness(run, [0, 30, 60])
    figure = lv.geometry_figure(geometry, sharpness)
    np.testing.assert_array_equal(trace(figure, "speed").y, geometry.speed)
    np.testing.assert_array_equal(trace(figure, "in the picture").y, geometry.in_picture)
    np.testing.assert_array_equal(trace(figure, "sharpness").y, sharpness.largest)
    np.testing.assert_array_equal(trace(figure, "smallest eigenvalue").y, sharpness.smallest)
