"""What every worker class has to keep: the promises, and each row of the contract about HTTP.

Every test here that asks for ``kind`` runs once on each class; nothing here is about one of them. A
class has three minutes for all of it (on two cores; ``pytest tests/contract -k gevent``). What does
not depend on the class is in tests/process, and runs once.
"""

from __future__ import annotations

import pytest

from tests.harness import KINDS, Kind


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of them."""
    return KINDS[request.param]
