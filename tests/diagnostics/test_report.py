"""The report holds what the functions measure, each finding once."""

from dataclasses import replace

import numpy as np
import pytest
from tqdm import tqdm

import loss_viz as lv
from loss_viz.diagnostics import report as report_module
from loss_viz.diagnostics.report import COSINE_LIMITS, Report


@pytest.fixture
def land(run):
    return lv.landscape(run, k=3, resolution=(9, 7), progress=False)


def test_findings_are_those_of_the_functions(post_landscapes):
    land = post_landscapes["sin(3x)"]
    report = lv.assess(land)
    np.testing.assert_array_equal(report.fidelity.factor, lv.fidelity(land).factor)
    np.testing.assert_array_equal(report.held_out.factor, lv.fidelity(land, held_out=True).factor)
    assert report.folds == tuple(lv.find_folds(land))
    assert report.plateaus == (lv.find_plateaus(land.run),)
    [warning] = report.warnings
    worst = max(report.folds, key=lambda fold: fold.factor)
    assert f"step {worst.step} and step {worst.other_step} differ by ×{worst.factor:.2f}" in warning
    names = ["error, median", "held out", "variance", "plateaus", "folds"]
    lines = iter(repr(report).splitlines())
    assert all(any(line.startswith(name) for line in lines) for name in names)  # in this order


@pytest.mark.parametrize("finding", ["fidelity", "held_out", "folds", "plateaus", "cosines", "warnings"])
def test_each_finding_is_measured_once(finding, land, monkeypatch):
    report, calls = lv.assess(land), []
    for name in ("fidelity", "measure_held_out", "find_folds", "find_plateaus"):
        measure = getattr(report_module, name)
        monkeypatch.setattr(report_module, name, lambda *given, f=measure, n=name: calls.append(n) or f(*given))
    assert calls == []
    first = getattr(report, finding)
    assert getattr(lv.assess(land), finding) is first
    assert len(set(calls)) == len(calls)


def test_another_landscape_has_another_report(land):
    assert lv.assess(land) is lv.assess(land)
    assert isinstance(lv.assess(land), Report)
    assert lv.assess(replace(land, loss=2 * land.loss)) is not lv.assess(land)


def test_held_out_fidelity_can_be_interrupted(land):
    class Impatient(tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    fixed = lv.landscape(land.run, sigma=0.05, k=3, resolution=3, progress=False)
    report = lv.assess(fixed)
    with pytest.raises(KeyboardInterrupt):
        report.measure_held_out(Impatient(disable=True))
    assert "held_out" not in vars(report)
    fit = report.measure_held_out(tqdm(disable=True))
    assert fit is report.held_out is report.measure_held_out(Impatient(disable=True))
    np.testing.assert_array_equal(fit.factor, lv.fidelity(fixed, held_out=True).factor)


def test_a_single_plane_has_nothing_to_hold_out(run):
    report = lv.assess(lv.landscape(run, plane="flat", resolution=3, progress=False))
    assert report.held_out is None
    assert [name for name, *_ in report.rows()] == ["error, median"]


def test_a_random_walk_is_cosines_and_the_report_warns(run):
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((400, run.weights.shape[1])), axis=0) * 1e-3
    path = lv.Run(walk, run.objective(walk), np.arange(400), run.objective)
    report = lv.assess(lv.landscape(path, resolution=3, progress=False))
    assert report.cosines[0] > COSINE_LIMITS[0]
    assert report.cosines[1] > COSINE_LIMITS[1]
    assert any("as those of a random walk are" in warning for warning in report.warnings)


def test_a_run_that_is_no_cosine_has_no_warning(post_landscapes):
    land = post_landscapes["x^2"]
    time = land.run.step / land.run.step[-1]
    expected = np.corrcoef(land.path[:, 0], np.cos(np.pi * time))[0, 1] ** 2
    report = lv.assess(land)
    assert report.cosines[0] == pytest.approx(expected)
    assert not any("cosines" in warning for warning in report.warnings)
    other = lv.landscape(land.run, axes="random", resolution=3, progress=False)
    assert np.isnan(lv.assess(other).cosines).all()
