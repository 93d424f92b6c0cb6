"""Shared fixtures. loss_viz is imported inside them, because jaxtyping must hook its import first."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip browser tests before their fixtures start, where Chromium or Playwright is missing."""
    if item.get_closest_marker("browser"):
        from lab import MISSING

        if MISSING:
            pytest.skip(MISSING)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # small networks are slower on two


@pytest.fixture(scope="session")
def run():
    """Return a short run in float64 that reaches the plateau of x^3 and stays there."""
    import loss_viz as lv

    return lv.train("x^3", steps=60, dtype=torch.float64, progress=False)


@pytest.fixture(scope="session")
def post_runs():
    """Return the four runs of the post, with the defaults."""
    import loss_viz as lv

    return {target: lv.train(target, progress=False) for target in ("x", "x^2", "x^3", "sin(3x)")}


@pytest.fixture(scope="session")
def post_landscapes(post_runs):
    import loss_viz as lv

    return {target: lv.landscape(run, progress=False) for target, run in post_runs.items()}
