import json
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.colors import sample_colorscale, unlabel_rgb

import loss_viz as lv
from loss_viz.figures.loss_axis import LINE_LIFT, fit_scale
from loss_viz.figures.style import MAX_FADE


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, resolution=(7, 5), progress=False)


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


@pytest.mark.parametrize("log", [False, True])
def test_the_surface_is_the_landscape_vertex_by_vertex(land, log):
    mesh = trace(lv.surface_figure(land, log=log), "surface")
    for row in range(5):
        for column in range(7):
            vertex = row * 7 + column
            assert mesh.x[vertex] == land.x[column]
            assert mesh.y[vertex] == land.y[row]
            assert mesh.z[vertex] == land.loss[row, column]


def test_every_point_of_the_picture_is_covered_by_one_triangle(land):
    mesh = trace(lv.surface_figure(land), "surface")
    corners = np.stack([mesh.i, mesh.j, mesh.k], axis=1)
    assert len(corners) == 2 * 6 * 4
    a, b, c = (np.stack([np.asarray(mesh.x)[corner], np.asarray(mesh.y)[corner]], axis=-1) for corner in corners.T)
    rng = np.random.default_rng(0)
    for point in rng.uniform([land.x[0], land.y[0]], [land.x[-1], land.y[-1]], size=(200, 2)):
        sides = [cross(q - p, point - p) for p, q in ((a, b), (b, c), (c, a))]
        inside = np.all(np.sign(sides) == np.sign(sides[0]), axis=0)
        assert np.count_nonzero(inside) == 1


def test_the_ball_is_a_closed_sphere_seen_from_outside(land):
    ball = trace(lv.surface_figure(land), "ball")
    corners = np.stack([ball.i, ball.j, ball.k], axis=1)
    points = np.stack([ball.x, ball.y, ball.z], axis=1)
    points = (points - points.mean(axis=0)) / np.ptp(points, axis=0) * 2
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=0.02)
    assert (np.linalg.det(points[corners]) > 0).all()
    edges = [tuple(edge) for corner in corners.tolist() for edge in zip(corner, corner[1:] + corner[:1], strict=True)]
    assert len(set(edges)) == len(edges)
    assert {(b, a) for a, b in edges} == set(edges)


def cross(u, v):
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def test_colors_are_viridis_by_loss_and_paler_without_support(land):
    mesh = trace(lv.surface_figure(land), "surface")
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in mesh.vertexcolor])
    pale = MAX_FADE * (1 - land.support.ravel() ** (1 / 16))
    assert pale.max() > 0.6
    assert pale.min() < 0.1
    scale = fit_scale([land.loss, land.path_loss], log=False)
    shares = (land.loss.ravel() - scale.low) / (scale.high - scale.low)
    viridis = np.array([unlabel_rgb(color) for color in sample_colorscale("Viridis", shares.tolist())])
    np.testing.assert_allclose(rgb, viridis * (1 - pale[:, None]) + 255 * pale[:, None], atol=2)


@pytest.mark.parametrize("log", [False, True])
def test_path_and_ball_lie_at_true_losses(land, log):
    figure = lv.surface_figure(land, step=13, log=log)
    scale = fit_scale([land.loss, land.path_loss], log=log)
    units = np.log10 if log else np.asarray
    length = scale.high - scale.low
    path = trace(figure, "trajectory")
    assert np.array_equal(np.column_stack([path.x, path.y]), land.path)
    np.testing.assert_allclose(units(path.z) - units(land.path_loss), LINE_LIFT * length, rtol=1e-6)
    fit = lv.fidelity(land)
    details = np.column_stack([land.run.step, land.path_loss, land.path_height, land.off_plane, fit.factor])
    np.testing.assert_array_equal(path.customdata, details)
    np.testing.assert_allclose(path.line.color, np.log2(fit.factor).clip(0, 1))
    ball = trace(figure, "ball")
    assert min(ball.z) == pytest.approx(land.path_loss[13], rel=1e-12)  # it rests on the true loss
    assert np.mean(ball.x) == pytest.approx(land.path[13, 0])
    assert np.mean(ball.y) == pytest.approx(land.path[13, 1])
    for text in ("step 13<br>", f"true loss {land.path_loss[13]:.4g}", f"at ({land.path[13, 0]:.3g}, "):
        assert text in ball.hovertemplate
    for text in ("step %{customdata[0]", "true loss %{customdata[1]", "at (%{x", "%{y"):
        assert text in path.hovertemplate
    stem = trace(figure, "error")
    assert stem.z[0] == land.path_loss[13]
    assert stem.z[1] == land.path_height[13]


