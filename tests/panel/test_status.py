"""The panel's numbers as plain data."""

import json
from dataclasses import replace

import numpy as np

import loss_viz as lv
from loss_viz.diagnostics.report import summarize_plateaus
from loss_viz.figures.live import ViewState
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.panel.status import list_tiles, width_error_arrays


def test_the_tiles_show_the_report_and_the_fit_of_the_plateau(post_landscapes):
    land = post_landscapes["x^3"]
    plateaus, report = summarize_plateaus(land.run_set), lv.assess(land)
    view = ViewState.of(land, fit_scale([land.loss], log=False))
    shown = list_tiles(view, plateaus, [500])
    text = json.dumps(shown, ensure_ascii=False)
    assert "now, the best straight line (0.0242)" in text
    assert f"×{report.held_out.median:.2f}" in text
    assert "no measure of fidelity" in text
    assert shown["chip"]["ok"]
    assert plateaus.find(500).fit.degree == 1
    late = json.dumps(list_tiles(view, plateaus, [1500]), ensure_ascii=False)
    assert f"{plateaus.plateaus[0].start} – {plateaus.plateaus[0].end}" in late
    coarse = list_tiles(replace(view, landscape=None), plateaus, [500])
    assert ["error here", "…", ""] in coarse["tiles"]
    assert coarse["chip"] is None


def test_the_error_curve_names_the_chosen_bandwidth(run):
    land = lv.landscape(run, k=3, resolution=(9, 7), progress=False)
    curve = lv.sigma_curve(land)
    auto, fixed = (width_error_arrays(curve, sigma) for sigma in ("auto", 0.06))
    assert "here" not in auto["text"]
    at = curve.error[curve.sigma.tolist().index(0.06)]
    assert f"here ×{10**at:.2f}" in fixed["text"]
    known = np.isfinite(curve.error)
    np.testing.assert_array_equal(fixed["sigma"], curve.sigma[known])
    np.testing.assert_array_equal(fixed["error"], curve.error[known])
    assert fixed["auto"] == curve.auto
