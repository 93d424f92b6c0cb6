"""Plateaus of curves that are known, and of the post's runs."""

import numpy as np
import pytest

import loss_viz as lv


@pytest.fixture
def with_loss(run):
    def make(loss, step=None):
        weights = np.resize(run.weights, (len(loss), run.weights.shape[1]))
        return lv.Run(weights, loss, np.arange(len(loss)) if step is None else step, run.objective)

    return make


def staircase(*pieces):
    return np.concatenate([np.geomspace(start, end, n, endpoint=False) for start, end, n in pieces])


def test_the_runs_of_the_post(post_runs):
    expected = {"x": [], "x^2": [(22, 57, 0.0870)], "x^3": [(61, 1004, 0.0249)], "sin(3x)": [(53, 615, 0.173)]}
    for target, plateaus in expected.items():
        found = lv.find_plateaus(post_runs[target])
        assert len(found) == len(plateaus)
        for plateau, (start, end, level) in zip(found, plateaus, strict=True):
            assert abs(plateau.start - start) < 20
            assert plateau.end == pytest.approx(end, rel=0.15)
            assert plateau.level == pytest.approx(level, rel=0.07)


def test_two_steps_of_a_staircase_and_not_its_floor(with_loss):
    loss = staircase((1, 0.1, 100), (0.1, 0.099, 300), (0.099, 0.01, 100), (0.01, 0.0099, 200), (0.0099, 1e-4, 100))
    loss = np.append(loss, np.full(200, 1e-4))
    spiky = loss.copy()
    spiky[[150, 250, 600]] *= 30
    for curve in (loss, spiky):
        first, second = lv.find_plateaus(with_loss(curve))
        assert (first.start, first.end) == (pytest.approx(100, abs=25), pytest.approx(400, abs=25))
        assert (second.start, second.end) == (pytest.approx(500, abs=25), pytest.approx(700, abs=25))
        assert first.level == pytest.approx(0.0995, rel=0.01)
        assert second.level == pytest.approx(0.00995, rel=0.01)


def test_a_steady_fall_a_tail_and_a_short_run_have_none(with_loss):
    assert lv.find_plateaus(with_loss(np.geomspace(1, 1e-4, 1000))) == []
    tail = np.append(np.geomspace(1, 1e-3, 200), np.geomspace(1e-3, 8e-4, 800))
    assert lv.find_plateaus(with_loss(tail)) == []
    assert lv.find_plateaus(with_loss(np.ones(12))) == []
    assert lv.find_plateaus(with_loss(np.linspace(1, -1, 500))) == []


def test_steps_are_training_steps(with_loss):
    loss = staircase((1, 0.1, 100), (0.1, 0.099, 300), (0.099, 0.001, 100))
    [plateau] = lv.find_plateaus(with_loss(loss, step=np.arange(500) * 7))
    assert plateau.start == pytest.approx(700, abs=100)
    assert plateau.end == pytest.approx(2800, abs=100)
