"""Which notebooks plain `pytest` leaves out; the site runs them too, so that `.ci/run` need not."""

import pytest

QUICK = ("01_", "02_", "03_")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb" and not item.path.name.startswith(QUICK):
            item.add_marker("slow")
