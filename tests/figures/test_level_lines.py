"""Level lines: where the drawn surface has a round loss, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import reference

import loss_viz as lv
from loss_viz.figures.level_lines import LEVEL_LIFT
from loss_viz.figures.loss_axis import CASING_LIFT, Scale, fit_scale, write_loss


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, k=3, resolution=(17, 13), progress=False)


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


def count_crossed(heights, levels):
    """Return how many pairs of a drawn triangle and a level have corners on both sides."""
    count = 0
    for row in range(heights.shape[0] - 1):
        for column in range(heights.shape[1] - 1):
            (a, b), (d, c) = heights[row : row + 2, column : column + 2].tolist()
            for corners in ((a, b, c), (a, c, d)):
                count += sum(min(corners) < level <= max(corners) < np.inf for level in levels)
    return count


def count_segments(lines):
    known = np.isfinite(np.array(lines.x, float))
    return np.count_nonzero(known[1:] & known[:-1])


@pytest.mark.parametrize("log", [False, True])
def test_lines_and_names_lie_where_the_surface_has_their_loss(land, log):
    figure = lv.surface_figure(land, log=log)
    scale = fit_scale([land.loss, land.path_loss], log=log)
    drawn, lift = scale.draw(land.loss), LEVEL_LIFT * (scale.high - scale.low)
    lines, names = trace(figure, "levels"), figure.layout.scene.annotations
    points = np.column_stack([lines.x, lines.y, scale.draw(np.array(lines.z, float))])
    known = np.isfinite(points).all(axis=1)
    levels = scale.draw(scale.levels())
    tolerance = 1e-9 * (scale.high - scale.low)
    for x, y, z in points[known]:
        assert np.abs(levels + lift - z).min() < tolerance
        assert reference.height_of_triangles(land, drawn, (x, y)) + lift == pytest.approx(z, abs=tolerance)
    assert len(names) >= 2
    for name in names:
        [level] = scale.draw(np.array([float(name.text)]))
        assert name.z == pytest.approx(level + lift, abs=tolerance)
        assert reference.height_of_triangles(land, drawn, (name.x, name.y)) == pytest.approx(level, abs=tolerance)
    assert count_segments(lines) == count_crossed(drawn, levels) > 50


def test_lines_end_at_cells_that_stay_open(land):
    loss = land.loss.copy()
    loss[6, 8] = np.inf
    levels = fit_scale([loss, land.path_loss], log=False).levels()
    n_segments = count_segments(trace(lv.surface_figure(replace(land, loss=loss)), "levels"))
    assert n_segments == count_crossed(loss, levels) < count_crossed(land.loss, levels)


def test_a_constant_surface_has_no_lines(land):
    flat = replace(land, loss=np.full_like(land.loss, 0.3))
    assert not lv.surface_figure(flat).layout.scene.annotations


@pytest.mark.parametrize(
    ("low", "high", "log", "losses"),
    [
        (-3.5, -0.4, True, [0.001, 0.01, 0.1]),
        (-9.5, -0.5, True, [1e-9, 1e-6, 1e-3]),
        (-1.3, -0.2, True, [0.1, 0.2, 0.5]),
        (-0.15, 0.1, True, [0.8, 1.0, 1.2]),
        (0.0, 1.0, False, [0.2, 0.4, 0.6, 0.8]),
        (-3.0, 5.0, False, [-2.0, 0.0, 2.0, 4.0]),
        (0.0, 0.07, False, [0.02, 0.04, 0.06]),
    ],
)
def test_levels_are_a_few_round_losses(low, high, log, losses):
    assert Scale(low, high, log).levels().tolist() == pytest.approx(losses)


@pytest.mark.parametrize("loss", [1e-300, 1e-320, 2e-7, 0.0005, 0.2, 3.0, 20000.0, 5e5, 1e300])
def test_a_written_loss_is_the_loss(loss):
    plain = write_loss(loss).translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    plain = plain.replace("·10", "e") if "·" in plain else "1e" + plain[2:] if plain != f"{loss:.4g}" else plain
    assert float(plain) == pytest.approx(loss)


def test_the_casing_lies_below_the_line_of_the_run(land):
    figure = lv.surface_figure(land, log=True)
    scale = fit_scale([land.loss, land.path_loss], log=True)
    line, casing = trace(figure, "trajectory"), trace(figure, "casing")
    np.testing.assert_array_equal([line.x, line.y], [casing.x, casing.y])
    lift = np.log10(casing.z) - np.log10(land.path_loss)
    np.testing.assert_allclose(lift, CASING_LIFT * (scale.high - scale.low), rtol=1e-6)
    assert (np.array(casing.z) < np.array(line.z)).all()
    assert casing.line.width > line.line.width