def test_the_caption_states_the_error_under_the_path(land):
    fit = lv.fidelity(land)
    text = lv.surface_figure(land).layout.annotations[0].text
    assert f"error ×{fit.median:.2f}, p90 ×{fit.p90:.2f}, start ×{fit.start:.2f}" in text
    assert text in lv.contour_figure(land).layout.title.text
    scene = lv.surface_figure(land).layout.scene
    assert scene.xaxis.title.text == f"PC1 ({land.explained_variance_ratio[0]:.1%})"


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
    lines = trace(figure, "fold")
    assert np.array(lines.x, float)[::3].tolist() == [land.path[fold.step, 0] for fold in folds]
    assert f"steps {folds[0].step} and {folds[0].other_step}" in lines.text[0]
    curve = lv.loss_curve_figure(land.run)
    [shape] = curve.layout.shapes
    assert (shape.x0, shape.x1) == (plateau.start, plateau.end)
    [annotation] = curve.layout.annotations
    assert "the best straight line, 0.171" in annotation.text


def test_the_notes_warn_about_variance_and_folds(post_landscapes):
    land = post_landscapes["sin(3x)"]
    small = lv.surface_figure(land).layout.annotations[1].text
    share = land.explained_variance_ratio.sum()
    assert f"{share:.1%} of the variance. Losses checked at 5 steps against the model itself." in small
    assert "the surface can show only one of" in small.replace("<br>", " ")


def test_side_by_side_on_one_scale(run, land):
    other = lv.landscape(run, plane="flat", resolution=4, progress=False)
    figure = lv.surface_figure(land, other)
    assert figure.layout.scene.zaxis.range == figure.layout.scene2.zaxis.range
    assert figure.layout.scene.camera == figure.layout.scene2.camera
    assert [t.scene for t in figure.data if t.name == "surface"] == ["scene", "scene2"]
    low, high = figure.layout.scene.zaxis.range
    for one in (land, other):
        assert low < one.loss.min()
        assert high > one.loss.max()


def test_contours_have_the_same_orientation(land):
    figure = lv.contour_figure(land, step=5)
    contour = trace(figure, "surface")
    assert np.array_equal(contour.z, land.loss)
    assert np.array_equal(contour.x, land.x)
    assert np.array_equal(contour.y, land.y)
    np.testing.assert_allclose(trace(lv.contour_figure(land, log=True), "surface").z, np.log10(land.loss))
    assert trace(figure, "ball").x[0] == land.path[5, 0]
    assert np.array_equal(trace(figure, "trajectory").x, land.path[:, 0])


def test_loss_curves(run):
    other = lv.train("x^2", steps=7, progress=False)
    figure = lv.loss_curve_figure([run, other], step=4)
    assert [t.name for t in figure.data] == ["x^3", "x^3, step 4", "x^2", "x^2, step 4"]
    assert np.array_equal(figure.data[0].y, run.loss)
    assert np.array_equal(figure.data[2].x, other.step)
    assert figure.data[3].y[0] == other.loss[4]


def test_logarithmic_axes_are_ticked_whatever_their_span(run):
    narrow = lv.landscape(run, resolution=3, plane="flat", progress=False)
    for low, high in ((0.2, 0.5), (1e-4, 3.0), (1e-6, 1e30)):
        loss = np.linspace(low, high, 9).reshape(3, 3)
        scale = fit_scale([replace_loss(narrow, loss).loss], log=True)
        bar = scale.colorbar()
        assert 2 <= len(bar["tickvals"]) == len(bar["ticktext"])
        assert scale.low <= bar["tickvals"][0] < bar["tickvals"][-1] <= scale.high
        dtick = scale.axis().get("dtick")
        assert dtick is None or 2 <= (scale.high - scale.low) / dtick <= 10


