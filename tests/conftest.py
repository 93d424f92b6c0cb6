import pytest
import torch

import loss_viz as lv


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # small nets run slower on two


@pytest.fixture(scope="session")
def run():
    """A short run in float64 that falls onto the plateau of x^3 and stays there."""
    return lv.train("x^3", steps=60, dtype=torch.float64, progress=False)


@pytest.fixture(scope="session")
def post_runs():
    """The four runs of the post, at the defaults."""
    return {target: lv.train(target, progress=False) for target in ("x", "x^2", "x^3", "sin(3x)")}


@pytest.fixture(scope="session")
def post_landscapes(post_runs):
    return {target: lv.landscape(run, progress=False) for target, run in post_runs.items()}
