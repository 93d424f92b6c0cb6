"""Which notebooks plain `pytest` leaves out; the site runs them too, so that `.ci/run` need not."""

import pytest

SLOW = {"05_what_is_the_plateau.ipynb"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")
