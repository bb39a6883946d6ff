from __future__ import annotations

import pytest

from tests.harness import KINDS, Kind


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of server that a test runs on, where that makes no difference: what clients,
    processes and scripts see of a server does not depend on its worker class.

    tests/contract says so, and has a fixture of this name that has its tests run once on each. A
    test that is about other kinds names them: ``parametrize("kind", [...], indirect=True)``.
    """
    return KINDS[getattr(request, "param", "eventlet")]
