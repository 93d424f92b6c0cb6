"""The best polynomials against closed forms, and the plateaus they match."""

import numpy as np
import pytest
import torch

import loss_viz as lv
from loss_viz.diagnostics.plateaus import PolynomialFit, fit_polynomials
from loss_viz.tasks.regression import build_task


@pytest.fixture
def matched(run):
    """The name of the fit of a plateau at some loss, on a task."""

    def name(target, loss, **settings):
        losses = np.repeat([loss, loss / 1000], [60, 40])
        weights = np.zeros((100, run.weights.shape[1]))
        task = None if target is None else build_task(target, **settings)
        [plateau] = lv.find_plateaus(lv.Run(weights, losses, np.arange(100), run.objective, task))
        assert plateau.level == pytest.approx(loss)
        return plateau.fit and plateau.fit.name

    return name


@pytest.mark.parametrize(
    ("target", "degree", "on_100", "continuum"),
    [("x^2", 0, 0.09249, 4 / 45), ("x^3", 1, 0.02424, 4 / 175), ("sin(3x)", 1, 0.17118, 0.16480)],
)
def test_losses_of_the_best_constant_and_the_best_line(target, degree, on_100, continuum):
    assert fit_polynomials(build_task(target))[degree].loss == pytest.approx(on_100, abs=5e-6)
    fine = build_task(target, n_points=100_000, dtype=torch.float64)
    assert fit_polynomials(fine, degree)[degree].loss == pytest.approx(continuum, rel=1e-3)


def test_each_fit_is_the_best_of_its_degree():
    """Its residual is orthogonal to every power it may use, and its loss is the mean of the squared residual."""
    task = build_task("exp(x) - abs(x)", n_points=17, dtype=torch.float64)
    x, y = task.x.numpy().ravel(), task.y.numpy().ravel()
    fits = fit_polynomials(task)
    assert [fit.degree for fit in fits] == [0, 1, 2, 3, 4, 5]
    for fit in fits:
        assert fit.values.shape == (17,)
        assert fit.loss == pytest.approx(np.mean((y - fit.values) ** 2), rel=1e-12)
        np.testing.assert_allclose((y - fit.values) @ np.vander(x, fit.degree + 1), 0, atol=1e-12)
        polynomial = np.polyfit(x, fit.values, fit.degree)
        np.testing.assert_allclose(np.polyval(polynomial, x), fit.values, atol=1e-12)
    assert np.all(np.diff([fit.loss for fit in fits]) <= 1e-15)


def test_the_task_keeps_its_precision_and_is_fitted_in_float64():
    task = build_task("x^3")
    values = fit_polynomials(task)[3].values
    assert (task.x.dtype, values.dtype) == (torch.float32, np.float64)
    np.testing.assert_allclose(values, np.linspace(-1, 1, 100) ** 3, atol=1e-7)


def test_the_degree_stays_below_the_number_of_points():
    assert [fit.degree for fit in fit_polynomials(build_task("x^3", n_points=3))] == [0, 1, 2]
    assert [fit.degree for fit in fit_polynomials(build_task("x^3"), max_degree=0)] == [0]
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
    targets = ("x", "x^2", "x^3", "sin(3x)")
    names = {target: [plateau.fit.name for plateau in lv.find_plateaus(post_runs[target])] for target in targets}
    assert names == {
        "x": [],
        "x^2": ["the best constant"],
        "x^3": ["the best straight line"],
        "sin(3x)": ["the best straight line"],
    }


def test_the_network_on_the_plateau_of_x3_is_near_the_line(post_runs):
    """Its root mean square distance from the line is at most half the residual of the line."""
    run = post_runs["x^3"]
    [plateau] = lv.find_plateaus(run)
    row = run.nearest_row((plateau.start + plateau.end) // 2)
    assert np.mean((run.predict(row) - plateau.fit.values) ** 2) < plateau.fit.loss / 4


def test_plateaus_compare_by_their_place_alone(post_runs):
    first, second = (lv.find_plateaus(post_runs["x^3"]) for _ in range(2))
    assert first == second
    assert "array" not in repr(first)


def test_a_match_needs_a_level_of_0_8_to_1_3_times_the_loss_of_the_fit(matched):
    line = fit_polynomials(build_task("x^3"))[1].loss
    for ratio in (0.81, 1, 1.29):
        assert matched("x^3", ratio * line) == "the best straight line"
    for ratio in (0.79, 1.31, 1e-9):
        assert matched("x^3", ratio * line) is None


def test_the_nearest_fit_matches_and_of_equal_ones_that_of_lowest_degree(matched):
    losses = [fit.loss for fit in fit_polynomials(build_task("cos(3x)"))]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[3] == pytest.approx(losses[2])
    assert matched("cos(3x)", losses[1]) == "the best constant"
    assert matched("cos(3x)", losses[3]) == "the best parabola"
    assert matched("cos(3x)", losses[5]) == "the best polynomial of degree 4"
    # With a small cubic part both line and cubic are near enough to be in range.
    target = "sign(x) + 0.3x^3"
    line, cubic = (fit_polynomials(build_task(target))[degree].loss for degree in (1, 3))
    assert 1.05 < line / cubic < 1.7
    assert matched(target, line) == "the best straight line"
    assert matched(target, cubic) == "the best cubic"


def test_exact_fits_functions_and_runs_without_a_task(matched):
    zero = build_task(torch.zeros_like)
    assert [fit.loss for fit in fit_polynomials(zero)] == pytest.approx([0] * 6, abs=1e-30)
    assert matched(torch.zeros_like, 0.1) is None
    assert matched("x", 0.01) is None
    assert matched(lambda x: 2 * x**2, 4 * 0.0925) == "the best constant"
    assert matched("x^3", 0.5, n_points=2) is None
    assert matched(None, 0.0242) is None
