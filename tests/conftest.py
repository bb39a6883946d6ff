from __future__ import annotations

import pytest

from tests.harness import KINDS, Kind


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` the tests of a module stay in one process, because they share
    servers; those of the contract suite once for each kind."""
    for item in items:
        module = item.nodeid.partition("::")[0]
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        kind = parameters.get("kind", "")
        item.add_marker(pytest.mark.xdist_group(f"{module} {getattr(kind, 'name', kind)}".strip()))


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of server that a test runs on, where that makes no difference: what clients,
    processes and scripts see of a server does not depend on its worker class.

    tests/contract says so, and has a fixture of this name that has its tests run once on each. A
    test that is about other kinds names them: ``parametrize("kind", [...], indirect=True)``.
    """
    return KINDS[getattr(request, "param", "eventlet")]
