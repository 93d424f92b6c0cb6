"""The surface does not depend on which steps carry planes."""

import numpy as np
import pytest

import loss_viz as lv


@pytest.fixture(scope="module")
def jittery():
    """Return a run whose velocity jitters from step to step near its end."""
    return lv.train("sin(3x)", progress=False)


def largest_change(run):
    """Return the largest change of the surface near the run, in decades, with twice as many anchors."""
    few, many = (
        lv.landscape(run, resolution=31, n_anchors=n, plane="local", k=100, progress=False) for n in (200, 400)
    )
    return np.abs(np.log10(few.loss / many.loss))[few.support >= 0.1].max()


def test_twice_as_many_anchors_give_the_same_surface(jittery, monkeypatch):
    assert largest_change(jittery) < 0.1
    monkeypatch.setattr("loss_viz.planes.local_planes.MAX_AVERAGED", 0)  # planes of single steps
    assert largest_change(jittery) > 0.2
