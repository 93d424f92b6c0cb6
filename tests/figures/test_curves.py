"""Loss curves with a margin below them, named levels, and a logarithmic axis of steps."""

import numpy as np
import pytest

import loss_viz as lv
from loss_viz.diagnostics.margin import Margin
from loss_viz.figures.curves import margin_arrays


def test_the_margin_is_drawn_below_the_loss_at_its_lower_ends(run):
    margin = lv.measure_margin(run, progress=False)
    figure = lv.loss_curve_figure(run, margin=margin, log=True)
    strip = figure.data[-1]
    assert (strip.name, strip.yaxis, figure.layout.yaxis2.type) == ("margin", "y2", "log")
    np.testing.assert_array_equal(strip.x, np.arange(60))
    inside = margin.lower > 0
    np.testing.assert_array_equal(np.array(strip.y)[inside], margin.lower[inside])
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]
    [line] = [shape for shape in figure.layout.shapes if shape.yref == "y2"]
    assert line.y0 == line.y1 == 1


def test_what_lies_beyond_the_range_is_drawn_at_its_ends_and_said():
    nan, inf = np.nan, np.inf
    margin = Margin(np.arange(4), np.array([0, 2, nan, 1024]), np.array([1 / 64, 4, nan, inf]), 9)
    arrays = margin_arrays(margin)
    np.testing.assert_array_equal(arrays["y"], [1 / 64, 2, nan, 1024])
    assert arrays["text"][:2] == ["below 0.0156", "2 to 4"]
    assert arrays["text"][3] == "above 1024"


def test_several_curves_have_their_names_at_their_ends_and_none_overlap(run):
    runs = {"long": run, "same": run, "<b>short": run.cut(slice(0, 10))}
    for time, last in (("linear", 60), ("log", np.log10(60))):
        figure = lv.loss_curve_figure(runs, log=True, time=time)
        assert not figure.layout.showlegend
        names = {name.text: name for name in figure.layout.annotations}
        assert set(names) == {"<b>long</b>", "<b>same</b>", "<b>&lt;b&gt;short</b>"}
        first, second = names["<b>long</b>"], names["<b>same</b>"]
        assert first.x == second.x == pytest.approx(last)
        assert first.y == pytest.approx(np.log10(run.loss[-1]))
        assert abs(first.yshift - second.yshift) >= 15
        assert figure.layout.xaxis.range[1] == pytest.approx(last)
        assert {name.font.color for name in names.values()} == {trace.line.color for trace in figure.data}
    assert names["<b>&lt;b&gt;short</b>"].x == pytest.approx(np.log10(9))


def test_more_runs_than_names_have_room_have_a_legend(run):
    figure = lv.loss_curve_figure([run] * 9)
    assert figure.layout.showlegend
    assert not figure.layout.annotations


def test_a_title_says_what_the_figure_shows(run):
    assert lv.loss_curve_figure(run, title="It waits").layout.title.text == "<b>It waits</b>"
    assert lv.loss_curve_figure(run).layout.title.text is None


def test_a_margin_of_another_run_is_refused(run):
    margin = lv.measure_margin(run, progress=False)
    for runs in ([run, run], run.cut(slice(0, 5))):
        with pytest.raises(ValueError, match="`margin` must be that of the single run that is drawn"):
            lv.loss_curve_figure(runs, margin=margin)


def test_a_level_names_its_plateau_and_markup_in_its_name_is_text(post_runs):
    figure = lv.loss_curve_figure(post_runs["x^3"], levels={"<b>a line": 0.0242})
    assert figure.layout.annotations[0].text == "plateau at 0.0246:<br>&lt;b&gt;a line, 0.0242"


def test_bands_and_names_on_a_logarithmic_axis_of_steps(post_runs):
    run = post_runs["x^3"]
    [plateau] = lv.find_plateaus(run)
    figure = lv.loss_curve_figure(run, time="log")
    assert figure.layout.xaxis.type == "log"
    [band], [name] = figure.layout.shapes, figure.layout.annotations
    assert (band.x0, band.x1) == (plateau.start, plateau.end)
    assert 10**name.x == pytest.approx(np.sqrt(plateau.start * plateau.end))
    flat = lv.Run(run.weights[:50], np.ones(50), run.step[:50], run.objective)
    [band] = lv.loss_curve_figure(flat, time="log").layout.shapes
    assert (band.x0, band.x1) == (1, 49)  # step 0 has no place
    with pytest.raises(ValueError, match="`time` must be one of linear, log"):
        lv.loss_curve_figure(run, time="years")
