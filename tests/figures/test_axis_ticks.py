"""Ticks of the loss axis: a few on every axis, and no property left over from the axis before."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loss_viz.figures.live import CURVE_TICKS, curve_update
from loss_viz.figures.loss_axis import LINEAR_AXIS, Scale, fit_scale, log_axis


def count_ticks(axis, low, high):
    """Return the number of labels on a logarithmic axis."""
    if axis["tickmode"] == "array":
        ticks = np.log10(axis["tickvals"])
        assert (np.diff(ticks) >= 0).all()
        return int(((low - 1e-9 <= ticks) & (ticks <= high)).sum())
    return len(np.arange(np.ceil(low / axis["dtick"]), np.floor(high / axis["dtick"]) + 1))


@given(st.floats(-300, 299), st.floats(0.0, 300))
@example(-1.61, 0.01)
@example(-300.0, 600.0)
@example(-0.30103, 0.3)
@example(-2.0, 0.0)
def test_a_logarithmic_axis_has_two_to_nine_ticks(low, span):
    high = min(low + span, 300.0)
    axis = log_axis(low, high)
    if high - low < 1e-9:  # a constant loss
        low, high = low - 0.5, high + 0.5
    assert 2 <= count_ticks(axis, low, high + 1e-9) <= 10


@pytest.mark.parametrize(
    "losses", [[1e-300, 1e300], [1e-3, 2e-3], [0.5], [1.0, 1.0], [-1.0, 5.0], [0.0, 1e300], [1e-320]]
)
def test_every_axis_sets_the_same_properties_with_the_range_last(losses):
    for log in (False, None):
        axis = fit_scale([np.array(losses)], log=log).axis()
        assert set(LINEAR_AXIS) < set(axis)
        assert list(axis)[-2:] == ["autorange", "range"]  # Plotly converts the range when the type changes
        assert axis["range"][0] < axis["range"][1]
        assert np.isfinite(axis["range"]).all()
    assert set(Scale(0.0, 1.0, log=True).axis()) == set(Scale(0.0, 1.0, log=False).axis())
    assert set(log_axis(-3.0, 1.0)) == set(log_axis(-1.0, 0.0)) == set(LINEAR_AXIS)


@pytest.mark.parametrize("n_decades", [0.001, 0.3, 1.0, 1.9, 2.0, 3.2, 4.5, 8.0, 40.0, 300.0])
def test_the_small_curve_of_the_panel_has_room_for_its_ticks(n_decades):
    loss = np.logspace(-0.5, -0.5 + n_decades, 50)
    layout = curve_update([(np.arange(50), loss)])["curve_layout"]
    axis = {name.removeprefix("yaxis."): value for name, value in layout.items() if name.startswith("yaxis.")}
    assert 2 <= count_ticks(axis, *np.log10(loss[[0, -1]])) <= CURVE_TICKS + 1
