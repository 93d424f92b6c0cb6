"""Paths that pass over themselves, at known places and with known losses."""

from dataclasses import replace

import numpy as np
import pytest

import loss_viz as lv
from loss_viz.landscapes.landscape import Landscape

# The losses of these runs are made up.
pytestmark = pytest.mark.filterwarnings("ignore:The losses of the run differ from those of the model:RuntimeWarning")


@pytest.fixture
def with_loss(run):
    """The landscape of a flat figure of eight, or of any path, whose losses are given."""

    def make(path, loss, **settings) -> Landscape:
        weights = np.zeros((len(path), run.weights.shape[1]))
        weights[:, :2] = path
        other = lv.Run(weights, loss, np.arange(len(path)) * 3, run.objective)
        return lv.landscape(other, k=1, resolution=3, progress=False, **settings)

    return make


ENDS = 0.3, 2 * np.pi + 0.15  # it crosses itself at pi and 2 pi, and does not come back to its start


def eight(n=400):
    t = np.linspace(*ENDS, n)
    return np.column_stack([3 * np.sin(t), np.sin(2 * t)])


def test_a_crossing_at_two_losses_is_one_fold_for_each_pass(with_loss):
    land = with_loss(eight(), np.geomspace(1.0, 0.01, 400))
    first, second = lv.find_folds(land)
    crossing = [3 * np.abs(np.linspace(*ENDS, 400) - place).argmin() for place in (np.pi, 2 * np.pi)]
    for fold, here, there in ((first, *crossing), (second, *crossing[::-1])):
        assert fold.step == pytest.approx(here, abs=12)
        assert fold.other_step == pytest.approx(there, abs=12)
        assert fold.start <= fold.step <= fold.end
        assert fold.factor == pytest.approx(100 ** (np.pi / (ENDS[1] - ENDS[0])), rel=0.1)


def test_a_crossing_at_one_loss_is_none(with_loss):
    assert lv.find_folds(with_loss(eight(), 0.1 + eight()[:, 0] ** 2)) == []
    assert lv.find_folds(with_loss(eight(), np.full(400, 0.5))) == []


def test_a_smooth_fall_along_a_line_is_none_unless_kernels_are_wide(with_loss):
    line = np.column_stack([np.linspace(0, 4, 300), np.zeros(300)])
    loss = np.geomspace(1.0, 0.001, 300)
    assert lv.find_folds(with_loss(line, loss)) == []
    [fold] = lv.find_folds(with_loss(line, loss, sigma=0.2))
    assert fold.factor == pytest.approx(10 ** (3 * 0.2), rel=0.05)  # what lies within one width of a step


def test_two_runs_that_cross(run, with_loss):
    there = np.column_stack([np.linspace(-2, 2, 101), np.zeros(101)])
    weights = [np.zeros((101, run.weights.shape[1])) for _ in range(2)]
    weights[0][:, :2], weights[1][:, :2] = there, there[:, ::-1]
    runs = [lv.Run(w, run.objective(w), np.arange(101), run.objective) for w in weights]
    lifted = [
        lv.Run(w, r.loss * scale, r.step, run.objective) for w, r, scale in zip(weights, runs, (1, 5), strict=True)
    ]
    honest = lv.landscape(runs, k=1, resolution=3, progress=False)
    assert all(fold.factor < 2 for fold in lv.find_folds(honest))
    run_set = replace(honest.run_set, runs=tuple(lifted))
    land = replace(honest, run_set=run_set, path_loss=run_set.loss)
    folds = lv.find_folds(land)
    assert {fold.run for fold in folds} == {0, 1}
    for fold in folds:
        assert fold.other_run == 1 - fold.run
        assert fold.step == pytest.approx(50, abs=3)
        assert fold.factor == pytest.approx(5.0, rel=0.2)


def test_losses_of_both_signs_and_zero(with_loss):
    folds = lv.find_folds(with_loss(eight(), np.linspace(-1, 1, 400)))
    assert folds
    assert max(fold.factor for fold in folds) == np.inf
    assert lv.find_folds(with_loss(eight(), np.zeros(400))) == []
