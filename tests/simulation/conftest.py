"""How many histories: --histories N, or $STICKY_HISTORIES; from which seed: --first-seed N."""

import os

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("simulation")
    group.addoption("--histories", type=int, help="simulated histories to run (default: 1500)")
    group.addoption("--first-seed", type=int, default=0, help="the seed of the first of them")


def pytest_collection_modifyitems(config, items):
    if wanted(config) is None:
        return
    for item in items:
        if "seeds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(0))


def wanted(config):
    """What was asked for; None when nothing was."""
    return (
        config.getoption("--histories", None) or int(os.environ.get("STICKY_HISTORIES", 0)) or None
    )


@pytest.fixture
def seeds(request):
    """The seeds of the histories to run."""
    first = request.config.getoption("--first-seed", 0)
    return range(first, first + (wanted(request.config) or 1500))