def test_the_ball_rolls_along_the_run(land):
    figure = lv.animate(land, n_frames=9)
    assert figure.frames[0].name == "0"
    assert figure.frames[-1].name == "60"
    assert len(figure.frames) == 9
    names = [figure.data[i].name for i in figure.frames[0].traces]
    assert names == ["error", "ball"]
    for frame in figure.frames:
        step = int(frame.name)
        assert min(frame.data[1].z) == pytest.approx(land.path_loss[step])
        assert frame.data[0].z[1] == land.path_height[step]
    steps = figure.layout.sliders[0].steps
    assert [step.args[0][0] for step in steps] == [frame.name for frame in figure.frames]
    assert {button.label for button in figure.layout.updatemenus[0].buttons} == {"▶ Play", "❚❚ Pause"}


def test_cells_whose_loss_is_not_finite_stay_open(land):
    loss = land.loss.copy()
    loss[2, 3] = np.inf
    mesh = trace(lv.surface_figure(replace_loss(land, loss)), "surface")
    assert 2 * 7 + 3 not in {*mesh.i, *mesh.j, *mesh.k}
    assert len(mesh.i) == 48 - 6


def replace_loss(land, loss):
    return replace(land, loss=loss)


def all_figures(land):
    return [
        lv.surface_figure(land),
        lv.contour_figure(land),
        lv.loss_curve_figure(land.run),
        lv.animate(land, n_frames=3),
    ]


def test_figures_are_plain_and_round_trip(land):
    for figure in all_figures(land):
        assert type(figure) is go.Figure
        assert json.loads(figure.to_json())["layout"]["modebar"]["remove"] == ["sendChartToCloud"]


@pytest.mark.parametrize(
    ("draw", "cause", "repair"),
    [
        (lambda land: lv.surface_figure(), "needs at least one landscape", "`loss_viz.landscape`"),
        (lambda land: lv.loss_curve_figure([]), "must contain at least one run", "`loss_viz.train`"),
        (lambda land: lv.surface_figure(land, step=61), "from 0 to 60; got 61", "Use None for the last one"),
        (lambda land: lv.contour_figure(land, step=-1), "from 0 to 60; got -1", "Use None for the last one"),
        (
            lambda land: lv.animate(land, n_frames=1),
            "`n_frames` must be a whole number from 2 to 10000, got 1",
            "Use 80",
        ),
        (
            lambda land: lv.surface_figure(replace_loss(land, land.loss - 1), log=True),
            "`log`=True needs losses above 0, the smallest is -",
            "Pass log=False",
        ),
    ],
)
def test_bad_input_is_refused_with_cause_and_repair(land, draw, cause, repair):
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        draw(land)
    assert repair in str(error.value)


def test_what_the_surface_hides_of_a_run_is_dashed_on_it(run):
    land = lv.landscape(run, plane="flat", resolution=9, progress=False)
    figure = lv.surface_figure(land, log=True)
    [dashed] = [trace for trace in figure.data if trace.name == "under the surface"]
    low, high = figure.layout.scene.zaxis.range
    lift = 0.006 * (high - low)
    under = np.log10(land.path_height) - np.log10(land.path_loss) > lift
    assert 0 < under.sum() < len(under)
    np.testing.assert_allclose(np.log10(dashed.z[:-1][under]), np.log10(land.path_height[under]) + lift, rtol=1e-2)
    assert np.isnan(dashed.z[:-1][~under]).all()
    assert np.isnan(dashed.z[-1])
    np.testing.assert_array_equal(dashed.x[:-1], land.path[:, 0])
    near = lv.surface_figure(lv.landscape(run, k=3, resolution=9, progress=False))
    assert "under the surface" not in [trace.name for trace in near.data]
