"""What the figures of issue and panel show is what was measured."""

import numpy as np
import pytest
import reference

import loss_viz as lv
from loss_viz.diagnostics.report import summarize_plateaus
from loss_viz.figures.live import ViewState
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.panel.status import draw_width_errors, write_readout
from loss_viz.planes.directions import hessian_eigenvalues_along


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


def test_support_below_the_threshold_is_left_open(post_landscapes):
    land = post_landscapes["x^3"]

    def count(**settings):
        mesh = trace(lv.surface_figure(land, **settings), "surface")
        return np.stack([mesh.i, mesh.j, mesh.k], axis=1)

    every, some = count(), count(min_support=0.3)
    assert 0 < len(some) < len(every) == 2 * 60 * 60
    assert land.support.ravel()[some].min() >= 0.3
    shown = {tuple(corners) for corners in some.tolist()}
    hidden = [corners for corners in every.tolist() if tuple(corners) not in shown]
    assert (land.support.ravel()[np.array(hidden)].min(axis=1) < 0.3).all()


def test_plateaus_and_folds_are_marked_where_they_are(post_landscapes):
    land = post_landscapes["sin(3x)"]
    [plateau] = lv.find_plateaus(land.run)
    figure = lv.surface_figure(land)
    band = trace(figure, "plateau")
    rows = slice(plateau.start, plateau.end + 1)
    np.testing.assert_array_equal(np.array(band.x, float)[:-1], land.path[rows, 0])
    folds = lv.find_folds(land)
    marks = trace(figure, "fold")
    assert np.array(marks.x, float)[::3].tolist() == [land.path[fold.step, 0] for fold in folds]
    assert f"steps {folds[0].step} and {folds[0].other_step}" in marks.text[0]
    curve = lv.loss_curve_figure(land.run)
    [shape] = curve.layout.shapes
    assert (shape.x0, shape.x1) == (plateau.start, plateau.end)
    [word] = curve.layout.annotations
    assert "the best straight line, 0.171" in word.text


def test_small_print_says_what_variance_is_not(post_landscapes):
    land = post_landscapes["sin(3x)"]
    small = lv.surface_figure(land).layout.annotations[1].text
    share = land.explained_variance_ratio.sum()
    assert f"{share:.1%} of the variance, which does not measure fidelity" in small
    assert "the surface can show only one of" in small.replace("<br>", " ")


def test_tiles_and_the_fit_that_the_net_is_stuck_on(post_landscapes):
    land = post_landscapes["x^3"]
    plateau_summary, report = summarize_plateaus(land.run_set), lv.assess(land)
    html = write_readout(land.run_set, land.projection, plateau_summary, [500], report)
    assert "now, the best straight line (0.0242)" in html
    assert f"×{report.held_out.median:.2f}" in html
    assert "no measure of fidelity" in html
    assert plateau_summary.find(500).fit.degree == 1
    late = write_readout(land.run_set, land.projection, plateau_summary, [1500], report)
    assert f"{plateau_summary.plateaus[0].start} – {plateau_summary.plateaus[0].end}" in late
    html = write_readout(land.run_set, land.projection, plateau_summary, [500], None)
    assert "…" in html


def test_clicks_mean_the_step_under_them(land):
    view = ViewState.of(land, fit_scale([land.loss], log=False))
    x, y = land.path[40].tolist()
    assert view.find_step({"pane": "surface", "trace": "surface", "index": 3, "x": x, "y": y}) == 40
    assert view.find_step({"pane": "surface", "trace": "surface", "index": 3, "x": x + 99, "y": y}) is None
    assert view.find_step({"pane": "curve", "trace": "factor", "index": 7, "x": 0, "y": 0}) == 7
    assert view.find_step({"pane": "fit", "trace": "network", "index": 7, "x": 0, "y": 0}) is None
    assert view.find_step({"pane": "surface", "trace": "fold", "index": 7, "x": x, "y": y}) is None


def test_the_sparkline_says_what_is_chosen(land):
    curve = lv.sigma_curve(land)
    auto, fixed = (draw_width_errors(curve, sigma, ends=(-2.5, 0.0)) for sigma in ("auto", 0.06))
    assert "<circle" not in auto
    assert "<circle" in fixed
    at = curve.error[curve.sigma.tolist().index(0.06)]
    assert f"here ×{10**at:.2f}" in fixed


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
