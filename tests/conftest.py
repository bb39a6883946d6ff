from __future__ import annotations

import os

import pytest

from tests.harness import KINDS, Kind

# eventlet loads all of dnspython, a third of what the start of a worker takes; no test needs it.
os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")

SHARING = ("tests/contract/", "tests/process/", "tests/e2e/", "tests/unit/test_packaging.py")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` the tests of a module stay in one process where they share servers
    or what was built; those of the contract suite once for each kind."""
    for item in items:
        module = item.nodeid.partition("::")[0]
        if not module.startswith(SHARING):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        kind = parameters.get("kind", "")
        item.add_marker(pytest.mark.xdist_group(f"{module} {getattr(kind, 'name', kind)}".strip()))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where groups are asked for and pytest-xdist makes none, servers would be started once more in
    each of its processes, and tests that exclude each other would run at the same time."""
    if session.config.getoption("loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError(f"pytest-xdist does not know the group of {item.nodeid}")


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of server that a test runs on, where that makes no difference: what clients,
    processes and scripts see of a server does not depend on its worker class.

    tests/contract says so, and has a fixture of this name that has its tests run once on each. A
    test that is about other kinds names them: ``parametrize("kind", [...], indirect=True)``.
    """
    return KINDS[getattr(request, "param", "eventlet")]
