import numpy as np
import pytest

import loss_viz as lv
from loss_viz.diagnostics.fidelity import Fidelity

TARGETS = ("x", "x^2", "x^3", "sin(3x)")


def test_factors_are_ratios_either_way(run):
    land = lv.landscape(run, resolution=3, sigma=0.1, progress=False)
    fit = lv.fidelity(land)
    for t, factor in enumerate(fit.factor):
        ratio = land.path_height[t] / run.loss[t]
        assert factor == pytest.approx(max(ratio, 1 / ratio), rel=1e-12)
    assert fit.start == fit.factor[0]
    assert fit.max == fit.factor.max()
    assert fit.median == np.median(fit.factor)


def test_nine_steps_of_ten_are_within_p90():
    assert Fidelity(np.arange(10), np.arange(1.0, 11.0)).p90 == 9.0
    assert Fidelity(np.arange(10), np.append(np.ones(9), np.inf)).p90 == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_defaults_are_faithful(target, seed, post_landscapes):
    """The figures that the documentation states: the default seed and five others for each task."""
    if seed is None:
        land = post_landscapes[target]
    else:
        land = lv.landscape(lv.train(target, seed=seed, progress=False), resolution=2, progress=False)
    fit = lv.fidelity(land)
    assert fit.median <= 1.02
    assert fit.p90 <= 1.25
    assert fit.start <= 1.10


@pytest.mark.slow
def test_one_flat_plane_is_not(post_runs):
    for target, median, start in (("x^3", 1.05, 9.0), ("sin(3x)", 4.0, 2.0)):
        fit = lv.fidelity(lv.landscape(post_runs[target], plane="flat", center="mean", resolution=2, progress=False))
        assert fit.median > median
        assert fit.start > start


@pytest.mark.slow
def test_explained_variance_does_not_measure_fidelity(post_runs):
    land = lv.landscape(post_runs["sin(3x)"], plane="flat", center="mean", resolution=2, progress=False)
    assert land.explained_variance_ratio.sum() > 0.97
    assert lv.fidelity(land).median > 4
