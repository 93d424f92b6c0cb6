"""Shared fixtures. loss_viz is imported inside them, because jaxtyping must hook its import first."""

from functools import partial

import pytest
import torch

# The longest files, which begin first, so that two processes end at about the same time.
LONGEST = ("panel/test_browser.py", "export/test_html.py")


def pytest_addoption(parser):
    parser.addoption("--first-parameters", action="store_true", help="run each test with its first parameters only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--first-parameters"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]

    def rank(item):
        path = item.path.as_posix()
        return next((i for i, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=rank)


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


class MadeWhenNeeded(dict):
    """Values that are computed when they are first looked up."""

    def __init__(self, make):
        self.make = make

    def __missing__(self, name):
        return self.setdefault(name, self.make(name))


@pytest.fixture(scope="session")
def post_runs():
    """Return the runs of the post by target, with the defaults."""
    import loss_viz as lv

    return MadeWhenNeeded(partial(lv.train, progress=False))


@pytest.fixture(scope="session")
def post_landscapes(post_runs):
    import loss_viz as lv

    return MadeWhenNeeded(lambda target: lv.landscape(post_runs[target], progress=False))
