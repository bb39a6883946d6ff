"""The kinds of servers that tests run on, and which tests share a process of pytest-xdist."""

from __future__ import annotations

import pytest

from tests.harness import KINDS, Kind


@pytest.fixture(scope="module", params=["eventlet", "asgi"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Whoever asks for this runs once on each: what clients, processes and scripts see of a server
    does not depend on its worker class. (``parametrize(..., indirect=True)`` names other kinds.)"""
    return KINDS[request.param]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one module and one kind share servers, so they run in one process."""
    for item in items:
        assert isinstance(item, pytest.Function)
        kind = item.callspec.params.get("kind", "") if hasattr(item, "callspec") else ""
        item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__} {kind}"))
