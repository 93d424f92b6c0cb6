"""The panel's numbers as HTML."""

from dataclasses import replace

import loss_viz as lv
from loss_viz.diagnostics.report import summarize_plateaus
from loss_viz.figures.live import ViewState
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.panel.status import draw_width_errors, format_readout


def test_the_readout_shows_the_report_and_the_fit_of_the_plateau(post_landscapes):
    land = post_landscapes["x^3"]
    plateaus, report = summarize_plateaus(land.run_set), lv.assess(land)
    view = ViewState.of(land, fit_scale([land.loss], log=False))
    html = format_readout(view, plateaus, [500])
    assert "now, the best straight line (0.0242)" in html
    assert f"×{report.held_out.median:.2f}" in html
    assert "no measure of fidelity" in html
    assert plateaus.find(500).fit.degree == 1
    late = format_readout(view, plateaus, [1500])
    assert f"{plateaus.plateaus[0].start} – {plateaus.plateaus[0].end}" in late
    assert "…" in format_readout(replace(view, landscape=None), plateaus, [500])


def test_the_error_curve_marks_the_chosen_bandwidth(run):
    land = lv.landscape(run, k=3, resolution=(9, 7), progress=False)
    curve = lv.sigma_curve(land)
    auto, fixed = (draw_width_errors(curve, sigma, ends=(-2.5, 0.0)) for sigma in ("auto", 0.06))
    assert "<circle" not in auto
    assert "<circle" in fixed
    at = curve.error[curve.sigma.tolist().index(0.06)]
    assert f"here ×{10**at:.2f}" in fixed
