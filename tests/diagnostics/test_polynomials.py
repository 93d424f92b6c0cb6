"""The best polynomials against closed forms, and the names they give to plateaus."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import loss_viz as lv
from loss_viz.diagnostics.plateaus import PolynomialFit, fit_polynomials, match_polynomial
from loss_viz.tasks.regression import build_task


@pytest.fixture
def named(run):
    """The name of the level at a loss, on a task."""

    def name(target, loss, **settings):
        level = match_polynomial(replace(run, task=build_task(target, **settings)), lv.Plateau(0, 50, loss))
        return level and level.name

    return name


@pytest.mark.parametrize(
    ("target", "degree", "on_100", "continuum"),
    [("x^2", 0, 0.09249, 4 / 45), ("x^3", 1, 0.02424, 4 / 175), ("sin(3x)", 1, 0.17118, 0.16480)],
)
def test_the_worth_of_the_best_constant_and_the_best_line(target, degree, on_100, continuum):
    assert fit_polynomials(build_task(target))[degree].loss == pytest.approx(on_100, abs=5e-6)
    fine = build_task(target, n_points=100_000, dtype=torch.float64)
    assert fit_polynomials(fine, degree)[degree].loss == pytest.approx(continuum, rel=1e-3)


def test_each_fit_is_the_best_of_its_degree():
    """What it leaves over is orthogonal to every power that it may use, and its loss is the mean of that squared."""
    task = build_task("exp(x) - abs(x)", n_points=17, dtype=torch.float64)
    x, y = task.x.numpy().ravel(), task.y.numpy().ravel()
    levels = fit_polynomials(task)
    assert [level.degree for level in levels] == [0, 1, 2, 3, 4, 5]
    for level in levels:
        assert level.values.shape == (17,)
        assert level.loss == pytest.approx(np.mean((y - level.values) ** 2), rel=1e-12)
        np.testing.assert_allclose((y - level.values) @ np.vander(x, level.degree + 1), 0, atol=1e-12)
        polynomial = np.polyfit(x, level.values, level.degree)
        np.testing.assert_allclose(np.polyval(polynomial, x), level.values, atol=1e-12)
    assert np.all(np.diff([level.loss for level in levels]) <= 1e-15)


def test_the_task_is_left_in_its_own_precision_and_fitted_in_float64():
    task = build_task("x^3")
    values = fit_polynomials(task)[3].values
    assert (task.x.dtype, values.dtype) == (torch.float32, np.float64)
    np.testing.assert_allclose(values, np.linspace(-1, 1, 100) ** 3, atol=1e-7)


def test_few_points_are_fitted_as_far_as_they_go():
    assert [level.degree for level in fit_polynomials(build_task("x^3", n_points=3))] == [0, 1, 2]
    assert [level.degree for level in fit_polynomials(build_task("x^3"), max_degree=0)] == [0]
    with pytest.raises(ValueError, match=r"`max_degree` must be a whole number from 0 to 100, got -1\. With 1,"):
        fit_polynomials(build_task("x"), max_degree=-1)


def test_names():
    assert [PolynomialFit(degree, 1.0, np.zeros(2)).name for degree in range(6)] == [
        "the best constant",
        "the best straight line",
        "the best parabola",
        "the best cubic",
        "the best polynomial of degree 4",
        "the best polynomial of degree 5",
    ]


def test_the_plateaus_of_the_post(post_runs):
    names = {
        target: [match_polynomial(run, plateau).name for plateau in lv.find_plateaus(run)]
        for target, run in post_runs.items()
    }
    assert names == {
        "x": [],
        "x^2": ["the best constant"],
        "x^3": ["the best straight line"],
        "sin(3x)": ["the best straight line"],
    }


def test_what_the_net_draws_on_the_plateau_of_x3_is_near_the_line(post_runs):
    """Half of what the line leaves over at most, in the root mean square."""
    run = post_runs["x^3"]
    [plateau] = lv.find_plateaus(run)
    level = match_polynomial(run, plateau)
    row = int(np.searchsorted(run.step, (plateau.start + plateau.end) // 2))
    assert np.mean((run.predict(row) - level.values) ** 2) < level.loss / 4


def test_a_name_needs_a_loss_between_0_8_and_1_3_of_the_fit(named):
    line = fit_polynomials(build_task("x^3"))[1].loss
    for ratio in (0.81, 1, 1.29):
        assert named("x^3", ratio * line) == "the best straight line"
    for ratio in (0.79, 1.31, 1e-9):
        assert named("x^3", ratio * line) is None


def test_the_nearest_fit_gives_the_name_and_of_equal_ones_the_lowest_degree(named):
    losses = [level.loss for level in fit_polynomials(build_task("cos(3x)"))]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[3] == pytest.approx(losses[2])
    assert named("cos(3x)", losses[1]) == "the best constant"
    assert named("cos(3x)", losses[3]) == "the best parabola"
    assert named("cos(3x)", losses[5]) == "the best polynomial of degree 4"
    # A small cubic part: line and cubic are near enough for both to be in range, and told apart.
    target = "sign(x) + 0.3x^3"
    line, cubic = (fit_polynomials(build_task(target))[degree].loss for degree in (1, 3))
    assert 1.05 < line / cubic < 1.7
    assert named(target, line) == "the best straight line"
    assert named(target, cubic) == "the best cubic"


def test_exact_fits_and_functions_of_the_user(named, run):
    zero = build_task(torch.zeros_like)
    assert [level.loss for level in fit_polynomials(zero)] == pytest.approx([0] * 6, abs=1e-30)
    assert named(torch.zeros_like, 0.1) is None
    assert named("x", 0.01) is None
    assert named(lambda x: 2 * x**2, 4 * 0.0925) == "the best constant"
    assert named("x^3", 0.5, n_points=2) is None
    assert match_polynomial(replace(run, task=None), lv.Plateau(0, 50, 0.0242)) is None
