"""Updates of the live figures hold what the figures of a landscape draw."""

import numpy as np
import pytest

import loss_viz as lv
from loss_viz.figures.live import (
    LIVE_RADIUS,
    ViewState,
    build_templates,
    choose_camera,
    describe_balls,
    factor_update,
    margin_update,
    update_all,
)
from loss_viz.figures.loss_axis import BALL_RADIUS, fit_scale


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, k=3, resolution=(9, 7), progress=False)


@pytest.fixture(scope="module")
def view(land):
    return ViewState.of(land, fit_scale([land.loss, land.path_loss], log=False))


def test_a_click_selects_the_step_below_it(land, view):
    x, y = land.path[40].tolist()
    assert view.find_step({"pane": "surface", "trace": "surface", "index": 3, "x": x, "y": y}) == 40
    assert view.find_step({"pane": "surface", "trace": "surface", "index": 3, "x": x + 99, "y": y}) is None
    assert view.find_step({"pane": "curve", "trace": "factor", "index": 7, "x": 0, "y": 0}) == 7
    assert view.find_step({"pane": "fit", "trace": "network", "index": 7, "x": 0, "y": 0}) is None
    assert view.find_step({"pane": "surface", "trace": "fold", "index": 7, "x": x, "y": y}) is None


def test_updates_are_the_arrays_of_the_figure(land, view):
    updates = update_all(view, [], min_support=0.0, camera=choose_camera(view))
    figure = lv.surface_figure(land, step=13)
    traces = {trace.name: trace for trace in figure.data}
    for name in ("surface", "trajectory"):
        for axis in "xyz":
            np.testing.assert_array_equal(updates[f"surface_{name}"][axis], traces[name][axis])
    balls = describe_balls(land.run_set, [], view)["panes"]["surface"]
    [places] = balls["runs"]
    assert traces["error"].z == pytest.approx([places["loss"][13], places["height"][13]])
    larger = LIVE_RADIUS / BALL_RADIUS
    for axis in "xy":
        around = traces["ball"][axis] - places[axis][13]
        np.testing.assert_allclose(balls["shape"][axis], larger * around, rtol=1e-9, atol=1e-12)
    span = balls["high"] - balls["low"]
    np.testing.assert_allclose(balls["shape"]["z"] * span, larger * (traces["ball"].z - places["loss"][13]), atol=1e-12)
    layout, scene = updates["surface_layout"], figure.layout.scene
    assert layout["title.text"] == figure.layout.annotations[0].text
    assert layout["scene.xaxis.title.text"] == scene.xaxis.title.text
    assert tuple(layout["scene.zaxis.range"]) == scene.zaxis.range
    np.testing.assert_array_equal(updates["curve_factor"]["y"], lv.fidelity(land).factor)


def test_every_update_has_its_trace(land, view):
    panes = build_templates(land.run_set)
    known = {f"{pane}_{trace.uid or trace.name}" for pane, figure in panes.items() for trace in figure.data}
    known |= {f"{pane}_layout" for pane in panes}
    second = ViewState(land.sampling, land, land.sigma, view.scale, land, land)
    assert known >= update_all(second, [], min_support=0.0, camera=choose_camera(second)).keys()
    assert describe_balls(land.run_set, [], second)["panes"].keys() == {"surface", "beside"}
    assert {"beside_ball", "beside_surface"} <= known
    assert known >= margin_update(lv.measure_margin(land.run, progress=False)).keys()


def test_what_is_unknown_before_a_landscape_is_complete_is_nan(land, view):
    early = ViewState(land.sampling, land, land.sigma, view.scale)
    updates = update_all(early, [], min_support=0.0, camera=choose_camera(early))
    assert np.isnan(updates["surface_trajectory"]["customdata"][:, 2]).all()
    assert np.isnan(updates["curve_factor"]["y"]).all()
    assert "…" in updates["surface_layout"]["title.text"]
    assert len(updates["surface_fold"]["x"]) == 0
    assert factor_update(land.run_set)["curve_layout"]["yaxis2.range"][1] == pytest.approx(1.05 * np.log10(2))
