"""The kinds of servers that tests run on."""

from __future__ import annotations

import pytest

from tests.harness import KINDS, Kind


@pytest.fixture(scope="module", params=["eventlet", "gevent", "threads", "asgi"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Whoever asks for this runs once on each: what clients, processes and scripts see of a server
    does not depend on its worker class. (``parametrize(..., indirect=True)`` names other kinds.)"""
    return KINDS[request.param]
